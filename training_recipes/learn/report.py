"""Asks, scores and draws what ``make learn`` trained: results.json, results.md and curves.png."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from training_recipes.learn.curves import ask, checkpoint_curve, draw, rewards, scored

SHORT: Final = 40
LONG: Final = 72
"""Most tokens of an answer that names the question's own features, and of one that names all that is to be seen."""
SHOWN: Final = {None: "with images", "blind": "blind", "shuffled": "with another patient's images"}


def results(out: Path) -> dict[str, Any]:
    """Lets every model answer, with images and blind, and returns the figures.

    Args:
        out: folder of a run of ``training_recipes.learn.run``.
    """
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
    return {"test": tests, "curves": curves, "rewards": rewards(out / "grpo")}


def as_markdown(found: Mapping[str, Any]) -> str:
    """Returns the figures as a table."""
    lines = ["| model and what it is shown | accuracy (%) | 95% interval | unparsed (%) |", "|---|---|---|---|"]
    for name, test in found["test"].items():
        interval = " to ".join(f"{100 * end:.1f}" for end in test["interval"])
        lines.append(f"| {name} | {100 * test['accuracy']:.1f} | {interval} | {100 * test['unparsed']:.1f} |")
    lines += ["", "| dimension, after GRPO, with images | accuracy (%) |", "|---|---|"]
    dimensions = found["test"]["after GRPO, with images"]["by_dimension"]
    lines += [f"| {name} | {100 * value:.1f} |" for name, value in dimensions.items()]
    steps = found["rewards"]
    part = max(1, len(steps) // 4)
    first, last = (sum(step["reward"] for step in group) / part for group in (steps[:part], steps[-part:]))
    lines += ["", f"Mean reward of GRPO's first {part} steps {first:.3f}, of its last {part} steps {last:.3f}.", ""]
    return "\n".join(lines)


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
