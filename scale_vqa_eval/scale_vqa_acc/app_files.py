"""What the Space's page does: reads predictions and gold answers, and scores them with the metric beside it.

The folder is copied to a Space as it is, so that nothing of the rest of the library is imported here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import datasets
import evaluate
import numpy as np

NAMED: Final = 5
"""Most ids or lines of one kind that an error names one by one."""
TYPES: Final = dict(
    zip(
        ("type_A", "type_B", "type_C", "type_D", "type_E"),
        ("Correspondence", "Confirmation", "Localization", "Explanation", "Diagnosis"),
        strict=True,
    )
)
TEXTS: Final = ("id", "question", "options", "answer", "dimension", "wsi_name", "patient_id", "group", "extra_info")

metric = evaluate.load(str(Path(__file__).with_name("scale_vqa_acc.py")))


class Refused(ValueError):
    """Raised where a file is not what it has to be; the message goes to the page."""


def read_predictions(path: str, what: str) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Returns what a run says of itself, and id -> response, of a predictions file (JSONL: id, response)."""
    account: dict[str, Any] = {}
    found: dict[str, str | None] = {}
    for number, row in _json_lines(path, what):
        if number == 1:
            stated = row if not {"id", "response"} & row.keys() else row.get("provenance")
            account = dict(stated) if isinstance(stated, Mapping) else {}
            if stated is row:
                continue
        name, response = row.get("id"), row.get("response")
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            raise Refused(f"{what}, line {number}: expected the question's id in the field id, found {short(name)}")
        if "response" not in row or not isinstance(response, str | None):
            raise Refused(f"{what}, line {number}: expected the model's text in the field response")
        if row.get("rotation") is not None:
            raise Refused(f"{what}, line {number}: a run with turned options is scored by `scale-vqa score`, not here")
        if str(name) in found:
            raise Refused(f"{what}, line {number}: the id {short(name)} stands twice")
        found[str(name)] = response
    if not found:
        raise Refused(f"{what}: expected at least one response, found none")
    return account, found


def read_gold(path: str) -> list[dict[str, Any]]:
    """Returns the questions of a Parquet file of a release folder, a JSON list or JSONL."""
    kind = Path(path).suffix.lower()
    try:
        if kind == ".parquet":
            rows: Any = _dataset_rows(datasets.Dataset.from_parquet(path, keep_in_memory=True))
        elif kind == ".json":
            rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        elif kind in (".jsonl", ".ndjson"):
            rows = [row for _, row in _json_lines(path, "Gold")]
        else:
            raise Refused(f"Gold: expected a file that ends in .parquet, .json or .jsonl, found {short(kind)}")
    except Refused:
        raise
    except Exception as error:  # readers raise what they like on a file that is none
        raise Refused(f"Gold: the file cannot be read: {short(str(error), 200)}") from error
    if not isinstance(rows, list) or not rows:
        raise Refused("Gold: expected a list of questions with at least one")
    return [_question(row, number) for number, row in enumerate(rows, 1)]


def read_hub(name: str, config: str, split: str) -> list[dict[str, Any]]:
    """Returns the questions of one split of a dataset on the Hub, without its images."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) or ".." in name or Path(name).exists():
        raise Refused(f"Dataset: expected a Hub id org/name, found {short(name)}")
    try:
        data = datasets.load_dataset(name, config or None, split=split or "test", streaming=True)
        rows = _dataset_rows(data)
    except Exception as error:  # as above; the Hub's own words are shown
        raise Refused(f"Dataset: {name} cannot be loaded: {short(str(error), 200)}") from error
    return [_question(row, number) for number, row in enumerate(rows, 1)]


def score_runs(
    questions: Sequence[Mapping[str, Any]], run_path: str, blind_path: str | None, mode: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns the results, as ``scale-vqa score --json`` writes them, and what speaks against them."""
    account, responses = read_predictions(run_path, "Predictions")
    _check_ids(questions, responses, "Predictions")
    blind_account: dict[str, Any] = {}
    blind = None
    if blind_path:
        if Path(blind_path).read_bytes() == Path(run_path).read_bytes():
            raise Refused("Blind run: expected a run without images, found the predictions file itself")
        blind_account, without = read_predictions(blind_path, "Blind run")
        _check_ids(questions, without, "Blind run")
        blind = [without[one["id"]] for one in questions]
    patients = [one["patient"] for one in questions]
    columns: dict[str, Any] = {
        "dimension": [one["dimension"] for one in questions],
        "cluster": [patient or one["id"] for patient, one in zip(patients, questions, strict=True)],
        "group": [one["group"] for one in questions],
    }
    columns = {name: values for name, values in columns.items() if any(values)}
    figures: Any = metric.compute(
        predictions=[responses[one["id"]] for one in questions],
        references=[one["answer"] for one in questions],
        options=[len(one["options"]) for one in questions],
        mode=mode,
        blind=blind,
        **columns,
    )
    figures["clustered"] = any(patients)
    figures |= {"failed": None, "circular": None, "provenance": _provenance(questions, account, run_path, mode)}
    if blind_path:
        figures["provenance"]["blind"] = {"predictions_hash": _sha256(blind_path), **_noted(blind_account)}
    return figures, _doubts(account, blind_account, blind_path is not None)


def _json_lines(path: str, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and object of each line that is not empty."""
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogatepass") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    raise Refused(f"{what}, line {number}: expected one JSON object, found {short(line)}") from None
                if not isinstance(row, dict):
                    raise Refused(f"{what}, line {number}: expected one JSON object, found {short(row)}")
                yield number, row
    except UnicodeDecodeError as error:
        raise Refused(f"{what}: expected text in UTF-8") from error


def _dataset_rows(data: Any) -> list[dict[str, Any]]:
    """Returns the rows of a dataset without images, class labels by name (the answer stays a number)."""
    features = data.features or {}
    kept = data.select_columns([name for name in features if name in TEXTS])
    names = {name: one.names for name, one in features.items() if getattr(one, "names", None) and name == "dimension"}
    return [
        {key: names[key][value] if key in names and value is not None else value for key, value in row.items()}
        for row in kept
    ]


def _question(row: Any, number: int) -> dict[str, Any]:
    """Returns id, question, options, answer (0-based), dimension, patient and group of a gold row."""
    location = f"Gold, row {number}"
    if not isinstance(row, Mapping):
        raise Refused(f"{location}: expected an object, found {short(row)}")
    extra: Any = row.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    fields = {**extra, **{name: value for name, value in row.items() if value is not None}}
    kind, path = fields.get("question_type"), fields.get("path_id")
    slide = None if fields.get("wsi_name") is None else str(fields["wsi_name"])
    name = fields.get("id") or (f"{slide}::{path}::{kind}" if slide and path and kind else None)
    options = fields.get("options", fields.get("choices"))
    options = [options[key] for key in sorted(options)] if isinstance(options, Mapping) else options
    if name is None or not isinstance(options, list | tuple) or not 2 <= len(options) <= 26:
        raise Refused(f"{location}: expected an id (or extra_info) and 2 to 26 options")
    gold = fields.get("answer")
    letter = gold.strip().upper() if isinstance(gold, str) else ""
    place = ord(letter) - ord("A") if len(letter) == 1 else gold
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(options):
        raise Refused(f"{location}: expected an answer that is one of {len(options)} options, found {short(gold)}")
    barcode = re.match(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", slide or "", re.IGNORECASE)
    patient = fields.get("patient_id") or (barcode[0].upper() if barcode else slide)
    dimension = fields.get("dimension") or TYPES.get(str(kind), kind)
    return {
        "id": str(name),
        "question": str(fields.get("question", "")),
        "options": tuple(str(text) for text in options),
        "answer": place,
        "dimension": None if dimension is None else str(dimension),
        "patient": None if patient is None else str(patient),
        "group": fields.get("group") or None,
    }


def _check_ids(questions: Sequence[Mapping[str, Any]], responses: Mapping[str, Any], what: str) -> None:
    known = [one["id"] for one in questions]
    twice = sorted({name for name in known if known.count(name) > 1}) if len(set(known)) < len(known) else []
    problems = {
        "no response to": [name for name in known if name not in responses],
        "a response to no question of the gold": sorted(responses.keys() - set(known)),
        "more than once in the gold": twice,
    }
    lines = [
        f"{what}: {said}: {', '.join(short(name) for name in names[:NAMED])}"
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for said, names in problems.items()
        if names
    ]
    if lines:
        raise Refused("\n".join(lines))


def _provenance(
    questions: Sequence[Mapping[str, Any]], account: Mapping[str, Any], run_path: str, mode: str
) -> dict[str, Any]:
    """Says what a score was made from; the hash over the questions is that of ``scale-vqa score``."""
    rows = sorted((one["id"], one["question"], one["options"], one["answer"]) for one in questions)
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
    about = {"data": None, "config": None, "split": None, "data_hash": digest}
    about |= {"predictions": Path(run_path).name, "predictions_hash": _sha256(run_path), **_noted(account)}
    versions = {"numpy": np.__version__, "python": platform.python_version()}
    return about | {"predicted_with": dict(account) or None, "parsing": mode, "versions": versions}


def _noted(account: Mapping[str, Any]) -> dict[str, Any]:
    names = {"prompt_id": "prompt", "ablation": "ablate"}
    fields = ("model", "prompt_id", "sampling", "backend", "ablation")
    return {field: account.get(field, account.get(names.get(field, field))) for field in fields}


def _doubts(run: Mapping[str, Any], blind: Mapping[str, Any], has_blind: bool) -> list[str]:
    if not has_blind:
        return []
    ours, theirs = _noted(run), _noted(blind)
    found = []
    if {"ablation", "ablate"} & blind.keys() and theirs["ablation"] != "blind":
        found.append(f"The blind file notes the ablation {short(theirs['ablation'])}, not blind: no blind control.")
    for field in ("model", "prompt_id", "sampling"):
        if None not in (ours[field], theirs[field]) and ours[field] != theirs[field]:
            said = f"{short(theirs[field])} instead of {short(ours[field])}"
            found.append(f"The blind run differs in {field}: {said}; the gain is not the images' alone.")
    return found


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def short(value: object, limit: int = 80) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
