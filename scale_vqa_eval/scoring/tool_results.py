"""Converts results of other evaluation tools to lines of a predictions file.

Inspect's ``.eval`` and JSON logs, lmms-eval's logged samples, and VLMEvalKit's tables of predictions are read without
these tools. ``score``, ``compare`` and ``report`` accept them in place of predictions files.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_json
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.text import restore_thoughts

REASON_KEPT: Final = 400
"""Number of characters kept from the end of an error; Inspect writes the request, with its images, before it."""
SAMPLE_FIELD: Final = "scale_vqa_acc"
"""Name of the task's metric, under which lmms-eval logs each question."""
PROMPT_COLUMN: Final = "prompt_id"
"""Column in VLMEvalKit's tables if our plug-in asked the questions, with our prompt."""
_SAMPLING: Final = ("temperature", "max_tokens", "top_p", "seed")
_ZSTANDARD: Final = 93
_ATTACHMENT: Final = re.compile(r"attachment://([0-9a-f]{32})")
_TABLES: Final = (".xlsx", ".tsv", ".csv")
ROTATION_STEP: Final = 1_000_000
"""VLMEvalKit uses ``index`` modulo this number as the index of the question of a rotation."""
_FAILED: Final = "Failed to obtain answer via API"
_PUNCTUATION: Final = str.maketrans({letter: " " for letter in ".()[],:;!*#{}"})


def tool_lines(path: Path) -> Iterator[dict[str, Any]] | None:
    """Returns the predictions in another tool's file, or None for a predictions file of this package.

    Raises:
        InputError: if the file is not a complete run on questions of this package.
    """
    suffix = path.suffix.lower()
    if suffix == ".eval":
        return _well_formed(path, inspect_lines(path, _zip_log(path)))
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _TABLES and not start.startswith(b"{"):
        return _vlmevalkit_lines(path)
    if suffix == ".json" and start.startswith(b"{"):
        with suppress(ValueError, RecursionError):  # may be JSON lines
            log = json.loads(path.read_text(encoding="utf-8-sig"))
            if isinstance(log.get("eval"), dict):
                return _well_formed(path, inspect_lines(path, iter([log, *(log.get("samples") or [])])))
    return None


def _well_formed(path: Path, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        yield from lines
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        found = f"{type(error).__name__}: {preview(str(error), 120)}"
        raise InputError(Problem(str(path), "a valid Inspect log", found, "copy or run it again")) from error


def inspect_lines(path: Path, log: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the predictions of an Inspect log, one per sample, ordered by id.

    A sample that ended in an error, or that the server refused as too long, has a null response and the reason;
    ``score`` counts it as failed.

    Raises:
        InputError: if the log is not a finished run with one epoch of ``scale_vqa``, or of a task defined by the
            ``eval.yaml`` of a dataset on the Hub (``hf/ORG/NAME``).
    """
    header = next(log)
    run, noted = header["eval"], header["eval"].get("metadata") or {}
    of_hub = str(run.get("task")).startswith("hf/") and "prompt_digest" not in noted
    if "prompt_digest" not in noted and not of_hub:
        hint = "run scale_vqa_eval/plugins/inspect_task.py, or name another log"
        raise InputError(Problem(str(path), "a log of the task scale_vqa", preview(run.get("task")), hint))
    if (epochs := run.get("config", {}).get("epochs") or 1) != 1:
        raise InputError(Problem(str(path), "one response per question", f"{epochs} epochs", "run it with --epochs 1"))
    lines = sorted((_inspect_line(sample) for sample in log), key=lambda line: str(line["id"]))
    if not lines:
        found = f"none (status {header.get('status')})"
        raise InputError(Problem(str(path), "at least one sample", found, "run it again"))
    used = header.get("plan", {}).get("config") or {}
    provenance = {"model": run.get("model"), "backend": "inspect_ai"}
    if of_hub:  # the log states neither the prompt nor the rows of the dataset
        for step in header["plan"]["steps"]:
            used = {**(step.get("params") or {}), **used} if step["solver"].endswith("generate") else used
        provenance |= {"task": run["task"], "ablation": "blind" if run["task"].endswith("_blind") else None}
    else:
        provenance |= {
            "data_hash": noted["data_hash"],
            "prompt_id": f"{noted['prompt_id']}@{noted['prompt_version']}",
            "prompt_hash": noted["prompt_digest"],
            "ablation": noted["ablation"],
            **{name: noted[name] for name in ("split", "config", "pixels") if name in noted},
        }
    provenance["sampling"] = {name: used[name] for name in _SAMPLING if used.get(name) is not None}
    lines[0] |= {"provenance": provenance, "versions": dict(run.get("packages") or {})}
    yield from lines


def _zip_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the header and the samples of an ``.eval`` file, a ZIP whose members may use Zstandard compression."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = {member.filename: member for member in archive.infolist()}
            head = next((name for name in ("header.json", "_journal/start.json") if name in members), None)
            if head is None:
                raise InputError(Problem(str(path), "an Inspect log", "no header.json in it", "name another log"))
            for name in (head, *sorted(name for name in members if name.startswith("samples/"))):
                yield parse_json(_member(archive, file, members[name]).decode("utf-8"), f"{path}, {name}")
    except (zipfile.BadZipFile, OSError, ValueError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        hint = "copy or run it again"
        raise InputError(Problem(str(path), "a complete Inspect log", preview(str(error), 160), hint)) from error


def _member(archive: zipfile.ZipFile, file: Any, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != _ZSTANDARD:
        return archive.read(member)
    import pyarrow as pa

    file.seek(member.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
    stream = pa.CompressedInputStream(pa.BufferReader(file.read(member.compress_size)), "zstd")
    content: bytes = stream.read()
    return content


def _inspect_line(sample: Mapping[str, Any]) -> dict[str, Any]:
    attachments = sample.get("attachments") or {}

    def whole(text: str) -> str:
        return _ATTACHMENT.sub(lambda match: attachments.get(match[1], match[0]), text)

    identity = str((sample.get("metadata") or {}).get("id", sample["id"]))
    output = sample.get("output") or {}
    choice = next(iter(output.get("choices") or []), None)
    stop = choice.get("stop_reason") if choice else None
    completion = whole(output.get("completion") or "")
    reason = (sample.get("error") or {}).get("message") or output.get("error")
    if reason is None and choice is None:
        reason = "no response"
    if reason is None and stop == "model_length":  # Inspect writes the server's refusal as the text
        reason = completion
    if reason is None and stop == "content_filter":
        reason = f"refusal: {completion or 'finish reason content_filter'}"
    if reason is not None or choice is None:
        return {"id": identity, "response": None, "error": whole(str(reason)).strip()[-REASON_KEPT:]}
    content = choice["message"]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(whole(part["text"]) for part in parts if part["type"] == "text")
    thoughts = "".join(whole(part["reasoning"]) for part in parts if part["type"] == "reasoning")
    return {"id": identity, "response": restore_thoughts(text, thoughts), "finish": stop}


def lmms_eval_row(row: dict[str, Any], path: Path, first: bool) -> dict[str, Any]:
    """Converts a line of lmms-eval's logged samples to a prediction; returns other lines unchanged.

    The provenance of the run is read from the results file beside the samples, if it exists.
    """
    if "doc_id" not in row or not isinstance(row.get(SAMPLE_FIELD), Mapping):
        return row
    logged = row[SAMPLE_FIELD]
    line = {name: logged[name] for name in ("id", "response", "ablation", "prompt_id") if name in logged}
    if not first:
        return line
    date, _, task = path.stem.partition("_samples_")
    results = path.with_name(f"{date}_results.json")
    stated = parse_json(results.read_text(encoding="utf-8"), str(results)) if results.is_file() else {}
    arguments = (stated.get("config") or {}).get("model_args") or ""
    pairs = arguments if isinstance(arguments, Mapping) else dict(re.findall(r"(\w+)=([^,]+)", str(arguments)))
    names = (pairs.get(name) for name in ("model", "model_version", "pretrained"))
    settings = (stated.get("configs") or {}).get(task) or {}
    generation = settings.get("generation_kwargs") or {}
    sampling = {"temperature": generation.get("temperature"), "max_tokens": generation.get("max_new_tokens")}
    provenance = {
        "model": next((name for name in names if name), stated.get("model_name")),
        "backend": "lmms_eval",
        "sampling": {name: value for name, value in sampling.items() if value is not None} or None,
        "ablation": line.get("ablation"),
        "prompt_id": line.get("prompt_id"),
        "split": settings.get("test_split"),
        "config": settings.get("dataset_name"),
    }
    return line | {"provenance": {name: value for name, value in provenance.items() if name == "ablation" or value}}


def _vlmevalkit_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the predictions in a table that VLMEvalKit wrote for a dataset of ``scale-vqa export vlmevalkit``.

    If the questions were asked with VLMEvalKit's prompt, the letter found by its exact matching is appended in
    ``<answer>`` tags to responses without them.
    """
    import pandas as pd

    try:
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False}
        read = pd.read_excel if path.suffix.lower() == ".xlsx" else pd.read_csv
        options |= {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
        table = read(path, **options)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(Problem(str(path), "a table", preview(str(error), 160), "copy or run it again")) from error
    if missing := [name for name in ("index", "id", "prediction") if name not in table.columns]:
        found = f"the columns {', '.join(map(str, table.columns))}"
        hint = "run VLMEvalKit on a table of `scale-vqa export vlmevalkit`, and name its file of predictions"
        raise InputError(Problem(str(path), f"the columns {', '.join(missing)}", preview(found, 200), hint))
    folder = path.resolve().parent.name
    model = folder if path.stem.startswith(f"{folder}_") else None
    name = path.stem.removeprefix(f"{folder}_")
    circular = name.endswith("_circular")
    splits = set(table["split"]) if "split" in table.columns else set()
    provenance: dict[str, Any] = {
        "backend": "VLMEvalKit",
        "ablation": "circular" if circular else "blind" if name.endswith("_blind") else None,
        **({"model": model} if model else {}),
        **({"split": splits.pop()} if len(splits) == 1 else {}),
    }
    ours = PROMPT_COLUMN in table.columns
    provenance |= {"prompt_id": table[PROMPT_COLUMN].iloc[0]} if ours and len(table) else {}
    for number, row in enumerate(table.to_dict("records")):
        texts = [] if ours else [row[letter] for letter in LETTERS if row.get(letter)]
        line = {"id": row["id"], **vlmevalkit_response(row["prediction"], texts)}
        line |= {"rotation": int(float(row["index"])) // ROTATION_STEP} if circular else {}
        yield line | ({"provenance": provenance} if number == 0 else {})


def vlmevalkit_response(text: str, options: list[str]) -> dict[str, Any]:
    """Returns the response, or the reason of a failed call, for VLMEvalKit's text of a prediction.

    VLMEvalKit's exact matching accepts a separate letter that is the only one of the options and among the last five
    words; else the only option whose text occurs in a short response.

    >>> vlmevalkit_response("The answer is B.", ["w", "x"])["response"]
    'The answer is B. <answer>B</answer>'
    """
    if _FAILED in text:
        return {"response": None, "error": text[-REASON_KEPT:]}
    if parse_response(text, "reference", max(len(options), 2)).letter is not None:
        return {"response": restore_thoughts(text)}
    words = text.translate(_PUNCTUATION).split()
    found = [letter for letter in LETTERS[: len(options)] if letter in words]  # none without options
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return {"response": f"{text} <answer>{found[0]}</answer>"}
    folded = [option.lower() for option in options]
    if len(text) <= 2 * sum(map(len, options)):
        held = [letter for letter, option in zip(LETTERS, folded, strict=False) if option in text.lower()]
        if len(held) == 1:
            return {"response": f"{text} <answer>{held[0]}</answer>"}
    return {"response": restore_thoughts(text)}
