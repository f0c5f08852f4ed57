"""``make learn``: draws, trains, asks and reports, stage by stage; a finished stage is not repeated.

    python -m training_recipes.learn.run learn

Every stage is a command that can be typed; it runs in the folder that holds ``learn``. Trainings that do not depend
on each other run at the same time and share the cores. The last stage asks, scores and draws what was trained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import Any, Final

import click

from scale_vqa_eval.files import write_json
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.predictions import join, read_predictions
from scale_vqa_eval.scoring.score import score_answers
from scale_vqa_eval.text import interval, percent
from training_recipes.learn.data import CONFIG, JOINT

HERE: Final = Path(__file__).parent
PROMPT: Final = str(HERE / "learn.yaml")
SEED: Final = 42
FIRST: Final = ("--learning_rate", 1.5e-3, "--warmup_steps", 30, "--max_steps", 250, "--eval_strategy", "no")
"""SFT from random weights, on single views."""
BLIND: Final = (*FIRST, "--blind", "true", "--blind_share", 0, "--max_steps", 150)
"""SFT without images and with the right letters, long enough to learn whatever the text reveals."""
Track = dict[str, list[str]]
"""Stages that follow each other: name -> command."""
_FINISHED: Final = Lock()
LONGEST: Final = "40"
"""Most tokens of an answer."""
KINDS: Final = ("crossed", "single")
CONTROLS: Final = {"shuffled": "images of another patient", "blind": "no images (blind)"}
TRAINED: Final = {
    "sft": "SFT alone",
    "grpo-crossed": "GRPO on cross-scale questions",
    "grpo-single": "GRPO on single-view questions",
}
LOGGED: Final = {
    "reward": "reward of rollouts",
    "entropy": "entropy (nats per token)",
    "frac_reward_zero_std": "questions with equal rewards",
}
CURVES: Final = ("eval_accuracy", "eval_reward", *LOGGED)
CHANCE: Final = 25.0
CROSSED: Final = "#2f6db3"
LEAKY: Final = "#b5502a"
OTHERS: Final = ("#3f9e8f", "#7a5ba8", "#9a9a9a")
Curve = tuple[list[int], list[float]]
"""Steps and values."""


def plan(out: Path, slides: int, seeds: int, quick: Sequence[str] = ()) -> list[list[Track]]:
    """Returns steps that follow each other; each is a list of tracks that may run at the same time.

    ``quick`` are options for every training, such as ``--max_steps 2``.
    """
    build = ["build", "phantom", "--slides", slides, "--size", 84, "--seed", SEED, "--out", out / "data"]
    make = "training_recipes.learn.data"

    def train(recipe: str, data: str, model: str, name: str, *more: object) -> dict[str, list[object]]:
        paths = ["--data", out / data, "--model_name_or_path", out / model, "--output_dir", out / name]
        settings = ["--config", HERE / f"{recipe}.yaml", "--prompt", PROMPT]
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
        [{f"results-{seeds}": ["-m", "training_recipes.learn.run", out, "--seeds", seeds, "--report"]}],
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


def tested(model: Path, data: Path, out: Path, ablation: str | None) -> dict[str, Any]:
    """Returns accuracy, interval and the rest on the test split, and the share of questions with both features named.

    The model answers as ``scale-vqa predict`` lets it; a finished file of answers is left as it is.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = ["--data", str(data), "--config", CONFIG, "--split", "test", "--backend", "transformers"]
    asked += ["--model", str(model), "--prompt", PROMPT, "--max-tokens", LONGEST, "--batch-size", "64"]
    asked += ["--ablate", ablation] if ablation else []
    predict.main([*asked, "--out", str(out)], standalone_mode=False)
    questions = read_questions(data, "test", CONFIG)
    full = score_answers(join(read_predictions(out), questions))
    result = {key: full[key] for key in ("accuracy", "interval", "n", "clusters")}
    result |= {"unparsed": full["unparsed"]["rate"], "named": named(out, questions)}
    return result | {"by_dimension": {key: part["accuracy"] for key, part in full["by_dimension"].items()}}


def named(answers: Path, questions: Iterable[Question]) -> float:
    """Returns the share of questions whose features are all named rightly: what a perfect decision would reach."""
    asked = {question.id: _phrases(question.rationale or "") for question in questions}
    lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    return mean(asked[line["id"]] <= _phrases(line["response"]) for line in lines)


def _phrases(text: str) -> set[str]:
    clauses = text.partition("</think>")[0].removeprefix("<think>").split(JOINT)
    return {" ".join(word for word in clause.split() if word not in LETTERS) for clause in clauses}


def logged(run: Path, name: str) -> Curve:
    """Returns a value that the trainer logged, such as ``reward`` or the ``eval_accuracy`` of validations."""
    record = json.loads((run / "training_metadata.json").read_text(encoding="utf-8"))
    pairs = [(entry["step"], entry[name]) for entry in record["log"] if entry.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def said(run: Path, data: Path) -> Curve:
    """Returns ``named`` of a run's validations."""
    files = sorted((run / "validation").glob("answers-*.jsonl"))
    questions = list(read_questions(data, "val", CONFIG))
    return [int(file.stem.partition("-")[2]) for file in files], [named(file, questions) for file in files]


def results(out: Path, seeds: int) -> dict[str, Any]:
    """Lets every model answer the test split and returns the figures by seed, with what the trainers logged."""

    def test(data: str, runs: Sequence[str], ablation: str | None = None) -> list[dict[str, Any]]:
        files = [out / "answers" / f"{run}-{data}-{ablation or 'seen'}.jsonl" for run in runs]
        models = [out / run / "final" for run in runs]
        return [tested(model, out / data, file, ablation) for model, file in zip(models, files, strict=True)]

    runs = {name: [f"{name}-{seed}" for seed in range(seeds)] for name in TRAINED}
    grpo = [out / run for run in runs["grpo-crossed"]]
    return {
        "test": {TRAINED[name]: {kind: test(kind, runs[name]) for kind in KINDS} for name in TRAINED},
        "controls": {shown: test("crossed", runs["grpo-crossed"], name) for name, shown in CONTROLS.items()},
        "twins": {kind: test(kind, [f"blind-{kind}"], "blind") for kind in ("crossed", "leaky")},
        "grpo": [{"named": said(run, out / "crossed")} | {name: logged(run, name) for name in CURVES} for run in grpo],
    }


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the figures as tables; figures of several seeds are separated by commas."""
    before, after = (found["test"][name]["crossed"] for name in ("SFT alone", TRAINED["grpo-crossed"]))
    shown = {"after SFT, with images": before, "after GRPO, with images": after}
    shown |= {f"after GRPO, {name}": parts for name, parts in found["controls"].items()}
    shown |= {f"trained and asked blind, {kind} options": parts for kind, parts in found["twins"].items()}
    title = f"{after[0]['n']} cross-scale questions on {after[0]['clusters']} unseen slides"
    lines = [f"| {title} | accuracy (%) | 95% interval | both named (%) | unparsed (%) |", "|---|---|---|---|---|"]
    for name, parts in shown.items():
        cells = [_by_seed(parts, "accuracy"), ", ".join(interval(part["interval"]) for part in parts)]
        lines.append(_row(name, *cells, _by_seed(parts, "named"), _by_seed(parts, "unparsed")))
    lines += ["", "| accuracy (%) | cross-scale test | single-view test |", "|---|---|---|"]
    for name, tests in found["test"].items():
        lines.append(_row(name, *(_by_seed(tests[kind], "accuracy") for kind in KINDS)))
    lines += ["", "| over GRPO | first four steps | last four steps |", "|---|---|---|"]
    for name, label in LOGGED.items():
        values = [curves[name][1] for curves in found["grpo"]]
        pieces = (slice(4), slice(-4, None))
        lines.append(_row(label, *(", ".join(f"{mean(value[piece]):.3f}" for value in values) for piece in pieces)))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _by_seed(parts: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(percent(part[key]) for part in parts)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws accuracy and what is named over GRPO, and reward, zero-variance share and entropy of its rollouts."""
    from scale_vqa_eval.plots import rendered

    green, violet, grey = OTHERS

    def plot(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for seed, curves in enumerate(found["grpo"]):
            for name, colour, dash, label in (
                ("eval_accuracy", CROSSED, "-", "greedy accuracy with images"),
                ("named", grey, "--", "both features named rightly"),
            ):
                values = [100 * value for value in curves[name][1]]
                left.plot(curves[name][0], values, dash, marker=".", color=colour, label=None if seed else label)
        ends = {f"in the end, {shown} (test)": parts for shown, parts in found["controls"].items()}
        ends |= {f"blind twin, {kind} options (test)": parts for kind, parts in found["twins"].items()}
        colours, widths = (green, violet, "#111111", LEAKY), (3.6, 2.4, 1.2, 1.2)  # lines may lie on each other
        for (label, parts), colour, width in zip(ends.items(), colours, widths, strict=True):
            accuracy = 100 * mean(part["accuracy"] for part in parts)
            left.axhline(accuracy, color=colour, linewidth=width, linestyle=":", label=label)
        left.axhline(CHANCE, color="#444444", linewidth=0.8)
        left.set(xlabel="GRPO steps", ylabel="% on validation slides", ylim=(0, 102), xlim=(0, None))
        left.set_title("What GRPO learns: to decide by both features", loc="left", fontsize=10.5)
        for (name, label), colour in zip(LOGGED.items(), (CROSSED, green, grey), strict=True):
            for seed, curves in enumerate(found["grpo"]):
                right.plot(*curves[name], color=colour, linewidth=1, alpha=0.8, label=None if seed else label)
        greedy = mean(curves["eval_reward"][1][0] for curves in found["grpo"])
        right.axhline(greedy, color="#111111", linewidth=1, linestyle="--", label="greedy reward after SFT")
        right.set(xlabel="GRPO steps", ylim=(0, 1.02), xlim=(0, None))
        right.set_title("Rollouts, each seed", loc="left", fontsize=10.5)
        for axes in (left, right):
            axes.set_xticks(found["grpo"][0]["eval_accuracy"][0])  # the validated steps
            axes.legend(frameon=False, fontsize=8.5)

    path.write_bytes(rendered(plot, (11.5, 4.4), 10, "png")[0])


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("learn"))
@click.option("--slides", type=click.IntRange(12), default=120, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Models trained, from seed 0 on.")
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Steps of every training, for a trial.")
@click.option("--report", is_flag=True, help="Only ask the trained models and write the results.")
def main(out: Path, slides: int, seeds: int, max_steps: int | None, report: bool) -> None:
    """Train the models of `make learn` in OUT and write results.json, results.md and curves.png there."""
    out = out.absolute()
    if report:
        found = results(out, seeds)
        (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "results.md").write_text(as_markdown(found), encoding="utf-8")
        draw(found, out / "curves.png")
        return click.echo(as_markdown(found))
    out.mkdir(parents=True, exist_ok=True)
    quick = () if max_steps is None else ("--max_steps", str(max_steps))
    seconds = run_steps(plan(out, slides, seeds, quick), out)
    click.echo(f"{out / 'results.md'}: {sum(seconds.values()) / 60:.1f} min of processor time in all", err=True)


if __name__ == "__main__":
    main()
