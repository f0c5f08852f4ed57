"""``make learn``: draws, trains, asks and reports, stage by stage; a finished stage is not done again.

    python -m training_recipes.learn.run learn

Every stage is a command that a reader can type; it runs in the folder that holds ``learn``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

HERE: Final = Path(__file__).parent
SEED: Final = 42
BLIND: Final = ("--blind", "true", "--max_steps", "150", "--save_steps", "30")
"""The same recipe without images, long enough for whatever the text gives away."""


@dataclass(frozen=True)
class Stage:
    """A command and its name; ``plan`` of the run is a list of them."""

    name: str
    command: tuple[str, ...]


def plan(out: Path, slides: int, quick: Sequence[str] = ()) -> list[Stage]:
    """Returns the stages of a run.

    Args:
        out: folder of the run.
        slides: phantom slides to draw.
        quick: options for every training, such as ``--max_steps 2``.
    """
    python, recipes = sys.executable, HERE.parent
    data, crossed = str(out / "data"), str(out / "crossed")

    def module(name: str, *more: str) -> tuple[str, ...]:
        return (python, "-m", name, *more)

    def train(recipe: str, config: str, **paths: str) -> tuple[str, ...]:
        given = [part for name, value in paths.items() for part in (f"--{name}", str(out / value))]
        return (python, str(recipes / f"{recipe}.py"), "--config", str(HERE / f"{config}.yaml"), *given)

    build = ("build", "phantom", "--slides", str(slides), "--size", "112", "--seed", str(SEED), "--out", data)
    prompt = str(HERE / "learn.yaml")

    def sft(name: str, data: str, model: str, *more: str) -> tuple[str, ...]:
        config = "sft-answer" if name == "sft-answer" else "sft-describe"
        paths = {"data": data, "model_name_or_path": model, "output_dir": name}
        return (*train("sft", config, **paths), "--prompt", prompt, *more, *quick)

    grpo = train("grpo", "grpo", data="answers", model_name_or_path="sft-answer/final", output_dir="grpo")
    return [
        Stage("draw", module("scale_vqa_eval.cli", *build)),
        Stage("questions", module("training_recipes.learn.folders", data, str(out))),
        Stage("model", module("training_recipes.learn.model", crossed, str(out / "model"))),
        Stage("blind-crossed", sft("blind-crossed", "crossed", "model", *BLIND)),
        Stage("blind-leaky", sft("blind-leaky", "leaky", "model", *BLIND)),
        Stage("sft-describe", sft("sft-describe", "crossed", "model")),
        Stage("sft-answer", sft("sft-answer", "answers", "sft-describe/final")),
        Stage("grpo", (*grpo, "--prompt", prompt, *quick)),
        Stage("report", module("training_recipes.learn.report", str(out))),
    ]


def run(stages: Sequence[Stage], out: Path) -> dict[str, float]:
    """Runs the stages that are not done; returns seconds by stage.

    Raises:
        click.ClickException: where a stage fails; its output is in ``<out>/<stage>.log``. Also where one was done by
            another command: figures of a short trial must not pass for those of the whole run.
    """
    times_file, done_file = out / "seconds.json", out / "commands.json"
    seconds: dict[str, float] = json.loads(times_file.read_text()) if times_file.is_file() else {}
    commands: dict[str, list[str]] = json.loads(done_file.read_text()) if done_file.is_file() else {}
    others = [stage.name for stage in stages if stage.name in seconds and commands.get(stage.name) != _typed(stage)]
    if others:
        raise click.ClickException(f"{out} holds a run of other settings ({', '.join(others)}): remove it (rm -r)")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for stage in stages:
        if stage.name in seconds:
            click.echo(f"{stage.name}: done before, in {seconds[stage.name]:.0f} s", err=True)
            continue
        log, start = out / f"{stage.name}.log", time.monotonic()
        click.echo(f"{stage.name}: {' '.join(stage.command)}", err=True)
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(stage.command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise click.ClickException(f"stage {stage.name} failed ({log}):\n{tail}")
        seconds[stage.name] = round(time.monotonic() - start, 1)
        commands[stage.name] = _typed(stage)
        done_file.write_text(json.dumps(commands, indent=1) + "\n", encoding="utf-8")
        times_file.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")
        click.echo(f"{stage.name}: {seconds[stage.name]:.0f} s", err=True)
    return seconds


def _typed(stage: Stage) -> list[str]:
    """Returns a stage's command without the interpreter, whose place says nothing of the figures."""
    return list(stage.command[1:])


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("learn"))
@click.option("--slides", type=click.IntRange(12), default=300, show_default=True)
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Steps of every training, for a trial.")
def main(out: Path, slides: int, max_steps: int | None) -> None:
    """Train the model of `make learn` in OUT and write results.json, results.md and curves.png there."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    quick = () if max_steps is None else ("--max_steps", str(max_steps))
    seconds = run(plan(out, slides, quick), out)
    click.echo(f"{out / 'results.md'}: all stages took {sum(seconds.values()) / 60:.1f} min", err=True)


if __name__ == "__main__":
    main()
