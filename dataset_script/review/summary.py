"""What the log says in all: counts, agreement, open disagreements, as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dataset_script.review.agreement import agreement
from dataset_script.review.decisions import VERDICTS, Decision, Key
from dataset_script.review.items import ReviewData
from dataset_script.review.standing import OUTCOMES, REVIEWS, STATUSES, Board, Standing, pairs_of
from scale_vqa_eval.text import markdown


def summarise_review(data: ReviewData, board: Board, torn: Sequence[int] = ()) -> dict[str, Any]:
    """Returns the figures of a review of the chosen items.

    Args:
        data: what is reviewed.
        board: standing of every item.
        torn: lines of the log that a kill has torn.
    """
    standings = {key: board.items[key] for key in data.chosen}
    dimensions: dict[str, Counter[str]] = {}
    for key, standing in standings.items():
        dimensions.setdefault(data.items[key].question.dimension or "none", Counter())[standing.outcome] += 1
    outcomes = Counter(standing.outcome for standing in standings.values())
    statuses = Counter(standing.status for standing in standings.values())
    return {
        "data": data.folder.name,
        "config": data.config,
        "splits": sorted({key[0] for key in data.chosen}),
        "data_hash": data.data_hash,
        "items": len(standings),
        "status": {name: statuses[name] for name in STATUSES},
        "outcome": {name: outcomes[name] for name in OUTCOMES},
        "by_dimension": {name: {one: counts[one] for one in OUTCOMES} for name, counts in dimensions.items()},
        "reviewers": _reviewers(standings),
        "agreement": _agreements(data, standings),
        "open_disagreements": [
            _disagreement(key, standing) for key, standing in standings.items() if standing.status == "disagreed"
        ],
        "torn_lines": list(torn),
    }


def without_names(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary in which reviewers are numbers and nobody's words stand: what may be published."""
    number = {name: f"reviewer {place}" for place, name in enumerate(summary["reviewers"], 1)}
    return {
        **{name: value for name, value in summary.items() if name not in ("open_disagreements", "torn_lines")},
        "reviewers": {number[name]: counts for name, counts in summary["reviewers"].items()},
        "agreement": [
            {**pair, "reviewers": [number[name] for name in pair["reviewers"]]} for pair in summary["agreement"]
        ],
    }


def markdown_summary(summary: Mapping[str, Any]) -> str:
    """Renders a summary for people; names and texts are escaped."""
    lines = [f"# Review of {markdown(summary['data'])}, config {markdown(summary['config'])}", ""]
    splits = ", ".join(map(markdown, summary["splits"]))
    lines += [f"{summary['items']} items (splits {splits}), {REVIEWS} independent reviews each.", ""]
    lines += _table(["standing", "items"], [[name, count] for name, count in summary["status"].items()])
    parts = [[markdown(name), *counts.values()] for name, counts in summary["by_dimension"].items()]
    lines += _table(["dimension", *OUTCOMES], [*parts, ["all", *summary["outcome"].values()]])
    people = [[markdown(name), *counts.values()] for name, counts in summary["reviewers"].items()]
    lines += _table(["reviewer", "reviews", *VERDICTS, "adjudications"], people) if people else []
    lines += ["## Agreement", ""]
    pairs = [_agreement_cells(pair) for pair in summary["agreement"]]
    head = ["reviewers", "items", "patients", "same verdict", "Cohen's kappa", "95% interval"]
    lines += _table(head, pairs) if pairs else ["No item has two reviews yet.", ""]
    lines += ["## Open disagreements", ""]
    for one in summary["open_disagreements"]:
        said = "; ".join(
            f"{markdown(part['reviewer'])}: {part['verdict']}"
            + (f" ({markdown(part['reason'])})" * bool(part["reason"]))
            for part in one["reviews"]
        )
        lines.append(f"- {markdown(one['id'])} ({markdown(one['split'])}): {said}")
    lines += [] if summary["open_disagreements"] else ["None."]
    if summary["torn_lines"]:
        listed = ", ".join(map(str, summary["torn_lines"]))
        lines += ["", f"Lines of the log that a kill has torn, not counted: {listed}."]
    return "\n".join(lines).rstrip() + "\n"


def agreement_line(pair: Mapping[str, Any]) -> str:
    """Returns one pair's agreement as a sentence without names."""
    _, n, patients, observed, kappa, interval = _agreement_cells(pair)
    return f"{n} items of {patients} patients, same verdict on {observed}, Cohen's kappa {kappa} [{interval}]"


def _reviewers(standings: Mapping[Key, Standing]) -> dict[str, dict[str, int]]:
    names: dict[str, str] = {}
    counts: dict[str, Counter[str]] = {}

    def add(decision: Decision, what: str) -> None:
        names.setdefault(decision.person, decision.reviewer)
        counts.setdefault(decision.person, Counter())[what] += 1

    for standing in standings.values():
        for review in standing.reviews.values():
            add(review, "reviews")
            add(review, review.verdict)
        for one in standing.adjudications.values():
            add(one, "adjudications")
    fields = ("reviews", *VERDICTS, "adjudications")
    return {names[person]: {name: counts[person][name] for name in fields} for person in sorted(counts)}


def _agreements(data: ReviewData, standings: Mapping[Key, Standing]) -> list[dict[str, Any]]:
    found = []
    for pair, keys in pairs_of(standings).items():
        verdicts = [[standings[key].reviews[person].verdict for key in keys] for person in pair]
        clusters = [data.items[key].question.cluster for key in keys]
        names = [next(standings[key].reviews[person].reviewer for key in keys) for person in pair]
        figures = asdict(agreement(*verdicts, clusters))
        figures["patients"] = figures.pop("clusters")
        found.append({"reviewers": names, **figures, "verdicts": list(VERDICTS)})
    return found


def _disagreement(key: Key, standing: Standing) -> dict[str, Any]:
    reviews = [
        {"reviewer": one.reviewer, "verdict": one.verdict, "reason": one.reason, "edit": dict(one.edit)}
        for one in standing.reviews.values()
    ]
    return {"split": key[0], "id": key[1], "reviews": reviews}


def _agreement_cells(pair: Mapping[str, Any]) -> list[Any]:
    kappa = "undefined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    interval = "undefined" if pair["interval"] is None else "{:.2f} to {:.2f}".format(*pair["interval"])
    names = " and ".join(map(markdown, pair["reviewers"]))
    return [names, pair["n"], pair["patients"], f"{100 * pair['observed']:.1f}%", kappa, interval]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return [*(f"| {' | '.join(map(str, cells))} |" for cells in lines), ""]
