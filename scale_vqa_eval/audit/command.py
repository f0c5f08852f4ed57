"""``scale-vqa audit``: how far a reader without images gets, why, and on which items."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.audit.published import read_published
from scale_vqa_eval.files import write_json
from scale_vqa_eval.questions import Question, read_questions

_OUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("data")
@click.option("--split", help="Audit this split only.  [default: all]")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@click.option("--json", "json_path", metavar="FILE", type=_OUT, help="Write the report for machines.")
@click.option("--html", "html_path", metavar="FILE", type=_OUT, help="Write the report as one self-contained page.")
@click.option("--gate", is_flag=True, help="Exit with 1 where the questions leak.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of folds and forests.")
@click.option("--embedding", is_flag=True, help="Add probes on sentence embeddings (MiniLM).")
@click.option("--lm", "models", metavar="MODEL", multiple=True, help="Add option likelihood under a causal model.")
@click.option("--chat", "endpoint", metavar="URL", help="Ask an OpenAI-compatible endpoint, text only.")
@click.option("--chat-model", "chat_models", metavar="MODEL", multiple=True, help="Model of the endpoint; repeatable.")
@click.option("--chat-repeats", type=click.IntRange(1, 26), default=1, show_default=True, help="Rotations a question.")
@click.option("--chat-per-minute", type=click.FloatRange(0, min_open=True), help="Requests a minute, at most.")
@click.option("--chat-price", type=float, nargs=2, metavar="IN OUT", help="Money for a million tokens in and out.")
@click.option("--chat-budget", type=click.FloatRange(0, min_open=True), help="Stop before it costs more than this.")
@click.option(
    "--cache", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Language models' answers."
)
@click.option("--published", metavar="FILE", help="Published accuracies to stand beside the probes.")
@click.option("--images/--no-images", default=True, help="Compare images across splits, where there are any.")
def audit(
    data: str,
    split: str | None,
    config: str | None,
    json_path: Path | None,
    html_path: Path | None,
    gate: bool,
    seed: int,
    published: str | None,
    images: bool,
    **further: Any,
) -> int:
    """Audit the questions of DATA for what a reader without images can know.

    DATA is a release folder, a Hub id, or a Parquet, JSON, JSONL or CSV file with question, options and answer.
    Answers of language models are cached in DIR, so an interrupted audit goes on where it was.

    --published FILE is YAML or JSON: model -> dimension (or "all") -> accuracy in per cent. The name scale-vqa-test
    stands for the figures that the paper reports on its test split.
    """
    if (further["endpoint"] is None) != (not further["chat_models"]):
        raise click.UsageError("--chat URL and --chat-model MODEL go together: give both")
    if further["chat_budget"] is not None and further["chat_price"] is None:
        raise click.UsageError("--chat-budget needs --chat-price IN OUT to count with")
    beside = read_published(published) if published else {}
    questions = read_questions(data, split, config)

    from scale_vqa_eval.audit.data_checks import find_overlap
    from scale_vqa_eval.audit.report import audit_questions, audit_table

    overlap = find_overlap(data, config, images)
    extra, chats = _language_probes(questions, seed, **further)
    for chat in chats:
        if chat["stopped"]:
            click.echo(f"warning: chat with {chat['model']} has no result: {chat['stopped']}", err=True)
    detailed = json_path is not None or html_path is not None
    report = audit_questions(questions, seed, extra, overlap, detailed, progress=True)
    report |= {"chat": chats, "published": beside}
    report["provenance"] |= {"data": data, "split": split, "config": config}
    if json_path is not None:
        write_json(json_path, report)
    if html_path is not None:
        from scale_vqa_eval.audit.page import write_page

        write_page(html_path, report)
    click.echo(audit_table(report))
    return int(gate and report["verdict"] == "leaks")


def _language_probes(
    questions: Sequence[Question],
    seed: int,
    embedding: bool,
    models: Sequence[str],
    endpoint: str | None,
    chat_models: Sequence[str],
    chat_repeats: int,
    chat_per_minute: float | None,
    chat_price: tuple[float, float] | None,
    chat_budget: float | None,
    cache: Path | None,
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Returns the results of the probes with a language model that are asked for, and the accounts of the chats.

    A chat that was stopped before its last question has no result: its account says why.
    """
    results: list[Any] = []
    accounts: list[dict[str, Any]] = []
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scale-vqa" / "audit"
    if embedding:
        from scale_vqa_eval.audit.embedding import embedding_probes

        results += embedding_probes(questions, seed)
    for model in models:
        from scale_vqa_eval.audit.language_model import language_model_probes

        results += language_model_probes(questions, model, folder / f"likelihood-{_short(model)}.jsonl")
    if endpoint is not None:
        from scale_vqa_eval.audit.chat import chat_probes
        from scale_vqa_eval.llm import ChatSettings

        settings = ChatSettings(per_minute=chat_per_minute, prices=chat_price, budget=chat_budget)
        file = folder / f"chat-{_short(endpoint)}.jsonl"
        for asked in chat_probes(questions, endpoint, chat_models, file, settings, chat_repeats):
            results += [asked.result] if asked.result is not None else []
            accounts.append(asked.report)
    return results, accounts


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
