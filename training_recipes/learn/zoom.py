"""``make zoom-gym``: a tiny Qwen3-VL learns by GRPO where to look, beside a twin that sees another patient's slide.

    python -m training_recipes.learn.zoom zoom-gym

It draws slides to train on and others to ask about, makes and warms up a model, trains it and its twin side by side,
asks all three about the unseen slides, and writes results.json, results.md and curves.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any, Final

import click
import yaml

from scale_vqa_eval.files import write_json
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.text import interval, percent
from scale_vqa_eval.zoom.questions import read_zoom_questions
from scale_vqa_eval.zoom.score import read_run, run_figures
from training_recipes.learn.run import HERE, SEED, Track, run_steps

CONFIG: Final = HERE.parent / "configs" / "zoom-cpu-tiny.yaml"
PROMPT: Final = CONFIG.parent / "prompts" / "zoom-short.yaml"
KIND: Final = "named-piece"
"""The kind of question that is trained, and reported."""
MODELS: Final = {
    "before GRPO": ("start", "#9a9a9a", ("greedy", "sampled", "random-walk")),
    "after GRPO": ("grpo/final", "#2f6db3", ("greedy", "sampled", "blind", "wrong-slide")),
    "twin after GRPO": ("twin/final", "#b5502a", ("greedy", "sampled", "wrong-slide")),
}
"""Name -> folder, colour, and how it is asked: greedily, at temperature 1, or greedily with a control."""


def plan(out: Path, slides: int, unseen: int, quick: tuple[str, ...]) -> list[list[Track]]:
    """Returns the stages as ``run_steps`` takes them: one after another, then two trainings at the same time."""
    draw = ["-m", "scale_vqa_eval.cli", "build", "zoom", "--finest", "40x", "--workers", "2", "--synthetic"]
    train = [str(HERE.parent / "grpo_zoom.py"), "--config", str(CONFIG), "--prompt", str(PROMPT)]
    train += ["--data", str(out / "data"), "--model_name_or_path", str(out / "start"), *quick, "--output_dir"]
    first = {
        "draw": [*draw, str(slides), "--seed", str(SEED), "--out", str(out / "data")],
        "draw-unseen": [*draw, str(unseen), "--seed", str(SEED + 1), "--out", str(out / "unseen")],
        "start": [*train, str(out / "warm-up"), "--max_steps", "0"],
    }
    twin = [*train, str(out / "twin"), "--control", "wrong-slide"]
    return [[first], [{"grpo": [*train, str(out / "grpo")]}, {"twin": twin}]]


def ask(out: Path) -> dict[str, dict[str, Any]]:
    """Asks all models about the unseen slides; returns the figures of ``scale-vqa zoom``."""
    recipe = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    questions, _ = read_zoom_questions(str(out / "unseen"), None)
    shared = ["--zoom", "--data", out / "unseen", "--backend", "transformers", "--prompt", PROMPT]
    shared += ["--looks", recipe["looks"], "--look-px", recipe["look_px"], "--overview-px", recipe["overview_px"]]
    (out / "asked").mkdir(exist_ok=True)
    found = {}
    for name, (folder, _, ways) in MODELS.items():
        for way in ways:
            path = out / "asked" / f"{folder.partition('/')[0]}-{way}.jsonl"
            own = {"greedy": [], "sampled": ["--temperature", 1]}.get(way, ["--ablate", way])
            options = [*shared, "--model", out / folder, *own, "--batch-size", 64, "--allow-failures", "--out", path]
            predict.main(list(map(str, options)), standalone_mode=False)
            found[f"{name}, {way}"] = run_figures(read_run(path, questions))
    return found


def as_markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of accuracy and evidence in view, with clustered intervals, in percent."""
    lines = ["| model, how it is asked | evidence in view | accuracy |", "|---|---|---|"]
    for name, figures in found.items():
        shares = [figures["by_kind"][KIND][key] for key in ("evidence", "accuracy")]
        cells = [f"{percent(one['mean'])} [{interval(one['interval'])}]" for one in shares]
        cells[0] = cells[0] if figures["evidence"] else "-"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{shares[0]['n']} questions ({KIND}) of {figures['patients']} unseen slides.", ""])


def draw(found: Mapping[str, Mapping[str, Any]], rewards: Mapping[str, list[float]], path: Path) -> None:
    """Draws the rewards of both trainings over their steps, and what all models see and answer on unseen slides."""
    from scale_vqa_eval.plots import rendered

    def plot(figure: Any) -> None:
        axes = figure.subplots(1, 3, width_ratios=(3, 2, 2))
        for name, values in rewards.items():
            steps, colour = range(1, len(values) + 1), MODELS[name][1]
            axes[0].plot(steps, values, ".", color=colour, alpha=0.4)
            axes[0].plot(steps, [mean(values[max(0, at - 5) : at]) for at in steps], color=colour, label=name)
        axes[0].set(xlabel="GRPO steps (lines: means of 5)", ylabel="reward of sampled episodes", ylim=(0, 1.02))
        for axis, key in zip(axes[1:], ("evidence", "accuracy"), strict=True):
            for side, (name, (_, colour, ways)) in enumerate(MODELS.items()):
                shares = [found[f"{name}, {way}"]["by_kind"][KIND][key] for way in ways[:2]]
                places, means = [at + 0.27 * (side - 1) for at in (0, 1)], [100 * one["mean"] for one in shares]
                axis.bar(places, means, 0.25, color=colour, label=name)
                ends = [[100 * end for end in one["interval"]] for one in shares]
                axis.vlines(places, *zip(*ends, strict=True), color="#222222", linewidth=1)
            axis.axhline(25, color="#444444", linewidth=0.8, linestyle=":")
            axis.set(xticks=(0, 1), xticklabels=("greedy", "temperature 1"), ylim=(0, 102))
            axis.set(ylabel=f"{key}{' in view' * (key == 'evidence')}, unseen slides (%)")
        figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper right")

    path.write_bytes(rendered(plot, (12, 3.8), 10, "png")[0])


@click.command()
@click.argument("out", type=click.Path(path_type=Path), default=Path("zoom-gym"))
@click.option("--slides", type=click.IntRange(12), default=64, show_default=True)
@click.option("--unseen", type=click.IntRange(4), default=32, show_default=True, help="Slides that are asked about.")
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Steps of every training, for a trial.")
def main(out: Path, slides: int, unseen: int, max_steps: int | None) -> None:
    """Train in OUT and write the results there; a stage that is done is not done again."""
    out, steps = out.absolute(), str(max_steps)
    quick = ("--max_steps", steps, "--warm_up_seeing", steps, "--warm_up", steps) if max_steps else ()
    out.mkdir(parents=True, exist_ok=True)
    seconds = run_steps(plan(out, slides, unseen, quick), out)
    found, rewards = ask(out), {}
    for name, (folder, *_) in list(MODELS.items())[1:]:
        log = json.loads((out / folder / "zoom_training.json").read_text(encoding="utf-8"))["log"]
        rewards[name] = [entry["reward"] for entry in log if "reward" in entry]
    write_json(out / "results.json", {"asked": found, "rewards": rewards})
    (out / "results.md").write_text(as_markdown(found), encoding="utf-8")
    draw(found, rewards, out / "curves.png")
    click.echo(f"{as_markdown(found)}\nTrained in {sum(seconds.values()) / 60:.1f} min of processor time.")


if __name__ == "__main__":
    main()
