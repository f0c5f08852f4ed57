"""Finds shared images, duplicate questions, and options that contradict the captions."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionedPath, grounded_in, may_hold
from dataset_script.image_files import inside
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import sha256_json, write_json
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.text import jaccard, tokens, words


def shared_images(paths: Sequence[CaptionedPath], root: Path, cache: Path) -> dict[str, Any]:
    """Compares the images of all paths, by their pixels and by perceptual hash (``audit.overlap``).

    Args:
        paths: the paths.
        root: folder that image paths are relative to.
        cache: file with the result for the same images.

    Returns:
        ``patients``: patient -> first of the patients who share an image, for those who share one;
        ``twins``: path key -> first path with the same images in all views, for those that have a twin.

    Raises:
        InputError: if an image is not below the root.
    """
    names = sorted({name for path in paths for _, name in path.images})
    files: dict[str, Path] = {}
    problems = []
    for name in names:
        file = inside(root, name)
        if isinstance(file, Path):
            files[name] = file
        else:
            problems.append(Problem(f"image {name!r}", f"a file inside {root}", file, "correct the captions file"))
    if problems:
        raise InputError(problems)
    stamps = [(name, files[name].stat().st_size, files[name].stat().st_mtime_ns) for name in names]
    key = sha256_json([stamps, [(path.key, path.patient, path.images) for path in paths]])
    if cache.is_file():
        kept: dict[str, Any] = json.loads(cache.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    first_image = _first_of_linked(names, _same_images(files))
    owner: dict[str, str] = {}
    shared = [
        (path.patient, owner.setdefault(first_image[name], path.patient)) for path in paths for _, name in path.images
    ]
    first_patient = _first_of_linked({path.patient for path in paths}, shared)
    heads = {head for patient, head in first_patient.items() if patient != head}
    by_images: dict[tuple[tuple[str, str], ...], str] = {}
    twins: dict[str, str] = {}
    for path in sorted((path for path in paths if path.images), key=lambda path: path.key):
        first = by_images.setdefault(tuple((view, first_image[name]) for view, name in path.images), path.key)
        if first != path.key:
            twins[path.key] = first
    patients = {patient: head for patient, head in first_patient.items() if head in heads}
    found = {"key": key, "patients": patients, "twins": twins}
    write_json(cache, found)
    return found


def _same_images(files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Returns the pairs of names of identical or nearly identical images."""
    from scale_vqa_eval.audit.overlap import near_pairs, perceptual_hashes

    first: dict[bytes, str] = {}
    pairs: list[tuple[str, str]] = []
    hashed: list[tuple[str, int, bytes]] = []
    for name in tqdm(files, "images compared", disable=None):
        with Image.open(io.BytesIO(files[name].read_bytes())) as image:
            plain = image.convert("RGB")
        digest = hashlib.sha256(f"{plain.width}x{plain.height}".encode() + plain.tobytes()).digest()
        if digest in first:
            pairs.append((name, first[digest]))
            continue
        first[digest] = name
        hashes = perceptual_hashes(plain)
        if hashes is not None:
            hashed.append((name, *hashes))
    coarse = np.array([one[1] for one in hashed], dtype=np.uint64)
    fine = np.frombuffer(b"".join(one[2] for one in hashed), dtype=np.uint8).reshape(-1, 32)
    near = zip(*near_pairs(coarse, fine), strict=True)
    return pairs + [(hashed[left][0], hashed[right][0]) for left, right, _ in near]


def _first_of_linked(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns name -> first name, in sorted order, of its connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ordered = sorted(names)
    number = {name: index for index, name in enumerate(ordered)}
    edges = np.array([(number[left], number[right]) for left, right in pairs], dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(ordered), len(ordered)))
    _, labels = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    return {name: first.setdefault(label, name) for name, label in zip(ordered, labels.tolist(), strict=True)}


def without_duplicates(
    candidates: Sequence[Candidate], twins: Mapping[str, str], threshold: float
) -> tuple[list[Candidate], list[tuple[str, str, str]]]:
    """Removes questions that repeat another question on the same images in the same or nearly the same words.

    The same words on other images are not a duplicate: templates recur, and exchange groups need them.

    Args:
        candidates: the questions.
        twins: path key -> path with the same images, for paths that have a twin.
        threshold: minimum Jaccard similarity of the words of question and options for a near-duplicate.

    Returns:
        The kept questions, and (row id, ``duplicate`` or ``near-duplicate``, "of <row id>") of each removed question.
    """
    by_images: dict[str, list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: (one.group is None, one.id)):  # a group must not lose a member
        by_images[twins.get(one.path.key, one.path.key)].append(one)
    kept: list[Candidate] = []
    removed: list[tuple[str, str, str]] = []
    for members in by_images.values():
        seen: list[tuple[Candidate, list[list[str]], frozenset[str]]] = []
        for one in members:
            text = [words(one.question), *sorted(words(option) for option in one.options)]
            bag = tokens(" ".join((one.question, *one.options)))
            same = next((other for other, earlier, _ in seen if earlier == text), None)
            near = next((other for other, _, earlier in seen if jaccard(earlier, bag) >= threshold), None)
            original = same or near
            if one.group is None and original is not None:
                removed.append((one.id, "near-duplicate" if same is None else "duplicate", f"of {original.id}"))
            else:
                seen.append((one, text, bag))
                kept.append(one)
    return sorted(kept, key=lambda one: one.id), sorted(removed)


def contradictions(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Flags options that contradict their path's captions: wrong ones that are stated, right ones that are denied."""
    found = []
    for one in candidates:
        assert one.values is not None
        texts = one.path.captions
        for half, (pair, right) in enumerate(zip(one.values, one.truth, strict=True)):
            wrong, true = pair[1 - right], pair[right]
            if may_hold(wrong, texts):
                stating = [LETTERS[at] for at, number in enumerate(one.order) if divmod(number, 2)[half] == 1 - right]
                why = "is wrong here, but a caption of the path says it"
                found.append({"id": one.id, "options": "".join(stating), "finding": wrong, "why": why})
            if any(grounded_in(true, text) in ("negation-dropped", "negation-added") for text in texts):
                why = "is right here, but a caption of the path denies it"
                found.append({"id": one.id, "options": LETTERS[one.answer], "finding": true, "why": why})
    return found
