"""``make learn``: draws, trains, asks and reports, stage by stage; a finished stage is not repeated.

    python -m training_recipes.learn.run learn

Every stage is a command that can be typed; it runs in the folder that holds ``learn``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.files import write_json

HERE: Final = Path(__file__).parent
SEED: Final = 42
BLIND: Final = ("--blind", "true", "--max_steps", "150", "--save_steps", "30")
"""The same recipe without images, long enough to learn whatever the text reveals."""


def plan(out: Path, slides: int, quick: Sequence[str] = ()) -> dict[str, list[str]]:
    """Returns the command of each stage; ``quick`` are options for every training, such as ``--max_steps 2``."""
    build = ["build", "phantom", "--slides", slides, "--size", 112, "--seed", SEED, "--out", out / "data"]
    make, recipes = "training_recipes.learn.data", HERE.parent

    def train(config: str, data: str, model: str, name: str, *more: str) -> list[object]:
        recipe = recipes / ("grpo.py" if config == "grpo" else "sft.py")
        paths = ["--data", out / data, "--model_name_or_path", out / model, "--output_dir", out / name]
        return [recipe, "--config", HERE / f"{config}.yaml", *paths, "--prompt", HERE / "learn.yaml", *more, *quick]

    stages: dict[str, list[object]] = {
        "draw": ["-m", "scale_vqa_eval.cli", *build],
        "questions": ["-m", make, "folders", out / "data", out],
        "model": ["-m", make, "model", out / "crossed", out / "model"],
        "blind-crossed": train("sft-describe", "crossed", "model", "blind-crossed", *BLIND),
        "blind-leaky": train("sft-describe", "leaky", "model", "blind-leaky", *BLIND),
        "sft-describe": train("sft-describe", "crossed", "model", "sft-describe"),
        "sft-answer": train("sft-answer", "answers", "sft-describe/final", "sft-answer"),
        "grpo": train("grpo", "answers", "sft-answer/final", "grpo"),
        "report": ["-m", "training_recipes.learn.report", out],
    }
    return {name: [str(part) for part in command] for name, command in stages.items()}


def run(stages: Mapping[str, Sequence[str]], out: Path) -> dict[str, float]:
    """Runs the stages that are not finished with this Python; returns seconds by stage.

    Raises:
        click.ClickException: if a stage fails; its output is in ``<out>/<stage>.log``. Also if one was finished by
            another command: figures of a short trial must not pass for those of a complete run.
    """
    finished_file = out / "stages.json"
    finished: dict[str, Any] = json.loads(finished_file.read_text()) if finished_file.is_file() else {}
    others = [name for name, command in stages.items() if finished.get(name, {}).get("command", command) != command]
    if others:
        raise click.ClickException(f"{out} holds a run with other settings ({', '.join(others)}): remove it (rm -r)")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name, command in stages.items():
        if name in finished:
            click.echo(f"{name}: finished before, in {finished[name]['seconds']:.0f} s", err=True)
            continue
        log, start = out / f"{name}.log", time.monotonic()
        click.echo(f"{name}: python {' '.join(command)}", err=True)
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment)
        if done.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise click.ClickException(f"stage {name} failed ({log}):\n{tail}")
        finished[name] = {"seconds": round(time.monotonic() - start, 1), "command": list(command)}
        write_json(finished_file, finished)
        click.echo(f"{name}: {finished[name]['seconds']:.0f} s", err=True)
    return {name: finished[name]["seconds"] for name in stages}


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
