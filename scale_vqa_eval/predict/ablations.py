"""What is taken away from a question's images, so that an accuracy can be told from what it would be without them.

- ``blind``: no image. The text is byte for byte the text with images: it does not say that they are missing, so the
  images are the one difference between the two runs.
- ``no-low``, ``no-mid``, ``no-high``: one view of the context left out (Phan et al., arXiv:2606.17412, ablate scales).
- ``shuffled``: the context views of another path, of another patient. Option images stay the question's own.
- ``circular``: every turn of the options (CircularEval; Liu et al. 2023, "MMBench", arXiv:2307.06281).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.items import Item, with_views_of

DROPPED: Final = {"no-low": "low_mag", "no-mid": "mid_mag", "no-high": "high_mag"}
ABLATIONS: Final = ("blind", *DROPPED, "shuffled", "circular")


def ablated(items: Sequence[Item], ablation: str | None, seed: int) -> tuple[list[Item], list[str]]:
    """Returns the items as an ablation asks them, and what a reader has to know about it.

    Args:
        items: all questions of the split, so that ``shuffled`` has every path to choose from.
        ablation: one of ``ABLATIONS``, None for none.
        seed: of ``shuffled``.

    Raises:
        InputError: where ``shuffled`` finds no other patient.
    """
    if ablation == "blind":
        return [replace(item, views=(), option_pictures=()) for item in items], []
    if ablation in DROPPED:
        return _without(items, DROPPED[ablation])
    if ablation == "shuffled":
        return _shuffled(items, seed)
    return list(items), []


def _without(items: Sequence[Item], view: str) -> tuple[list[Item], list[str]]:
    kept = [replace(item, views=tuple(picture for picture in item.views if picture.column != view)) for item in items]
    same = sum(len(before.views) == len(after.views) for before, after in zip(items, kept, strict=True))
    bare = sum(not item.views and not item.option_pictures for item in kept)
    notes = [f"{same} of {len(items)} questions have no {view} and are asked as they are"] if same else []
    if bare:
        notes.append(f"{bare} of {len(items)} questions have no image left: the same as blind")
    return kept, notes


def _shuffled(items: Sequence[Item], seed: int) -> tuple[list[Item], list[str]]:
    """Gives every path the views of another patient's path: one that has the same views where there is one."""
    paths = {item.path: item for item in reversed(items)}  # the first item of each path
    if len({item.patient for item in paths.values()}) < 2:
        expected = "paths of two patients at least, to take each other's images"
        raise InputError(Problem("--ablate shuffled", expected, "one", "name data of several patients"))
    kinds: dict[tuple[str, ...], list[Item]] = {}
    for path in sorted(paths):
        kinds.setdefault(tuple(picture.column for picture in paths[path].views), []).append(paths[path])
    generator = random.Random(seed)
    donors: dict[str, Item] = {}
    for kind in sorted(kinds):
        donors |= _exchanged(kinds[kind], generator)
    lonely = sorted(set(paths) - set(donors))
    for path in lonely:
        others = [paths[name] for name in sorted(paths) if paths[name].patient != paths[path].patient]
        donors[path] = generator.choice(others)
    notes = [f"{len(lonely)} of {len(paths)} paths take images that another path has too"] if lonely else []
    return [with_views_of(item, donors[item.path]) for item in items], notes


def _exchanged(paths: Sequence[Item], generator: random.Random) -> dict[str, Item]:
    """Returns path -> donor, each path a donor once; empty where one patient has more than half of the paths.

    Paths are laid out patient by patient and each takes the one that lies a whole largest patient further on.
    """
    patients: dict[str, list[Item]] = {}
    for item in paths:
        patients.setdefault(item.patient, []).append(item)
    shift = max(map(len, patients.values()))
    if 2 * shift > len(paths):
        return {}
    names = sorted(patients)
    generator.shuffle(names)
    row: list[Item] = []
    for name in names:
        members = patients[name]
        generator.shuffle(members)
        row += members
    return {item.path: row[(place + shift) % len(row)] for place, item in enumerate(row)}
