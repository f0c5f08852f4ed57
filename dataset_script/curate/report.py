"""Step 4: removes duplicates of the questions that passed, balances letters, and writes release, audit and report."""

from __future__ import annotations

import json
import platform
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import numpy as np

from dataset_script.curate.candidates import COMBINATIONS, Candidate
from dataset_script.curate.captions import grounded_in, may_hold
from dataset_script.curate.distractors import in_first_order
from dataset_script.curate.roles import load_prompt, prompt_ids
from dataset_script.curate.work import CurationSettings, RoleSettings, add_reports
from dataset_script.image_files import inside
from dataset_script.splits import SPLITS
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_write, write_json
from scale_vqa_eval.llm import endpoint_name
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.text import jaccard, markdown, markdown_environment, percent, tokens, words

_ONE: Final = r"\(?[A-D]\)?(?![\w'\u2019-])"
_LISTED: Final = re.compile(
    rf"\b(?:[Oo]ptions?|[Cc]hoices?|[Aa]nswers?|[Ll]etters?)\s+(?:is\s+|are\s+|:\s*)?{_ONE}"
    rf"(?:(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+){_ONE})*"
)
# bare letters are options at the start of a clause, before a verb: "; B and C have one", not "hepatitis B and C"
_PAIRED: Final = re.compile(
    rf"(?:^|(?<=[.!?;:]\s)){_ONE}(?:(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+){_ONE})+"
    r"(?=\s+(?:both|each|all|only|have|has|are|is|were|was|do|does|hold|miss|lack|name|show|fail|differ|contradict"
    r"|describe|pair|claim|state|mix|swap|mention|get|put)\b)"
)
_BRACKETED: Final = re.compile(r"\([A-D]\)")
_HEAD: Final = re.compile(
    r"(?:^|(?<=[.!?]\s))(?:[Oo]nly\s+|[Ss]o\s+|[Tt]hus,?\s+|[Tt]herefore,?\s+)?[A-D]"
    r"(?=[).:]\s|\s+(?:(?:alone|also|only|correctly|best)\s+)?(?:is|was|has|does|(?!\w*(?:ss|us|is)\b)[a-z]{2,}s)\b)"
)
_LETTER: Final = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")


def remap_letters(text: str, letters: Mapping[str, str]) -> str:
    """Replaces every letter that names an option, but not the article "A".

    >>> remap_letters("A pairs both; options B and C miss one (D none). A small gland.", dict(zip("ABCD", "DCBA")))
    'D pairs both; options C and B miss one (D none). A small gland.'
    >>> remap_letters("Option A holds; B and C have one, as in hepatitis B and C.", dict(zip("ABCD", "CDAB")))
    'Option C holds; D and A have one, as in hepatitis B and C.'
    """
    spans = [match.span() for pattern in (_LISTED, _PAIRED, _BRACKETED, _HEAD) for match in pattern.finditer(text)]
    named = {match.start() for start, end in spans for match in _LETTER.finditer(text, start, end)}
    return "".join(letters.get(char, char) if index in named else char for index, char in enumerate(text))


def rationale_of(candidate: Candidate) -> str:
    """Returns a candidate's rationale with the current letters of its options."""
    letters = {
        old: LETTERS[candidate.order.index(named_combination(candidate, number))]
        for number, old in enumerate(LETTERS[:4])
    }
    return remap_letters(candidate.rationale, letters)


def named_combination(candidate: Candidate, letter: int) -> int:
    """Returns the combination that a letter of the rationale means, by the index of the letter."""
    first, second = (right ^ wrong for right, wrong in zip(candidate.truth, COMBINATIONS[letter], strict=True))
    return 2 * first + second


def balanced(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Returns the candidates with the right letters as even as possible in each split and dimension.

    Exchange groups keep their order, in which each letter is right once.
    """
    cells: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: one.id):
        cells[one.path.split, one.question_type].append(one)
    group_texts = {(one.question, one.options) for one in candidates if one.group is not None}
    ordered: list[Candidate] = []
    for key, members in sorted(cells.items()):
        rng = random.Random(f"{seed}:letters:{key}")
        used = Counter(one.answer for one in members if one.group is not None)
        for one in members:
            if one.group is not None:
                ordered.append(one)
                continue
            fewest = min(used[letter] for letter in range(4))
            letter = rng.choice([letter for letter in range(4) if used[letter] == fewest])
            used[letter] += 1
            right = 2 * one.truth[0] + one.truth[1]
            orders = [
                (*others[:letter], right, *others[letter:])
                for others in permutations([number for number in range(4) if number != right])
            ]
            rng.shuffle(orders)
            ordered.append(in_first_order(one, orders, group_texts))
    return sorted(ordered, key=lambda one: one.id)


def without_duplicates(
    candidates: Sequence[Candidate], twins: Mapping[str, str], threshold: float
) -> tuple[list[Candidate], list[tuple[str, str, str]]]:
    """Removes questions that repeat another question on the same images in the same or nearly the same words.

    The same words on other images are not a duplicate: templates recur, and exchange groups need them.

    Args:
        candidates: the questions.
        twins: path key -> path with the same images, for paths that have a twin.
        threshold: minimum Jaccard similarity of the words of question and options for a near-duplicate.

    Returns:
        The kept questions, and (row id, ``duplicate`` or ``near-duplicate``, "of <row id>") of each removed question.
    """
    by_images: dict[str, list[Candidate]] = defaultdict(list)
    for one in sorted(candidates, key=lambda one: (one.group is None, one.id)):  # a group must not lose a member
        by_images[twins.get(one.path.key, one.path.key)].append(one)
    kept: list[Candidate] = []
    removed: list[tuple[str, str, str]] = []
    for members in by_images.values():
        seen: list[tuple[Candidate, list[list[str]], frozenset[str]]] = []
        for one in members:
            text = [words(one.question), *sorted(words(option) for option in one.options)]
            bag = tokens(" ".join((one.question, *one.options)))
            same = next((other for other, earlier, _ in seen if earlier == text), None)
            near = next((other for other, _, earlier in seen if jaccard(earlier, bag) >= threshold), None)
            original = same or near
            if one.group is None and original is not None:
                removed.append((one.id, "near-duplicate" if same is None else "duplicate", f"of {original.id}"))
            else:
                seen.append((one, text, bag))
                kept.append(one)
    return sorted(kept, key=lambda one: one.id), sorted(removed)


def contradictions(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Flags options that contradict their path's captions: wrong ones that are stated, right ones that are denied."""
    found = []
    for one in candidates:
        assert one.values is not None
        texts = one.path.captions
        for half, (pair, right) in enumerate(zip(one.values, one.truth, strict=True)):
            wrong, true = pair[1 - right], pair[right]
            if may_hold(wrong, texts):
                stating = [LETTERS[at] for at, number in enumerate(one.order) if divmod(number, 2)[half] == 1 - right]
                why = "is wrong here, but a caption of the path says it"
                found.append({"id": one.id, "options": "".join(stating), "finding": wrong, "why": why})
            if any(grounded_in(true, text) in ("negation-dropped", "negation-added") for text in texts):
                why = "is right here, but a caption of the path denies it"
                found.append({"id": one.id, "options": LETTERS[one.answer], "finding": true, "why": why})
    return found


FORMAT: Final = 1
"""Increased when a field of ``curation_report.json`` changes meaning or is removed."""
CONFIGS: Final = frozenset({"default", "text", "exchange", "screened"})
"""Configs of the release folder that a curation replaces."""


def finished(
    candidates: Sequence[Candidate], twins: Mapping[str, str], settings: CurationSettings
) -> tuple[list[Candidate], list[tuple[str, str, str]]]:
    """Returns the questions in their final form, and the removed duplicates."""
    kept, removed = without_duplicates(candidates, twins, settings.near_duplicate)
    return balanced(kept, settings.seed), removed


def write_curated_release(
    candidates: Sequence[Candidate],
    root: Path,
    twins: Mapping[str, str],
    out: Path,
    settings: CurationSettings,
    steps: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the release folder with ``audit.json``, ``audit.html``, ``curation_report.json`` and ``.md``.

    The complete folder, audit and report included, replaces ``out`` in one rename.

    Args:
        candidates: the questions that passed the screening.
        root: the image root.
        twins: path key -> path with the same images.
        out: the release folder.
        settings: settings of the curation.
        steps: step -> its report.
        about: ``input`` and ``linked_patients`` of the report.

    Raises:
        InputError: if no question is left, or ``out`` is not a release folder.
    """
    from scale_vqa_eval.audit.overlap import find_overlap
    from scale_vqa_eval.audit.report import audit_questions, write_page

    final, removed = finished(candidates, twins, settings)
    if not final:
        hint = "see the outcomes in screened.json of the work folder"
        raise InputError(Problem(str(out), "at least one question that passed", "none", hint))
    questions = [one.to_question(rationale_of(one)) for one in final]
    construction = {
        "duplicates": [list(one) for one in removed],
        "contradictions": contradictions(final),
        "letters": _letters(questions),
        "exchange_sets": len({one.group for one in final if one.group}),
    }
    tables: dict[str, dict[str, Iterator[dict[str, Any]]]] = {"default": {}, "text": {}, "exchange": {}}
    for split in SPLITS:
        members = [one for one in final if one.path.split == split]
        grouped = [one for one in members if one.group]
        for config, some, images in (("default", members, root), ("text", members, None), ("exchange", grouped, root)):
            if some:
                tables[config][split] = _rows(some, images, settings)
    tables = {config: splits for config, splits in tables.items() if splits}
    audit = audit_questions(questions, settings.seed) | {"chat": [], "published": {}}
    note = _card_note(questions, steps, construction, audit, settings)
    report: dict[str, Any] = {}

    def add_reports_to(folder: Path) -> None:
        provenance = audit["provenance"] | {"data": out.name, "split": None, "config": "default"}
        checked = audit | {"overlap": find_overlap(str(folder), "default"), "provenance": provenance}
        write_json(folder / "audit.json", checked)
        write_page(folder / "audit.html", checked)
        report.update(curation_report(questions, steps, construction, checked, settings, about))
        write_json(folder / "curation_report.json", report)
        atomic_write(folder / "curation_report.md", as_markdown(report))

    notes = {config: note for config in tables}
    write_release(out, tables, notes, drop=CONFIGS, finish=add_reports_to)
    return report


def _rows(candidates: Sequence[Candidate], root: Path | None, settings: CurationSettings) -> Iterator[dict[str, Any]]:
    """Yields rows of the release folder, with images if a root is given."""
    for one in candidates:
        row = one.to_question(rationale_of(one)).as_row(settings.source)
        for view, name in one.path.images if root is not None else ():
            file = inside(root, name) if root is not None else None
            if not isinstance(file, Path):
                raise InputError(Problem(f"{one.id}, {view}", f"a file inside {root}", str(file), "restore it"))
            row[view] = {"bytes": file.read_bytes(), "path": name}
        yield row


def _letters(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """Returns "split/dimension" -> letter -> number of questions with this answer."""
    cells: dict[str, Counter[str]] = {}
    for question in questions:
        cells.setdefault(f"{question.split}/{question.dimension}", Counter())[question.letter] += 1
    return {name: {letter: counts[letter] for letter in LETTERS[:4]} for name, counts in sorted(cells.items())}


def curation_report(
    questions: Sequence[Question],
    steps: Mapping[str, Any],
    construction: Mapping[str, Any],
    audit: Mapping[str, Any],
    settings: CurationSettings,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the content of ``curation_report.json``.

    Keys: ``format``, ``input``, ``questions`` (counts by split and dimension), ``blind`` (accuracy without images),
    ``steps``, ``rounds``, ``constraints`` (which helped), ``costs`` by role and in total, ``outcomes``, ``dropped``
    (row or path, reason, detail), ``contradictions``, ``prompts``, ``models``, ``settings``, ``provenance``.
    """
    reports = {**steps, "construct": construction}
    lists = ("lost", "rounds", "duplicates", "contradictions")
    dropped = [
        {"step": step, "id": row, "reason": reason, "detail": detail}
        for step, report in reports.items()
        for row, reason, detail in report.get("lost", report.get("duplicates", ()))
    ]
    report = {
        "format": FORMAT,
        "input": about["input"],
        "questions": {
            "n": len(questions),
            "by_split": dict(sorted(Counter(str(one.split) for one in questions).items())),
            "by_dimension": dict(sorted(Counter(str(one.dimension) for one in questions).items())),
        },
        "blind": _blind(audit),
        "steps": {
            step: {name: value for name, value in report.items() if name not in lists}
            for step, report in reports.items()
        },
        "rounds": steps["screen"]["rounds"],
        "constraints": constraints(steps["screen"]["rounds"]),
        "costs": _costs(steps),
        "outcomes": _outcomes(steps) | {"dropped": dict(sorted(Counter(one["reason"] for one in dropped).items()))},
        "dropped": dropped,
        "contradictions": construction["contradictions"],
        "linked_patients": about["linked_patients"],
        "prompts": prompt_ids(),
        "models": _models(settings),
        "settings": settings.model_dump(exclude={"roles", "paths_per_shard", "source"}),
        "provenance": {
            "data_hash": questions_digest(questions),
            "versions": {"scale-vqa": __version__, "numpy": np.__version__, "python": platform.python_version()},
        },
    }
    # rounded, so that the report does not depend on the last bits of a sum
    text = json.dumps(report, default=lambda number: number.item())
    rounded: dict[str, Any] = json.loads(text, parse_float=lambda number: round(float(number), 6))
    return rounded


def as_markdown(report: Mapping[str, Any]) -> str:
    """Renders a report as Markdown; texts of models and of the input are escaped."""
    environment = markdown_environment("dataset_script.curate", cell=lambda text: markdown(str(text)[:200]))
    reasons = load_prompt("reasons")["replies"] | load_prompt("reasons")["questions"]
    return environment.get_template("curation_report.md.j2").render(report=report, reasons=reasons)


def _blind(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the accuracy without images (of the ensemble, which is fixed beforehand, and the strongest probe)."""
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
    """Returns cause -> number of questions rewritten under its constraint, and number and share that passed next."""
    total = add_reports(one["constraints"] for one in rounds)
    return {
        name: {**counts, "helped": counts["passed"] / counts["made"] if counts["made"] else None}
        for name, counts in sorted(total.items())
    }


def _costs(steps: Mapping[str, Any]) -> dict[str, Any]:
    """Returns role -> calls, tokens and money of all steps, resumed runs included, and ``total``."""
    first = {name: steps[name]["spent"] for name in ("decompose", "generate")}
    spent = add_reports([first, *(one["spent"] for one in steps["screen"]["rounds"])])
    return {**spent, "total": add_reports(spent.values())}


def _outcomes(steps: Mapping[str, Any]) -> dict[str, Any]:
    """Returns role -> outcome -> failed tries, and the unread answers of the adversaries."""
    rewriting = [one["outcomes"]["tries"] for one in steps["screen"]["rounds"] if "outcomes" in one]
    return {
        "decompose": steps["decompose"]["outcomes"]["tries"],
        "features_rejected": steps["decompose"]["rejected"],
        "generate": add_reports([steps["generate"]["outcomes"]["tries"], *rewriting]),
        "adversaries": {one["name"]: one["unread"] for one in steps["screen"]["adversaries"]},
    }


def _models(settings: CurationSettings) -> dict[str, Any]:
    def about(role: RoleSettings) -> dict[str, Any]:
        return {"endpoint": endpoint_name(role.base_url), "model": role.model, "sampling": role.sampling}

    singles = {name: about(getattr(settings.roles, name)) for name in ("decompose", "generate", "analyse")}
    several = [{"name": one.name, **about(one), "repeats": one.repeats} for one in settings.roles.adversary]
    return {**singles, "adversary": several}


def _card_note(
    questions: Sequence[Question],
    steps: Mapping[str, Any],
    construction: Mapping[str, Any],
    audit: Mapping[str, Any],
    settings: CurationSettings,
) -> str:
    """Returns the paragraph of the dataset card."""
    found = _blind(audit)["ensemble"]
    slides, patients = ({getattr(one, name) for one in questions} for name in ("slide", "patient"))
    rounds = len(steps["screen"]["rounds"])
    return (
        f"{len(questions)} questions on {len(slides)} slides of {len(patients)} patients, curated from captions "
        f"(source: {settings.source}): features, questions and analyses by language models, options crossed by "
        f"program, screened in {rounds} rounds by {len(settings.roles.adversary)} text-only readers and the audit's "
        f"probes. Without images, an ensemble fitted to the other patients' answers reaches "
        f"{percent(found['accuracy'])}% (95% interval {percent(found['ci_low'])} to {percent(found['ci_high'])}; "
        f"chance 25%). {construction['exchange_sets']} exchange groups: a deterministic text-only reader asked "
        "one item at a time is right on 25% of them; a reader of the whole file, which combines the rows of a slide, "
        f"is not excluded. {len(construction['contradictions'])} options are flagged as contradicting their own "
        "captions. **No pathologist has confirmed these questions yet**; "
        "`curation_report.json` has every step."
    )
