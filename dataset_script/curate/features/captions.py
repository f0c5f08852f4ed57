"""The input of the curation: JSON Lines, a slide a line, with captioned paths through its magnifications."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dataset_script.image_files import check_images
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.schema import VIEWS, patient_of

PATH_VIEW: Final = "path"
"""Name of the text across scales, description and summary, beside those of the views."""


@dataclass(frozen=True, slots=True)
class CaptionedPath:
    """A diagnostic path: nested views of a slide, each with an expert's caption.

    Attributes:
        slide: slide name.
        patient: ``patient_id`` of the line, else by the slide's name.
        path_id: name of the path on its slide.
        texts: view -> caption; under ``PATH_VIEW`` the description and the summary, where there are any.
        images: view -> path of the image below the image root.
    """

    slide: str
    patient: str
    path_id: str
    texts: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """What names the path in every file of the work folder."""
        return f"{self.slide}::{self.path_id}"


def read_paths(file: Path, images: Path | None = None) -> list[CaptionedPath]:
    """Reads every path of a captions file, in order.

    Args:
        file: JSON Lines; a line has ``wsi_name``, ``paths`` and maybe ``patient_id``.
        images: folder that image paths are relative to; given, every image is checked, as those of a release are.

    Raises:
        InputError: with every fault of the file.
    """
    problems: list[Problem] = []
    paths = list(iter_paths(file, problems))
    if images is not None:
        problems += check_images(images, [(path.key, name) for path in paths for _, name in path.images])
    if not paths and not problems:
        problems.append(Problem(str(file), "at least one slide with a path", "none", "add captions"))
    if problems:
        raise InputError(problems)
    return paths


def iter_paths(file: Path, problems: list[Problem]) -> Iterator[CaptionedPath]:
    """Yields every path that keeps to the format, one at a time; what is wrong with others goes to ``problems``."""
    seen: dict[str, str] = {}
    for location, slide, patient, raw in _raw_paths(file, problems):
        path = _path(location, slide, patient, raw, problems)
        if path is None:
            continue
        if path.key in seen:
            problems.append(
                Problem(location, "a path_id of its own on its slide", f"that of {seen[path.key]}", "rename one")
            )
            continue
        seen[path.key] = location
        yield path


def _raw_paths(file: Path, problems: list[Problem]) -> Iterator[tuple[str, str, str, Any]]:
    """Yields (place, slide, patient, path) for every path of every line; faults of lines are appended."""
    owners: dict[str, str] = {}
    with file.open(encoding="utf-8-sig", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, 1):
                location = f"{file}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    problems.append(Problem(location, "one JSON object", preview(str(error)), "correct the line"))
                    continue
                if not isinstance(row, Mapping):
                    hint = "write JSON Lines: each slide's object on a line of its own"
                    problems.append(Problem(location, "one JSON object", preview(row), hint))
                    continue
                slide = row.get("wsi_name")
                if not isinstance(slide, str) or not slide.strip():
                    problems.append(Problem(location, "a slide name under wsi_name", preview(slide), "add the name"))
                    continue
                raw = row.get("paths")
                if not isinstance(raw, list) or not raw:
                    problems.append(
                        Problem(location, "a list of paths under paths", preview(raw), "add captioned paths")
                    )
                    continue
                patient = _patient(location, slide, row.get("patient_id"), problems)
                owner = owners.setdefault(slide.strip(), patient)
                if owner != patient:
                    hint = "give the slide one patient"
                    problems.append(
                        Problem(f"{location}, patient_id", f"that of the slide before, {owner!r}", patient, hint)
                    )
                for index, path in enumerate(raw, 1):
                    yield f"{location}, path {index}", slide.strip(), patient, path
        except UnicodeDecodeError as error:
            problems.append(Problem(str(file), "UTF-8 text", preview(str(error)), "save the file as UTF-8"))


def _patient(location: str, slide: str, raw: Any, problems: list[Problem]) -> str:
    """Returns the patient of a line, by the slide's name where none is given; a number is a name as well."""
    if raw is None:
        return patient_of(slide)
    named = str(raw).strip() if isinstance(raw, str | int) and not isinstance(raw, bool) else ""
    if not named:
        problems.append(
            Problem(f"{location}, patient_id", "a name or null", preview(raw), "name the patient, or leave it out")
        )
    return named


def _path(location: str, slide: str, patient: str, raw: Any, problems: list[Problem]) -> CaptionedPath | None:
    before = len(problems)
    if not isinstance(raw, Mapping):
        problems.append(Problem(location, "an object", preview(raw), "give path_id, captions and images"))
        return None
    path_id = raw.get("path_id")
    if not isinstance(path_id, str | int) or isinstance(path_id, bool) or not str(path_id).strip():
        problems.append(Problem(location, "a path_id", preview(path_id), "name the path"))
    texts: dict[str, str] = {}
    images: dict[str, str] = {}
    for view in VIEWS:
        found = _view(f"{location}, {view}", view, raw.get(view), problems)
        if found is not None:
            texts[view], images[view] = found
    across = []
    for name in ("path_description", "path_summary"):
        text = raw.get(name)
        if text is not None and not isinstance(text, str):
            problems.append(Problem(f"{location}, {name}", "a text or null", preview(text), "write it as text"))
        elif text and text.strip():
            across.append(text.strip())
    if len(problems) > before:
        return None
    if across:
        texts[PATH_VIEW] = "\n".join(across)
    return CaptionedPath(slide, patient, str(path_id).strip(), tuple(texts.items()), tuple(images.items()))


def _view(location: str, view: str, raw: Any, problems: list[Problem]) -> tuple[str, str] | None:
    """Returns caption and image of a view; None where it is absent, which only the high view may be."""
    absent = raw is None or (isinstance(raw, Mapping) and raw.get("image_path") is None and not raw.get("caption"))
    if absent and view == "high_mag":
        return None
    caption = raw.get("caption") if isinstance(raw, Mapping) else None
    image = raw.get("image_path") if isinstance(raw, Mapping) else None
    for name, value in (("caption", caption), ("image_path", image)):
        if not isinstance(value, str) or not value.strip():
            hint = "add it" + (", or make the whole view null" if view == "high_mag" else "")
            problems.append(Problem(location, f"a text under {name}", preview(value), hint))
    if not (isinstance(caption, str) and caption.strip() and isinstance(image, str) and image.strip()):
        return None
    return caption.strip(), image
