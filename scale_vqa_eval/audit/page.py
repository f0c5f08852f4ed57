"""The audit as a self-contained HTML page: verdict, evidence, all tables.

The page sends no requests and runs no scripts. All text from the data is escaped, and characters that hide or reorder
text are displayed as their codes.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.audit.defects import KINDS
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.plots import dimension_plot, learning_plot, probe_plot, score_plot
from scale_vqa_eval.text import html_environment, p_value, percent

MAX_LISTED: Final = 50
"""Maximum number of listed defects of a kind; counts are complete, and the JSON has all of them."""


def write_page(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes the page of a report from ``audit_questions`` (with ``chat`` and ``published``, if any) atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    atomic_write(path, render_page(report), "name another --html")


def render_page(report: Mapping[str, Any]) -> str:
    """Returns the page of a report as HTML."""
    environment = html_environment("scale_vqa_eval.audit", trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "p": p_value, "marked": _marked}
    published = report.get("published") or {"source": None, "data": None, "models": {}}
    defects = defaultdict(list)
    for defect in report["defects"]:
        defects[defect["kind"]].append(defect)
    groups: dict[str, list[str]] = {"leaks": [], "clean": [], "inconclusive": []}
    for name, part in report["dimensions"].items():
        groups[part["verdict"]].append(name)
    return environment.get_template("page.html.j2").render(
        report=report,
        probes=sorted(report["probes"], key=lambda probe: (-probe["accuracy"], probe["name"])),
        splits=sorted({split for probe in report["probes"] for split in probe.get("by_split", {})}),
        groups=groups,
        published=published,
        plots=_plots(report, published["models"]),
        scores=_score_summary([item["blind_score"] for item in report.get("items") or []]),
        defects=dict(defects),
        kinds=KINDS,
        limit=MAX_LISTED,
        levels={"patients": "patients", "slides": "slides", "paths": "paths", "image_paths": "image paths"},
    )


def _plots(report: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Returns the plots of a report as data URIs by name."""
    chance = report["chance"]
    plots = {"probes": probe_plot(report["probes"], chance)}
    parts = {**report["dimensions"], "all": report["whole"]}
    if len(parts) > 1 or published:
        plots["dimensions"] = dimension_plot(parts, published, chance)
    if report.get("items"):
        plots["scores"] = score_plot([item["blind_score"] for item in report["items"]], chance)
    if report.get("learning_curve"):
        plots["learning"] = learning_plot(report["learning_curve"], chance)
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode() for name, svg in plots.items()
    }


def _score_summary(scores: Sequence[float]) -> dict[str, float]:
    """Returns the mean of the blind scores, and the shares of items above one half and above 80%."""
    if not scores:
        return {}
    half, most = (sum(score > limit for score in scores) / len(scores) for limit in (0.5, 0.8))
    return {"mean": sum(scores) / len(scores), "half": half, "most": most}


def _marked(text: str, letter: str, evidence: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Splits the text of an option into parts, with True for those that the item's evidence lists for its letter."""
    terms = [item["text"] for item in evidence if item["kind"] == "wording" and letter in item["letters"]]
    if not terms:
        return [(text, False)]
    patterns = [r"[\W_]+".join(map(re.escape, term.split())) for term in sorted(terms, key=len, reverse=True)]
    pieces = re.split(rf"(?<!\w)({'|'.join(patterns)})(?!\w)", text, flags=re.IGNORECASE)
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
