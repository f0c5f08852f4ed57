"""Whether a card may be published: valid head, every section, a citation, no local path, no blank, no false claim."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, ModelCard, RepoCard, parse_eval_result_entries

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_json, parse_yaml
from scale_vqa_eval.release_folder.card import INCOMPLETE, NO_LICENCE, head, marked_sections

CardKind = Literal["dataset", "model", "metric", "space"]

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("splits", "audit", "defects", "uses", "licence", "datasheet", "package"),
    "model": ("summary", "use", "results", "transfer", "training", "limits", "cost", "citation"),
    "metric": ("example", "citation"),
    "space": (),
}
HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("license", "configs", "dataset_info", "task_categories", "pretty_name"),
    "model": ("license", "base_model", "datasets", "pipeline_tag", "library_name", "model-index"),
    "metric": ("license", "title", "sdk", "sdk_version", "app_file", "tags"),
    "space": ("license", "title", "sdk", "sdk_version", "app_file"),
}
_CLASSES: Final[Mapping[str, type[RepoCard]]] = {"dataset": DatasetCard, "model": ModelCard}
_LOCAL: Final = re.compile(r"(?<![\w:/.])(?:/(?:home|root|Users|tmp|work|mnt|data)/[\w.-]+|[A-Z]:\\\\?Users)")
CROISSANT: Final = "croissant.json"
CROISSANT_HINT: Final = "write it again: scale-vqa card dataset --croissant --repo ORG/NAME, or remove it"
_BLANK: Final = re.compile(r"\b(?:TODO|TBD|FIXME|More Information Needed)\b|\{\{\s|\{%|\bNone\b(?= \|)")


def check_card(folder: Path, kind: CardKind, draft: bool = False) -> list[Problem]:
    """Returns what is wrong with the card of a folder that is to be published; empty if it may be.

    Args:
        folder: holds ``README.md``, for a model also ``.eval_results/*.yaml``.
        kind: ``dataset``, ``model``, ``metric`` or ``space`` (an app that is not the metric).
        draft: let a card that says of itself that it is not complete lack sections and a licence; nothing else.
    """
    path = folder / "README.md"
    hint = "write it in the card" if kind == "space" else f"scale-vqa card {kind}"
    try:
        text = path.read_text(encoding="utf-8")
        data = head(text)
        _CLASSES.get(kind, RepoCard)(text, ignore_metadata_errors=False)
    except InputError as error:
        return list(error.problems)
    except (OSError, ValueError) as error:
        return [Problem(str(path), "a card", preview(str(error), 200), hint)]
    problems = [Problem(str(path), f"{name} in the head", "none", hint) for name in HEADS[kind] if not data.get(name)]
    sections = marked_sections(text)
    if not (draft and INCOMPLETE in sections):
        if data.get("license_name") == NO_LICENCE:
            problems.append(Problem(str(path), "a licence", NO_LICENCE, f"{hint} --license"))
        missing = [name for name in SECTIONS[kind] if name not in sections]
        problems += [Problem(str(path), f"the section {name}", "none", hint) for name in missing]
    app = data.get("app_file")
    if kind in ("metric", "space") and app and not (folder / str(app)).is_file():
        problems.append(Problem(str(path), "an app_file that is there", preview(app), "name the app's script"))
    if kind != "space" and "@inproceedings{phan2026scalevqa" not in text:
        problems.append(Problem(str(path), "the paper's BibTeX", "none", hint))
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}, line {number}"
        if _LOCAL.search(line):
            problems.append(Problem(place, "no path of a machine", preview(line), "take it out"))
        if kind in ("dataset", "model") and _BLANK.search(line):
            problems.append(Problem(place, "no blank to fill in", preview(line), "fill it in"))
    return problems + (_eval_problems(folder) if kind == "model" else [])


def dataset_info_problems(
    card: str, local: Mapping[str, Path], on_hub: frozenset[str], kept: frozenset[str]
) -> list[Problem]:
    """Returns where the ``dataset_info`` of a merged card, the folder's or the remote's, is false of the files.

    A ``dataset_info`` that is true is kept word for word. A false one would make ``load_dataset`` fail, and is neither
    overwritten nor published.

    Args:
        card: the merged card.
        local: path in the repository -> file, of all local files.
        on_hub: paths of the files that only the remote has.
        kept: names of the card's parts that are the remote's.
    """
    metadata = head(card)
    infos = by_config(metadata.get("dataset_info"))
    problems = []
    for name, split, patterns in _splits(metadata):
        files = [local[path] for path in sorted(local) if _matches(path, patterns) and path.endswith(".parquet")]
        if name not in infos or not files or any(_matches(path, patterns) for path in on_hub):
            continue  # data of the remote alone, or a mixture, which is refused as such
        claimed = {str(one.get("name")): one.get("num_examples") for one in infos[name].get("splits") or []}
        columns = [str(feature.get("name")) for feature in infos[name].get("features") or []]
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        found = pq.read_schema(files[-1]).names
        location = f"README.md, dataset_info of {name}"
        hint = "build the config again: its files are not those that its card was written for"
        if f"dataset_info:{name}" in kept:
            location = f"README.md on the Hub, dataset_info of {name}"
            hint = f"--replace dataset_info:{name} takes the folder's; or fix it on the Hub"
        if claimed.get(split) != rows:
            expected = f"{rows} rows of {split}, as in the files"
            problems.append(Problem(location, expected, f"{claimed.get(split)}", hint))
        elif sorted(columns) != sorted(found):
            problems.append(Problem(location, f"the columns {', '.join(found)}", preview(", ".join(columns)), hint))
    return problems


def mixed_files(card: str, local: Mapping[str, Path], on_hub: frozenset[str]) -> list[str]:
    """Returns files that only the remote has and that the card's configs would load together with local ones."""
    mixed: set[str] = set()
    for _, _, patterns in _splits(head(card)):
        if any(_matches(path, patterns) for path in local):
            mixed |= {path for path in on_hub if _matches(path, patterns)}
    return sorted(mixed)


def hash_problems(location: str, content: str, hashes: Mapping[str, str]) -> list[Problem]:
    """Returns a problem if Croissant metadata names other Parquet files, or other bytes, than are there.

    Args:
        location: location that the problem names.
        content: text of ``croissant.json``.
        hashes: path -> SHA-256 of the Parquet files.
    """
    try:
        listed = parse_json(content, location)["distribution"]
        named = {one["contentUrl"]: one["sha256"] for one in listed if "sha256" in one}
    except (InputError, KeyError, TypeError):
        named = {}
    wrong = sorted(path for path in named.keys() | hashes.keys() if named.get(path) != hashes.get(path))
    if not wrong:
        return []
    found = f"others of {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
    return [Problem(location, "the SHA-256 of the folder's Parquet files", found, CROISSANT_HINT)]


def by_config(value: Any) -> dict[str, dict[str, Any]]:
    """Returns ``configs`` or ``dataset_info`` by config; a single config may be a mapping instead of a list."""
    listed = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    return {str(entry.get("config_name", "default")): entry for entry in listed if isinstance(entry, dict)}


def _splits(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yields config, split and patterns of its files."""
    for name, config in by_config(metadata.get("configs")).items():
        files = config.get("data_files") or []
        listed = [{"split": "train", "path": files}] if isinstance(files, str) else files
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, Mapping):
                path = entry.get("path", [])
                yield name, str(entry.get("split", "train")), [path] if isinstance(path, str) else list(path)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern.removeprefix("./")) for pattern in patterns)


def _eval_problems(folder: Path) -> list[Problem]:
    files = sorted((folder / ".eval_results").glob("*.yaml"))
    hint = "scale-vqa card model"
    if not files:
        return [Problem(str(folder / ".eval_results"), "evaluation results", "none", hint)]
    problems = []
    for file in files:
        try:
            entries = parse_eval_result_entries(parse_yaml(file.read_text(encoding="utf-8"), str(file)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(Problem(str(file), "evaluation results", preview(str(error), 160), hint))
            continue
        expected = "a blind control beside each value, or the note that there is none"
        bare = [entry.notes for entry in entries if "blind control" not in (entry.notes or "")]
        problems += [Problem(str(file), expected, preview(notes), hint) for notes in bare]
    return problems
