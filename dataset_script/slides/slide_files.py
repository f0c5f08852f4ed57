"""The input of a build: slide files named or found in folders, the patient of each, and splits that patients have."""

from __future__ import annotations

import csv
import filecmp
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import click

from dataset_script.splits import SPLITS, notify_case
from scale_vqa_eval.errors import InputError, Problem, did_you_mean, preview
from scale_vqa_eval.schema import patient_of
from scale_vqa_eval.wsi import UNKNOWN_FORMAT, not_opened


def find_slides(places: Sequence[Path]) -> tuple[Path, ...]:
    """Returns the slide files among files and folders (with sub-folders, without hidden files), sorted by stem.

    Files of the folders that OpenSlide does not open are named on standard error, with the reason if it is known.

    The DICOM files of one series in a folder are one slide: OpenSlide opens it by any of them.

    Raises:
        InputError: for a named file that is not a slide, a name with control characters, two slides of one name, one
            slide under two names, or no slide.
    """
    import openslide

    slides: dict[str, Path] = {}
    of_size: dict[int, list[Path]] = {}
    seen_series: set[str | None] = set()
    problems: list[Problem] = []
    for place in places:
        for path in [place] if place.is_file() else _files_in(place):
            if openslide.OpenSlide.detect_format(str(path)) is None:
                problem = not_opened(path)
                if place.is_file():
                    problems.append(problem)
                else:
                    reason = f": {problem.found}; {problem.hint}" if problem.found != UNKNOWN_FORMAT else ""
                    click.echo(f"skipped, not a slide that OpenSlide opens: {path}{reason}", err=True)
                continue
            series = _dicom_series(path)
            if series is not None and series in seen_series:
                continue  # another level of a slide that OpenSlide opens as a whole
            seen_series.add(series)
            name = unicodedata.normalize("NFC", path.stem)
            if not {unicodedata.category(character) for character in name}.isdisjoint(("Cc", "Cs")):
                expected, hint = "a name without line breaks and other control characters, in UTF-8", "rename it"
                problems.append(Problem(ascii(str(path)), expected, preview(path.name), hint))
            elif name not in slides:
                slides[name] = path
                equal = of_size.setdefault(path.stat().st_size, [])
                if twin := next((other for other in equal if filecmp.cmp(path, other, shallow=False)), None):
                    hint = "leave one out: a slide under two names would come into two splits"
                    problems.append(Problem(str(path), "a slide of its own", f"the bytes of {twin}", hint))
                equal.append(path)
            elif not path.samefile(slides[name]):
                found = f"the name {preview(path.stem)} of {slides[name]} too"
                problems.append(Problem(str(path), "a unique slide name", found, "rename one, or leave one out"))
    if not slides and not problems:
        location = ", ".join(str(place) for place in places)
        problems.append(
            Problem(location, "at least one slide that OpenSlide opens", "none", "name a slide or a folder of them")
        )
    if problems:
        raise InputError(problems)
    return tuple(slides[stem] for stem in sorted(slides))


def read_patients(slides: Sequence[Path], table: Path | None) -> dict[str, str]:
    """Returns slide name -> patient.

    Args:
        slides: slide files.
        table: CSV with the columns ``slide`` (name or file name) and ``patient``; without it the patient is taken
            from the slide's name (``schema.patient_of``).

    Raises:
        InputError: where the table has not these columns, an empty cell, two patients for a slide, or lacks a slide.
    """
    named: dict[str, str] = {}
    patients, problems = _read_pairs(table, "slide", "patient") if table is not None else ({}, [])
    for slide in slides:
        keys = (unicodedata.normalize("NFC", name) for name in (slide.stem, slide.name))
        found = sorted({patients[key] for key in keys if key in patients})
        if table is not None and len(found) != 1:
            hint = "correct one row" if found else "add one"
            expected = f"a row for slide {preview(slide.stem)}"
            problems.append(Problem(str(table), expected, preview(" and ".join(found) or "none"), hint))
        named[slide.stem] = found[0] if found else patient_of(slide.stem)
    if problems:
        raise InputError(problems)
    notify_case(named.values())
    return named


def read_splits(table: Path) -> dict[str, str]:
    """Returns patient -> split of a CSV with the columns ``patient`` and ``split``.

    Raises:
        InputError: if the table lacks a column, has an empty cell or two splits of a patient, or another split's name.
    """
    splits, problems = _read_pairs(table, "patient", "split")
    problems += [
        Problem(
            f"{table}, patient {preview(patient)}",
            f"one of {', '.join(SPLITS)}",
            preview(split),
            did_you_mean(split, SPLITS),
        )
        for patient, split in splits.items()
        if split not in SPLITS
    ]
    if problems:
        raise InputError(problems)
    return splits


def _read_pairs(table: Path, key: str, value: str) -> tuple[dict[str, str], list[Problem]]:
    """Returns two columns of a CSV as a mapping of names in NFC, and the problems of its rows."""
    pairs: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if any(list(columns).count(name) != 1 for name in (key, value)):
                found = preview(", ".join(columns) or "no header", 160)
                expected, hint = f"one column {key} and one {value}", "rename the columns, and separate them by commas"
                raise InputError(Problem(f"{table}, line 1", expected, found, hint))
            for row in reader:
                location = f"{table}, line {reader.line_num}"
                left, right = (unicodedata.normalize("NFC", row[name] or "").strip() for name in (key, value))
                if row.get(None):  # type: ignore[call-overload]
                    expected, found = f"{len(columns)} cells", f"{len(columns) + len(row[None])}"  # type: ignore
                    problems.append(Problem(location, expected, found, "quote cells that hold a comma"))
                elif not left or not right:
                    problems.append(Problem(location, f"a {key} and a {value}", "an empty cell", "fill it in"))
                elif pairs.setdefault(left, right) != right:
                    found = f"{preview(pairs[left])} and {preview(right)} for {preview(left)}"
                    problems.append(Problem(location, f"one {value} per {key}", found, "correct one row"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            Problem(str(table), "a CSV file in UTF-8", preview(str(error), 160), "save it again")
        ) from error
    return pairs, problems


def _dicom_series(path: Path) -> str | None:
    """Returns the series of a DICOM slide; None for other formats, and where the file cannot be opened."""
    import openslide

    if openslide.OpenSlide.detect_format(str(path)) != "dicom":
        return None
    try:
        with openslide.OpenSlide(str(path)) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except openslide.OpenSlideError:
        return None


def _files_in(folder: Path) -> list[Path]:
    """Returns the files below a folder, links followed once; a link to nothing is one of them."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or path.is_symlink())
