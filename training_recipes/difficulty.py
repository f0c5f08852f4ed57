"""Samples several answers per question and writes how many are right.

GRPO can then leave out questions that all rollouts, or none, answer correctly: their advantage is zero.

    python training_recipes/difficulty.py --data scale-vqa --split train --model M --n 8 --out difficulty.jsonl
    accelerate launch training_recipes/grpo.py --config ... --difficulty difficulty.jsonl

The rollouts come from ``scale-vqa predict``, which resumes after an interruption.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.rewards import accuracy_reward
from training_recipes.rewards import read_rollouts


def write_rates(data: str, config: str | None, split: str, rollouts: Path, out: Path) -> None:
    """Writes the rates of the questions of a split, and reports how many are useful for GRPO.

    Raises:
        InputError: if a question has no answer.
    """
    questions, (drawn, _) = read_questions(data, split, config), read_rollouts(rollouts)
    if missing := [question.id for question in questions if not drawn.get(question.id)]:
        found = f"none for {len(missing)}, the first {preview(missing[0])}"
        hint = "run predict again: it continues"
        raise InputError(Problem(str(rollouts), "answers to every question", found, hint))
    rates = [
        (question.id, int(sum(accuracy_reward(text, question.letter) for text in drawn[question.id])))
        for question in questions
    ]
    lines = [json.dumps({"id": name, "right": right, "n": len(drawn[name])}) + "\n" for name, right in rates]
    atomic_write(out, "".join(lines), "name another --out")
    some = sum(0 < right < len(drawn[name]) for name, right in rates)
    print(f"{out}: {some} of {len(questions)} questions are neither always right nor always wrong", file=sys.stderr)


@click.command()
@click.option("--data", required=True, help="Release folder, Hub id or question file.")
@click.option("--config", default=None, help="Config of a release folder.")
@click.option("--split", default="train", show_default=True)
@click.option("--model", default=None, help="Model to sample from; not needed if --rollouts is complete.")
@click.option("--backend", default="transformers", show_default=True)
@click.option("--n", "count", default=8, show_default=True, help="Rollouts per question.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option(
    "--rollouts", type=click.Path(path_type=Path), default=None, help="Predictions file.  [default: beside --out]"
)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def main(
    data: str,
    config: str | None,
    split: str,
    model: str | None,
    backend: str,
    count: int,
    temperature: float,
    rollouts: Path | None,
    out: Path,
    more: tuple[str, ...],
) -> None:
    """Sample rollouts and write how many are right per question; options after -- go to `scale-vqa predict`."""
    rollouts = rollouts or out.with_suffix(".rollouts.jsonl")
    if model is not None:
        from scale_vqa_eval.predict.command import predict

        asked = ["--data", data, "--split", split, "--backend", backend, "--model", model, "--out", str(rollouts)]
        asked += ["--n", str(count), "--temperature", str(temperature)]
        asked += ["--config", config] if config is not None else []
        predict.main([*asked, *more], standalone_mode=False)
    write_rates(data, config, split, rollouts, out)


if __name__ == "__main__":
    from training_recipes.run import report_errors

    report_errors(main)
