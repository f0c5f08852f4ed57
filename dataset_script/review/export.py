"""Writes a new release folder of the accepted items, edited ones with their new text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from dataset_script.review.decisions import Decision, Key, edit_problems, edited
from dataset_script.review.items import ReviewData
from dataset_script.review.standing import Board
from dataset_script.review.summary import agreement_line, summarise_review, without_names
from scale_vqa_eval.audit.defects import KINDS, Defect, find_defects
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.card import read_notes
from scale_vqa_eval.release_folder.read import IMAGE_COLUMNS, release_configs, release_files
from scale_vqa_eval.release_folder.verify import unembedded_rows
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, write_release

REVIEW_FILE: Final = "review.json"
BROKEN_GROUP: Final = "its exchange group is not whole"


def export_accepted(data: ReviewData, board: Board, out: Path) -> dict[str, Any]:
    """Writes the accepted items of the chosen splits into a release folder of their own.

    An exchange group goes as a whole or not at all: its guarantee is one of four items together. ``text`` is written
    beside ``default`` where the data has it. No reviewer's name goes into the folder.

    Args:
        data: what was reviewed.
        board: standing of every item.
        out: the new folder; one that an earlier export made is replaced.

    Returns:
        ``kept`` and ``left_out`` (reason -> number), ``defects``, as ``<config>/review.json`` has them.

    Raises:
        InputError: where nothing is accepted, an edited row breaks the schema, or ``out`` holds something else.
    """
    _check_out(data, out)
    kept, left_out = accepted(data, board)
    questions = {key: edited(data.items[key].question, one.edit) for key, one in kept.items()}
    problems = [
        problem
        for key, one in kept.items()
        if one.edit
        for problem in edit_problems(one.edit, data.items[key].question)
    ]
    if not kept:
        counted = ", ".join(f"{count} {reason}" for reason, count in Counter(left_out.values()).items())
        problems.append(Problem(str(data.folder), "at least one accepted item", counted or "none", "review it first"))
    if problems:
        raise InputError(problems)
    defects = find_defects(list(questions.values()))
    summary = without_names(summarise_review(data, board))
    report = {
        "review": summary,
        "kept": len(kept),
        "edited": sorted(key[1] for key, one in kept.items() if one.edit),
        "left_out": dict(Counter(left_out.values())),
        "left_out_ids": [{"split": split, "id": row, "why": why} for (split, row), why in left_out.items()],
        "defects": [asdict(defect) for defect in defects],
    }
    configs = [data.config, *(["text"] if data.config == "default" and "text" in release_configs(data.folder) else [])]
    splits = list(dict.fromkeys(key[0] for key in kept))
    tables = {
        config: {split: _rows(data, split, questions, images=config != "text") for split in splits}
        for config in configs
    }
    note = _note(data, report, defects)
    content = (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    files = {f"{config}/{REVIEW_FILE}": content for config in configs}
    write_release(out, tables, dict.fromkeys(configs, note), files=files)
    return report


def accepted(data: ReviewData, board: Board) -> tuple[dict[Key, Decision], dict[Key, str]]:
    """Returns the chosen items that go into a release, with the decision that says so, and why each other does not."""
    kept: dict[Key, Decision] = {}
    left_out: dict[Key, str] = {}
    for key in data.chosen:
        final = board.items[key].final
        if final is None:
            left_out[key] = board.items[key].status
        elif final.verdict == "reject":
            left_out[key] = "rejected"
        else:
            kept[key] = final
    for key in _broken(data, kept):
        del kept[key]
        left_out[key] = BROKEN_GROUP
    return kept, left_out


def _broken(data: ReviewData, kept: Mapping[Key, Decision]) -> list[Key]:
    """Returns the kept items whose exchange group lost a member, or whose texts an edit made differ."""
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in data.items:
        group = data.items[key].question.group
        if group is not None:
            groups.setdefault((key[0], group), []).append(key)
    broken = []
    for members in groups.values():
        before = [data.items[key].question for key in members]
        if all(key in kept for key in members):
            after = [edited(data.items[key].question, kept[key].edit) for key in members]
            if _shape(after) == _shape(before) or not any(kept[key].edit for key in members):
                continue
        broken += [key for key in members if key in kept]
    return broken


def _shape(questions: list[Question]) -> tuple[int, list[int]]:
    """Returns how many texts a group has and which letters are right: what its guarantee rests on."""
    return len({(one.question, one.options) for one in questions}), sorted(one.answer for one in questions)


def _rows(data: ReviewData, split: str, questions: Mapping[Key, Question], images: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split that are kept, image bytes as they are; memory holds one batch."""
    for file in release_files(data.folder, data.config)[split]:
        parquet = pq.ParquetFile(file)
        features = Features.from_arrow_schema(parquet.schema_arrow)
        names = [name for name in features if images or name not in IMAGE_COLUMNS]
        labels = {name: features[name].names for name in ("answer", "dimension")}
        for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP, columns=names):
            for _, column, path in unembedded_rows(pa.Table.from_batches([batch])):
                raise InputError(
                    Problem(f"{file}, {column}", "an embedded image", preview(path), "build the folder again")
                )
            for row in batch.to_pylist():
                key = (split, row["id"].strip())
                if key in questions:
                    named = {name: None if row[name] is None else labels[name][row[name]] for name in labels}
                    yield row | named | _changes(data.items[key].question, questions[key])


def _changes(before: Question, after: Question) -> dict[str, Any]:
    """Returns the columns that an edit changed; all others stay to the byte."""
    pairs = {
        "question": (before.question, after.question),
        "options": (list(before.options), list(after.options)),
        "answer": (before.letter, after.letter),
        "rationale": (before.rationale, after.rationale),
    }
    return {name: new for name, (old, new) in pairs.items() if new != old}


def _check_out(data: ReviewData, out: Path) -> None:
    here, there = data.folder.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise InputError(Problem(str(out), "a folder of its own", "the folder under review", "name another --export"))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())) and not any(out.glob(f"*/{REVIEW_FILE}")):
        found = "something that no export made"
        raise InputError(
            Problem(str(out), "no folder yet, or one that an export made", found, "name another --export")
        )


def _note(data: ReviewData, report: Mapping[str, Any], defects: list[Defect]) -> str:
    """Returns the card's account: what the items were, how they were reviewed, what was left out."""
    before = read_notes(data.folder / "README.md").get(data.config, "")
    lost = ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items()) or "none"
    lines = [
        *([before, ""] if before else []),
        f"**Reviewed.** Of {len(data.chosen)} items, {report['kept']} were accepted by two independent reviewers, "
        f"or in adjudication where these differed; {len(report['edited'])} of them with an edited text. "
        f"Left out: {lost}.",
    ]
    pairs = report["review"]["agreement"]
    lines += [f"Agreement before adjudication: {'; '.join(map(agreement_line, pairs))}."] if pairs else []
    counts = Counter(defect.kind for defect in defects)
    if counts:
        known = "; ".join(f"{counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind])
        lines.append(f"Known defects among what is left, by row id in `{REVIEW_FILE}`: {known}.")
    return "\n".join(lines)
