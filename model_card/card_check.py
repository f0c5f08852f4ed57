"""Whether a card may be published: a valid head, every section, a citation, no path of a machine, no blank."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from huggingface_hub import DatasetCard, ModelCard, RepoCard, parse_eval_result_entries

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.card import INCOMPLETE, NO_LICENCE, head, marked_sections

Kind = Literal["dataset", "model", "metric", "space"]

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("splits", "audit", "defects", "uses", "licence", "package"),
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
_BLANK: Final = re.compile(r"\b(?:TODO|TBD|FIXME|More Information Needed)\b|\{\{\s|\{%|\bNone\b(?= \|)")


def check_card(folder: Path, kind: Kind, draft: bool = False) -> list[Problem]:
    """Returns what is wrong with the card of a folder that is to be published; empty where it may be.

    Args:
        folder: holds ``README.md``, for a model also ``.eval_results/*.yaml``.
        kind: ``dataset``, ``model``, ``metric`` or ``space`` (an app that is no metric).
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
    there = marked_sections(text)
    if not (draft and INCOMPLETE in there):
        if data.get("license_name") == NO_LICENCE:
            problems.append(Problem(str(path), "a licence", NO_LICENCE, f"{hint} --license"))
        missing = [name for name in SECTIONS[kind] if name not in there]
        problems += [Problem(str(path), f"the section {name}", "none", hint) for name in missing]
    if kind in ("metric", "space") and data.get("app_file") and not (folder / str(data["app_file"])).is_file():
        problems.append(
            Problem(str(path), "an app_file that is there", preview(data["app_file"]), "name the app's script")
        )
    if kind != "space" and "@inproceedings{phan2026scalevqa" not in text:
        problems.append(Problem(str(path), "the paper's BibTeX", "none", hint))
    for number, line in enumerate(text.splitlines(), 1):
        if _LOCAL.search(line):
            problems.append(Problem(f"{path}, line {number}", "no path of a machine", preview(line), "take it out"))
        if kind in ("dataset", "model") and _BLANK.search(line):
            problems.append(Problem(f"{path}, line {number}", "no blank to fill in", preview(line), "fill it in"))
    return problems + (_eval_problems(folder) if kind == "model" else [])


def _eval_problems(folder: Path) -> list[Problem]:
    files = sorted((folder / ".eval_results").glob("*.yaml"))
    hint = "scale-vqa card model"
    if not files:
        return [Problem(str(folder / ".eval_results"), "evaluation results", "none", hint)]
    problems = []
    for file in files:
        try:
            content: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
            bare = [
                entry for entry in parse_eval_result_entries(content) if "blind control" not in (entry.notes or "")
            ]
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            problems.append(Problem(str(file), "evaluation results", preview(str(error), 160), hint))
            continue
        expected = "a blind control beside each value, or the note that there is none"
        problems += [Problem(str(file), expected, preview(entry.notes), hint) for entry in bare]
    return problems
