"""Keeps the questions that a model can still learn from: some of its answers are right, and some are wrong.

A question that every rollout gets right, or none, has no advantage to learn from in GRPO.

    python training_recipes/difficulty.py --data scale-vqa --split train --model M --n 8 --out difficulty.jsonl
    accelerate launch training_recipes/grpo.py --config ... --difficulty difficulty.jsonl

The rollouts are made by ``scale-vqa predict``, which goes on where it was interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.rewards import accuracy_reward
from training_recipes.preflight import Unfit
from training_recipes.rollouts import read_rollouts


def learnable(rows: Any, path: str | Path) -> tuple[Any, list[Unfit]]:
    """Keeps the rows that were right in some rollouts and wrong in others.

    Args:
        rows: what ``load_rows`` gave.
        path: file of lines ``{"id", "right", "n"}``.

    Raises:
        InputError: where the file is none, or lacks rows.
    """
    rates = read_rates(path)
    ids = rows["id"]
    unknown = [identity for identity in ids if identity not in rates]
    if unknown:
        found = f"none for {len(unknown)} rows, the first {preview(unknown[0])}"
        raise InputError(Problem(str(path), "a rate for every row", found, "make it of the split that is trained on"))
    kept, left_out = [], []
    for place, identity in enumerate(ids):
        right, n = rates[identity]
        if 0 < right < n:
            kept.append(place)
        else:
            left_out.append(Unfit(identity, f"right in {right} of {n} rollouts: nothing to learn from"))
    if not kept:
        expected = "questions right in some rollouts and wrong in others"
        raise InputError(Problem(str(path), expected, "none", "draw more rollouts, or train by SFT first"))
    return rows.select(kept), left_out


def read_rates(path: str | Path) -> dict[str, tuple[int, int]]:
    """Reads a difficulty file: row id -> (right answers, answers).

    Raises:
        InputError: with the line that is wrong.
    """
    rates: dict[str, tuple[int, int]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        found, hint = preview(str(error), 160), "run training_recipes/difficulty.py"
        raise InputError(Problem(str(path), "a difficulty file", found, hint)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rates[row["id"]] = (int(row["right"]), int(row["n"]))
        except (ValueError, KeyError, TypeError) as error:
            expected = '{"id": ..., "right": ..., "n": ...}'
            raise InputError(
                Problem(f"{path}, line {number}", expected, preview(line), "make the file again")
            ) from error
    return rates


@click.command()
@click.option("--data", required=True, help="Release folder, Hub id or question file.")
@click.option("--config", default=None, help="Config of a release folder.")
@click.option("--split", default="train", show_default=True)
@click.option("--model", default=None, help="Model that answers; left out where --rollouts is whole.")
@click.option("--backend", default="transformers", show_default=True)
@click.option("--n", "count", default=8, show_default=True, help="Rollouts a question.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option(
    "--rollouts", type=click.Path(path_type=Path), default=None, help="Predictions file; default beside --out."
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
    """Draw rollouts and write how often each question is right; what follows -- goes to `scale-vqa predict`."""
    rollouts = rollouts or out.with_suffix(".rollouts.jsonl")
    if model is not None:
        from scale_vqa_eval.predict.command import predict

        asked = ["--data", data, "--split", split, "--backend", backend, "--model", model, "--out", str(rollouts)]
        asked += ["--n", str(count), "--temperature", str(temperature)]
        asked += ["--config", config] if config is not None else []
        predict.main([*asked, *more], standalone_mode=False)
    write_rates(data, config, split, rollouts, out)


def write_rates(data: str, config: str | None, split: str, rollouts: Path, out: Path) -> None:
    """Writes the rate of each question of a split, and says how many can be learnt from.

    Raises:
        InputError: where a question has no answer.
    """
    questions = read_questions(data, split, config)
    drawn = read_rollouts(rollouts).responses
    without = [question.id for question in questions if not drawn.get(question.id)]
    if without:
        found = f"none for {len(without)}, the first {preview(without[0])}"
        raise InputError(Problem(str(rollouts), "answers to every question", found, "run predict again: it goes on"))
    lines, middle = [], 0
    for question in questions:
        right = sum(accuracy_reward(text, question.letter) for text in drawn[question.id])
        n = len(drawn[question.id])
        middle += 0 < right < n
        lines.append(json.dumps({"id": question.id, "right": int(right), "n": n}) + "\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(out)
    print(f"{out}: {middle} of {len(questions)} questions are neither always right nor always wrong", file=sys.stderr)


if __name__ == "__main__":
    from training_recipes.launch import reported

    reported(main)
