"""Images that several paths share: patients who share one stay in one split, paths that share all are one path."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_script.curate.features.captions import CaptionedPath
from dataset_script.image_files import inside
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json


def linked_patients(paths: Sequence[CaptionedPath], root: Path, cache: Path) -> dict[str, str]:
    """Returns patient -> the first of the patients that share an image with it, of those who share one."""
    found: dict[str, str] = shared_images(paths, root, cache)["patients"]
    return found


def twin_paths(paths: Sequence[CaptionedPath], root: Path, cache: Path) -> dict[str, str]:
    """Returns path key -> the first path that has the same images in every view, of those that have a twin."""
    found: dict[str, str] = shared_images(paths, root, cache)["twins"]
    return found


def shared_images(paths: Sequence[CaptionedPath], root: Path, cache: Path) -> dict[str, Any]:
    """Compares the images of all paths, pixel by pixel and by perceptual hash (``audit.near_images``).

    Args:
        paths: the paths.
        root: folder that image paths are relative to.
        cache: file that keeps the result for the same images.

    Raises:
        InputError: where an image is not below the root.
    """
    names = sorted({name for path in paths for _, name in path.images})
    files: dict[str, Path] = {}
    problems = []
    for name in names:
        place = inside(root, name)
        if isinstance(place, Path):
            files[name] = place
        else:
            problems.append(Problem(f"image {name!r}", f"a file inside {root}", place, "correct the captions file"))
    if problems:
        raise InputError(problems)
    stamps = [(name, files[name].stat().st_size, files[name].stat().st_mtime_ns) for name in names]
    about = [(path.key, path.patient, path.images) for path in paths]
    key = hashlib.sha256(json.dumps([stamps, about]).encode()).hexdigest()
    if cache.is_file():
        kept: dict[str, Any] = json.loads(cache.read_text(encoding="utf-8"))
        if kept.get("key") == key:
            return kept
    alike = _alike(files)
    found = {"key": key, "patients": _patients(paths, alike), "twins": _twins(paths, alike)}
    write_json(cache, found)
    return found


def _alike(files: Mapping[str, Path]) -> dict[str, str]:
    """Returns image name -> the first name of an image that is the same or nearly so; its own where there is none."""
    from scale_vqa_eval.audit.near_images import near_pairs, perceptual_hashes

    names = list(files)
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    hashed: list[tuple[str, int, bytes]] = []
    for name in tqdm(names, "images compared", disable=None):
        with Image.open(io.BytesIO(files[name].read_bytes())) as image:
            plain = image.convert("RGB")
        digest = hashlib.sha256(f"{plain.width}x{plain.height}".encode() + plain.tobytes()).digest()
        if digest in first:
            same[name] = first[digest]
            continue
        first[digest] = name
        hashes = perceptual_hashes(plain)
        if hashes is not None:
            hashed.append((name, *hashes))
    coarse = np.array([one[1] for one in hashed], dtype=np.uint64)
    fine = np.frombuffer(b"".join(one[2] for one in hashed), dtype=np.uint8).reshape(-1, 32)
    union = _Union(names)
    for name, other in same.items():
        union.join(name, other)
    for left, right, _ in zip(*near_pairs(coarse, fine), strict=True):
        union.join(hashed[left][0], hashed[right][0])
    return {name: union.head(name) for name in names}


def _patients(paths: Sequence[CaptionedPath], alike: Mapping[str, str]) -> dict[str, str]:
    union = _Union(sorted({path.patient for path in paths}))
    owner: dict[str, str] = {}
    for path in paths:
        for _, name in path.images:
            union.join(path.patient, owner.setdefault(alike[name], path.patient))
    heads = {patient: union.head(patient) for patient in union.names}
    shared = {head for patient, head in heads.items() if patient != head}
    return {patient: head for patient, head in heads.items() if head in shared}


def _twins(paths: Sequence[CaptionedPath], alike: Mapping[str, str]) -> dict[str, str]:
    first: dict[tuple[tuple[str, str], ...], str] = {}
    twins: dict[str, str] = {}
    for path in sorted(paths, key=lambda one: one.key):
        if not path.images:
            continue
        head = first.setdefault(tuple((view, alike[name]) for view, name in path.images), path.key)
        if head != path.key:
            twins[path.key] = head
    return twins


class _Union:
    """Names that belong together; the head of a set is its first name in order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._above = {name: name for name in names}

    def head(self, name: str) -> str:
        while self._above[name] != name:
            self._above[name] = self._above[self._above[name]]
            name = self._above[name]
        return name

    def join(self, one: str, other: str) -> None:
        low, high = sorted((self.head(one), self.head(other)))
        self._above[high] = low
