"""The input of the curation: JSON Lines, a slide a line, with captioned paths through its magnifications."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dataset_script.release.images import check_images
from scale_vqa_eval.errors import Fault, InputError, shown
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
    faults: list[Fault] = []
    paths = list(iter_paths(file, faults))
    if images is not None:
        faults += check_images(images, [(path.key, name) for path in paths for _, name in path.images])
    if not paths and not faults:
        faults.append(Fault(str(file), "at least one slide with a path", "none", "add captions"))
    if faults:
        raise InputError(faults)
    return paths


def iter_paths(file: Path, faults: list[Fault]) -> Iterator[CaptionedPath]:
    """Yields every path that keeps to the format, one at a time; what is wrong with the others goes to ``faults``."""
    seen: dict[str, str] = {}
    for where, slide, patient, raw in _raw_paths(file, faults):
        path = _path(where, slide, patient, raw, faults)
        if path is None:
            continue
        if path.key in seen:
            faults.append(Fault(where, "a path_id of its own on its slide", f"that of {seen[path.key]}", "rename one"))
            continue
        seen[path.key] = where
        yield path


def _raw_paths(file: Path, faults: list[Fault]) -> Iterator[tuple[str, str, str, Any]]:
    """Yields (place, slide, patient, path) for every path of every line; faults of lines are appended."""
    owners: dict[str, str] = {}
    with file.open(encoding="utf-8-sig", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, 1):
                where = f"{file}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    faults.append(Fault(where, "one JSON object", shown(str(error)), "correct the line"))
                    continue
                if not isinstance(row, Mapping):
                    mend = "write JSON Lines: each slide's object on a line of its own"
                    faults.append(Fault(where, "one JSON object", shown(row), mend))
                    continue
                slide = row.get("wsi_name")
                if not isinstance(slide, str) or not slide.strip():
                    faults.append(Fault(where, "a slide name under wsi_name", shown(slide), "add the name"))
                    continue
                raw = row.get("paths")
                if not isinstance(raw, list) or not raw:
                    faults.append(Fault(where, "a list of paths under paths", shown(raw), "add captioned paths"))
                    continue
                patient = _patient(where, slide, row.get("patient_id"), faults)
                owner = owners.setdefault(slide.strip(), patient)
                if owner != patient:
                    mend = "give the slide one patient"
                    faults.append(Fault(f"{where}, patient_id", f"that of the slide before, {owner!r}", patient, mend))
                for index, path in enumerate(raw, 1):
                    yield f"{where}, path {index}", slide.strip(), patient, path
        except UnicodeDecodeError as error:
            faults.append(Fault(str(file), "UTF-8 text", shown(str(error)), "save the file as UTF-8"))


def _patient(where: str, slide: str, raw: Any, faults: list[Fault]) -> str:
    """Returns the patient of a line, by the slide's name where none is given; a number is a name as well."""
    if raw is None:
        return patient_of(slide)
    named = str(raw).strip() if isinstance(raw, str | int) and not isinstance(raw, bool) else ""
    if not named:
        faults.append(Fault(f"{where}, patient_id", "a name or null", shown(raw), "name the patient, or leave it out"))
    return named


def _path(where: str, slide: str, patient: str, raw: Any, faults: list[Fault]) -> CaptionedPath | None:
    before = len(faults)
    if not isinstance(raw, Mapping):
        faults.append(Fault(where, "an object", shown(raw), "give path_id, captions and images"))
        return None
    path_id = raw.get("path_id")
    if not isinstance(path_id, str | int) or isinstance(path_id, bool) or not str(path_id).strip():
        faults.append(Fault(where, "a path_id", shown(path_id), "name the path"))
    texts: dict[str, str] = {}
    images: dict[str, str] = {}
    for view in VIEWS:
        found = _view(f"{where}, {view}", view, raw.get(view), faults)
        if found is not None:
            texts[view], images[view] = found
    across = []
    for name in ("path_description", "path_summary"):
        text = raw.get(name)
        if text is not None and not isinstance(text, str):
            faults.append(Fault(f"{where}, {name}", "a text or null", shown(text), "write it as text"))
        elif text and text.strip():
            across.append(text.strip())
    if len(faults) > before:
        return None
    if across:
        texts[PATH_VIEW] = "\n".join(across)
    return CaptionedPath(slide, patient, str(path_id).strip(), tuple(texts.items()), tuple(images.items()))


def _view(where: str, view: str, raw: Any, faults: list[Fault]) -> tuple[str, str] | None:
    """Returns caption and image of a view; None where it is absent, which only the high view may be."""
    absent = raw is None or (isinstance(raw, Mapping) and raw.get("image_path") is None and not raw.get("caption"))
    if absent and view == "high_mag":
        return None
    caption = raw.get("caption") if isinstance(raw, Mapping) else None
    image = raw.get("image_path") if isinstance(raw, Mapping) else None
    for name, value in (("caption", caption), ("image_path", image)):
        if not isinstance(value, str) or not value.strip():
            mend = "add it" + (", or make the whole view null" if view == "high_mag" else "")
            faults.append(Fault(where, f"a text under {name}", shown(value), mend))
    if not (isinstance(caption, str) and caption.strip() and isinstance(image, str) and image.strip()):
        return None
    return caption.strip(), image
