"""Step 3: rounds of reading without images, analysis, a tighter constraint, and the question made again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dataset_script.curate.asking.role import Role, outcomes
from dataset_script.curate.asking.settings import Settings
from dataset_script.curate.questions.companions import Companion
from dataset_script.curate.questions.drafts import Order, reordered, write_drafts
from dataset_script.curate.questions.items import Item, Place
from dataset_script.curate.questions.options import assemble
from dataset_script.curate.screening.analysis import Cause, Leak, analyse
from dataset_script.curate.screening.readers import Adversary, probe_readings, together
from dataset_script.curate.screening.rule import Judgement, judge
from scale_vqa_eval.audit.evidence import find_evidence
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.questions import Question

LEAKED = "leaks-in-the-last-round"


@dataclass
class Screening:
    """The state of the rounds.

    Attributes:
        settings: of the curation.
        places: path key -> where it belongs.
        orders: row id -> the order it was made to.
        adversaries: the models that try each question.
        generate: makes questions again, one role a shard.
        analyse: says why they leak, one role a shard.
        shard_of: path key -> its shard.
        items: the pool.
        waiting: row id -> why it has no options yet: ``too-common``, ``no-contrast`` or ``go-together``.
        apart: findings that imply one of another aspect.
        lost: (row id, reason, detail) of what is dropped.
        rounds: the account of each round.
    """

    settings: Settings
    places: Mapping[str, Place]
    orders: dict[str, Order]
    adversaries: Sequence[Adversary]
    generate: Mapping[int, Role]
    analyse: Mapping[int, Role]
    shard_of: Callable[[str], int]
    items: dict[str, Item]
    waiting: dict[str, str]
    drafts: dict[str, Any]
    apart: frozenset[Companion] = frozenset()
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)


def screen(state: Screening) -> None:
    """Runs the rounds: afterwards ``items`` is what passed, ``lost`` what never did, ``rounds`` the account."""
    last = state.settings.rounds
    for number in range(1, last + 1):
        before = _spent(state)
        judged, judgement, prepared, pool = _judge(state)
        account = _account(state, number, judged, judgement)
        flagged = sorted(judgement.made_again)
        if number == last or not (flagged or state.waiting):
            for row in flagged:
                readers = ", ".join(sorted({name for name, _ in judgement.made_again[row]}))
                state.lost.append((row, LEAKED, f"read by {readers}"))
                del state.items[row]
            state.lost += [(row, why, "no fair contrast was found") for row, why in sorted(state.waiting.items())]
            account["dropped"] = len(flagged) + len(state.waiting)
            state.waiting.clear()
        else:
            causes = _causes(state, judgement, prepared, pool)
            account |= _make_again(state, causes)
        account["spent"] = _difference(before, _spent(state))
        state.rounds.append(account)
        if number < last and "dropped" in account:
            break


def _judge(state: Screening) -> tuple[list[Item], Judgement, TextFeatures | None, list[Question]]:
    """Lets every reader try the pool, but for exchange sets: of their text any reader is right on one in four."""
    items = [state.items[row] for row in sorted(state.items)]
    judged = [item for item in items if item.group is None]
    pool = [item.question() for item in items]
    asked = [(item.question(), item.draft.version) for item in judged]
    by_shard: dict[int, list[tuple[Question, int]]] = defaultdict(list)
    for item, one in zip(judged, asked, strict=True):
        by_shard[state.shard_of(item.draft.path)].append(one)
    readings = []
    if judged:
        for adversary in state.adversaries:
            adversary.listen(by_shard)
            readings.append(adversary.reading(asked))
        readings += together(readings)
    prepared = None
    if state.settings.probes and judged:
        rows = [row for row, item in enumerate(items) if item.group is None]
        found, prepared = probe_readings(pool, rows, state.settings.seed)
        readings += found
    questions = [question for question, _ in asked]
    return judged, judge(questions, readings, state.settings.alpha), prepared, pool


def _account(state: Screening, number: int, judged: Sequence[Item], judgement: Judgement) -> dict[str, Any]:
    """Returns the account of a round: what passed, what did not, which reader saw it, which constraint helped."""
    helped: dict[str, Counter[str]] = defaultdict(Counter)
    for item in judged:
        if item.draft.constraint is not None:
            helped[item.draft.constraint]["made"] += 1
            helped[item.draft.constraint]["passed"] += item.id not in judgement.made_again
    leaks = Counter(name for found in judgement.made_again.values() for name in {reader for reader, _ in found})
    flagged = len(judgement.made_again)
    return {
        "round": number,
        "judged": len(judged),
        "in_exchange_sets": len(state.items) - len(judged),
        "passed": len(judged) - flagged,
        "pass_rate": (len(judged) - flagged) / len(judged) if judged else None,
        "leaking": flagged,
        "without_options": dict(sorted(Counter(state.waiting.values()).items())),
        "read_by": dict(sorted(leaks.items())),
        "constraints": {name: dict(counts) for name, counts in sorted(helped.items())},
        "readers": [test for test in judgement.tests if test["dimension"] == "all" or test["above_chance"]],
    }


def _causes(
    state: Screening, judgement: Judgement, prepared: TextFeatures | None, pool: Sequence[Question]
) -> dict[str, Cause]:
    """Asks why each flagged question leaks; what has no options yet says why by itself."""
    rows = {question.id: row for row, question in enumerate(pool)}
    evidence = {}
    if prepared is not None and judgement.made_again:
        chosen = [rows[name] for name in sorted(judgement.made_again)]
        evidence = find_evidence(pool, prepared, chosen, state.settings.seed)
    by_shard: dict[int, list[Leak]] = defaultdict(list)
    for name, found in judgement.made_again.items():
        item = state.items[name]
        heard = [adversary.heard[name, item.draft.version] for adversary in state.adversaries]
        said = tuple(one.said for one in heard if one.said)
        words = tuple(f"{one.text} ({one.letters})" for one in evidence.get(rows[name], []))
        readers = tuple(sorted({reader for reader, _ in found}))
        by_shard[state.shard_of(item.draft.path)].append(Leak(item.question(), readers, said, words))
    causes: dict[str, Cause] = {}
    for shard, leaks in sorted(by_shard.items()):
        for result in analyse(leaks, state.analyse[shard], state.settings.tries):
            assert result.value is not None
            causes[result.label] = result.value
    return causes | {row: Cause(why, "", "") for row, why in state.waiting.items()}


def _make_again(state: Screening, causes: Mapping[str, Cause]) -> dict[str, Any]:
    """Makes questions again under their constraints; one that cannot be made is dropped by its outcome."""
    by_shard: dict[int, list[Order]] = defaultdict(list)
    for row in sorted(causes):
        order = reordered(state.orders[row], causes[row].name, causes[row].sentences(), state.drafts.get(row))
        state.orders[row] = order
        by_shard[state.shard_of(order.path.key)].append(order)
        state.items.pop(row, None)
    state.waiting.clear()
    results = [
        result
        for shard, orders in sorted(by_shard.items())
        for result in write_drafts(orders, state.generate[shard], state.settings.tries)
    ]
    made = [result.value for result in results if result.value is not None]
    state.drafts |= {draft.id: draft for draft in made}
    state.lost += [(result.label, *result.failed[-1]) for result in results if result.value is None]
    known = [state.items[row] for row in sorted(state.items)]
    found = assemble(made, state.places, state.settings.seed, known, sets=False, apart=state.apart)
    state.items |= {item.id: item for item in found.items}
    state.waiting |= found.refused
    return {
        "causes": dict(sorted(Counter(cause.name for cause in causes.values()).items())),
        "explanations": {row: cause.explanation for row, cause in sorted(causes.items()) if cause.explanation},
        "made_again": len(made),
        "outcomes": outcomes(results),
    }


def _spent(state: Screening) -> dict[str, dict[str, float]]:
    roles: dict[str, Counter[str]] = {"generate": Counter(), "analyse": Counter()}
    for name, several in (("generate", state.generate), ("analyse", state.analyse)):
        for role in list(several.values())[:1]:  # the shards of a role share one purse
            roles[name].update(asdict(role.spent))
    return {name: dict(total) for name, total in roles.items()} | {
        one.settings.name: asdict(one.spent) for one in state.adversaries
    }


def _difference(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    return {
        role: {name: value - before[role].get(name, 0) for name, value in spent.items()}
        for role, spent in after.items()
    }
