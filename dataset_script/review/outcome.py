"""The results of a review: reviewer agreement, a summary, predictions files, and a release of the accepted items."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from scipy.special import stdtrit

from dataset_script.review.decisions import (
    ARMS,
    OUTCOMES,
    REVIEWS,
    STATUSES,
    VERDICTS,
    Decision,
    ItemStatus,
    Key,
    ReviewState,
    edit_problems,
    edited,
    pairs_of,
)
from dataset_script.review.session import ReviewData
from scale_vqa_eval.audit.defects import KINDS, Defect, find_defects
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.card import read_notes
from scale_vqa_eval.release_folder.read import IMAGE_COLUMNS, release_configs, release_files
from scale_vqa_eval.release_folder.verify import unembedded_rows
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, write_release
from scale_vqa_eval.scale_vqa_acc.clustered import clopper_pearson, cluster_codes, clustered_interval
from scale_vqa_eval.text import markdown, markdown_environment


@dataclass(frozen=True)
class Agreement:
    """The agreement of two reviewers.

    Attributes:
        n: number of items that both reviewed.
        clusters: number of patients (or slides, or items) of these items.
        observed: share of items with the same verdict.
        kappa: Cohen's kappa, or None if both gave a single verdict for all items.
        interval: 95% interval, or None if kappa is undefined or there is only one cluster.
        method: ``jackknife``, ``clopper-pearson`` (no disagreement, or no spread between clusters) or ``undefined``.
        table: (3, 3) counts; rows are the first reviewer's ``VERDICTS``, columns the second's.
    """

    n: int
    clusters: int
    observed: float
    kappa: float | None
    interval: tuple[float, float] | None
    method: str
    table: tuple[tuple[int, ...], ...]


def cohen_kappa(table: npt.NDArray[np.int64]) -> float:
    """Returns (p_o - p_e) / (1 - p_e) of a square table of counts, or nan if p_e is 1 or the table is empty.

    Cohen, Educational and Psychological Measurement 20:37, 1960.
    """
    total = int(table.sum())
    if total == 0:
        return math.nan
    observed = float(np.trace(table)) / total
    expected = float(table.sum(0) @ table.sum(1)) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def agreement(first: Sequence[str], second: Sequence[str], clusters: Sequence[str], level: float = 0.95) -> Agreement:
    """Compares the verdicts of two reviewers on n items.

    The interval is a delete-one-cluster jackknife with t at C-1 degrees of freedom (Efron and Tibshirani 1993, chapter
    11), because the questions of a patient are not independent. If the jackknife has no spread, as with perfect
    agreement, the interval is Clopper-Pearson for the observed agreement with clusters as the sample.

    Args:
        first: (n,) verdicts of one reviewer.
        second: (n,) verdicts of the other reviewer on the same items.
        clusters: (n,) patient of each item.
        level: confidence level.

    >>> found = agreement(["accept", "reject", "accept", "edit"], ["accept", "reject", "edit", "edit"], list("abcd"))
    >>> round(found.kappa, 3), found.n, found.observed
    (0.636, 4, 0.75)
    """
    codes, count = cluster_codes(list(clusters))
    tables = np.zeros((count, len(VERDICTS), len(VERDICTS)), np.int64)
    rows, columns = ([VERDICTS.index(verdict) for verdict in verdicts] for verdicts in (first, second))
    np.add.at(tables, (codes, rows, columns), 1)
    table = tables.sum(0)
    kappa = cohen_kappa(table)
    observed = float(np.trace(table)) / len(rows)
    interval, method = _interval(table, tables, kappa, observed, level)
    counts = tuple(tuple(int(value) for value in row) for row in table)
    return Agreement(len(rows), count, observed, None if math.isnan(kappa) else kappa, interval, method, counts)


def _interval(
    table: npt.NDArray[np.int64], tables: npt.NDArray[np.int64], kappa: float, observed: float, level: float
) -> tuple[tuple[float, float] | None, str]:
    count = len(tables)
    if math.isnan(kappa) or count < 2:
        return None, "undefined"
    left_out = np.array([cohen_kappa(table - one) for one in tables])
    if np.isnan(left_out).any():
        return None, "undefined"
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    if error > 1e-12:
        half = stdtrit(count - 1, 0.5 + level / 2) * error
        return (max(-1.0, kappa - half), min(1.0, kappa + half)), "jackknife"
    expected = (observed - kappa) / (1 - kappa) if kappa < 1 else float(table.sum(0) @ table.sum(1)) / table.sum() ** 2
    low, high = clopper_pearson(observed, count, level)
    ends = [max(-1.0, min(1.0, (end - expected) / (1 - expected))) for end in (low, high)]
    return (ends[0], ends[1]), "clopper-pearson"


def summarise_review(data: ReviewData, review_state: ReviewState, torn: Sequence[int] = ()) -> dict[str, Any]:
    """Returns the summary of the chosen items; ``torn`` are the numbers of incomplete lines of the log."""
    statuses = {key: review_state.items[key] for key in data.chosen}
    dimensions: dict[str, Counter[str]] = {}
    for key, item_status in statuses.items():
        dimensions.setdefault(data.items[key].question.dimension or "none", Counter())[item_status.outcome] += 1
    by_outcome = Counter(item_status.outcome for item_status in statuses.values())
    by_status = Counter(item_status.status for item_status in statuses.values())
    return {
        "data": data.folder.name,
        "config": data.config,
        "splits": sorted({key[0] for key in data.chosen}),
        "data_hash": data.data_hash,
        "items": len(statuses),
        "status": {name: by_status[name] for name in STATUSES},
        "outcome": {name: by_outcome[name] for name in OUTCOMES},
        "by_dimension": {name: {one: counts[one] for one in OUTCOMES} for name, counts in dimensions.items()},
        "reviewers": _reviewers(statuses),
        "agreement": _agreements(data, statuses),
        "open_disagreements": [
            {
                "split": key[0],
                "id": key[1],
                "reviews": [
                    {"reviewer": one.reviewer, "verdict": one.verdict, "reason": one.reason, "edit": dict(one.edit)}
                    for one in item_status.reviews.values()
                ],
            }
            for key, item_status in statuses.items()
            if item_status.status == "disagreed"
        ],
        "answers": _answer_figures(data, statuses),
        "torn_lines": list(torn),
    }


def write_answers(data: ReviewData, review_state: ReviewState, out: Path) -> dict[str, int]:
    """Writes the answers of each arm as a predictions file for ``scale-vqa score --partial``.

    ``seeing.jsonl`` and ``blind.jsonl`` contain the first answer to each item of the arm, from any reader; readers are
    numbered.

    Returns:
        arm -> number of answers.

    Raises:
        InputError: if there is no answer, or the files cannot be written.
    """
    first: dict[str, dict[Key, Decision]] = {arm: {} for arm in ARMS}
    for key in data.chosen:
        for answer in sorted(review_state.items[key].answers.values(), key=lambda one: one.at):
            first[answer.stage].setdefault(key, answer)
    if not any(first.values()):
        hint = "run `scale-vqa review --answer-first` first"
        raise InputError(Problem(str(data.folder), "at least one answer in the log", "none", hint))
    people = sorted({one.person for answers in first.values() for one in answers.values()})
    for arm, answers in first.items():
        stated = {"model": "human readers", "backend": "review", "ablation": None if arm == "seeing" else "blind"}
        lines = [{"provenance": {**stated, "config": data.config, "review_data_hash": data.data_hash}}]
        for key, one in answers.items():
            response = f"<think></think> <answer>{one.verdict}</answer>"
            reader = f"reader {people.index(one.person) + 1}"
            lines.append({"id": key[1], "response": response, "reader": reader, "seconds": one.seconds})
        if answers:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            atomic_write(out / f"{arm}.jsonl", text, "name another --answers")
    return {arm: len(answers) for arm, answers in first.items()}


def _answer_figures(data: ReviewData, statuses: Mapping[Key, ItemStatus]) -> dict[str, Any]:
    """Returns the accuracy and time of each arm, and the exchange groups that the answers confirm or doubt."""
    figures: dict[str, Any] = {}
    right: dict[Key, list[bool]] = {}
    for arm in ARMS:
        given = [
            (key, one.verdict == data.items[key].question.letter, one.seconds or 0.0)
            for key, item_status in statuses.items()
            for one in item_status.answers.values()
            if one.stage == arm
        ]
        for key, correct, _ in given if arm == "seeing" else ():
            right.setdefault(key, []).append(correct)
        clusters = [data.items[key].question.cluster for key, _, _ in given]
        correct = np.array([float(right) for _, right, _ in given])
        accuracy = clustered_interval(correct, clusters) if given else None
        figures[arm] = {
            "answers": len(given),
            "accuracy": accuracy and accuracy.mean,
            "interval": accuracy and [accuracy.ci_low, accuracy.ci_high],
            "median_seconds": median(seconds for _, _, seconds in given) if given else None,
        }
    groups: dict[tuple[str, str], list[list[bool]]] = {}
    for key in statuses:
        if data.items[key].question.group is not None:
            groups.setdefault((key[0], str(data.items[key].question.group)), []).append(right.get(key, []))
    doubted = [f"{name} ({split})" for (split, name), members in groups.items() if not all(map(all, members))]
    confirmed = sum(all(one and all(one) for one in members) for members in groups.values())
    return {**figures, "groups_confirmed": confirmed, "groups_doubted": doubted}


def without_names(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary for publication: reviewers are numbered, and their texts are left out."""
    number = {name: f"reviewer {index}" for index, name in enumerate(summary["reviewers"], 1)}
    return {
        **{name: value for name, value in summary.items() if name not in ("open_disagreements", "torn_lines")},
        "reviewers": {number[name]: counts for name, counts in summary["reviewers"].items()},
        "agreement": [
            {**pair, "reviewers": [number[name] for name in pair["reviewers"]]} for pair in summary["agreement"]
        ],
    }


def markdown_summary(summary: Mapping[str, Any]) -> str:
    """Renders a summary as Markdown; names and texts are escaped."""
    template = markdown_environment("dataset_script.review").get_template("summary.md.j2")
    pairs = [_agreement_cells(pair) for pair in summary["agreement"]]
    names = {"reviews_each": REVIEWS, "outcomes": OUTCOMES, "verdicts": VERDICTS}
    return template.render(summary, pairs=pairs, **names).rstrip() + "\n"


def _reviewers(statuses: Mapping[Key, ItemStatus]) -> dict[str, dict[str, int]]:
    names: dict[str, str] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item_status in statuses.values():
        for review in item_status.reviews.values():
            names.setdefault(review.person, review.reviewer)
            counts[review.person].update(("reviews", review.verdict))
        for one in item_status.adjudications.values():
            names.setdefault(one.person, one.reviewer)
            counts[one.person]["adjudications"] += 1
    fields = ("reviews", *VERDICTS, "adjudications")
    return {names[person]: {name: counts[person][name] for name in fields} for person in sorted(counts)}


def _agreements(data: ReviewData, statuses: Mapping[Key, ItemStatus]) -> list[dict[str, Any]]:
    found = []
    for pair, keys in pairs_of(statuses).items():
        verdicts = [[statuses[key].reviews[person].verdict for key in keys] for person in pair]
        clusters = [data.items[key].question.cluster for key in keys]
        names = [statuses[keys[0]].reviews[person].reviewer for person in pair]
        figures = asdict(agreement(*verdicts, clusters))
        figures["patients"] = figures.pop("clusters")
        found.append({"reviewers": names, **figures, "verdicts": list(VERDICTS)})
    return found


def _agreement_cells(pair: Mapping[str, Any]) -> list[Any]:
    kappa = "undefined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
    interval = "undefined" if pair["interval"] is None else "{:.2f} to {:.2f}".format(*pair["interval"])
    names = " and ".join(map(markdown, pair["reviewers"]))
    return [names, pair["n"], pair["patients"], f"{100 * pair['observed']:.1f}%", kappa, interval]


REVIEW_FILE: Final = "review.json"
BROKEN_GROUP: Final = "its exchange group is incomplete"


def export_accepted(data: ReviewData, review_state: ReviewState, out: Path) -> dict[str, Any]:
    """Writes the accepted items of the chosen splits into a new release folder.

    An exchange group is exported complete or not at all, because its guarantee is for the four items together. The
    ``text`` config is written beside ``default`` if the data has it. The folder does not name the reviewers.

    Args:
        data: the data under review.
        review_state: status of every item.
        out: the new folder; an earlier export is replaced.

    Returns:
        The content of ``<config>/review.json``, such as ``kept``, ``left_out`` (reason -> number) and ``defects``.

    Raises:
        InputError: if nothing is accepted, an edited row breaks the schema, or ``out`` is not an earlier export.
    """
    _check_out(data, out)
    kept, left_out = accepted(data, review_state)
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
    summary = without_names(summarise_review(data, review_state))
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


def accepted(data: ReviewData, review_state: ReviewState) -> tuple[dict[Key, Decision], dict[Key, str]]:
    """Returns the accepted items with their final decision, and why each other chosen item is left out."""
    kept: dict[Key, Decision] = {}
    left_out: dict[Key, str] = {}
    for key in data.chosen:
        final = review_state.items[key].final
        if final is None:
            left_out[key] = review_state.items[key].status
        elif final.verdict == "reject":
            left_out[key] = "rejected"
        else:
            kept[key] = final
    for key in _broken(data, kept):
        del kept[key]
        left_out[key] = BROKEN_GROUP
    return kept, left_out


def _broken(data: ReviewData, kept: Mapping[Key, Decision]) -> list[Key]:
    """Returns the kept items whose exchange group lost a member or has differing texts after an edit."""
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
    """Returns the number of texts and the right letters of a group, on which its guarantee depends."""
    return len({(one.question, one.options) for one in questions}), sorted(one.answer for one in questions)


def _rows(data: ReviewData, split: str, questions: Mapping[Key, Question], images: bool) -> Iterator[dict[str, Any]]:
    """Yields the kept rows of a split with unchanged image bytes, one batch in memory at a time."""
    for file in release_files(data.folder, data.config)[split]:
        parquet = pq.ParquetFile(file)
        features = Features.from_arrow_schema(parquet.schema_arrow)
        names = [name for name in features if images or name not in IMAGE_COLUMNS]
        labels = {name: features[name].names for name in ("answer", "dimension")}
        for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP, columns=names):
            for _, column, path in unembedded_rows(pa.Table.from_batches([batch])):
                hint = "build the folder again"
                raise InputError(Problem(f"{file}, {column}", "an embedded image", preview(path), hint))
            for row in batch.to_pylist():
                key = (split, row["id"].strip())
                if key in questions:
                    named = {name: None if row[name] is None else labels[name][row[name]] for name in labels}
                    before = data.items[key].question.as_row("")
                    edits = {name: new for name, new in questions[key].as_row("").items() if new != before[name]}
                    yield row | named | edits  # fields without an edit keep their bytes


def _check_out(data: ReviewData, out: Path) -> None:
    source, target, hint = data.folder.resolve(), out.resolve(), "name another --export"
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise InputError(Problem(str(out), "a folder outside of the reviewed one", "the same", hint))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())) and not any(out.glob(f"*/{REVIEW_FILE}")):
        expected, found = "a new folder, or one that an export made", "a folder that no export made"
        raise InputError(Problem(str(out), expected, found, hint))


def _note(data: ReviewData, report: Mapping[str, Any], defects: list[Defect]) -> str:
    """Returns the paragraph of the card about the review."""
    before = read_notes(data.folder / "README.md").get(data.config, "")
    lost = ", ".join(f"{count} {reason}" for reason, count in report["left_out"].items()) or "none"
    lines = [
        *([before, ""] if before else []),
        f"**Reviewed.** Of {len(data.chosen)} items, {report['kept']} were accepted by two independent reviewers, "
        f"or in adjudication if these differed; {len(report['edited'])} of them with an edited text. "
        f"Left out: {lost}.",
    ]
    cells = [_agreement_cells(pair)[1:] for pair in report["review"]["agreement"]]
    pairs = [
        f"{n} items of {patients} patients, same verdict on {observed}, Cohen's kappa {kappa} [{interval}]"
        for n, patients, observed, kappa, interval in cells
    ]
    lines += [f"Agreement before adjudication: {'; '.join(pairs)}."] if pairs else []
    counts = Counter(defect.kind for defect in defects)
    if counts:
        known = "; ".join(f"{counts[kind]} x {meaning}" for kind, meaning in KINDS.items() if counts[kind])
        lines.append(f"Known defects of the accepted items, by row id in `{REVIEW_FILE}`: {known}.")
    return "\n".join(lines)
