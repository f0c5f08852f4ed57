"""``make learn``: draws, trains, asks and reports, stage by stage; a finished stage is not repeated.

    python -m training_recipes.learn.run learn

Every stage is a command that can be typed; it runs in the folder that holds ``learn``. Trainings that do not depend
on each other run at the same time and share the cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import click

from scale_vqa_eval.files import write_json

HERE: Final = Path(__file__).parent
SEED: Final = 42
FIRST: Final = ("--learning_rate", 1.5e-3, "--warmup_steps", 30, "--max_steps", 250, "--eval_strategy", "no")
"""SFT from random weights, on single views."""
BLIND: Final = (*FIRST, "--blind", "true", "--blind_share", 0, "--max_steps", 150)
"""SFT without images and with the right letters, long enough to learn whatever the text reveals."""
Track = dict[str, list[str]]
"""Stages that follow each other: name -> command."""
_FINISHED: Final = Lock()


def plan(out: Path, slides: int, seeds: int, quick: Sequence[str] = ()) -> list[list[Track]]:
    """Returns steps that follow each other; each is a list of tracks that may run at the same time.

    ``quick`` are options for every training, such as ``--max_steps 2``.
    """
    build = ["build", "phantom", "--slides", slides, "--size", 84, "--seed", SEED, "--out", out / "data"]
    make = "training_recipes.learn.data"

    def train(recipe: str, data: str, model: str, name: str, *more: object) -> dict[str, list[object]]:
        paths = ["--data", out / data, "--model_name_or_path", out / model, "--output_dir", out / name]
        settings = ["--config", HERE / f"{recipe}.yaml", "--prompt", HERE / "learn.yaml"]
        return {name: [HERE.parent / f"{recipe}.py", *settings, *paths, *more, *quick]}

    def taught(seed: int) -> dict[str, list[object]]:
        first, order = f"sft-single-{seed}", ("--seed", seed)
        single = train("sft", "taught-single", f"model-{seed}", first, *FIRST, *order)
        return single | train("sft", "taught", f"{first}/final", f"sft-{seed}", *order)

    draw = {"draw": ["-m", "scale_vqa_eval.cli", *build], "questions": ["-m", make, "folders", out / "data", out]}
    models: dict[str, list[object]] = {
        f"model-{seed}": ["-m", make, "model", out / "taught", out / f"model-{seed}", "--seed", seed]
        for seed in range(seeds)
    }
    twins = [train("sft", kind, "model-0", f"blind-{kind}", *BLIND) for kind in ("crossed", "leaky")]
    steps: list[list[dict[str, list[object]]]] = [
        [draw | models],
        [*(taught(seed) for seed in range(seeds)), twins[0] | twins[1]],
        [
            train("grpo", kind, f"sft-{seed}/final", f"grpo-{kind}-{seed}", "--seed", seed)
            for seed in range(seeds)
            for kind in ("crossed", "single")
        ],
        [{f"report-{seeds}": ["-m", "training_recipes.learn.report", out, "--seeds", seeds]}],
    ]
    return [[{name: [*map(str, parts)] for name, parts in track.items()} for track in step] for step in steps]


def run(stages: Mapping[str, Sequence[str]], out: Path) -> dict[str, float]:
    """``run_steps`` for stages that follow each other."""
    return run_steps([[stages]], out)


def run_steps(steps: Sequence[Sequence[Mapping[str, Sequence[str]]]], out: Path) -> dict[str, float]:
    """Runs the stages that are not finished with this Python; returns seconds of processor time by stage.

    Raises:
        click.ClickException: if a stage fails; its output is in ``<out>/<stage>.log``. Also if one was finished by
            another command: figures of a short trial must not pass for those of a complete run.
    """
    file = out / "stages.json"
    finished: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    stages = {name: list(command) for step in steps for track in step for name, command in track.items()}
    others = [name for name, command in stages.items() if finished.get(name, {}).get("command", command) != command]
    if others:
        raise click.ClickException(f"{out} holds a run with other settings ({', '.join(others)}): remove it (rm -r)")
    cores = len(os.sched_getaffinity(0))
    for step in steps:
        tracks = min(cores, len(step))
        with ThreadPoolExecutor(tracks) as pool:
            list(pool.map(partial(_track, out, finished, cores // tracks), step))
    return {name: finished[name].get("processor", finished[name]["seconds"]) for name in stages}


def _track(out: Path, finished: dict[str, Any], threads: int, track: Mapping[str, Sequence[str]]) -> None:
    """Runs stages one after another, unless they are finished, and records how long each took."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = str(threads)
    for name, command in track.items():
        if name in finished:
            click.echo(f"{name}: finished before, in {finished[name]['seconds']:.0f} s", err=True)
            continue
        log, start = out / f"{name}.log", time.monotonic()
        click.echo(f"{name}: python {' '.join(command)}", err=True)
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise click.ClickException(f"stage {name} failed ({log}):\n{tail}")
        seconds, used = time.monotonic() - start, usage.ru_utime + usage.ru_stime
        with _FINISHED:
            finished[name] = {"seconds": round(seconds, 1), "processor": round(used, 1), "command": list(command)}
            write_json(out / "stages.json", finished)
        click.echo(f"{name}: {seconds:.0f} s, {used:.0f} s of processor time", err=True)


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("learn"))
@click.option("--slides", type=click.IntRange(12), default=120, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Models trained, from seed 0 on.")
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Steps of every training, for a trial.")
def main(out: Path, slides: int, seeds: int, max_steps: int | None) -> None:
    """Train the models of `make learn` in OUT and write results.json, results.md and curves.png there."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    quick = () if max_steps is None else ("--max_steps", str(max_steps))
    seconds = run_steps(plan(out, slides, seeds, quick), out)
    click.echo(f"{out / 'results.md'}: {sum(seconds.values()) / 60:.1f} min of processor time in all", err=True)


if __name__ == "__main__":
    main()
