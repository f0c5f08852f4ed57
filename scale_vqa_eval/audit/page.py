"""The audit as one self-contained HTML page: verdict first, then what it rests on, then every table.

The page makes no request and runs no script. Everything from the data is escaped, and characters that hide or reorder
text are shown by their code.
"""

from __future__ import annotations

import base64
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from scale_vqa_eval.audit.defects import KINDS
from scale_vqa_eval.audit.plots import dimension_plot, learning_plot, probe_plot, score_plot
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.text import escape_invisible

DEFECTS_SHOWN: Final = 50
"""Most defects of one kind that the page lists; the count is whole, and the JSON has them all."""


def write_page(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report in one rename.

    Args:
        path: the HTML file.
        report: from ``audit_questions``; of ``chat`` and ``published`` what is there is shown.

    Raises:
        InputError: where the file cannot be written.
    """
    path, html = Path(path), render_page(report)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        found = error.strerror or type(error).__name__
        raise InputError(Problem(str(path), "a file that can be written", found, "name another --html")) from error


def render_page(report: Mapping[str, Any]) -> str:
    """Returns the page of a report as HTML."""
    environment = Environment(
        loader=PackageLoader("scale_vqa_eval.audit", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "p": _p_value, "marked": _marked}
    published = report.get("published") or {"source": None, "data": None, "models": {}}
    defects = defaultdict(list)
    for defect in report["defects"]:
        defects[defect["kind"]].append(defect)
    return environment.get_template("page.html.j2").render(
        report=report,
        probes=sorted(report["probes"], key=lambda probe: (-probe["accuracy"], probe["name"])),
        splits=sorted({split for probe in report["probes"] for split in probe.get("by_split", {})}),
        groups=_groups(report),
        published=published,
        plots=_plots(report, published["models"]),
        scores=_score_figures(report),
        defects=dict(defects),
        kinds=KINDS,
        preview=DEFECTS_SHOWN,
        levels={"patients": "patients", "slides": "slides", "paths": "paths", "image_paths": "image paths"},
    )


def _groups(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns verdict -> dimensions, for the sentence at the head of the page."""
    out: dict[str, list[str]] = {"leaks": [], "clean": [], "unresolved": []}
    for name, finding in report["dimensions"].items():
        out[finding["verdict"]].append(name)
    return out


def _plots(report: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Returns name -> image of the plots that this report has the figures for."""
    chance = report["chance"]
    found = {"probes": probe_plot(report["probes"], chance)}
    findings = {**report["dimensions"], "all": report["whole"]}
    if len(findings) > 1 or published:
        found["dimensions"] = dimension_plot(findings, published, chance)
    if report.get("items"):
        found["scores"] = score_plot([item["blind_score"] for item in report["items"]], chance)
    if report.get("learning_curve"):
        found["learning"] = learning_plot(report["learning_curve"], chance)
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode() for name, svg in found.items()
    }


def _score_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Says how the blind scores lie: their mean, and the shares of items that text alone gives away."""
    scores = [item["blind_score"] for item in report.get("items") or []]
    if not scores:
        return {}
    above = Counter(limit for score in scores for limit in (0.5, 0.8) if score > limit)
    return {"mean": sum(scores) / len(scores), "half": above[0.5] / len(scores), "most": above[0.8] / len(scores)}


def _marked(text: str, letter: str, evidence: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Cuts an option's text into parts that give the item away (True) and the rest.

    Args:
        text: the option.
        letter: its letter: a word is marked in the options that the evidence names.
        evidence: of the item; wordings are lower-case words with single blanks between them.
    """
    terms = [one["text"] for one in evidence if one["kind"] == "wording" and letter in one["letters"]]
    if not terms:
        return [(text, False)]
    ways = [r"[\W_]+".join(map(re.escape, term.split())) for term in sorted(terms, key=len, reverse=True)]
    pieces = re.split(rf"(?<!\w)({'|'.join(ways)})(?!\w)", text, flags=re.IGNORECASE)
    return [(piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece]


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
