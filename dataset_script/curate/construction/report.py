"""The curation report: what went in, what became of it in every step, what it cost, and what the text still tells."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader

from dataset_script.curate.asking.limits import summed
from dataset_script.curate.asking.replies import OUTCOMES
from dataset_script.curate.asking.settings import RoleSettings, Settings
from scale_vqa_eval import __version__
from scale_vqa_eval.files import write_json
from scale_vqa_eval.llm import endpoint_name
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scoring.score import questions_digest

FORMAT: Final = 1
"""Counted up when a field of ``curation_report.json`` changes its meaning or goes."""
REASONS: Final = {
    **OUTCOMES,
    "leaks-in-the-last-round": "readers without images still found the answer in the last round",
    "too-common": "its finding is right in most questions of its kind, so that no wrong one balances it",
    "go-together": "one of its findings is hardly ever stated without the other, so that it gives that away",
    "no-contrast": "no other region has a finding to set against it, and the model named none of use",
    "duplicate": "the same question on the same images stands in another row",
    "near-duplicate": "nearly the same question on the same images stands in another row",
}


def curation_report(
    questions: Sequence[Question],
    accounts: Mapping[str, Any],
    construction: Mapping[str, Any],
    audit: Mapping[str, Any],
    settings: Settings,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the report as plain values: the contract of ``curation_report.json``.

    Keys: ``format``, ``input``, ``questions`` (how many, by split and dimension), ``blind`` (accuracy without images),
    ``steps``, ``rounds``, ``constraints`` (which helped), ``costs`` by role and in all, ``outcomes``, ``dropped`` (row
    or path, reason, detail), ``contradictions``, ``prompts``, ``models``, ``settings``, ``provenance``.
    """
    screened = accounts["screen"]
    dropped = [
        *(["decompose", *one] for one in accounts["decompose"]["lost"]),
        *(["generate", *one] for one in accounts["generate"]["lost"]),
        *(["screen", *one] for one in screened["lost"]),
        *(["construct", *one] for one in construction["duplicates"]),
    ]
    report = {
        "format": FORMAT,
        "input": {**about["input"], "slides": about["slides"], "patients": about["patients"]},
        "questions": _counts(questions),
        "blind": blind(audit),
        "steps": {
            "decompose": _without(accounts["decompose"], "lost"),
            "generate": _without(accounts["generate"], "lost"),
            "screen": _without(screened, "lost", "rounds"),
            "construct": _without(construction, "duplicates", "contradictions"),
        },
        "rounds": screened["rounds"],
        "constraints": constraints(screened["rounds"]),
        "costs": costs(accounts),
        "outcomes": _outcomes(accounts, dropped),
        "dropped": [{"step": step, "id": row, "reason": why, "detail": detail} for step, row, why, detail in dropped],
        "contradictions": construction["contradictions"],
        "linked_patients": about["linked_patients"],
        "prompts": about["prompts"],
        "models": _models(settings),
        "settings": {
            name: getattr(settings, name)
            for name in ("seed", "tries", "rounds", "alpha", "probes", "exchange_sets", "near_duplicate")
        },
        "provenance": {
            "data_hash": questions_digest(questions),
            "versions": {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()},
        },
    }
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Writes ``curation_report.json`` and ``curation_report.md``."""
    write_json(out / "curation_report.json", report)
    partial = out / ".curation_report.md.partial"
    partial.write_text(as_markdown(report), encoding="utf-8", newline="\n")
    partial.replace(out / "curation_report.md")


def as_markdown(report: Mapping[str, Any]) -> str:
    """Renders a report for people."""
    environment = Environment(
        loader=PackageLoader("dataset_script.curate", "templates"), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "-" if share is None else f"{100 * share:.1f}"
    environment.filters["cell"] = _cell
    return environment.get_template("curation_report.md.j2").render(report=report, reasons=REASONS)


def _cell(text: object) -> str:
    """Returns a text of a model or of the input as one Markdown cell that is neither markup nor HTML."""
    return " ".join(str(text).split())[:200].translate({ord(mark): f"&#{ord(mark)};" for mark in "&\\`*_{}[]<>#|"})


def blind(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how far a reader without images gets: the ensemble, fixed beforehand, the strongest, and the verdict."""
    ensemble = next(probe for probe in audit["probes"] if probe["name"] == "ensemble")
    keys = ("name", "accuracy", "ci_low", "ci_high")
    return {
        "verdict": audit["verdict"],
        "unresolved": audit["unresolved"],
        "ensemble": {key: ensemble[key] for key in keys},
        "strongest": {key: audit["strongest"][key] for key in keys},
        "chance": audit["chance"],
    }


def constraints(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Returns cause -> questions made again under its constraint, how many passed the next readers, and the share."""
    total = summed(one["constraints"] for one in rounds)
    return {
        name: {**counts, "helped": counts["passed"] / counts["made"] if counts["made"] else None}
        for name, counts in sorted(total.items())
    }


def costs(accounts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns role -> calls, tokens and money of all steps, and ``total``; earlier runs that were resumed included."""
    spent: dict[str, Any] = {
        "decompose": accounts["decompose"]["spent"],
        "generate": accounts["generate"]["spent"],
    }
    for one in accounts["screen"]["rounds"]:
        for role, more in one["spent"].items():
            spent[role] = summed([spent.get(role, {}), more])
    return {**spent, "total": summed(spent.values())}


def card_note(
    questions: Sequence[Question],
    accounts: Mapping[str, Any],
    construction: Mapping[str, Any],
    audit: Mapping[str, Any],
    settings: Settings,
) -> str:
    """Returns the paragraph of the dataset card."""
    found = blind(audit)["ensemble"]
    slides, patients = ({getattr(one, name) for one in questions} for name in ("slide", "patient"))
    rounds = len(accounts["screen"]["rounds"])
    return (
        f"{len(questions)} questions on {len(slides)} slides of {len(patients)} patients, curated from captions "
        f"(source: {settings.source}): features, questions and analyses by language models, options crossed by "
        f"program, screened in {rounds} rounds by {len(settings.adversaries)} readers without images and the audit's "
        f"probes. Without images, an ensemble fitted to the other patients' answers reaches "
        f"{100 * found['accuracy']:.1f}% (95% interval {100 * found['ci_low']:.1f} to {100 * found['ci_high']:.1f}; "
        f"chance 25%). {construction['exchange_sets']} exchange sets. {len(construction['contradictions'])} options "
        "are flagged as contradicting their own captions. **No pathologist has confirmed these questions yet**; "
        "`curation_report.json` has every step."
    )


def _counts(questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "n": len(questions),
        "by_split": dict(sorted(Counter(str(one.split) for one in questions).items())),
        "by_dimension": dict(sorted(Counter(str(one.dimension) for one in questions).items())),
    }


def _outcomes(accounts: Mapping[str, Any], dropped: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns role -> tries that failed by name, adversaries' unread answers, and what is dropped by reason."""
    again = summed(one["outcomes"] for one in accounts["screen"]["rounds"] if "outcomes" in one)
    first = accounts["generate"]["outcomes"]
    return {
        "decompose": accounts["decompose"]["outcomes"]["tries"],
        "features_rejected": accounts["decompose"]["rejected"],
        "generate": summed([first["tries"], again.get("tries", {})]),
        "adversaries": {one["name"]: one["unread"] for one in accounts["screen"]["adversaries"]},
        "dropped": dict(sorted(Counter(why for _, _, why, _ in dropped).items())),
    }


def _models(settings: Settings) -> dict[str, Any]:
    def about(role: RoleSettings) -> dict[str, Any]:
        sampling = dict(role.chat.sampling)
        return {"endpoint": endpoint_name(role.base_url), "model": role.model, "sampling": sampling}

    singles = {name: about(getattr(settings, name)) for name in ("decompose", "generate", "analyse")}
    several = [{"name": one.name, **about(one), "repeats": one.repeats} for one in settings.adversaries]
    return {**singles, "adversary": several}


def _without(account: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in account.items() if name not in names}


def _rounded(value: Any) -> Any:
    """Rounds every float, so that the last bits of a sum do not change the bytes of a report."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    if isinstance(value, np.generic):
        return _rounded(value.item())
    return round(value, 6) if isinstance(value, float) else value
