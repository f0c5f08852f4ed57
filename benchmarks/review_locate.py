"""How often the review page finds an inner field by matching, how exactly, and how often where it is not.

Truth comes from the coordinates in the file names of a ``grounding`` config, which the matching does not see:
``python benchmarks/review_locate.py RELEASE_FOLDER [--pairs 200]``, and, without coordinates, on a phantom folder,
where a field of the same path counts as inside and one of another path as not.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataset_script.review.registration import _NAME, BoundingBox, _square, place_by_matching, place_by_name
from scale_vqa_eval.release_folder.read import release_files
from scale_vqa_eval.schema import VIEWS

Pair = tuple[dict[str, Any], dict[str, Any], BoundingBox | None, bool]
_VIEWS = {"10x": "low_mag", "40x": "mid_mag", "200x": "high_mag"}


def main() -> None:
    """Prints a line for each pair of views."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    arguments = parser.parse_args()
    print(
        "| views | inside | found | wrong place | largest error, % of the view | outside | found all the same | ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for outer, inner in itertools.combinations(VIEWS, 2):
        pairs = list(_pairs(arguments.folder, outer, inner))
        inside = [pair for pair in pairs if pair[3]]
        outside = [pair for pair in pairs if not pair[3]]
        rng = random.Random(42)
        chosen = [rng.sample(part, min(arguments.pairs, len(part))) for part in (inside, outside)]
        if chosen[0]:
            _line(outer, inner, *chosen)


def _line(outer: str, inner: str, inside: list[Pair], outside: list[Pair]) -> None:
    start = time.perf_counter()
    found = [(place_by_matching(a["bytes"], b["bytes"], outer, inner), truth) for a, b, truth, _ in inside]
    wrong = sum(place_by_matching(a["bytes"], b["bytes"], outer, inner) is not None for a, b, _, _ in outside)
    each = 1000 * (time.perf_counter() - start) / (len(inside) + len(outside))
    hits = [(place, truth) for place, truth in found if place is not None]
    errors = [max(abs(p.left - t.left), abs(p.top - t.top)) for p, t in hits if t is not None]
    astray = sum(error > 0.02 for error in errors)
    good = [error for error in errors if error <= 0.02]
    largest = f"{100 * max(good):.2f}" if good else "truth unknown"
    line = [f"{inner} in {outer}", len(inside), len(hits), astray if errors else "truth unknown", largest]
    print("| " + " | ".join(map(str, [*line, len(outside), wrong, round(each)])) + " |", flush=True)


def _pairs(folder: Path, outer: str, inner: str) -> list[Pair]:
    rows = _rows(folder)
    named: dict[str, dict[str, Any]] = {}
    for row in rows:
        for image in [*(row[view] for view in VIEWS), *row["option_images"]]:
            if image and _NAME.fullmatch(image["path"] or ""):
                named[image["path"]] = image
    if named:
        return _by_names(named, outer, inner)
    paths = {(row["wsi_name"], row["path_id"]): row for row in rows if row[outer] and row[inner]}
    keys = list(paths)
    found: list[Pair] = [(paths[key][outer], paths[key][inner], None, True) for key in keys]
    for step in (1, 5, 7):
        others = [(key, keys[(place + step) % len(keys)]) for place, key in enumerate(keys)]
        found += [(paths[a][outer], paths[b][inner], None, False) for a, b in others if a != b]
    return found


def _by_names(named: dict[str, dict[str, Any]], outer: str, inner: str) -> list[Pair]:
    fields = {view: [] for view in VIEWS}
    for name, image in named.items():
        match = _NAME.fullmatch(name)
        assert match is not None
        fields[_VIEWS[match[2]]].append((match[1], _square(match), image))
    found: list[Pair] = []
    for (slide, (x, y, side), whole), (other, (u, v, small), part) in itertools.product(fields[outer], fields[inner]):
        truth = place_by_name(whole["path"], part["path"])
        apart = slide != other or max(abs(u - x), abs(v - y)) >= (side + small) / 2
        if truth is not None or apart:
            found.append((whole, part, truth, truth is not None))
    return found


def _rows(folder: Path) -> list[dict[str, Any]]:
    columns = ["wsi_name", "path_id", *VIEWS, "option_images"]
    files = [file for shards in release_files(folder).values() for file in shards]
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


if __name__ == "__main__":
    main()
