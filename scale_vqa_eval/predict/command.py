"""The command ``scale-vqa predict``."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.predict.ablations import ABLATIONS

BACKENDS = ("transformers", "vllm", "openai")
_OLD_OPTIONS = {"key-variable": "api-key-env", "give-up": "allow-failures", "per-minute": "rate-limit"}
"""Spelling of version 0.1 -> option."""


def _options(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value is JSON where it can be read as such, else text."""
    found: dict[str, Any] = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name or name in found:
            raise click.BadParameter(f"expected NAME=VALUE, each name once, found {value!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


@click.command(context_settings={"token_normalize_func": lambda name: _OLD_OPTIONS.get(name, name)})
@click.option("--data", required=True, help="Release folder, Parquet file, Hub id, or JSON, JSONL, CSV questions.")
@click.option("--split", help="Name of the split.  [default: all]")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the image paths of a JSON file are relative to.  [default: the file's own]",
)
@click.option("--backend", type=click.Choice(BACKENDS), required=True)
@click.option("--model", required=True, help="Model folder, Hub id, or the name that the server knows.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Predictions (JSONL).")
@click.option("--ablate", type=click.Choice(ABLATIONS), help="Take images away, exchange them, or turn the options.")
@click.option("--prompt", default="published", show_default=True, help="Prompt id, or a YAML file of your own.")
@click.option("--min-pixels", type=click.IntRange(min=1), help="Enlarge smaller images to so many pixels.")
@click.option("--max-pixels", type=click.IntRange(min=1), help="Reduce larger images to so many pixels.")
@click.option("--max-tokens", type=int, help="Longest answer.  [default: the prompt's]")
@click.option("--temperature", type=float, default=0.0, show_default="0: greedy")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--n", "samples", type=int, default=1, show_default=True, help="Answers a question; they vote.")
@click.option("--seed", type=int, default=42, show_default=True, help="Of sampling and of --ablate shuffled.")
@click.option("--structured", is_flag=True, help="Allow complete answers only (vllm, or a vLLM server).")
@click.option("--option", "options", multiple=True, callback=_options, help="NAME=VALUE for the backend; repeatable.")
@click.option("--base-url", default="http://127.0.0.1:8000/v1", show_default=True, help="Server of openai.")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Variable with the API key.")
@click.option("--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Calls in flight.")
@click.option(
    "--rate-limit", "per_minute", type=click.FloatRange(min=0, min_open=True), help="Requests a minute at most."
)
@click.option("--retries", type=click.IntRange(min=0), default=4, show_default=True, help="Of one call.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Of transformers.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask at most so many questions now.")
@click.option("--retry-failed", is_flag=True, help="Ask again what failed, and nothing else.")
@click.option("--allow-failures", is_flag=True, help="Write what failed as null responses, which are scored as wrong.")
def predict(**given: Any) -> int:
    """Ask a vision-language model the questions of a release; a killed run goes on with the same command."""
    from scale_vqa_eval.predict.ablations import ablated
    from scale_vqa_eval.predict.items import asks_by_path, read_items
    from scale_vqa_eval.predict.job import Job
    from scale_vqa_eval.predict.prompt import load_prompt
    from scale_vqa_eval.predict.resolution import Bounds
    from scale_vqa_eval.predict.runner import Plan, run
    from scale_vqa_eval.predict.sampling import Sampling

    least, most = given["min_pixels"], given["max_pixels"]
    if least and most and least > most:
        raise click.UsageError(f"--min-pixels {least} is above --max-pixels {most}")
    if not given["out"].parent.is_dir():
        raise click.BadParameter(f"there is no folder {given['out'].parent}", param_hint="--out")
    prompt = load_prompt(given["prompt"])
    sampling = Sampling(
        max_tokens=prompt.max_tokens if given["max_tokens"] is None else given["max_tokens"],
        temperature=given["temperature"],
        top_p=given["top_p"],
        n=given["samples"],
        seed=given["seed"],
    )
    ablation = given["ablate"]
    items, store = read_items(
        given["data"], given["split"], given["config"], given["images"], blind=ablation == "blind"
    )
    asked, notes = ablated(items, ablation, given["seed"])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    job = Job(given["model"], prompt, sampling, Bounds(least, most), store, given["structured"], given["options"])
    backend = _backend(given)
    plan = Plan(
        asks_by_path(asked, circular=ablation == "circular"),
        _provenance(given, job, items, backend),
        {"scale-vqa": __version__, "python": platform.python_version(), **backend.versions()},
        given["retry_failed"],
        given["allow_failures"],
        given["limit"],
    )
    return _report(run(backend, job, given["out"], plan), given["out"], given["allow_failures"])


def _backend(given: dict[str, Any]) -> Any:
    """Imports the backend that is asked for, and no other."""
    if given["backend"] == "openai":
        from scale_vqa_eval.llm import ChatSettings, endpoint_name
        from scale_vqa_eval.predict.openai_backend import OpenAIBackend

        endpoint_name(given["base_url"])
        names = ("concurrency", "per_minute", "retries", "timeout", "api_key_env")
        return OpenAIBackend(given["base_url"], ChatSettings(**{name: given[name] for name in names}))
    if given["backend"] == "vllm":
        from scale_vqa_eval.predict.vllm_backend import VllmBackend

        return VllmBackend()
    from scale_vqa_eval.predict.transformers_backend import TransformersBackend

    return TransformersBackend(given["batch_size"])


def _provenance(given: dict[str, Any], job: Any, items: Any, backend: Any) -> dict[str, Any]:
    """Returns everything that an answer depends on: another value of any of these is another run."""
    from dataclasses import asdict

    from scale_vqa_eval.predict.job import images_digest
    from scale_vqa_eval.scoring.score import questions_digest

    return {
        "data_hash": questions_digest(item.question for item in items),
        "images_hash": images_digest(items, job.store),
        "split": given["split"],
        "config": given["config"],
        "prompt_id": f"{job.prompt.id}@{job.prompt.version}",
        "prompt_hash": job.prompt.digest,
        "model": job.model,
        "backend": given["backend"],
        "sampling": asdict(job.sampling),
        "ablation": given["ablate"],
        "pixels": asdict(job.bounds),
        "structured": job.structured,
        "options": dict(job.options),
        **backend.identity(job),
    }


def _report(outcome: Any, out: Path, give_up: bool) -> int:
    """Says how the run ended; 0 where every question has an answer or the limit was reached, 1 where some failed."""
    click.echo(
        f"{out}: {outcome.answered} answered, {len(outcome.failures)} failed, {outcome.left} not asked", err=True
    )
    if give_up and outcome.left and outcome.failures:
        click.echo("--allow-failures: nothing is written while questions are not asked", err=True)
    if outcome.prompt_tokens:
        share = outcome.cached_tokens / outcome.prompt_tokens
        click.echo(f"prefix cache: {share:.1%} of {outcome.prompt_tokens:,} prompt tokens", err=True)
    for (name, turn), reason in list(outcome.failures.items())[:10]:
        click.echo(f"failed: {name}{'' if turn is None else f' (turn {turn})'}: {reason}", err=True)
    if outcome.failures:
        from scale_vqa_eval.predict.run_file import failures_path

        click.echo(
            f"reasons of all: {failures_path(out)}; ask them again with --retry-failed, "
            "or write them as failed with --allow-failures",
            err=True,
        )
    sys.stderr.flush()
    return 1 if outcome.failures else 0
