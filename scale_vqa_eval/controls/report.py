"""The account of a control: a report for machines, a note for the card, a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from scale_vqa_eval import __version__
from scale_vqa_eval.controls.exchange import Exchange
from scale_vqa_eval.controls.screened import Screened
from scale_vqa_eval.controls.validity import ValidityLimits
from scale_vqa_eval.questions import Question

NOT_CONFIRMED: Final = "not yet confirmed by experts"


def exchange_report(
    questions: Sequence[Question],
    found: Exchange,
    limits: ValidityLimits,
    settings: dict[str, Any],
    audit: dict[str, Any] | None,
    views_known: bool,
) -> dict[str, Any]:
    """Returns the report of an exchange.

    Args:
        questions: the questions that were grouped.
        found: the groups.
        limits: what they kept to.
        settings: how the command was called: data, config, split, seed and the like.
        audit: ``before`` and ``after``; None where no audit was wanted.
        views_known: whether the file tells which views a question has.
    """
    members = 4 * len(found.groups)
    return {
        "method": "exchange",
        "version": __version__,
        **settings,
        "limits": asdict(limits),
        "questions": len(questions),
        "kept": members,
        "groups": len(found.groups),
        "bound": found.bound,
        "parts": [
            {"split": split, "dimension": dimension, "kept": 4 * part.groups, **asdict(part)}
            for (split, dimension), part in found.parts.items()
        ],
        "mean_likeness": sum(group.likeness for group in found.groups) / max(1, len(found.groups)),
        "groups_with_unlike_views": [group.name for group in found.groups if not group.same_views]
        if views_known
        else None,
        "doubtful": [
            {"group": group.name, "item": questions[one].id, "other": questions[other].id}
            for group in found.groups
            for one, other in group.doubtful
        ],
        "members": {group.name: [questions[row].id for row in group.options] for group in found.groups},
        "audit": audit,
        "expert_review": NOT_CONFIRMED,
    }


def screened_report(parts: dict[str | None, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the report of a screening: what each split came to, and whether every one ended at chance."""
    return {
        "method": "screened",
        "version": __version__,
        **settings,
        "questions": sum(part["questions"] for part in parts.values()),
        "kept": sum(part["kept"] for part in parts.values()),
        "reached": all(part["reached"] for part in parts.values()),
        "splits": [{"split": split, **part} for split, part in parts.items()],
        "expert_review": NOT_CONFIRMED,
    }


def screened_part(
    questions: Sequence[Question],
    kept: Sequence[Question],
    pruned: Screened,
    before: dict[str, Any],
    after: dict[str, Any] | None,
    held_out: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns what one split came to.

    Args:
        questions: the split's questions.
        kept: those that stay.
        pruned: the rounds.
        before: audit of the split, with folds that no pruning used.
        after: the same of what stays; None where too few questions stay.
        held_out: of ``held_out_figures``.
    """
    names = sorted({question.dimension or "all" for question in questions})
    reached = pruned.at_chance and after is not None and not after["off_chance"]
    return {
        "questions": len(questions),
        "kept": len(kept),
        "reached": reached,
        "reason": None if reached else _why(pruned, after),
        "by_dimension": {
            name: {
                "questions": sum((question.dimension or "all") == name for question in questions),
                "kept": sum((question.dimension or "all") == name for question in kept),
            }
            for name in names
        },
        "rounds": [asdict(found) for found in pruned.rounds],
        "audit": {"before": before, "after": after},
        "held_out": held_out,
    }


def note(report: dict[str, Any]) -> str:
    """Returns the card's Markdown on a control."""
    environment = Environment(
        loader=PackageLoader("scale_vqa_eval.controls", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", "/").split())
    return environment.get_template(f"{report['method']}_note.md.j2").render(report=report).strip()


def _why(pruned: Screened, after: dict[str, Any] | None) -> str:
    left = len(pruned.rows)
    if after is None:
        before = f"; the strongest probe was {pruned.rounds[-1].strongest}" if pruned.rounds else ""
        return f"{left} left, too few questions or patients to tell a leak from luck{before}"
    off = ", ".join(after["off_chance"])
    strongest = f"strongest probe {after['strongest']['name']} at {100 * after['strongest']['accuracy']:.0f}%"
    return f"{left} left, {strongest}" + (f"; off chance: {off}" if off else "; the rounds came to an end")
