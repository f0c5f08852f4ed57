"""What the files say of a release folder: counts from its rows, leakage and defects from its audits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from scale_vqa_eval.audit.defects import KINDS
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.schema import CONFIGS, LETTERS
from scale_vqa_eval.scoring.score import dimension_order, questions_digest

IDS_SHOWN: Final = 2
_AUDIT_FIELDS: Final = {"n", "verdict", "strongest", "probes", "dimensions", "null_check", "defects", "provenance"}


@dataclass(frozen=True)
class SplitFacts:
    """One split of a config, counted from its rows.

    Attributes:
        letters: how often each letter is right, in the order A-D.
        dimensions: dimension -> questions.
        groups: exchange groups; 0 outside of them.
        sources: what the rows say that they come from, each once; empty where they say nothing.
    """

    config: str
    split: str
    n: int
    patients: int
    slides: int
    letters: tuple[int, ...]
    dimensions: Mapping[str, int]
    groups: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class AuditFacts:
    """An audit with the place whose rows it is of.

    Attributes:
        place: ``config`` or ``config, split``; configs with the same texts share an audit.
        unfitted: the strongest probe that nothing was fitted for.
        defects: kind -> ids, in the order of ``KINDS``.
    """

    place: str
    report: Mapping[str, Any]
    unfitted: Mapping[str, Any]
    defects: Mapping[str, Sequence[str]] = field(default_factory=dict)


def split_facts(folder: Path) -> tuple[list[SplitFacts], dict[str, list[tuple[str, str | None]]]]:
    """Counts every split of a folder.

    Returns:
        The counts, and data hash -> the places whose rows have it: a split, or (None) all splits of a config.
    """
    facts: list[SplitFacts] = []
    places: dict[str, list[tuple[str, str | None]]] = {}
    for config, splits in release_configs(folder).items():
        whole: list[Question] = []
        for split, files in splits.items():
            questions = read_questions(folder, split, config)
            places.setdefault(questions_digest(questions), []).append((config, split))
            facts.append(_counted(config, split, questions, _sources(files)))
            whole += questions
        key = questions_digest(whole)
        if (config, None) not in places.setdefault(key, []):
            places[key].append((config, None))
    return facts, places


def read_audits(
    paths: Sequence[Path], places: Mapping[str, Sequence[tuple[str, str | None]]], problems: list[Problem]
) -> list[AuditFacts]:
    """Reads audits and finds by the data hash which rows each is of; one of other rows is a fault.

    Args:
        paths: files of ``scale-vqa audit --json``.
        places: as ``split_facts`` returns them.
        problems: what is wrong is added, and every config without an audit of all its rows.
    """
    audits: list[AuditFacts] = []
    covered: set[tuple[str, str | None]] = set()
    for path in paths:
        try:
            report = read_fields(path, _AUDIT_FIELDS, "an audit", "run `scale-vqa audit --json`")
        except InputError as error:
            problems.extend(error.problems)
            continue
        found = places.get(report["provenance"].get("data_hash"), ())
        if not found:
            hint = "run the audit again on this folder"
            problems.append(Problem(str(path), "an audit of rows of this folder", "the data hash of others", hint))
            continue
        covered.update(found)
        whole = [config for config, split in found if split is None]
        single = [f"{config}, {split}" for config, split in found if split is not None and config not in whole]
        unfitted = max((probe for probe in report["probes"] if not probe["trained"]), key=lambda p: p["accuracy"])
        audits.append(AuditFacts(" and ".join([*whole, *single]), report, unfitted, _defects(report)))
    for config in dict.fromkeys(config for named in places.values() for config, _ in named):
        splits = [place for named in places.values() for place in named if place[0] == config and place[1] is not None]
        if (config, None) not in covered and not all(place in covered for place in splits):
            hint = f"scale-vqa audit FOLDER --config {config} --json audit-{config}.json, and name it with --audit"
            problems.append(Problem(f"config {config}", "an audit of its rows", "none", hint))
    order = list(dict.fromkeys([*CONFIGS, *(config for named in places.values() for config, _ in named)]))
    return sorted(audits, key=lambda audit: order.index(audit.place.split(",")[0].split(" and ")[0]))


def read_fields(path: Path, fields: set[str], what: str, hint: str) -> dict[str, Any]:
    """Reads a JSON object that has certain fields.

    Raises:
        InputError: naming the file and the fields that it lacks.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), what, preview(str(error), 160), hint)) from error
    if not isinstance(content, dict) or not fields <= content.keys():
        missing = ", ".join(sorted(fields - content.keys())) if isinstance(content, dict) else type(content).__name__
        raise InputError(Problem(str(path), f"{what} with {', '.join(sorted(fields))}", f"missing: {missing}", hint))
    return content


def _sources(files: Sequence[Path]) -> tuple[str, ...]:
    found: set[str] = set()
    for file in files:
        if "source" in pq.read_schema(file).names:
            found.update(
                source for source in pq.read_table(file, columns=["source"])["source"].unique().to_pylist() if source
            )
    return tuple(sorted(found))


def _counted(config: str, split: str, questions: Sequence[Question], sources: tuple[str, ...]) -> SplitFacts:
    dimensions = Counter(question.dimension or "none" for question in questions)
    letters = Counter(question.answer for question in questions)
    most = max(len(question.options) for question in questions)
    return SplitFacts(
        config=config,
        split=split,
        n=len(questions),
        patients=len({question.cluster for question in questions}),
        slides=len({question.slide for question in questions}),
        letters=tuple(letters[place] for place in range(min(most, len(LETTERS)))),
        dimensions=dict(sorted(dimensions.items(), key=lambda item: dimension_order(item[0]))),
        groups=len({question.group for question in questions if question.group}),
        sources=sources,
    )


def _defects(report: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for defect in report["defects"]:
        found.setdefault(str(defect["kind"]), []).append(str(defect["id"]))
    order = list(KINDS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
