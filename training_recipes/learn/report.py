"""Asks, scores and draws what ``make learn`` trained: results.json, results.md and curves.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

import click

from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.answers import join
from scale_vqa_eval.scoring.predictions import read_predictions
from scale_vqa_eval.scoring.score import score_answers
from scale_vqa_eval.text import interval, percent
from training_recipes.learn.data import CONFIG

PROMPT: Final = str(Path(__file__).with_name("learn.yaml"))
CHANCE: Final = 25.0
LOGGED: Final = {
    "reward": "reward of sampled answers",
    "frac_reward_zero_std": "share of questions with equal rewards",
    "entropy": "entropy (nats per token)",
}
"""What is read from each GRPO step, and how it is named."""
CROSSED: Final = "#2f6db3"
LEAKY: Final = "#b5502a"
_LINES: Final = ((CROSSED, "-"), (CROSSED, "--"), (LEAKY, "--"))
_SMOOTH: Final = 5
SHORT: Final = 40
LONG: Final = 72
"""Most tokens of an answer that names the question's own features, and of one that names all that is to be seen."""
SHOWN: Final = {None: "with images", "blind": "blind", "shuffled": "with another patient's images"}


def ask(model: Path, data: Path, split: str, out: Path, ablation: str | None, longest: int) -> Path:
    """Lets a model answer a split as ``scale-vqa predict`` does; a finished file is left as it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = ["--data", str(data), "--config", CONFIG, "--split", split, "--backend", "transformers"]
    asked += ["--model", str(model), "--prompt", PROMPT, "--max-tokens", str(longest), "--batch-size", "64"]
    asked += ["--ablate", ablation] if ablation else []
    predict.main([*asked, "--out", str(out)], standalone_mode=False)
    return out


def scored(answers: Path, data: Path, split: str) -> dict[str, Any]:
    """Returns accuracy, reward, interval, the unparsed and accuracy by dimension, as ``scale-vqa score`` does."""
    full = score_answers(join(read_predictions(answers), read_questions(data, split, CONFIG)))
    found = {key: full[key] for key in ("accuracy", "reward", "interval", "n", "clusters")}
    found["unparsed"] = full["unparsed"]["rate"]
    return found | {"by_dimension": {key: part["accuracy"] for key, part in full["by_dimension"].items()}}


def checkpoint_curve(run: Path, data: Path, out: Path, ablation: str | None, longest: int) -> list[dict[str, Any]]:
    """Returns the accuracy of every checkpoint of a run on the validation split."""
    curve = []
    for folder in sorted(run.glob("checkpoint-*"), key=_step):
        answers = ask(folder, data, "val", out / f"{run.name}-{_step(folder)}.jsonl", ablation, longest)
        curve.append({"step": _step(folder), "accuracy": scored(answers, data, "val")["accuracy"]})
    return curve


def rollouts(run: Path) -> list[dict[str, float]]:
    """Returns step, reward, zero-variance share and entropy of every GRPO step, from the trainer's state."""
    state = max(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: _step(path.parent))
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [{name: entry[name] for name in ("step", *LOGGED)} for entry in history if "reward" in entry]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws accuracy over the steps of SFT, crossed beside leaky, and what GRPO logged over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a939e"}
    with pyplot.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
        _accuracies(left, found)
        _rollouts(right, found["rollouts"], found["test"]["after SFT, with images"]["reward"])
        figure.savefig(path, dpi=120, metadata={"Software": None})
        pyplot.close(figure)


def _accuracies(axes: Any, found: Mapping[str, Any]) -> None:
    for (name, curve), (colour, dash) in zip(found["curves"].items(), _LINES, strict=True):
        steps = [point["step"] for point in curve]
        values = [100 * point["accuracy"] for point in curve]
        axes.plot(steps, values, dash, marker="o", markersize=3.5, color=colour, label=name)
    axes.axhline(CHANCE, color="#444444", linewidth=0.8, linestyle=":")
    axes.set(xlabel="SFT steps", ylabel="accuracy on unseen phantom slides (%)", ylim=(0, 102), xlim=(0, None))
    axes.set_title("What is learnt: to look, or to read the options", loc="left", fontsize=10.5)
    axes.legend(frameon=False, fontsize=9)


def _rollouts(axes: Any, steps: Sequence[Mapping[str, float]], greedy: float) -> None:
    places = [step["step"] for step in steps]
    for (name, label), colour in zip(LOGGED.items(), (CROSSED, "#9a9a9a", "#3f9e8f"), strict=True):
        values = [step[name] for step in steps]
        parts = (values[max(0, at - _SMOOTH + 1) : at + 1] for at in range(len(values)))
        axes.plot(places, values, ".", color=colour, alpha=0.4)
        axes.plot(places, [mean(part) for part in parts], color=colour, label=label)
    axes.axhline(greedy, color="#111111", linewidth=1, linestyle="--", label="reward of greedy answers after SFT")
    axes.set(xlabel="GRPO steps", ylim=(0, 1.02))
    axes.set_title(f"GRPO, crossed options (lines: means of {_SMOOTH} steps)", loc="left", fontsize=10.5)
    axes.legend(frameon=False, fontsize=9)


def results(out: Path) -> dict[str, Any]:
    """Lets every model answer, with images and blind, and returns the figures."""
    asked = out / "answers-of"
    crossed, tests = out / "crossed", {}
    for name, run, ablations in (
        ("after GRPO", "grpo", (None, "blind", "shuffled")),
        ("after SFT", "sft-answer", (None,)),
    ):
        for ablation in ablations:
            answers = asked / f"{run}-test-{ablation or 'seen'}.jsonl"
            ask(out / run / "final", crossed, "test", answers, ablation, SHORT)
            tests[f"{name}, {SHOWN[ablation]}"] = scored(answers, crossed, "test")
    for data in ("crossed", "leaky"):
        answers = ask(
            out / f"blind-{data}" / "final", out / data, "test", asked / f"blind-{data}-test.jsonl", "blind", LONG
        )
        tests[f"trained blind on {data} options, blind"] = scored(answers, out / data, "test")
    curves = {
        name: checkpoint_curve(out / run, out / data, asked, ablation, LONG)
        for name, run, data, ablation in (
            ("crossed options, with images", "sft-describe", "crossed", None),
            ("crossed options, blind", "blind-crossed", "crossed", "blind"),
            ("leaky options, blind", "blind-leaky", "leaky", "blind"),
        )
    }
    return {"test": tests, "curves": curves, "rollouts": rollouts(out / "grpo")}


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the figures as a table."""
    lines = ["| model and what it is shown | accuracy (%) | 95% interval | unparsed (%) |", "|---|---|---|---|"]
    for name, test in found["test"].items():
        ends = interval(test["interval"])
        lines.append(f"| {name} | {percent(test['accuracy'])} | {ends} | {percent(test['unparsed'])} |")
    lines += ["", "| dimension, after GRPO, with images | accuracy (%) |", "|---|---|"]
    dimensions = found["test"]["after GRPO, with images"]["by_dimension"]
    lines += [f"| {name} | {percent(value)} |" for name, value in dimensions.items()]
    steps = found["rollouts"]
    part = max(1, len(steps) // 4)
    lines += ["", f"| GRPO, means of {part} steps | first | last |", "|---|---|---|"]
    for name, label in LOGGED.items():
        first, last = (mean(step[name] for step in group) for group in (steps[:part], steps[-part:]))
        lines.append(f"| {label} | {first:.3f} | {last:.3f} |")
    greedy = found["test"]["after SFT, with images"]["reward"]
    return "\n".join([*lines, "", f"Reward of greedy answers after SFT, on the test slides: {greedy:.3f}.", ""])


@click.command()
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Write OUT/results.json, OUT/results.md and OUT/curves.png."""
    found = results(out)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(as_markdown(found), encoding="utf-8")
    draw(found, out / "curves.png")
    click.echo(as_markdown(found))


if __name__ == "__main__":
    main()
