"""What a control reads and writes: edited rows, as a file or a config of a release folder, and its report."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.audit.defects import named_right, named_wrong
from scale_vqa_eval.audit.probe import Accuracy, FloatArray, ProbeAccuracy, ProbeScores, credit, evaluate_probe
from scale_vqa_eval.controls.exchange import ExchangeResult, QuestionGroup, ValidityLimits
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.controls.findings import REASONS
from scale_vqa_eval.controls.screened import ScreenedRows
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import FIELD_NAMES, read_records, release_files
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, staged_release, write_shards
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import DIMENSIONS, LETTERS, QUESTION_TYPES, VIEWS, row_id
from scale_vqa_eval.text import markdown_environment, percent

_TYPES: Final = {dimension: question_type for question_type, dimension in QUESTION_TYPES.items()}
_OWN_PLACE = ("id", "question", "options", "answer", "rationale", "dimension", "group")
_LAID_OUT: Final = {
    *(name for field in _OWN_PLACE for name in FIELD_NAMES[field]),
    *LETTERS,
    *VIEWS,
    "image_path",
    "extra_info",
}
"""Fields of a row in another format that have a counterpart in the authors' format."""
# "A" at the start of a sentence is usually the article; there the parser of named letters decides
_LETTER: Final = re.compile(r"(?<![\w'-])(?:[B-Z]|(?<!^)(?<![.!?;:]\s)A)(?![\w'-])|\([A-Z]\)")
_OPTIONS: Final = re.compile(r"\b(?:options?|choices?|answers?|alternatives?|distractors?|others?)\b", re.IGNORECASE)
NOT_CONFIRMED: Final = "not yet confirmed by experts"
_FOLDER_COLUMNS: Final = ("question", "options", "answer", "rationale", "source", "group")


@dataclass(frozen=True, slots=True)
class RowEdit:
    """New values of a row.

    Attributes:
        question: question text.
        options: option texts.
        answer: 0-based index of the gold option.
        rationale: rationale to keep, or None.
        group: name of the exchange group.
        sources: for each option, id of the row whose right answer it is; empty in a block exchange, where it would
            reveal the answers to a reader of the whole file.
        place: ``block`` and ``quadruple`` of a block exchange, else empty.
    """

    question: str
    options: tuple[str, ...]
    answer: int
    rationale: str | None
    group: str
    sources: tuple[str, ...]
    place: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ControlSource:
    """The input of a control.

    Attributes:
        questions: all questions in the order of the file.
        rows: unchanged row of each question, without image bytes; ``image_path`` has the image names.
    """

    questions: list[Question]
    rows: list[Mapping[str, Any]]


def read_source(data: str | Path, split: str | None = None, config: str | None = None) -> ControlSource:
    """Reads the questions of ``data`` and their rows; see ``read_questions``."""
    questions = read_questions(data, split, config)
    rows = [record.row for record in read_records(data, split, config)]
    assert len(rows) == len(questions)  # read_questions never skips a row
    return ControlSource(questions, rows)


def authors_row(question: Question, row: Mapping[str, Any], edit: RowEdit | None = None) -> dict[str, Any]:
    """Returns a question as a row in the authors' format.

    Args:
        question: the question.
        row: row from which it was read; if it is in the authors' format, unedited fields are unchanged.
        edit: new values, or None.
    """
    in_format = isinstance(row.get("options"), Mapping) and isinstance(row.get("extra_info"), Mapping)
    result = copy.deepcopy(dict(row)) if in_format else _fresh(question, row)
    extra = result["extra_info"]
    if question.split is not None:
        extra["split"] = question.split
    if edit is not None:
        result["question"] = edit.question
        result["options"] = dict(zip(LETTERS, edit.options, strict=False))
        result["answer"] = LETTERS[edit.answer]
        result["rationale"] = edit.rationale
        extra |= {"group": edit.group, **dict(edit.place)}
        if edit.sources:
            extra["option_sources"] = dict(zip(LETTERS, edit.sources, strict=False))
    return result


def exchange_edits(
    questions: Sequence[Question], groups: Sequence[QuestionGroup], keep_rationales: bool = False
) -> dict[int, RowEdit]:
    """Returns row number -> edit, for all rows in groups.

    Args:
        questions: the questions that were grouped.
        groups: their groups.
        keep_rationales: keep rationales that mention no letter and no options. By default all are dropped, because
            they were written for other options.
    """
    edits = {}
    for group in groups:
        sources = [questions[row] for row in group.members]
        options = tuple(source.options[source.answer] for source in sources)
        for index, row in enumerate(group.members):
            rationale = questions[row].rationale if keep_rationales else None
            kept = rationale if rationale is not None and independent_of_options(rationale) else None
            ids = () if group.block else tuple(source.id for source in sources)
            place = (("block", group.block), ("quadruple", group.quadruple)) if group.block else ()
            edits[row] = RowEdit(group.stem, options, index, kept, group.name, ids, place)
    return edits


def independent_of_options(rationale: str) -> bool:
    """Whether a rationale remains true with other options and letters.

    >>> independent_of_options("Necrosis is seen in both views."), independent_of_options("Only B matches both views.")
    (True, False)
    """
    if _OPTIONS.search(rationale) or _LETTER.search(rationale):
        return False
    return not named_right(rationale, 26) and not named_wrong(rationale, 26)


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON list, or JSON lines if the name ends in ``.jsonl``, atomically."""
    if out.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n"
    atomic_write(out, text)


KeptRows = Mapping[int, RowEdit | None]
"""Row number within the split, from 0 -> edit, or None if the row is not changed."""


def add_config(
    data: Path, source: str | None, out: Path, config: str, kept: Mapping[str, KeptRows], note: str, report: str
) -> bool:
    """Writes a config with some rows of another one, in the same order and with the same images.

    Args:
        data: release folder of the rows.
        source: config of the rows, or None for the default.
        out: release folder for the new config; may be ``data`` or a new folder.
        config: name of the new config; an existing one is replaced.
        kept: split -> rows; splits without rows are left out.
        note: Markdown for the card.
        report: JSON for ``control.json`` beside the Parquet files.

    Returns:
        Whether the config has images.

    Raises:
        InputError: if ``data`` lacks columns of a release folder, or ``out`` is not a release folder.
    """
    files = release_files(data, source)
    schemas = [pq.read_schema(shards[0]) for shards in files.values()]
    for shards, schema in zip(files.values(), schemas, strict=True):
        missing = [name for name in _FOLDER_COLUMNS if name not in schema.names]
        if missing:
            expected = f"the columns {', '.join(_FOLDER_COLUMNS)}"
            raise InputError(Problem(str(shards[0]), expected, f"no {', '.join(missing)}", "build the folder again"))
    with staged_release(out, {config}, {config: note}) as staging:
        for (split, shards), schema in zip(files.items(), schemas, strict=True):
            if kept.get(split):
                write_shards(staging / config, split, schema, _chosen(shards, schema, kept[split]))
        (staging / config / "control.json").write_text(report, encoding="utf-8", newline="\n")
    return any(view in schema.names for view in VIEWS for schema in schemas)


def _chosen(shards: list[Path], schema: Any, kept: KeptRows) -> Iterator[Any]:
    """Yields tables of at most ``ROWS_PER_GROUP`` chosen rows; one table and one batch are in memory."""
    waiting = schema.empty_table()
    for number, batch in _batches(shards, kept):
        at = [row for row in range(len(batch)) if number + row in kept]
        edits = [kept[number + row] for row in at]
        chosen = _changed(pa.Table.from_batches([batch]).take(at), schema, edits)
        waiting = pa.concat_tables([waiting, chosen])
        if len(waiting) >= ROWS_PER_GROUP:
            yield waiting.slice(0, ROWS_PER_GROUP).combine_chunks()
            waiting = waiting.slice(ROWS_PER_GROUP)
    if len(waiting):
        yield waiting.combine_chunks()


def _batches(shards: list[Path], kept: KeptRows) -> Iterator[tuple[int, Any]]:
    """Yields (number of the first row, batch) for the row groups that contain a chosen row."""
    start = 0
    for shard in shards:
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            if any(start + row in kept for row in range(length)):
                number = start
                for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, row_groups=[group]):
                    yield number, batch
                    number += len(batch)
            start += length


def _changed(table: Any, schema: Any, edits: list[RowEdit | None]) -> Any:
    """Applies edits to the rows of a table."""
    new: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in _FOLDER_COLUMNS}
    as_number = pa.types.is_integer(schema.field("answer").type)
    for row, edit in enumerate(edits):
        if edit is None:
            continue
        sources = ", ".join(f"{letter} {name}" for letter, name in zip(LETTERS, edit.sources, strict=False))
        source = f"options are the right answers of {sources or 'the rows of its group'}"
        new["question"][row] = edit.question
        new["options"][row] = list(edit.options)
        new["answer"][row] = edit.answer if as_number else LETTERS[edit.answer]
        new["rationale"][row] = edit.rationale
        new["group"][row] = edit.group
        new["source"][row] = f"{new['source'][row]}; {source}" if new["source"][row] else source
    for name, values in new.items():
        column = schema.get_field_index(name)
        table = table.set_column(column, schema.field(name), pa.array(values, type=schema.field(name).type))
    return table.cast(schema)


def _fresh(question: Question, row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row to the authors' format; fields without a counterpart go into ``extra_info``."""
    kind = _TYPES[question.dimension] if question.dimension in DIMENSIONS else question.dimension
    known = {"wsi_name": question.slide, "patient_id": question.patient, "path_id": question.path_id}
    extra = {name: value for name, value in known.items() if value is not None}
    extra |= {"question_type": kind} if kind else {}
    inner, images = row.get("extra_info"), row.get("image_path")
    others = {**row, **(inner if isinstance(inner, Mapping) else {})}
    extra |= {name: value for name, value in others.items() if name not in _LAID_OUT | set(extra) and _plain(value)}
    result: dict[str, Any] = {
        "question": question.question,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "answer": question.letter,
        "rationale": question.rationale,
        "image_path": dict(images) if isinstance(images, Mapping) and images else images,
        "extra_info": extra,
    }
    derived = row_id(question.slide, question.path_id, kind) if question.slide and question.path_id and kind else None
    return result if question.id == derived else {"id": question.id, **result}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def audited(questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Runs the battery on questions with one partition into folds, and returns its figures."""
    return figures([evaluate_probe(result, questions) for result in run_battery(questions, seed, 1)])


def figures(probes: Sequence[ProbeAccuracy]) -> dict[str, Any]:
    """Returns the accuracies of probes for a report: all, the extremes, and the strongest by dimension."""
    adjusted = holm([probe.p_value for probe in probes])
    best = max(probes, key=lambda probe: probe.accuracy)
    worst = min(probes, key=lambda probe: probe.accuracy)
    dimensions = sorted({name for probe in probes for name in probe.by_dimension})
    strongest = {name: max(probes, key=lambda probe: probe.by_dimension[name].accuracy) for name in dimensions}
    return {
        "n": best.n,
        "clusters": best.clusters,
        "chance": best.chance,
        "strongest": {"name": best.name, **_interval(best)},
        "weakest": {"name": worst.name, **_interval(worst)},
        "ceiling": max(probe.ci_high for probe in probes),
        "off_chance": [probe.name for probe, p in zip(probes, adjusted, strict=True) if p <= 0.05],
        "strongest_by_dimension": {
            name: {"name": probe.name, "n": probe.by_dimension[name].n, **_interval(probe.by_dimension[name])}
            for name, probe in strongest.items()
        },
        "probes": [
            {
                "name": probe.name,
                "family": probe.family,
                "trained": probe.trained,
                **_interval(probe),
                "p_holm": p,
            }
            for probe, p in zip(probes, adjusted, strict=True)
        ],
    }


def _interval(probe: ProbeAccuracy | Accuracy) -> dict[str, float]:
    return {"accuracy": probe.accuracy, "ci_low": probe.ci_low, "ci_high": probe.ci_high}


def exchange_report(
    method: str,
    questions: Sequence[Question],
    found: ExchangeResult,
    limits: ValidityLimits,
    settings: dict[str, Any],
    audit: dict[str, Any] | None,
    views_known: bool,
) -> dict[str, Any]:
    """Returns the report of an exchange or a block exchange.

    Args:
        method: ``exchange`` or ``block-exchange``.
        questions: the questions that were grouped.
        found: the groups.
        limits: limits of the groups.
        settings: options of the command, such as data, config, split and seed.
        audit: figures ``before`` and ``after``, or None.
        views_known: whether the file has the views of the questions.
    """
    members = GROUP_SIZE * len(found.groups)
    blocks: dict[str, dict[str, list[str]]] = {}
    for group in found.groups:
        if group.block:
            blocks.setdefault(group.block, {}).setdefault(group.quadruple, []).append(group.name)
    return {
        "method": method,
        "version": __version__,
        **settings,
        "limits": asdict(limits),
        "questions": len(questions),
        "kept": members,
        "groups": len(found.groups),
        "bound": found.bound,
        "parts": [
            {"split": split, "dimension": dimension, "kept": GROUP_SIZE * part.groups, **asdict(part)}
            for (split, dimension), part in found.parts.items()
        ],
        "ambiguity": {
            "estimate": sum(group.ambiguity for group in found.groups) / max(1, len(found.groups)),
            "groups": {
                group.name: round(group.ambiguity, 4)
                for group in sorted(found.groups, key=lambda group: (-group.ambiguity, group.name))
            },
        },
        "groups_of_four_organs": [group.name for group in found.groups if group.four_organs],
        "diagnosis_groups": sum(questions[group.members[0]].dimension == "Diagnosis" for group in found.groups),
        "contradicted": sum(group.contradicted for group in found.groups),
        "reasons": {name: sum(group.reasons.get(name, 0) for group in found.groups) for name in REASONS},
        "groups_with_unlike_views": [group.name for group in found.groups if not group.same_views]
        if views_known
        else None,
        "doubtful": [
            {"group": group.name, "item": questions[one].id, "other": questions[other].id}
            for group in found.groups
            for one, other in group.doubtful
        ],
        "blocks": blocks,
        "members": {group.name: [questions[row].id for row in group.members] for group in found.groups},
        "audit": audit,
        "expert_review": NOT_CONFIRMED,
    }


def note(report: dict[str, Any]) -> str:
    """Returns the Markdown on a control for the dataset card."""
    environment = markdown_environment(
        "scale_vqa_eval.controls",
        percent=lambda share: f"{percent(share)}%",
        cell=lambda text: " ".join(str(text).replace("|", "/").split()),
    )
    return environment.get_template(f"{report['method'].replace('-', '_')}_note.md.j2").render(report=report).strip()


def weights_summary(
    questions: Sequence[Question], weights: FloatArray, probes: Sequence[ProbeScores]
) -> dict[str, Any]:
    """Returns effective sample sizes of weights, and the weighted accuracy of each probe.

    Args:
        questions: n questions.
        weights: (n,) weights above 0.
        probes: scores on these questions with other folds than those of the weights.
    """
    dimensions = np.array([question.dimension or "all" for question in questions])
    reached = {probe.name: float(np.average(credit(probe, questions), weights=weights)) for probe in probes}
    strongest = max(reached, key=lambda name: reached[name])
    return {
        "effective_size": _effective(weights),
        "effective_size_by_dimension": {
            str(name): _effective(weights[dimensions == name]) for name in sorted(set(dimensions.tolist()))
        },
        "strongest": {"name": strongest, "accuracy": reached[strongest]},
        "probes": reached,
    }


def _effective(weights: FloatArray) -> float:
    return round(float(weights.sum() ** 2 / (weights**2).sum()), 2)


def screened_report(parts: dict[str | None, dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the report of a screening, with the result of each split."""
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
    pruned: ScreenedRows,
    before: dict[str, Any],
    after: dict[str, Any] | None,
    held_out: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns the result of one split.

    Args:
        questions: questions of the split.
        kept: remaining questions.
        pruned: the rounds.
        before: audit of the split, with folds that no pruning used.
        after: audit of the remaining questions, or None if there are too few.
        held_out: result of ``held_out_figures``, or None.
    """
    counts, left = (Counter(question.dimension or "all" for question in part) for part in (questions, kept))
    reached = pruned.at_chance and after is not None and not after["off_chance"]
    return {
        "questions": len(questions),
        "kept": len(kept),
        "reached": reached,
        "reason": None if reached else _why(pruned, after),
        "by_dimension": {name: {"questions": counts[name], "kept": left[name]} for name in sorted(counts)},
        "rounds": [asdict(found) for found in pruned.rounds],
        "audit": {"before": before, "after": after},
        "held_out": held_out,
    }


def _why(pruned: ScreenedRows, after: dict[str, Any] | None) -> str:
    left = len(pruned.rows)
    if after is None:
        before = f"; the strongest probe was {pruned.rounds[-1].strongest}" if pruned.rounds else ""
        return f"{left} left, too few questions or patients to tell a leak from luck{before}"
    off = ", ".join(after["off_chance"])
    strongest = f"strongest probe {after['strongest']['name']} at {100 * after['strongest']['accuracy']:.0f}%"
    return f"{left} left, {strongest}" + (f"; off chance: {off}" if off else "; the rounds came to an end")
