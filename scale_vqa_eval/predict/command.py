"""The command ``scale-vqa predict``: asks the open questions and writes each answer at once."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.predict import (
    ABLATIONS,
    DEFAULT_PROMPT,
    IMAGES_OPTION,
    PROMPT_HELP,
    WITHOUT_IMAGES,
    ZOOM_CONTROLS,
)

if TYPE_CHECKING:
    from scale_vqa_eval.predict.backend import Backend, InferenceConfig, ModelAnswer, PredictionsFile
    from scale_vqa_eval.predict.images import Bounds
    from scale_vqa_eval.predict.requests import Request, VisualQuestion

BACKENDS: Final = ("transformers", "vllm", "openai")
_OLD_OPTIONS: Final = {"key-variable": "api-key-env", "give-up": "allow-failures", "per-minute": "rate-limit"}
"""Earlier option name -> current name."""
_FAILURES_SHOWN: Final = 10
_SECRET_NAME: Final = re.compile(
    r"^(?:hf_|auth_|use_auth_|access_)?token$|api_?key|secret|password|authorization", re.IGNORECASE
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _options(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Parses NAME=VALUE pairs; a value that is not JSON is text."""
    found: dict[str, Any] = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name or name in found:
            raise click.BadParameter(f"expected NAME=VALUE, each name once, found {value!r}")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


@click.command(context_settings={"token_normalize_func": lambda name: _OLD_OPTIONS.get(name, name)})
@click.option("--data", required=True, help="Release folder, Parquet file, Hub id, or JSON, JSONL, CSV questions.")
@click.option("--split", help="Name of the split.  [default: all]")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@IMAGES_OPTION
@click.option("--backend", type=click.Choice(BACKENDS), required=True)
@click.option("--model", required=True, help="Model folder, Hub id, or model name on the server.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Predictions (JSONL).")
@click.option(
    "--ablate",
    type=click.Choice(tuple(dict.fromkeys((*ABLATIONS, *ZOOM_CONTROLS)))),
    help="Remove or exchange images, or rotate the options; with --zoom: a control of where the model looks.",
)
@click.option("--zoom", is_flag=True, help="Let the model choose where to look, on data of `build zoom`.")
@click.option(
    "--slides",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the slide files of --zoom.  [default: slides beside the data]",
)
@click.option("--looks", type=click.IntRange(min=0), default=8, show_default=True, help="Maximum looks per question.")
@click.option(
    "--look-px", type=click.IntRange(min=32, max=4096), default=512, show_default=True, help="Side of a look."
)
@click.option(
    "--overview-px", type=click.IntRange(min=32), default=1024, show_default=True, help="Longer side of the overview."
)
@click.option("--look-pixels", type=click.IntRange(min=1), help="Maximum pixels of all looks at a question.")
@click.option(
    "--zoom-protocol",
    type=click.Choice(("auto", "tool", "user", "text")),
    default="auto",
    show_default=True,
    help="Images in tool results, images in a user message after them, or tool calls as plain text.",
)
@click.option("--prompt", help=f"{PROMPT_HELP}  [default: {DEFAULT_PROMPT}; zoom with --zoom]")
@click.option("--min-pixels", type=click.IntRange(min=1), help="Enlarge smaller images to this number of pixels.")
@click.option("--max-pixels", type=click.IntRange(min=1), help="Reduce larger images to this number of pixels.")
@click.option("--max-tokens", type=int, help="Maximum length of an answer.  [default: the prompt's]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--n", "samples", type=int, default=1, show_default=True, help="Answers per question; majority vote.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of sampling and of --ablate shuffled.")
@click.option("--structured", is_flag=True, help="Constrain decoding to complete answers (vllm, or a vLLM server).")
@click.option("--option", "options", multiple=True, callback=_options, help="NAME=VALUE for the backend; repeatable.")
@click.option("--base-url", default="http://127.0.0.1:8000/v1", show_default=True, help="Server (openai).")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Variable with the API key.")
@click.option("--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Calls in flight.")
@click.option("--rate-limit", type=click.FloatRange(min=0, min_open=True), help="Maximum requests per minute.")
@click.option("--retries", type=click.IntRange(min=0), default=4, show_default=True, help="Retries per call.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="(transformers)")
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of questions to ask now.")
@click.option("--retry-failed", is_flag=True, help="Ask only the questions that failed before.")
@click.option("--allow-failures", is_flag=True, help="Write failed questions as null responses, which are wrong.")
def predict(**given: Any) -> int:
    """Ask a vision-language model the questions of a release. Run the same command again to continue a killed run."""
    from scale_vqa_eval.predict.backend import InferenceConfig, Sampling
    from scale_vqa_eval.predict.images import Bounds
    from scale_vqa_eval.predict.prompts import load_prompt
    from scale_vqa_eval.predict.requests import BlankImages, ablated, read_visual_questions, requests_by_path

    minimum, maximum, ablation = given["min_pixels"], given["max_pixels"], given["ablate"]
    if minimum and maximum and minimum > maximum:
        raise click.UsageError(f"--min-pixels {minimum} is above --max-pixels {maximum}")
    if not given["out"].parent.is_dir():
        raise click.BadParameter(f"there is no folder {given['out'].parent}", param_hint="--out")
    if ablation is not None and ablation not in (ZOOM_CONTROLS if given["zoom"] else ABLATIONS):
        one_of = ", ".join(ZOOM_CONTROLS if given["zoom"] else ABLATIONS)
        raise click.BadParameter(
            f"{'with' if given['zoom'] else 'without'} --zoom it is one of {one_of}", param_hint="--ablate"
        )
    prompt = load_prompt(given["prompt"] or ("zoom" if given["zoom"] else DEFAULT_PROMPT))
    prompt = prompt.guessing() if ablation == "guess" else prompt
    max_tokens = prompt.max_tokens if given["max_tokens"] is None else given["max_tokens"]
    sampling = Sampling(max_tokens, given["temperature"], given["top_p"], given["samples"], given["seed"])
    backend = _backend(given)
    more: dict[str, Any] = {}
    notes: list[str] = []
    if given["zoom"]:
        from scale_vqa_eval.zoom.episodes import check_options, zoom_backend, zoom_requests
        from scale_vqa_eval.zoom.questions import read_zoom_questions

        check_options(given)
        questions, root = read_zoom_questions(given["data"], given["split"], given["slides"])
        items, source = zoom_requests(questions)
        backend, more = zoom_backend(given, questions, root, backend)
        asked = items
    else:
        items, source = read_visual_questions(
            given["data"], given["split"], given["config"], given["images"], blind=ablation in WITHOUT_IMAGES
        )
        asked, notes = ablated(items, ablation, given["seed"])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    shown = BlankImages(source) if ablation == "blank" else source
    bounds, trained = Bounds(minimum, maximum), _trained_bounds(given)
    if trained is not None and bounds == Bounds():
        bounds = trained
    if trained is not None:
        used = "used" if bounds == trained else "not used"
        click.echo(
            f"note: pixel bounds of training, from the model's processor: {trained.as_dict()}, {used}", err=True
        )
    config = InferenceConfig(given["model"], prompt, sampling, bounds, shown, given["structured"], given["options"])
    result = run(
        backend,
        config,
        requests_by_path(asked, circular=ablation == "circular"),
        given["out"],
        _provenance(given, config, items, source) | backend.identity(config) | more,
        **{name: given[name] for name in ("retry_failed", "allow_failures", "limit")},
    )
    return _report(result, given["out"], given["allow_failures"])


def _trained_bounds(given: dict[str, Any]) -> Bounds | None:
    """Returns the pixel bounds of training from the processor of a model folder or Hub id, or None."""
    from scale_vqa_eval.predict.images import PIXELS, stated_bounds
    from scale_vqa_eval.predict.prompts import model_file

    if given["backend"] == "openai" and not Path(given["model"]).is_dir():
        return None  # a model name on the server
    with suppress(ValueError, TypeError, AttributeError):  # the backend reports a broken file
        processor = json.loads(model_file(given["model"], "processor_config.json", given["options"]) or "{}")
        return stated_bounds(processor.get("image_processor", {}).get(PIXELS))
    return None


def _backend(given: dict[str, Any]) -> Backend:
    """Imports and returns the requested backend."""
    if given["backend"] == "openai":
        from scale_vqa_eval.llm import ChatSettings
        from scale_vqa_eval.predict.openai_backend import OpenAIBackend

        names = ("concurrency", "retries", "timeout", "api_key_env")
        settings = ChatSettings(per_minute=given["rate_limit"], **{name: given[name] for name in names})
        return OpenAIBackend(given["base_url"], settings)
    if given["backend"] == "vllm":
        from scale_vqa_eval.predict.local_backends import VllmBackend

        return VllmBackend()
    from scale_vqa_eval.predict.local_backends import TransformersBackend

    return TransformersBackend(given["batch_size"])


def _provenance(
    given: dict[str, Any], config: InferenceConfig, items: Sequence[VisualQuestion], source: Any
) -> dict[str, Any]:
    """Returns everything that an answer depends on; runs with different provenance are different runs."""
    from scale_vqa_eval.predict.images import images_digest
    from scale_vqa_eval.scoring.score import questions_digest

    images = [(item.question.id, image) for item in items for image in item.images]
    digest, colours = images_digest(images, source)
    for change, count in colours.items():
        click.echo(f"note: {count} of {len(images)} images: {change}", err=True)
    return {
        "data_hash": questions_digest(item.question for item in items),
        "images_hash": digest,
        **({"colours": colours} if colours else {}),
        "split": given["split"],
        "config": given["config"],
        "prompt_id": f"{config.prompt.id}@{config.prompt.version}",
        "prompt_hash": config.prompt.digest,
        "model": config.model,
        "backend": given["backend"],
        "sampling": asdict(config.sampling),
        "ablation": given["ablate"],
        "pixels": config.bounds.as_dict(),
        "structured": config.structured,
        "options": _without_secrets(config.options),
    }


def _without_secrets(value: Any) -> Any:
    """Returns options for a file, with the values of names that look like secrets replaced."""
    if isinstance(value, Mapping):
        return {
            name: "[secret]" if _SECRET_NAME.search(str(name)) else _without_secrets(one)
            for name, one in value.items()
        }
    return value


def _report(result: RunResult, out: Path, allow_failures: bool) -> int:
    """Prints how the run ended; returns exit code 1 if questions failed, else 0."""
    failures = result.file.failures
    counts = f"{len(result.file.answered)} answered, {len(failures)} failed, {result.left} not asked"
    click.echo(f"{out}: {counts}", err=True)
    if allow_failures and result.left and failures:
        click.echo("--allow-failures: failures are written once all questions have been asked", err=True)
    if result.prompt_tokens:
        share = result.cached_tokens / result.prompt_tokens
        click.echo(f"prefix cache: {share:.1%} of {result.prompt_tokens:,} prompt tokens", err=True)
    for (name, rotation), reason in list(failures.items())[:_FAILURES_SHOWN]:
        shown = "" if rotation is None else f" (rotation {rotation})"
        click.echo(f"failed: {name}{shown}: {reason}", err=True)
    if failures:
        from scale_vqa_eval.predict.backend import failures_path

        click.echo(
            f"all reasons: {failures_path(out)}; ask these questions again with --retry-failed, "
            "or write them as failed with --allow-failures",
            err=True,
        )
    sys.stderr.flush()
    return 1 if failures else 0


@dataclass
class RunResult:
    """The answer sink of a run, and its outcome.

    Attributes:
        file: the predictions file, with answered and failed questions.
        left: number of questions that were not asked.
        prompt_tokens: prompt tokens (of one sample) of the questions asked now whose cached tokens are known.
        cached_tokens: how many of these came from a prefix cache.
    """

    file: PredictionsFile
    bar: Any = None
    left: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def keep(self, request: Request, answer: ModelAnswer) -> None:
        from scale_vqa_eval.predict.backend import majority_vote

        # lone surrogates are not valid UTF-8
        texts = [_SURROGATE.sub("\ufffd", text) for text in answer.responses]
        fields: dict[str, Any] = {
            "response": majority_vote(texts, len(request.options)),
            "images": request.image_count,
            **answer.more,
        }
        if len(texts) > 1:
            fields["responses"] = texts
        for name in ("finish", "prompt_tokens", "completion_tokens"):
            if getattr(answer, name) is not None:
                fields[name] = getattr(answer, name)
        # not written to the file, because they are not reproducible
        if answer.prompt_tokens is not None and answer.cached_tokens is not None:
            self.prompt_tokens += answer.prompt_tokens
            self.cached_tokens += answer.cached_tokens
        self.file.keep(request.key, fields)
        self.bar.update()

    def fail(self, request: Request, reason: str) -> None:
        self.file.fail(request.key, reason)
        self.failed += 1
        self.bar.set_postfix(failed=self.failed)
        self.bar.update()


def run(
    backend: Backend,
    config: InferenceConfig,
    all_paths: Sequence[Sequence[Request]],
    out: Path,
    provenance: Mapping[str, Any],
    retry_failed: bool = False,
    allow_failures: bool = False,
    limit: int | None = None,
) -> RunResult:
    """Asks the questions that the predictions file has no answer to.

    ``all_paths`` has all requests of the run, one list per diagnostic path. The last three arguments are options of
    the command.

    Raises:
        InputError: if the file belongs to another run, or the preflight check fails; no question is asked then.
    """
    from tqdm import tqdm

    from scale_vqa_eval.predict.backend import PredictionsFile

    requests = [request for path in all_paths for request in path]
    versions = {"scale-vqa": __version__, "python": platform.python_version(), **backend.versions()}
    with PredictionsFile(out, provenance, versions, requests) as file:
        for note in file.notes:
            click.echo(note, err=True)
        paths, chosen = [], 0
        for path in all_paths:
            open_requests = [
                request
                for request in path
                if request.key not in file.answered and (request.key in file.failures) == retry_failed
            ]
            open_requests = open_requests[: None if limit is None else limit - chosen]
            chosen += len(open_requests)
            paths += [open_requests] if open_requests else []
        result = RunResult(file)
        if paths:
            for warning in backend.check(config, paths):
                click.echo(f"warning: {warning}", err=True)
            title = f"{config.model} ({len(file.answered)} done)"
            with tqdm(total=chosen, desc=title, unit="question", mininterval=0.5) as result.bar:
                backend.run(config, paths, result)
        result.left = len(requests) - len(file.answered) - len(file.failures)
        if allow_failures and not result.left:
            file.accept_failures()
        if len(file.answered) == len(requests):
            file.sort_and_rewrite()
        return result
