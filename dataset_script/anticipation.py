"""``scale-vqa build anticipation``: which of four images fits a description, given the view around it?

A question shows a path's view at a lower scale and describes a part of it at a higher scale. The options are four
images at the higher scale: the path's own, and those of three other paths with dissimilar descriptions. PathScale-R1
(arXiv:2607.23794) calls this Scale Anticipation; the rules here are ours. Four paths form an exchange group with the
same options in the same order, each right once, so the options alone do not give away the answer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from dataset_script.curate.captions import read_paths
from dataset_script.splits import SPLITS, patient_splits
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE, ExchangeGroup
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict.images import Bounds, decode_image
from scale_vqa_eval.release_folder.write import check_out, write_release
from scale_vqa_eval.schema import ANTICIPATION, LETTERS, MAGNIFICATION, MPP, VIEWS, row_id
from scale_vqa_eval.text import percent, words

MAX_SIMILARITY: Final = 0.5
"""Maximum similarity (cosine of TF-IDF word weights) of two descriptions in a question."""
Read = Callable[["DescribedPath", str], dict[str, Any]]
"""Returns the image of a path's view as a cell of a release row: bytes and file name."""


@dataclass(frozen=True)
class DescribedPath:
    """A path with the description of its view at the higher scale."""

    slide: str
    patient: str
    path_id: str
    text: str


def word_weights(texts: Sequence[str]) -> Any:
    """Returns the (n, words) TF-IDF weights of the texts, with rows of length 1."""
    from scipy.sparse import csr_array, diags_array

    counts = [Counter(words(text.casefold()) or [*text]) for text in texts]  # letters if there are no words
    found = Counter(word for count in counts for word in count)
    column = {word: number for number, word in enumerate(found)}
    entries = [(row, column[word], n) for row, count in enumerate(counts) for word, n in count.items()]
    rows, columns, values = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    rarity = 1 + np.log((1 + len(texts)) / (1 + np.array(list(found.values()), dtype=float)))
    weights = csr_array((values * rarity[columns], (rows, columns)), shape=(len(texts), len(found)))
    return diags_array(1 / np.sqrt(np.maximum(weights.power(2).sum(axis=1), 1e-12))) @ weights


def unlike_groups(
    pool: Sequence[DescribedPath], name: str, cross_slide: bool, limit: float, seed: int
) -> Iterator[ExchangeGroup[DescribedPath]]:
    """Yields groups of four paths with dissimilar descriptions; each path is in at most one group.

    The first member is drawn at random; each further member is the one least similar to those chosen.

    Args:
        pool: the paths of a slide, or of a split if ``cross_slide``.
        name: prefix of the group names.
        cross_slide: choose the members from four patients.
        limit: maximum similarity of two descriptions in a group.
        seed: random seed.
    """
    rng, number = random.Random(f"{seed} {name}"), 0
    weights, free = word_weights([path.text for path in pool]), np.ones(len(pool), dtype=bool)
    clusters = np.unique([path.patient if cross_slide else path.path_id for path in pool], return_inverse=True)[1]
    for first in rng.sample(range(len(pool)), len(pool)):
        chosen, allowed, similarity = [first], free.copy(), np.zeros(len(pool))
        while free[first] and len(chosen) < GROUP_SIZE:
            allowed &= clusters != clusters[chosen[-1]]
            similarity = np.maximum(similarity, (weights @ weights[[chosen[-1]]].T).toarray()[:, 0])
            best = int(np.where(allowed, similarity, np.inf).argmin())
            if not allowed[best] or similarity[best] > limit:
                break
            chosen.append(best)
        if len(chosen) == GROUP_SIZE:
            free[chosen] = False
            members = tuple(pool[index] for index in rng.sample(chosen, GROUP_SIZE))  # in the order of the letters
            yield ExchangeGroup(f"{name}::{ANTICIPATION}::g{number:04d}", members)
            number += 1


def anticipation_rows(
    groups: Sequence[ExchangeGroup[DescribedPath]], read: Read, shown: str, asked: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Yields the four rows of each group in random order."""
    outer, inner = (f"{MAGNIFICATION[view]} ({MPP[view]:g} um per pixel)" for view in (shown, asked))
    for group in groups:
        options = [read(member, asked) for member in group.members]
        for member in random.Random(f"{seed} {group.name}").sample(group.members, GROUP_SIZE):
            letter = LETTERS[group.answer_of(member)]
            yield {
                "id": row_id(member.slide, member.path_id, ANTICIPATION),
                "question": f"The image shows a field of a slide at {outer}. Of a part of it at {inner} this is said: "
                f"{member.text}\nFour fields at {inner} are given as options. Which one fits?",
                "options": [f"Image {LETTERS[index]}" for index in range(GROUP_SIZE)],
                "answer": letter,
                "rationale": f"Image {letter} is the view that was described: it lies in the field shown.",
                shown: read(member, shown),
                "option_images": options,
                "dimension": ANTICIPATION,
                "wsi_name": member.slide,
                "patient_id": member.patient,
                "path_id": member.path_id,
                "source": "described views",
                "group": group.name,
            }


def colour_match(group: ExchangeGroup[DescribedPath], read: Read, shown: str, asked: str) -> float:
    """Returns how often the option whose mean colour is nearest to that of the shown view is right."""
    views, options = (
        np.array([_mean_colour(read(member, view)["bytes"]) for member in group.members]) for view in (shown, asked)
    )
    nearest = np.linalg.norm(views[:, None] - options[None], axis=2).argmin(axis=1)
    return float((nearest == np.arange(GROUP_SIZE)).mean())


def _mean_colour(content: bytes) -> Any:
    return np.asarray(decode_image(content, "view", Bounds(maximum=64 * 64))).mean(axis=(0, 1))


def anticipation_config(
    paths: Sequence[DescribedPath],
    splits: Mapping[str, str],
    read: Read,
    cross_slide: bool = False,
    limit: float = MAX_SIMILARITY,
    scales: tuple[str, str] = ("low_mag", "high_mag"),
    seed: int = 42,
) -> tuple[dict[str, Iterator[dict[str, Any]]], str]:
    """Returns split -> rows of the config ``anticipation``, and the paragraph of the card.

    Args:
        paths: the paths with the descriptions of their views at the higher scale.
        splits: patient -> split.
        read: returns an image.
        cross_slide: take the options of a question from four patients, not from one slide.
        limit: maximum similarity of two descriptions in a question.
        scales: the view that is shown, and the view that is described.
        seed: random seed.

    Raises:
        InputError: if no group of four paths is found.
    """
    pools: dict[tuple[str, str], list[DescribedPath]] = {}
    for path in paths:
        split = splits[path.patient]
        pools.setdefault((split, split if cross_slide else path.slide), []).append(path)
    groups: dict[str, list[ExchangeGroup[DescribedPath]]] = {}
    for (split, name), pool in sorted(pools.items(), key=lambda item: SPLITS.index(item[0][0])):
        if found := list(unlike_groups(pool, name, cross_slide, limit, seed)):
            groups.setdefault(split, []).extend(found)
    matches = [colour_match(group, read, *scales) for of_split in groups.values() for group in of_split]
    used = GROUP_SIZE * len(matches)
    source = "four patients of a split" if cross_slide else "one slide"
    if not used:
        hint = "give more paths, --distractors cross-slide, or a higher --max-similarity"
        expected = f"four paths of {source} whose descriptions have at most {limit:g} similarity"
        raise InputError(Problem(f"{len(paths)} paths with both views", expected, "none", hint))
    note = (
        f"{used} questions: a view at {MAGNIFICATION[scales[0]]}, a description of what {MAGNIFICATION[scales[1]]} "
        f"shows, and four images at that scale, from {source}. No two descriptions of a question are more than "
        f"{limit:g} alike (cosine of TF-IDF weights); {len(paths) - used} of {len(paths)} paths are in no group. "
        "Questions come in exchange groups of four (`group`): the same options, each right once. The option nearest "
        f"to the shown view in mean colour is right in {percent(float(np.mean(matches)))}% of them; seed {seed}."
    )
    tables = {split: anticipation_rows(of_split, read, *scales, seed) for split, of_split in groups.items()}
    return tables, note


@click.command()
@click.argument("captions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option(
    "--distractors", type=click.Choice(["same-slide", "cross-slide"]), default="same-slide", show_default=True
)
@click.option("--max-similarity", type=click.FloatRange(0, 1), default=MAX_SIMILARITY, show_default=True)
@click.option("--shown", type=click.Choice(VIEWS[:2]), default="low_mag", show_default=True, help="The lower scale.")
@click.option("--described", type=click.Choice(VIEWS[1:]), default="high_mag", show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
def anticipation(captions: Path, images: Path, out: Path, seed: int, **given: Any) -> None:
    """Build Scale Anticipation questions from CAPTIONS, the captioned paths that `scale-vqa curate` reads."""
    scales = (given["shown"], given["described"])
    if scales[0] == scales[1]:
        raise click.UsageError("--described must be a higher scale than --shown")
    check_out(out)
    found = read_paths(captions, images)
    both = {path.key: path for path in found if set(scales) <= dict(path.images).keys()}
    if len(both) < len(found):
        click.echo(f"{len(found) - len(both)} paths are left out: one of {', '.join(scales)} is missing", err=True)
    paths = [DescribedPath(one.slide, one.patient, one.path_id, dict(one.texts)[scales[1]]) for one in both.values()]

    def read(path: DescribedPath, view: str) -> dict[str, Any]:
        name = dict(both[f"{path.slide}::{path.path_id}"].images)[view]
        return {"bytes": (images / name).read_bytes(), "path": name}

    splits = patient_splits(Counter(path.patient for path in paths), seed) if paths else {}
    cross = given["distractors"] == "cross-slide"
    tables, note = anticipation_config(paths, splits, read, cross, given["max_similarity"], scales, seed)
    click.echo(note, err=True)
    write_release(out, {ANTICIPATION: tables}, {ANTICIPATION: note})
    click.echo(f"{out}: {ANTICIPATION} in {', '.join(tables)}")
