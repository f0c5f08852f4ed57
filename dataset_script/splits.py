"""Splits slides into train, val and test, by the paper's rule or with each patient in one split.

``scale-vqa build join`` joins release folders whose splits agree; Parquet files are linked, not copied.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.errors import InputError, Problem, first_line, preview
from scale_vqa_eval.files import sha256_file
from scale_vqa_eval.release_folder.card import NO_LICENCE, body, by_heading, head, own_words, read_notes
from scale_vqa_eval.release_folder.verify import Shards, check_columns, has_images, outside_files, release_shards
from scale_vqa_eval.release_folder.write import link_or_copy, row_features, shard_names, staged_release
from scale_vqa_eval.schema import patient_of

SPLITS: Final = ("train", "val", "test")
RATIOS: Final = (0.7, 0.1, 0.2)
SPLIT_TABLE: Final = "splits.csv"
"""Name of the split table, in the folder of a config."""


def reference_splits(
    paths_by_slide: Mapping[str, int], seed: int = 42, ratios: tuple[float, float, float] = RATIOS
) -> dict[str, str]:
    """Splits slides as the authors did, bit-exact given the same order of slides.

    Slides are shuffled, then sorted by number of paths, descending (stable). Each is assigned to the split that brings
    the shares of paths nearest to ``ratios`` (sum of absolute differences); ties go to the split with fewer slides,
    then with fewer paths, then to train before val before test. If there are no paths, the shuffled list is cut by
    slide counts. Patients are ignored: two slides of a patient may be in two splits.

    Args:
        paths_by_slide: slide -> number of paths, in the order of the source file (the order matters).
        seed: seed of the shuffle; the release used 42.
        ratios: target shares of paths for train, val and test.

    Returns:
        slide -> split.

    Source: the published split rule of Scale-VQA (arXiv:2606.17412 and its code release).
    """
    slides = list(paths_by_slide)
    random.Random(seed).shuffle(slides)
    if not any(paths_by_slide.values()):
        ends = [int(len(slides) * ratios[0]), int(len(slides) * ratios[0]) + int(len(slides) * ratios[1])]
        return {slide: SPLITS[(index >= ends[0]) + (index >= ends[1])] for index, slide in enumerate(slides)}
    slides.sort(key=lambda slide: paths_by_slide[slide], reverse=True)
    paths, members = [0, 0, 0], [0, 0, 0]
    splits: dict[str, str] = {}
    for slide in slides:
        count = paths_by_slide[slide]
        target = min(
            range(3),
            key=lambda split: (_distance(paths, split, count, ratios), members[split], paths[split], split),
        )
        splits[slide] = SPLITS[target]
        paths[target] += count
        members[target] += 1
    return splits


def _distance(paths: list[int], split: int, added: int, ratios: tuple[float, float, float]) -> float:
    """Returns the sum of absolute differences to ``ratios`` after ``added`` paths are assigned to ``split``."""
    projected = [count + added * (index == split) for index, count in enumerate(paths)]
    total = projected[0] + projected[1] + projected[2]
    if total == 0:
        return 0.0
    train, val, test = (abs(count / total - ratio) for count, ratio in zip(projected, ratios, strict=True))
    return train + val + test  # left to right; sum() rounds differently from Python 3.12 on, which would change ties


def patient_splits(
    paths_by_patient: Mapping[str, int],
    seed: int = 42,
    ratios: tuple[float, float, float] = RATIOS,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Splits patients so that none is in two splits; the default for new data.

    Patients with a fixed split keep it. The others, sorted by name, are shuffled, then sorted by number of paths,
    descending; each is assigned to the split that lacks the most paths. With at least three patients no split is
    empty; with fewer, train is filled first, then test. The order of the mapping does not matter.

    Args:
        paths_by_patient: patient -> number of paths.
        seed: seed of the shuffle, which orders patients with the same number of paths.
        ratios: target shares of paths for train, val and test.
        fixed: patient -> fixed split; patients without paths are ignored.

    Returns:
        patient -> split.
    """
    splits = {patient: split for patient, split in (fixed or {}).items() if patient in paths_by_patient}
    patients = sorted(paths_by_patient.keys() - splits.keys())
    random.Random(seed).shuffle(patients)
    patients.sort(key=lambda patient: paths_by_patient[patient], reverse=True)
    total = sum(paths_by_patient.values()) or len(patients)
    paths: list[float] = [0, 0, 0]
    for patient, split in splits.items():
        paths[SPLITS.index(split)] += paths_by_patient[patient]
    # in the order in which they are filled if there are few patients
    empty = [split for split in (0, 2, 1) if SPLITS[split] not in splits.values()][: len(patients)]
    for index, patient in enumerate(patients):
        left = len(patients) - index
        choices = empty if left <= len(empty) else range(3)
        target = max(choices, key=lambda split: (ratios[split] * total - paths[split], -split))
        splits[patient] = SPLITS[target]
        paths[target] += paths_by_patient[patient] or (1 if not any(paths_by_patient.values()) else 0)
        if target in empty:
            empty.remove(target)
    return splits


def split_table(split_of: Mapping[str, str]) -> bytes:
    """Returns patient -> split as CSV with these two columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("patient", "split"), *sorted(split_of.items())])
    return text.getvalue().encode()


def notify_case(patients: Iterable[str]) -> None:
    """Warns on standard error of patients whose names differ only in case."""
    folded: dict[str, set[str]] = {}
    for patient in patients:
        folded.setdefault(patient.casefold(), set()).add(patient)
    for same in folded.values():
        if len(same) > 1:
            names = ", ".join(map(preview, sorted(same)))
            click.echo(f"patients {names} differ only in case and are taken for {len(same)}", err=True)


def join_releases(folders: Sequence[Path], out: Path) -> dict[str, dict[str, int]]:
    """Writes the rows of release folders, in the given order, into one folder.

    Other files are copied; files of the same name that differ get the number of their folder. The notes of the cards
    are concatenated; a licence is kept if all cards state it, else the notes list the licences.

    Args:
        folders: at least two release folders.
        out: the release folder to write; it may be one of ``folders``.

    Returns:
        config -> split -> number of rows.

    Raises:
        InputError: if two folders share an id or an exchange group, a patient is in two splits, columns differ, a file
            is damaged, or a folder lies inside another.
    """
    import pyarrow.parquet as pq

    _check_apart([*folders, out])
    configs = {folder: release_shards(folder) for folder in folders}
    others = _other_files(configs)
    names = list(dict.fromkeys(name for shards in configs.values() for name in shards))
    splits: dict[str, dict[str, str]] = {name: {} for name in names}
    problems = list(_conflicts(configs, splits))
    if problems:
        raise InputError(problems)
    notify_case(patient for of_patient in splits.values() for patient in of_patient)
    counts: dict[str, dict[str, int]] = {}
    licences = {folder: _licence(folder) for folder in folders}
    with staged_release(out, set(names), _notes(configs, names, licences)) as staging:
        if not (out / "README.md").exists() or out.resolve() in {folder.resolve() for folder in folders}:
            (staging / "README.md").write_text(_earlier_card(out / "README.md", licences), encoding="utf-8")
        for config in names:
            (staging / config).mkdir()
            parts: dict[str, list[Path]] = {}
            for shards in configs.values():
                for split, files in shards.get(config, {}).items():
                    parts.setdefault(split, []).extend(files)
            for split, files in parts.items():
                for file, name in zip(files, shard_names(split, len(files)), strict=True):
                    link_or_copy(file.resolve(), staging / config / name)
            counts[config] = {
                split: sum(pq.read_metadata(file).num_rows for file in files) for split, files in parts.items()
            }
        for name, files in others.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.name == SPLIT_TABLE and target.parent.name in splits:
                target.write_bytes(split_table(splits[target.parent.name]))
            elif len({sha256_file(file) for file in files.values()}) == 1:
                target.unlink(missing_ok=True)
                link_or_copy(next(iter(files.values())).resolve(), target)
            else:
                for number, file in files.items():
                    link_or_copy(file.resolve(), target.with_name(f"{target.stem}.{number}{target.suffix}"))
    return counts


def _conflicts(configs: Mapping[Path, Mapping[str, Shards]], splits: dict[str, dict[str, str]]) -> Iterator[Problem]:
    """Yields the conflicts between folders; fills ``splits`` with config -> patient -> split."""
    ids: dict[tuple[str, str, str], Path] = {}
    first: dict[str, tuple[str, str]] = {}
    reported: set[tuple[str, str]] = set()
    # if one folder has image columns, all need them
    images = {
        config: any(has_images(config, shards_of[config]) for shards_of in configs.values() if config in shards_of)
        for config in splits
    }
    for folder, shards_of in configs.items():
        for config, shards in shards_of.items():
            check_columns(shards, row_features(images[config], config))
            damaged: list[Problem] = []
            for split, row in _rows(shards, damaged):
                for column in ("id", "group"):
                    other = ids.setdefault((config, column, row[column]), folder) if row[column] else folder
                    if other != folder and (column, row[column]) not in reported:
                        reported.add((column, row[column]))
                        what = "an id" if column == "id" else "an exchange group"
                        hint = "omit one of the folders, or build it again without the slides of the other"
                        location = f"{folder}, {config}, {column} {preview(row[column])}"
                        yield Problem(location, f"{what} that no other folder has", f"it is in {other} too", hint)
                patient = row["patient_id"] or patient_of(row["wsi_name"] or "")
                splits[config][patient] = split
                here = (split, f"{folder}, {config}")
                earlier = first.setdefault(patient, here)
                if earlier[0] != split and ("patient", patient) not in reported:
                    reported.add(("patient", patient))
                    found = f"{earlier[0]} in {earlier[1]}, and {split} in {here[1]}"
                    hint = f"rebuild one with the split table of the other: --splits FOLDER/grounding/{SPLIT_TABLE}"
                    yield Problem(f"patient {preview(patient)}", "one split", found, hint)
            yield from damaged


def _rows(shards: Shards, damaged: list[Problem]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yields (split, row); reads images too, to find files that are damaged, and adds these to ``damaged``."""
    import pyarrow.parquet as pq

    columns = ["id", "group", "patient_id", "wsi_name"]
    for split, files in shards.items():
        for file in files:
            try:
                with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                    for batch in parquet.iter_batches(batch_size=64):
                        yield from ((split, row) for row in batch.select(columns).to_pylist())
            except (OSError, ValueError) as error:  # all of pyarrow's are one of these
                hint = "copy the file again, or build the folder again"
                damaged.append(Problem(str(file), "rows that can be read", first_line(error), hint))


def _check_apart(folders: Sequence[Path]) -> None:
    """Raises InputError if a folder lies inside another, whose files it would be taken for."""
    real = {Path(os.path.realpath(folder)): folder for folder in folders}
    problems = [
        Problem(
            str(folder), "folders side by side", f"it lies inside of {real[outer]}", "move it, or name another --out"
        )
        for path, folder in real.items()
        for outer in path.parents
        if outer in real
    ]
    if problems:
        raise InputError(problems)


def _licence(folder: Path) -> dict[str, Any]:
    """Returns the licence that a folder's card states, as its metadata; empty if it states none."""
    stated = head((folder / "README.md").read_text(encoding="utf-8-sig"))
    if not stated.get("license") or stated.get("license_name") == NO_LICENCE:
        return {}
    return {key: stated[key] for key in ("license", "license_name", "license_link") if stated.get(key)}


def _licence_text(licence: Mapping[str, Any]) -> str:
    """Returns a licence (see ``_licence``) on one line."""
    return ", ".join(str(value) for value in licence.values()) or "none stated"


def _earlier_card(card: Path, licences: Mapping[Path, Mapping[str, Any]]) -> str:
    """Returns the earlier card, or one without text, with the licence that all folders state, if they do."""
    old = card.read_text(encoding="utf-8-sig") if card.exists() else ""
    first = next(iter(licences.values()))
    licence = first if all(one == first for one in licences.values()) else {}
    kept = {key: value for key, value in head(old).items() if not key.startswith("license")}
    return f"---\n{json.dumps({**kept, **licence}, default=str)}\n---\n{body(old)}"


def _notes(
    configs: Mapping[Path, Mapping[str, Shards]], names: Sequence[str], licences: Mapping[Path, Mapping[str, Any]]
) -> dict[str, str]:
    """Returns config -> notes of the folders' cards, without repeats, and their licences if these differ."""
    notes = {}
    for name in names:
        folders = [folder for folder, shards_of in configs.items() if name in shards_of]
        texts = list(dict.fromkeys(note for one in folders if (note := read_notes(one / "README.md").get(name))))
        if len(texts) > 1:
            texts.insert(
                0, f"Joined from {len(folders)} folders that were built separately; the notes of each follow."
            )
        if len({_licence_text(licence) for licence in licences.values()}) > 1:
            stated = "; ".join(f"{folder.resolve().name}: {_licence_text(licences[folder])}" for folder in folders)
            texts.append(f"Licences that the cards of the joined folders state: {stated}.")
        notes[name] = "\n\n".join(texts)
    return notes


def _other_files(configs: Mapping[Path, Mapping[str, Shards]]) -> dict[str, dict[int, Path]]:
    """Returns name -> number of the folder -> file, for files that are neither rows nor the card."""
    found: dict[str, dict[int, Path]] = {}
    problems: list[Problem] = []
    for number, (folder, shards_of) in enumerate(configs.items(), 1):
        skipped = {file for shards in shards_of.values() for files in shards.values() for file in files}
        skipped.add(folder / "README.md")
        names = {file: file.relative_to(folder) for file in sorted(folder.rglob("*")) if file not in skipped}
        shown = {file: name for file, name in names.items() if not any(part.startswith(".") for part in name.parts)}
        files = [file for file in shown if file.is_file()]
        problems += outside_files(folder, files)
        for file in files:
            found.setdefault(shown[file].as_posix(), {})[number] = file
    if problems:
        raise InputError(problems)
    return found


@click.command()
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    metavar="RELEASE_FOLDER...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder to write.")
def join(folders: Sequence[Path], out: Path) -> None:
    """Join release folders that were built separately, such as on several sites.

    Refused: an id or exchange group that two folders share, and a patient in two splits.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise click.UsageError("expected at least two different release folders")
    cards = {folder: folder / "README.md" for folder in folders}
    texts = {one: body(card.read_text("utf-8-sig", "replace")) for one, card in cards.items() if card.exists()}
    counts_of = join_releases(folders, out)
    joined = (out / "README.md").read_text(encoding="utf-8")
    for folder, text in texts.items():
        if lost := ", ".join(by_heading(own_words(text, joined))):
            click.echo(f"{folder}: not in the joined card, copy if they apply: the sections {lost}", err=True)
    for config, splits in counts_of.items():
        counts = ", ".join(f"{split} {count}" for split, count in splits.items())
        click.echo(f"{out}: {config} with {counts} questions")
