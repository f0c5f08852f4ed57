"""Asks checkpoints with and without images, scores them, and draws the curves of ``make learn``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.predictions import read_predictions
from scale_vqa_eval.scoring.score import join, score_answers
from training_recipes.learn.folders import CONFIG

PROMPT: Final = str(Path(__file__).with_name("learn.yaml"))
CHANCE: Final = 25.0
CROSSED: Final = "#2f6db3"
LEAKY: Final = "#b5502a"
_LINES: Final = ((CROSSED, "-"), (CROSSED, "--"), (LEAKY, "--"))
_SMOOTH: Final = 5


def ask(model: Path, data: Path, split: str, out: Path, ablation: str | None, longest: int) -> Path:
    """Lets a model answer a split as ``scale-vqa predict`` does; a finished file is left as it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = ["--data", str(data), "--config", CONFIG, "--split", split, "--backend", "transformers"]
    asked += ["--model", str(model), "--prompt", PROMPT, "--max-tokens", str(longest), "--batch-size", "64"]
    asked += ["--ablate", ablation] if ablation else []
    predict.main([*asked, "--out", str(out)], standalone_mode=False)
    return out


def scored(answers: Path, data: Path, split: str) -> dict[str, Any]:
    """Returns accuracy, its interval, the unparsed and accuracy by dimension, as ``scale-vqa score`` does."""
    full = score_answers(join(read_predictions(answers), read_questions(data, split, CONFIG)))
    found = {key: full[key] for key in ("accuracy", "interval", "n", "clusters")}
    found["unparsed"] = full["unparsed"]["rate"]
    return found | {"by_dimension": {key: part["accuracy"] for key, part in full["by_dimension"].items()}}


def checkpoint_curve(run: Path, data: Path, out: Path, ablation: str | None, longest: int) -> list[dict[str, Any]]:
    """Returns the accuracy of every checkpoint of a run on the validation split."""
    curve = []
    for folder in sorted(run.glob("checkpoint-*"), key=_step):
        answers = ask(folder, data, "val", out / f"{run.name}-{_step(folder)}.jsonl", ablation, longest)
        curve.append({"step": _step(folder), "accuracy": scored(answers, data, "val")["accuracy"]})
    return curve


def rewards(run: Path) -> list[dict[str, float]]:
    """Returns step and mean reward of every GRPO step, from the trainer's state."""
    state = max(run.glob("checkpoint-*/trainer_state.json"), key=lambda path: _step(path.parent))
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [{"step": entry["step"], "reward": entry["reward"]} for entry in history if "reward" in entry]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws accuracy over the steps of SFT, crossed beside leaky, and reward over the steps of GRPO."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a939e"}
    with pyplot.rc_context(style):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
        _accuracies(left, found)
        _rewards(right, found["rewards"])
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


def _rewards(axes: Any, steps: Sequence[Mapping[str, float]]) -> None:
    places = [step["step"] for step in steps]
    values = [step["reward"] for step in steps]
    axes.plot(places, values, ".", color=CROSSED, alpha=0.4, label="a step")
    means = [
        sum(part) / len(part) for part in (values[max(0, at - _SMOOTH + 1) : at + 1] for at in range(len(values)))
    ]
    axes.plot(places, means, color=CROSSED, label=f"mean of {_SMOOTH} steps")
    axes.set(xlabel="GRPO steps", ylabel="reference reward of rollouts")
    axes.set_title("GRPO, crossed options", loc="left", fontsize=10.5)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
