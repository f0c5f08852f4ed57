"""What a curation run reports (``curation_report.json``), as rows of a dataset's card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_card.dataset_facts import read_fields
from scale_vqa_eval.errors import InputError, Problem, preview

_FIELDS: Final = {"format", "input", "questions", "rounds", "costs", "outcomes", "models", "blind", "provenance"}
_FORMAT: Final = 1


@dataclass(frozen=True)
class Curation:
    """The figures of a curation run.

    Attributes:
        rows: (name, value) as the card shows them.
        same_rows: whether the report is of rows that the folder has now; a review or a control may have changed them.
    """

    rows: tuple[tuple[str, str], ...]
    same_rows: bool


def read_curation(path: Path, hashes: Mapping[str, object], problems: list[Problem]) -> Curation | None:
    """Reads a report; adds to ``problems`` where it is none.

    Args:
        path: ``curation_report.json``.
        hashes: data hashes of the folder's configs and splits.
        problems: added to.
    """
    try:
        report = read_fields(path, _FIELDS, "a curation report", "take the one that `scale-vqa curate` wrote")
    except InputError as error:
        problems.extend(error.problems)
        return None
    if report["format"] != _FORMAT:
        hint = "use the version of scale-vqa that wrote it"
        problems.append(Problem(str(path), f"a curation report of format {_FORMAT}", preview(report["format"]), hint))
        return None
    return Curation(tuple(_rows(report)), report["provenance"].get("data_hash") in hashes)


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    source, blind = report["input"], report["blind"]
    for name in ("paths", "slides", "patients"):
        if name in source:
            yield f"captioned {name}", str(source[name])
    by_dimension = ", ".join(f"{name} {count}" for name, count in report["questions"]["by_dimension"].items())
    yield "questions", f"{report['questions']['n']} ({by_dimension})"
    for role, model in report["models"].items():
        models = model if isinstance(model, list) else [model]
        yield f"model, {role}", ", ".join(str(one.get("model")) for one in models)
    for one in report["rounds"]:
        counts = ", ".join(f"{name} {one[name]}" for name in ("judged", "passed", "dropped") if name in one)
        yield f"screening, round {one.get('round')}", counts
    for reason, count in report["outcomes"].get("dropped", {}).items():
        yield f"dropped, {reason}", str(count)
    yield "options flagged as contradicting their captions", str(len(report.get("contradictions", [])))
    found = blind["ensemble"]
    ends = f"{100 * found['ci_low']:.1f} to {100 * found['ci_high']:.1f}"
    yield "blind accuracy at the end, ensemble", f"{100 * found['accuracy']:.1f}% ({ends}), verdict {blind['verdict']}"
    total = report["costs"]["total"]
    names = ("calls", "prompt_tokens", "completion_tokens", "cost")
    yield "calls to models", ", ".join(f"{name.replace('_', ' ')} {total[name]:g}" for name in names if name in total)
