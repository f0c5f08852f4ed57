"""Step 4: the questions that passed become a release folder with its audit and the curation report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dataset_script.curate.asking.settings import Settings
from dataset_script.curate.construction.cleaning import contradictions, without_duplicates
from dataset_script.curate.construction.letters import balanced, rationale_of
from dataset_script.curate.construction.report import card_note, curation_report, write_report
from dataset_script.curate.questions.items import Item
from dataset_script.image_files import inside
from dataset_script.splits import SPLITS
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import LETTERS

REPLACED: Final = frozenset({"default", "text", "exchange", "screened"})


def finished(
    items: Sequence[Item], twins: Mapping[str, str], settings: Settings
) -> tuple[list[Item], list[tuple[str, str, str]]]:
    """Returns the questions in their final form, and what was removed as a duplicate."""
    kept, gone = without_duplicates(items, twins, settings.near_duplicate)
    return balanced(kept, settings.seed), gone


def build(
    items: Sequence[Item],
    images: Mapping[str, Mapping[str, str]],
    root: Path,
    twins: Mapping[str, str],
    out: Path,
    settings: Settings,
    accounts: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the release folder, ``audit.json``, ``audit.html``, ``curation_report.json`` and ``.md``.

    Args:
        items: the questions that passed the screening.
        images: path key -> view -> image path below ``root``.
        root: the image root.
        twins: path key -> the path whose images it repeats.
        out: the release folder.
        settings: of the curation.
        accounts: step -> its account.
        about: what else the report says of input and prompts.

    Raises:
        InputError: where no question is left, or ``out`` is something else than a release folder.
    """
    final, gone = finished(items, twins, settings)
    if not final:
        hint = "see the outcomes in the work folder: screened.json says what became of each question"
        raise InputError(Problem(str(out), "at least one question that passed", "none", hint))
    rows = {item.id: rationale_of(item) for item in final}
    questions = [item.question(rows[item.id]) for item in final]
    construction = {
        "duplicates": [list(one) for one in gone],
        "contradictions": contradictions(final),
        "letters": _letters(questions),
        "exchange_sets": len({item.group for item in final if item.group}),
    }
    by_split = {split: [item for item in final if item.place.split == split] for split in SPLITS}
    tables: dict[str, dict[str, Iterator[dict[str, Any]]]] = {
        "default": {split: _rows(some, images, root, settings) for split, some in by_split.items() if some},
        "text": {split: _rows(some, {}, root, settings) for split, some in by_split.items() if some},
    }
    sets = {split: [item for item in some if item.group] for split, some in by_split.items()}
    if any(sets.values()):
        tables["exchange"] = {split: _rows(some, images, root, settings) for split, some in sets.items() if some}
    audit = audited(questions, settings.seed)
    note = card_note(questions, accounts, construction, audit, settings)
    write_release(out, tables, {config: note for config in tables}, drop=REPLACED)
    audit = _with_overlap(out, audit)
    write_json(out / "audit.json", audit)
    from scale_vqa_eval.audit.page import write_page

    write_page(out / "audit.html", audit)
    report = curation_report(questions, accounts, construction, audit, settings, about)
    write_report(out, report)
    return report


def audited(questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Returns the audit of questions, as ``scale-vqa audit`` makes it."""
    from scale_vqa_eval.audit.report import audit_questions

    return audit_questions(questions, seed) | {"chat": [], "published": {}}


def _with_overlap(out: Path, audit: dict[str, Any]) -> dict[str, Any]:
    from scale_vqa_eval.audit.overlap import find_overlap

    found = audit | {"overlap": find_overlap(str(out), "default")}
    found["provenance"] = found["provenance"] | {"data": out.name, "split": None, "config": "default"}
    return found


def _rows(
    items: Sequence[Item], images: Mapping[str, Mapping[str, str]], root: Path, settings: Settings
) -> Iterator[dict[str, Any]]:
    for item in items:
        question = item.question()
        row: dict[str, Any] = {
            "id": item.id,
            "question": question.question,
            "options": list(question.options),
            "answer": LETTERS[question.answer],
            "rationale": rationale_of(item),
            "dimension": question.dimension,
            "wsi_name": question.slide,
            "patient_id": question.patient,
            "path_id": question.path_id,
            "source": settings.source,
            "group": item.group,
        }
        for view, name in images.get(item.draft.path, {}).items():
            file = inside(root, name)
            if not isinstance(file, Path):
                raise InputError(Problem(f"{item.id}, {view}", f"a file inside {root}", file, "bring it back"))
            row[view] = {"bytes": file.read_bytes(), "path": name}
        yield row


def _letters(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """Returns split/dimension -> how often each letter is right."""
    cells: dict[str, Counter[str]] = {}
    for question in questions:
        cells.setdefault(f"{question.split}/{question.dimension}", Counter())[question.letter] += 1
    return {name: {letter: counts[letter] for letter in LETTERS[:4]} for name, counts in sorted(cells.items())}
