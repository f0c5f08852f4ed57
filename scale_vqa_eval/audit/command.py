"""``scale-vqa audit``: measures how many questions can be answered without images, which ones, and why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.audit.verdict import MARGIN
from scale_vqa_eval.files import write_json
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.scoring.results import read_reported_scores

_OUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("data")
@click.option("--split", help="Audit only this split.  [default: all]")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@click.option("--json", "json_path", metavar="FILE", type=_OUT, help="Write the report as JSON.")
@click.option("--html", "html_path", metavar="FILE", type=_OUT, help="Write the report as a self-contained page.")
@click.option("--gate", is_flag=True, help="Exit with 1 unless the verdict is clean.")
@click.option("--allow-inconclusive", is_flag=True, help="Let an inconclusive verdict pass the gate, with a warning.")
@click.option(
    "--margin",
    type=click.FloatRange(0, 100, min_open=True),
    default=100 * MARGIN,
    show_default=True,
    help="Clean means: a leak of this many points would have been detected with 80% probability.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of folds and forests."
)
@click.option("--embedding", is_flag=True, help="Add probes on sentence embeddings (MiniLM).")
@click.option("--lm", "models", metavar="MODEL", multiple=True, help="Add option likelihood under a causal model.")
@click.option(
    "--finetune", "tuned", metavar="MODEL", multiple=True, help="Add a causal model, fine-tuned on the text."
)
@click.option("--finetune-epochs", type=click.IntRange(1), default=3, show_default=True, help="Epochs of --finetune.")
@click.option("--chat", "endpoint", metavar="URL", help="Ask an OpenAI-compatible endpoint, text only.")
@click.option("--chat-model", "chat_models", metavar="MODEL", multiple=True, help="Model of the endpoint; repeatable.")
@click.option("--chat-repeats", type=click.IntRange(1, 26), default=1, show_default=True, help="Rotations asked.")
@click.option(
    "--chat-rate-limit", type=click.FloatRange(0, min_open=True), help="Maximum number of requests per minute."
)
@click.option("--chat-per-minute", type=click.FloatRange(0, min_open=True), hidden=True)
@click.option("--chat-price", type=float, nargs=2, metavar="IN OUT", help="Price per million input and output tokens.")
@click.option("--chat-budget", type=click.FloatRange(0, min_open=True), help="Maximum cost of the chat calls.")
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Cache of language models' answers.",
)
@click.option("--published", metavar="FILE", help="Reported accuracies to compare with the probes.")
@click.option("--images/--no-images", default=True, help="Compare images across splits, if the data has them.")
@click.option("--quiet", is_flag=True, help="Do not show progress.")
def audit(
    data: str,
    split: str | None,
    config: str | None,
    json_path: Path | None,
    html_path: Path | None,
    gate: bool,
    allow_inconclusive: bool,
    margin: float,
    seed: int,
    published: str | None,
    images: bool,
    quiet: bool,
    **model_options: Any,
) -> int:
    """Measure how well the questions of DATA can be answered without images.

    DATA is a release folder, a Hub id, or a Parquet, JSON, JSONL or CSV file with question, options and answer.
    Answers of language models are cached in DIR, so an interrupted audit resumes.

    --published FILE is YAML or JSON: model -> dimension (or "all") -> accuracy in per cent. The name scale-vqa-test
    selects the accuracies that the paper reports on its test split.
    """
    if (model_options["endpoint"] is None) != (not model_options["chat_models"]):
        raise click.UsageError("--chat URL and --chat-model MODEL go together: give both")
    if model_options["chat_budget"] is not None and model_options["chat_price"] is None:
        raise click.UsageError("--chat-budget needs --chat-price IN OUT")
    reported = read_reported_scores(published) if published else {}
    questions = read_questions(data, split, config)

    from scale_vqa_eval.audit.overlap import find_overlap
    from scale_vqa_eval.audit.report import audit_questions, audit_table

    overlap = find_overlap(data, config, images, progress=not quiet)
    extra, chats = _model_probes(questions, seed, not quiet, **model_options)
    for chat in chats:
        if chat["stopped"]:
            click.echo(f"warning: chat with {chat['model']} has no result: {chat['stopped']}", err=True)
    detailed = json_path is not None or html_path is not None
    report = audit_questions(questions, seed, extra, overlap, detailed, not quiet, margin / 100)
    report |= {"chat": chats, "published": reported}
    report["provenance"] |= {"data": data, "split": split, "config": config}
    if json_path is not None:
        write_json(json_path, report, "name another --json")
    if html_path is not None:
        from scale_vqa_eval.audit.report import write_page

        write_page(html_path, report)
    click.echo(audit_table(report))
    if gate and allow_inconclusive and report["verdict"] == "inconclusive":
        click.echo("warning: the gate passes an inconclusive verdict (--allow-inconclusive)", err=True)
        return 0
    return int(gate and report["verdict"] != "clean")


def _model_probes(
    questions: Sequence[Question],
    seed: int,
    progress: bool,
    embedding: bool,
    models: Sequence[str],
    tuned: Sequence[str],
    finetune_epochs: int,
    endpoint: str | None,
    chat_models: Sequence[str],
    chat_repeats: int,
    chat_rate_limit: float | None,
    chat_per_minute: float | None,
    chat_price: tuple[float, float] | None,
    chat_budget: float | None,
    cache: Path | None,
) -> tuple[list[Any], list[dict[str, Any]]]:
    """Returns the scores of the requested language-model probes, and the reports of the chats."""
    results: list[Any] = []
    chats: list[dict[str, Any]] = []
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scale-vqa" / "audit"
    if embedding:
        from scale_vqa_eval.audit.language_model import embedding_probes

        results += embedding_probes(questions, seed, progress=progress)
    for model in models:
        from scale_vqa_eval.audit.language_model import language_model_probes

        results += language_model_probes(questions, model, folder / f"likelihood-{_short(model)}.jsonl", progress)
    for model in tuned:
        from scale_vqa_eval.audit.language_model import finetune_probe

        file = folder / f"finetune-{_short(model)}.jsonl"
        results.append(finetune_probe(questions, model, seed, finetune_epochs, cache_path=file, progress=progress))
    if endpoint is not None:
        from scale_vqa_eval.audit.chat import chat_probes
        from scale_vqa_eval.llm import ChatSettings

        settings = ChatSettings(per_minute=chat_rate_limit or chat_per_minute, prices=chat_price, budget=chat_budget)
        file = folder / f"chat-{_short(endpoint)}.jsonl"
        for answered in chat_probes(questions, endpoint, chat_models, file, settings, chat_repeats, progress):
            results += [answered.result] if answered.result is not None else []
            chats.append(answered.report)
    return results, chats


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
