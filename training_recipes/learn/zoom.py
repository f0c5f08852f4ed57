"""``make zoom-gym``: a tiny model learns where to look by GRPO, beside a twin that sees another patient's slides.

    python -m training_recipes.learn.zoom zoom-gym

Supervised steps teach it to see and to call the tools, at random places; what GRPO adds is measured on slides that
were drawn with another seed. A finished stage is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.files import atomic_write, write_json
from scale_vqa_eval.text import interval, percent
from scale_vqa_eval.zoom.questions import read_zoom_questions
from scale_vqa_eval.zoom.score import read_run, run_figures
from training_recipes.learn.run import HERE, run

RECIPES: Final = HERE.parent
KIND: Final = "named-piece"
PIXELS: Final = ("--looks", "1", "--look-px", "96", "--overview-px", "128")
ASKED: Final = {
    "before GRPO": ("model", None),
    "after GRPO": ("grpo/final", None),
    "after GRPO, overview only": ("grpo/final", "overview-only"),
    "after GRPO, a random look instead": ("grpo/final", "random-walk"),
    "after GRPO, another patient's slide": ("grpo/final", "wrong-slide"),
    "twin, another patient's slide": ("twin/final", "wrong-slide"),
    "twin, the slide itself": ("twin/final", None),
}
"""Row of the table -> model and control."""


def plan(out: Path, slides: int, unseen: int, quick: Sequence[str]) -> dict[str, list[str]]:
    """Returns the command of each stage; ``quick`` are options of both trainings."""
    build = ["-m", "scale_vqa_eval.cli", "build", "zoom", "--finest", "40x", "--workers", 2]
    train = [RECIPES / "grpo_zoom.py", "--config", RECIPES / "configs" / "zoom-cpu-tiny.yaml", "--data", out / "zoom"]
    train += ["--model_name_or_path", out / "model", *quick]
    stages: dict[str, list[Any]] = {
        "draw": [*build, "--synthetic", slides, "--seed", 42, "--out", out / "zoom"],
        "draw-unseen": [*build, "--synthetic", unseen, "--seed", 43, "--out", out / "unseen"],
        "grpo": [*train, "--output_dir", out / "grpo"],
        "twin": [*train, "--output_dir", out / "twin", "--control", "wrong-slide"],
    }
    for number, (model, control) in enumerate(ASKED.values()):
        ask = ["-m", "scale_vqa_eval.cli", "predict", "--zoom", "--data", out / "unseen", "--backend", "transformers"]
        ask += ["--model", out / model, "--out", out / f"run-{number}.jsonl", *PIXELS, "--batch-size", "32"]
        ask += [
            "--prompt",
            RECIPES / "configs" / "prompts" / "zoom-short.yaml",
            *(["--ablate", control] * bool(control)),
        ]
        stages[f"ask-{number}"] = ask
    stages["report"] = ["-m", "training_recipes.learn.zoom", out, "--report-only"]
    return {name: [str(part) for part in command] for name, command in stages.items()}


def report(out: Path) -> str:
    """Writes results.json, results.md and curves.png; returns the table."""
    questions, _ = read_zoom_questions(str(out / "unseen"), None)
    found = {name: run_figures(read_run(out / f"run-{number}.jsonl", questions)) for number, name in enumerate(ASKED)}
    write_json(out / "results.json", found)
    lines = ["| model and what it sees | accuracy (%) | evidence in view (%) | looks |", "|---|---|---|---|"]
    for name, figures in found.items():
        kind = figures["by_kind"][KIND]
        hits = _share(kind["evidence"]) if figures["evidence"] else "-"
        lines.append(f"| {name} | {_share(kind['accuracy'])} | {hits} | {figures['looks']:.2f} |")
    table = "\n".join([*lines, ""])
    atomic_write(out / "results.md", table)
    draw(out)
    return table


def draw(out: Path) -> None:
    """Draws the mean reward of both trainings over their steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        for name, label in (("grpo", "the slide itself"), ("twin", "another patient's slide (twin)")):
            log = json.loads((out / name / "final" / "zoom_training.json").read_text(encoding="utf-8"))["log"]
            values = [entry["reward"] for entry in log if "reward" in entry]
            (line,) = axes.plot(values, ".", alpha=0.3)
            means = [sum(values[max(0, at - 9) : at + 1]) / len(values[max(0, at - 9) : at + 1])
                     for at in range(len(values))]  # fmt: skip
            axes.plot(means, color=line.get_color(), label=label)
        axes.set(xlabel="GRPO steps", ylabel="reward of rollouts (mean of 10 steps)", ylim=(0, 1))
        axes.legend(frameon=False)
        figure.savefig(out / "curves.png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)


def _share(figures: Mapping[str, Any]) -> str:
    return f"{percent(figures['mean'])} {interval(figures['interval'])}"


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("zoom-gym"))
@click.option("--slides", type=click.IntRange(4), default=64, show_default=True, help="Slides to learn from.")
@click.option("--unseen", type=click.IntRange(4), default=48, show_default=True, help="Slides to be asked about.")
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Steps of every part, for a trial.")
@click.option("--report-only", is_flag=True, hidden=True)
def main(out: Path, slides: int, unseen: int, max_steps: int | None, report_only: bool) -> None:
    """Train the model of `make zoom-gym` in OUT and write results.json, results.md and curves.png there."""
    out = out.absolute()
    if not report_only:
        out.mkdir(parents=True, exist_ok=True)
        short = ("max_steps", "warm_up", "warm_up_seeing") if max_steps else ()
        seconds = run(
            plan(out, slides, unseen, [part for name in short for part in (f"--{name}", str(max_steps))]), out
        )
        click.echo(f"{out / 'results.md'}: all stages took {sum(seconds.values()) / 60:.1f} min", err=True)
    click.echo(report(out) if report_only else (out / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
