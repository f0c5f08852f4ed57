"""Step 3: text-only readers answer the questions; those that leak are analysed and rewritten under a constraint."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dataset_script.curate.candidates import Candidate, QuestionSpec
from dataset_script.curate.captions import CaptionedPath, content, instruction_in
from dataset_script.curate.distractors import Implication, build_options
from dataset_script.curate.generate import write_candidates
from dataset_script.curate.leakage_test import (
    Adversary,
    LeakageResult,
    VersionedQuestion,
    all_agree,
    find_leaks,
    probe_answers,
)
from dataset_script.curate.roles import (
    BadReply,
    RoleClient,
    RoleTask,
    chat_messages,
    load_prompt,
    object_schema,
    outcomes,
    text_field,
)
from dataset_script.curate.work import CurationSettings
from scale_vqa_eval.audit.verdict import find_evidence
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

LEAKED: Final = "leaks-in-the-last-round"
UNEXPLAINED: Final = "unexplained"
LostQuestion = tuple[str, str, str]
"""Row id, reason, detail."""


@dataclass(frozen=True)
class ScreeningSetup:
    """The settings and models of the rounds.

    Attributes:
        generate: shard -> client that rewrites questions.
        analyse: shard -> client that explains why questions leak.
        shard_of: returns the shard of a path.
        implied: findings that imply a finding of another aspect.
    """

    settings: CurationSettings
    adversaries: Sequence[Adversary]
    generate: Mapping[int, RoleClient]
    analyse: Mapping[int, RoleClient]
    shard_of: Callable[[CaptionedPath], int]
    implied: frozenset[Implication] = frozenset()


@dataclass(frozen=True)
class CandidatePool:
    """The questions at the start of a round, by row id.

    Attributes:
        specs: the last spec of every question.
        written: the last version that a model wrote.
        candidates: the questions that have options.
        waiting: the reason why a question has no options yet: ``too-common``, ``no-contrast`` or ``go-together``.
    """

    specs: Mapping[str, QuestionSpec]
    written: Mapping[str, Candidate]
    candidates: Mapping[str, Candidate]
    waiting: Mapping[str, str]


@dataclass(frozen=True)
class ScreeningResult:
    """The candidates that passed, sorted by id; the questions that were dropped; the report of each round."""

    passed: list[Candidate]
    lost: list[LostQuestion]
    rounds: list[dict[str, Any]]


def screen(setup: ScreeningSetup, pool: CandidatePool) -> ScreeningResult:
    """Runs rounds until no question leaks or the last round is over."""
    lost: list[LostQuestion] = []
    rounds: list[dict[str, Any]] = []
    for number in range(1, setup.settings.rounds + 1):
        before = _spent(setup)
        judged, leakage, evidence = _read(setup, pool)
        report = _round_report(number, pool, judged, leakage)
        finished = number == setup.settings.rounds or not (leakage.flagged or pool.waiting)
        if finished:
            for row, tests in leakage.flagged.items():
                lost.append((row, LEAKED, f"read by {', '.join(sorted({reader for reader, _ in tests}))}"))
            lost += [(row, why, "no fair contrast was found") for row, why in sorted(pool.waiting.items())]
            report["dropped"] = len(leakage.flagged) + len(pool.waiting)
            passed = {row: one for row, one in pool.candidates.items() if row not in leakage.flagged}
            pool = replace(pool, candidates=passed, waiting={})
        else:
            causes = _causes(setup, pool, leakage, evidence)
            pool, rewriting, dropped = _rewrite(setup, pool, causes)
            lost += dropped
            report |= rewriting
        after = _spent(setup)
        report["spent"] = {
            role: {name: value - before[role][name] for name, value in spent.items()} for role, spent in after.items()
        }
        rounds.append(report)
        if finished:
            break
    return ScreeningResult([pool.candidates[row] for row in sorted(pool.candidates)], lost, rounds)


def _read(setup: ScreeningSetup, pool: CandidatePool) -> tuple[list[Candidate], LeakageResult, dict[str, list[str]]]:
    """Lets every reader answer the questions outside of exchange groups, in which any reader is right once.

    Returns:
        The judged candidates, the test, and row id -> the words by which fitted probes answer a flagged question.
    """
    candidates = [pool.candidates[row] for row in sorted(pool.candidates)]
    questions = [one.to_question() for one in candidates]
    judged_rows = [row for row, one in enumerate(candidates) if one.group is None]
    judged = [candidates[row] for row in judged_rows]
    asked = [(questions[row], candidates[row].version) for row in judged_rows]
    by_shard: dict[int, list[VersionedQuestion]] = defaultdict(list)
    for one, versioned in zip(judged, asked, strict=True):
        by_shard[setup.shard_of(one.path)].append(versioned)
    readers = []
    features = None
    if judged:
        for adversary in setup.adversaries:
            adversary.ask(by_shard)
            readers.append(adversary.answers(asked))
        readers += all_agree(readers)
        if setup.settings.probes:
            found, features = probe_answers(questions, judged_rows, setup.settings.seed)
            readers += found
    leakage = find_leaks([question for question, _ in asked], readers, setup.settings.alpha)
    evidence: dict[str, list[str]] = {}
    if features is not None and leakage.flagged:
        chosen = [row for row, question in enumerate(questions) if question.id in leakage.flagged]
        hints = find_evidence(questions, features, chosen, setup.settings.seed)
        evidence = {questions[row].id: [f"{one.text} ({one.letters})" for one in hints.get(row, [])] for row in chosen}
    return judged, leakage, evidence


def _round_report(
    number: int, pool: CandidatePool, judged: Sequence[Candidate], leakage: LeakageResult
) -> dict[str, Any]:
    """Returns the numbers of questions that passed and leaked, by reader and by constraint."""
    helped: dict[str, Counter[str]] = defaultdict(Counter)
    for one in judged:
        if one.constraint is not None:
            helped[one.constraint]["made"] += 1
            helped[one.constraint]["passed"] += one.id not in leakage.flagged
    leaks = Counter(name for found in leakage.flagged.values() for name in {reader for reader, _ in found})
    flagged = len(leakage.flagged)
    return {
        "round": number,
        "judged": len(judged),
        "in_exchange_sets": len(pool.candidates) - len(judged),
        "passed": len(judged) - flagged,
        "pass_rate": (len(judged) - flagged) / len(judged) if judged else None,
        "leaking": flagged,
        "without_options": dict(sorted(Counter(pool.waiting.values()).items())),
        "read_by": dict(sorted(leaks.items())),
        "constraints": {name: dict(counts) for name, counts in sorted(helped.items())},
        "readers": [test for test in leakage.tests if test["dimension"] == "all" or test["above_chance"]],
    }


@dataclass(frozen=True, slots=True)
class LeakCause:
    """Why a question leaks or has no options: name, one sentence, and the constraint that the model proposes."""

    name: str
    explanation: str = ""
    constraint: str = ""

    def sentences(self) -> tuple[str, ...]:
        """Returns the constraints for the next version: the one of the prompt file and the model's."""
        prompt = load_prompt("analyse")
        ours = prompt["without_options"].get(self.name) or prompt["causes"][self.name]["constraint"]
        return (ours, self.constraint) if self.constraint else (ours,)


def cause_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply of the ``analyse`` role."""
    text = {"type": "string"}
    causes = {"type": "string", "enum": list(load_prompt("analyse")["causes"])}
    return object_schema({"cause": causes, "explanation": text, "constraint": text})


def read_cause(value: Mapping[str, Any], question: Question) -> LeakCause:
    """Reads a reply; a constraint that names the right option or looks like an instruction is dropped.

    Raises:
        BadReply: ``schema``.
    """
    name = text_field(value, "cause", 100)
    if name not in load_prompt("analyse")["causes"]:
        raise BadReply("schema", f"{name!r} is not one of the causes")
    explanation = text_field(value, "explanation", 1000, required=False)
    constraint = text_field(value, "constraint", 400, required=False)
    gold = content(question.options[question.answer])
    if instruction_in(constraint) or (gold and gold <= content(constraint)):
        constraint = ""
    return LeakCause(name, explanation, constraint)


def _causes(
    setup: ScreeningSetup, pool: CandidatePool, leakage: LeakageResult, evidence: Mapping[str, Sequence[str]]
) -> dict[str, LeakCause]:
    """Returns row id -> cause of each flagged question (``unexplained`` without a usable reply) or missing options."""
    prompt = load_prompt("analyse")
    by_shard: dict[int, list[RoleTask[LeakCause]]] = defaultdict(list)
    for row, tests in leakage.flagged.items():
        candidate = pool.candidates[row]
        question = candidate.to_question()
        answers = [adversary.answer(row, candidate.version) for adversary in setup.adversaries]
        data = {
            "causes": {name: about["meaning"] for name, about in prompt["causes"].items()},
            "question": question.question,
            "options": dict(zip(LETTERS, question.options, strict=False)),
            "right": question.letter,
            "readers": sorted({reader for reader, _ in tests}),
            "what_they_said": [one.text for one in answers if one.text],
            "evidence": list(evidence.get(row, ())),
        }
        read = functools.partial(read_cause, question=question)
        task = RoleTask(row, chat_messages(prompt["system"], data), read)
        by_shard[setup.shard_of(candidate.path)].append(task)
    causes = {row: LeakCause(why) for row, why in pool.waiting.items()}
    for shard, tasks in sorted(by_shard.items()):
        for result in setup.analyse[shard].solve(tasks, setup.settings.tries):
            causes[result.label] = result.value or LeakCause(UNEXPLAINED)
    return causes


def _rewrite(
    setup: ScreeningSetup, pool: CandidatePool, causes: Mapping[str, LeakCause]
) -> tuple[CandidatePool, dict[str, Any], list[LostQuestion]]:
    """Rewrites questions under their constraints; one that fails is dropped with its outcome.

    Returns:
        The pool of the next round, a part of the round's report, and the dropped questions.
    """
    specs = {
        row: pool.specs[row].rewritten(cause.name, cause.sentences(), pool.written.get(row))
        for row, cause in sorted(causes.items())
    }
    by_shard: dict[int, list[QuestionSpec]] = defaultdict(list)
    for spec in specs.values():
        by_shard[setup.shard_of(spec.path)].append(spec)
    results = [
        result
        for shard, some in sorted(by_shard.items())
        for result in write_candidates(some, setup.generate[shard], setup.settings.tries)
    ]
    written = {result.label: result.value for result in results if result.value is not None}
    kept = {row: one for row, one in sorted(pool.candidates.items()) if row not in causes}
    seed, implied = setup.settings.seed, setup.implied
    built = build_options(list(written.values()), seed, list(kept.values()), exchange_groups=False, implied=implied)
    report = {
        "causes": dict(sorted(Counter(cause.name for cause in causes.values()).items())),
        "explanations": {row: cause.explanation for row, cause in sorted(causes.items()) if cause.explanation},
        "made_again": len(written),
        "outcomes": outcomes(results),
    }
    candidates = kept | {one.id: one for one in built.candidates}
    following = CandidatePool({**pool.specs, **specs}, {**pool.written, **written}, candidates, built.refused)
    dropped = [(result.label, *result.failed[-1]) for result in results if result.value is None]
    return following, report, dropped


def _spent(setup: ScreeningSetup) -> dict[str, dict[str, float]]:
    """Returns role -> spending so far; the shards of a role share one spending."""
    adversaries = {one.settings.name: one for one in setup.adversaries}
    clients = {"generate": setup.generate[0], "analyse": setup.analyse[0], **adversaries}
    return {name: asdict(client.spent) for name, client in clients.items()}
