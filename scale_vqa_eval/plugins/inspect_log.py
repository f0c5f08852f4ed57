"""Writes the responses of an Inspect log as a predictions file: ``python -m scale_vqa_eval.plugins.inspect_log``.

``scale-vqa score``, ``compare`` and ``report`` then give what Inspect does not: intervals, the blind control, the
leakage-adjusted accuracy.
"""

# mypy: disable-error-code="import-not-found, no-any-return, unused-ignore"
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
from inspect_ai.log import EvalLog, EvalSample, read_eval_log, read_eval_log_samples

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.plugins.inspect_task import response_text

REASON_KEPT: Final = 400
"""Characters kept of an error, from its end: Inspect writes the whole request before it, images included."""


def prediction_lines(path: str) -> list[dict[str, Any]]:
    """Returns the objects of a predictions file, one a sample, in the order of ids.

    A sample that ended in an error, or that the server refused as too long, has a null response and the reason;
    ``score`` counts it as failed.

    Raises:
        InputError: where the log is no finished run of ``scale_vqa`` with one epoch.
    """
    log = read_eval_log(path, header_only=True)
    noted = log.eval.metadata or {}
    if "prompt_digest" not in noted:
        raise InputError(Problem(path, "a log of the task scale_vqa", log.eval.task, "name another log"))
    if (log.eval.config.epochs or 1) != 1:
        found = f"{log.eval.config.epochs} epochs"
        raise InputError(Problem(path, "one response a question", found, "run it with --epochs 1"))
    lines = sorted((_line(sample) for sample in _samples(path)), key=lambda line: line["id"])
    if not lines:
        raise InputError(Problem(path, "at least one sample", f"none (status {log.status})", "run it again"))
    lines[0] |= {"provenance": _provenance(log, noted), "versions": dict(log.eval.packages)}
    return lines


def _samples(path: str) -> Iterable[EvalSample]:
    """Returns the samples with their texts whole (Inspect keeps long ones apart), without what is not needed."""
    if path.endswith(".json"):  # one document: read at once
        return read_eval_log(path, resolve_attachments=True).samples or []
    unused = {"events", "messages", "store"}
    return read_eval_log_samples(path, all_samples_required=False, resolve_attachments=True, exclude_fields=unused)


def _line(sample: EvalSample) -> dict[str, Any]:
    output, identity = sample.output, str(sample.id)
    reason = sample.error.message if sample.error is not None else output.error
    if reason is None and output.empty:
        reason = "no response"
    if reason is None and output.stop_reason == "model_length":  # Inspect gives the server's refusal as the text
        reason = output.completion
    if reason is None and output.stop_reason == "content_filter":
        reason = f"refusal: {output.completion or 'finish reason content_filter'}"
    if reason is not None:
        return {"id": identity, "response": None, "error": reason.strip()[-REASON_KEPT:]}
    return {"id": identity, "response": response_text(output.message), "finish": output.stop_reason}


def _provenance(log: EvalLog, noted: dict[str, Any]) -> dict[str, Any]:
    used = log.plan.config.model_dump(include={"temperature", "max_tokens", "top_p", "seed"}, exclude_none=True)
    return {
        "data_hash": noted["data_hash"],
        "prompt_id": f"{noted['prompt_id']}@{noted['prompt_version']}",
        "prompt_hash": noted["prompt_digest"],
        "model": log.eval.model,
        "backend": "inspect_ai",
        "sampling": used,
        "ablation": noted["ablation"],
        **{name: noted[name] for name in ("split", "config", "pixels") if name in noted},
    }


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Predictions file.")
def main(log: str, out: Path) -> None:
    """Write the responses of LOG, an Inspect log of the task scale_vqa, as a predictions file."""
    try:
        lines = prediction_lines(log)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    out.write_text("".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines), encoding="utf-8")
    click.echo(f"{out}: {len(lines)} responses", err=True)


if __name__ == "__main__":
    main()
