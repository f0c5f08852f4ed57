"""The exam of looking, taken by scripted policies over a loopback server, beside what geometry expects of them.

    python benchmarks/zoom_exam.py zoom [--split test] [--looks 4] [--look-px 256]

``zoom`` is a folder of ``scale-vqa build zoom``. The oracle looks at the evidence and gives the right letter only if
true pictures of it came back; else it guesses by the text, one letter for all four questions of an exchange group. The
walk looks at random places at 40x. The expectation draws such places again and reads no pixel. The server and its
policies are those of tests/helpers/zoom_exam.py.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.schema import MAGNIFICATION, MPP
from scale_vqa_eval.text import aligned, percent
from scale_vqa_eval.zoom.environment import Budget
from scale_vqa_eval.zoom.questions import SlideStore, ZoomQuestion, read_zoom_questions, slide_files
from scale_vqa_eval.zoom.score import read_run, run_figures

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from chat_server import MODEL
from zoom_exam import Examiner, Policy, guess, oracle, policy_server, random_walk

VIEW = "mid_mag"
DRAWS = 200


def walk(slides: SlideStore, looks: int) -> Policy:
    """Looks at random places of the question's own slide."""

    def policy(question: ZoomQuestion, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
        extent = slides.facts(question.slide, question.mpp)[1]
        return random_walk(extent, looks, MAGNIFICATION[VIEW])(question, turn, seen)

    return policy


def answer(question: ZoomQuestion, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
    """Answers at once: right if the evidence was in view, else a guess."""
    return ("answer", {"letter": question.question.letter}) if seen else guess(question)


def expected(question: ZoomQuestion, extent: tuple[float, float], budget: Budget, rng: random.Random) -> float:
    """Returns the share of random walks that bring the evidence of a question into view."""
    px = min(budget.px, math.floor(min(extent) / MPP[VIEW]))
    half, hits = px * MPP[VIEW] / 2, 0
    for _ in range(DRAWS):
        seen = [False] * len(question.evidence)
        for _ in range(budget.looks):
            x, y = (min(max(rng.uniform(0, side), half), side - half) for side in extent)
            box = (x - half, y - half, x + half, y + half)
            seen = [one or what.in_view(box, MPP[VIEW]) for one, what in zip(seen, question.evidence, strict=True)]
        hits += all(seen)
    return hits / DRAWS


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--split", default=None, help="Split to ask.  [default: all]")
@click.option("--looks", default=4, show_default=True)
@click.option("--look-px", default=256, show_default=True)
def main(data: Path, split: str | None, looks: int, look_px: int) -> None:
    """Print accuracy and evidence seen of each policy, and the expectation of the random walk."""
    questions, root = read_zoom_questions(str(data), split)
    budget, slides = Budget(looks, look_px), slide_files(root)
    rows = [["policy", "run", "accuracy", "evidence seen"]]
    plays: list[tuple[str, Policy, str | None]] = [
        *(("oracle", oracle, control) for control in (None, "blind", "wrong-slide", "overview-only")),
        ("answers alone", answer, "oracle-path"),
        (f"{looks} random 40x looks", walk(slides, looks), None),
        ("answers alone", answer, "random-walk"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, policy, control) in enumerate(plays):
            out = Path(folder, f"{number}.jsonl")
            with policy_server(Examiner(data, control=control, budget=budget), policy) as server:
                options = ["--zoom", "--data", data, "--backend", "openai", "--base-url", server.url, "--model", MODEL]
                options += ["--looks", looks, "--look-px", look_px, "--out", out]
                options += ["--split", split] if split else []
                options += ["--ablate", control] if control else []
                predict.main(list(map(str, options)), standalone_mode=False)
            found = run_figures(read_run(out, questions))
            seen = "-" if found["evidence"] is None else percent(found["evidence"]["mean"])
            rows.append([name, control or "with tools", percent(found["accuracy"]["mean"]), seen])
    rng = random.Random(0)
    shares = [expected(item, slides.facts(item.slide, item.mpp)[1], budget, rng) for item in questions]
    hit, spread = sum(shares) / len(shares), math.sqrt(sum(one * (1 - one) for one in shares)) / len(shares)
    click.echo(aligned(rows))
    click.echo(
        f"{len(questions)} questions; {looks} random 40x looks are expected to see the evidence of {percent(hit)}% "
        f"(standard deviation {percent(spread)}%), and to be right on {percent(hit + (1 - hit) / 4)}%"
    )


if __name__ == "__main__":
    main()
