"""Drawing wrong options: detailed balance compared with a free draw, up to hundreds of thousands of paths.

``python benchmarks/curate.py [--paths 1000 --paths 20000]`` uses generated findings of unequal frequency. It prints
the accuracy of a text-only reader that picks the two findings that are right most often in the file, and the time and
memory of building the options. The peer draws the wrong finding freely from the other findings of its aspect.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import click

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionedPath, CaptionFeature
from dataset_script.curate.distractors import build_options

ASPECTS = ("growth pattern", "nuclei")


def corpus(paths: int, findings: int, seed: int) -> list[Candidate]:
    """Free questions, one a path; finding number r of an aspect is right in proportion to 1 / (r + 2)."""
    rng = random.Random(seed)
    letters = "bcdfghjklmnprstvz"
    names = [
        [
            f"{''.join(rng.choice(letters) + rng.choice('aeiou') for _ in range(3))} pattern {aspect[0]}"
            for _ in range(findings)
        ]
        for aspect in ASPECTS
    ]
    weights = [1 / (rank + 2) for rank in range(findings)]
    drafts = []
    for number in range(paths):
        values = [rng.choices(some, weights)[0] for some in names]
        key = f"slide-{number // 4}::{number % 4}"
        texts = tuple(zip(("low_mag", "high_mag"), values, strict=True))
        slide = f"slide-{number // 4}"
        path = CaptionedPath(slide, slide, str(number % 4), texts, (), "train")
        first, second = (
            CaptionFeature(f"{scale}-1", scale, aspect, value)
            for scale, aspect, value in zip(("low_mag", "high_mag"), ASPECTS, values, strict=True)
        )
        drafts.append(
            Candidate(f"{key}::type_A", path, "type_A", "free", "What is seen?", first, second, ("", ""), "Seen.")
        )
    return drafts


def commonest(pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> float:
    """Accuracy of the reader who picks of either pair (right, wrong) what is right more often in the file."""
    counts = [Counter(pair[half][0] for pair in pairs) for half in (0, 1)]
    right = 0.0
    for pair in pairs:
        share = 1.0
        for half in (0, 1):
            true, false = (counts[half][value] for value in pair[half])
            share *= 1.0 if true > false else 0.5 if true == false else 0.0
        right += share
    return right / len(pairs)


def free_draw(drafts: Sequence[Candidate], seed: int) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """The peer: any other finding of the aspect, each as likely as any."""
    rng = random.Random(seed)
    known = [sorted({half(draft) for draft in drafts}) for half in (_first, _second)]
    pairs = []
    for draft in drafts:
        pair = []
        for half, values in zip((_first, _second), known, strict=True):
            true = half(draft)
            pair.append((true, rng.choice([value for value in values if value != true])))
        pairs.append((pair[0], pair[1]))
    return pairs


def _first(draft: Candidate) -> str:
    return draft.first.value


def _second(draft: Candidate) -> str:
    return draft.second.value


def _pairs(items: Sequence[Candidate]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    return [one.values for one in items if one.values is not None]


@click.command()
@click.option("--paths", type=int, multiple=True, default=(1000, 20000), show_default=True)
@click.option("--findings", type=int, default=40, show_default=True, help="Distinct findings of an aspect.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(paths: tuple[int, ...], findings: int, seed: int) -> None:
    """Print a table: accuracy of the reader, balanced and free; questions given back; seconds; bytes a question."""
    click.echo("| questions | balanced (%) | free draw (%) | given back | seconds | peer's seconds | kB a question |")
    click.echo("|---|---|---|---|---|---|---|")
    for count in paths:
        drafts = corpus(count, findings, seed)
        start = time.perf_counter()
        found = build_options(drafts, seed)
        middle = time.perf_counter()
        peer = free_draw(drafts, seed)
        end = time.perf_counter()
        tracemalloc.start()
        kept = build_options(drafts, seed)
        size = tracemalloc.get_traced_memory()[1] / max(1, len(kept.candidates)) / 1024
        tracemalloc.stop()
        click.echo(
            f"| {count} | {100 * commonest(_pairs(found.candidates)):.1f} | {100 * commonest(peer):.1f} "
            f"| {len(found.refused)} | {middle - start:.1f} | {end - middle:.1f} | {size:.1f} |"
        )


if __name__ == "__main__":
    main()
