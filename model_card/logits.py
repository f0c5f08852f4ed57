"""Whether two checkpoints are the same model: the same inputs from their processors, the same logits."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview

TOLERANCE: Final = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}
"""dtype -> by how much of their standard deviation logits of a merged model may differ from those of base + adapter:
both round once, in another order."""
_TEXT: Final = "Which finding at low magnification is supported by the nuclei at high magnification?"
_SIDE: Final = 224


@dataclass(frozen=True)
class LogitsCheck:
    """What a comparison of two checkpoints found.

    Attributes:
        same: whether inputs and logits agree within the tolerance.
        difference: largest absolute difference of a logit, in standard deviations of all logits.
        tolerance: what it was held against.
        tokens: length of the prompt, image tokens included.
        inputs: names of the processor's outputs that differ.
    """

    same: bool
    difference: float
    tolerance: float
    tokens: int
    inputs: tuple[str, ...]


def same_logits(
    a: str | Path,
    b: str | Path,
    tolerance: float | None = 0.0,
    base: str | Path | None = None,
    processor: str | Path | None = None,
) -> LogitsCheck:
    """Compares two checkpoints on a conversation with a system message, two images and a question.

    The two are loaded one after the other, so that memory for one of them is enough.

    Args:
        a: a checkpoint's folder, or an adapter's, or a Hub id.
        b: the other.
        tolerance: most that logits may differ, in standard deviations; 0 for copies, None for that of a merge in the
            model's number format.
        base: the base of an adapter whose config names another.
        processor: of both, where ``a`` has none of its own (an adapter); None compares what each one's makes.

    Raises:
        InputError: where one of them cannot be loaded.
    """
    import torch

    first_inputs, first, kind = _logits(a, base, processor)
    second_inputs, second, _ = _logits(b, base, processor)
    bound = TOLERANCE.get(kind, max(TOLERANCE.values())) if tolerance is None else tolerance
    names = first_inputs.keys() | second_inputs.keys()
    differing = tuple(
        sorted(
            name
            for name in names
            if name not in first_inputs
            or name not in second_inputs
            or not torch.equal(first_inputs[name], second_inputs[name])
        )
    )
    if first.shape != second.shape:
        return LogitsCheck(False, float("inf"), bound, first.shape[1], differing)
    difference = float((first - second).abs().max() / first.std())
    same = not differing and difference <= bound  # a difference that is no number is not within any bound
    return LogitsCheck(same, difference, bound, first.shape[1], differing)


def load_model(folder: str | Path, base: str | Path | None = None) -> Any:
    """Returns the model of a checkpoint; of an adapter, PEFT's model on its base.

    Raises:
        InputError: where it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = (Path(folder) / "adapter_config.json").is_file()
    try:
        if not adapter:
            return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map=device).eval()
        from peft import PeftConfig, PeftModel

        place = base if base is not None else PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        model = AutoModelForImageTextToText.from_pretrained(place, dtype="auto", device_map=device)
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        hint = "complete the folder, or name the base model of an adapter"
        raise InputError(Problem(str(folder), "a model that can be loaded", preview(str(error), 200), hint)) from error


def _logits(
    folder: str | Path, base: str | Path | None, processor_of: str | Path | None
) -> tuple[dict[str, Any], Any, str]:
    """Returns inputs, float32 logits (1, tokens, vocabulary) and number format."""
    import torch
    from transformers import AutoProcessor

    model = load_model(folder, base)
    try:
        processor = AutoProcessor.from_pretrained(processor_of or folder)
    except (OSError, ValueError) as error:
        hint = "prepare the folder with its processor"
        raise InputError(Problem(str(folder), "a processor", preview(str(error), 160), hint)) from error
    inputs = processor.apply_chat_template(
        _conversation(),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"return_tensors": "pt"},
    )
    with torch.inference_mode():
        logits = model(**inputs.to(model.device)).logits.float().cpu()
    found = {name: value.cpu() for name, value in inputs.items()}
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found, logits, kind


def _conversation() -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)) for _ in range(2)]
    user = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": _TEXT}]
    system = [{"type": "text", "text": "You are an expert in pathology."}]
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
