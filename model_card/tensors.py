"""Tensors of a checkpoint: read and written as streams, compared by digest and by the logits they give.

The library reads a file into memory to write one. Here the bytes of a tensor go from file to file in blocks, so that a
checkpoint of any size takes the memory of one block. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import parse_local_safetensors_file_metadata, split_state_dict_into_shards_factory
from huggingface_hub.errors import SafetensorsParsingError

from scale_vqa_eval.errors import InputError, Problem, preview

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
TOLERANCE: Final = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}
"""dtype -> largest difference, in standard deviations of the logits, between a merged model and base + adapter: both
round once, in another order."""
_BLOCK: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where the bytes of a tensor are.

    Attributes:
        file: the safetensors file.
        start: first byte in the file.
        size: number of bytes.
        dtype: as in the header (``BF16``).
        shape: of the tensor.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint by name, in the order of their bytes; no weight is read.

    Raises:
        InputError: naming every file that is missing, broken or cut off, and every tensor that two files hold.
    """
    problems: list[Problem] = []
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        try:
            tensors = tensors_of_file(file)
        except InputError as error:
            problems.extend(error.problems)
            continue
        for name in sorted(found.keys() & tensors.keys()):
            problems.append(Problem(str(file), "each tensor once", f"{name} a second time", "remove stale shards"))
        found |= tensors
    if problems:
        raise InputError(problems)
    return found


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one safetensors file, checked by the library to be complete.

    Raises:
        InputError: where it is not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            header = parse_local_safetensors_file_metadata(file).tensors
    except (OSError, SafetensorError, SafetensorsParsingError) as error:
        hint = "copy or save the checkpoint again"
        raise InputError(Problem(str(file), "a complete safetensors file", preview(str(error), 160), hint)) from error
    data = file.stat().st_size - max((info.data_offsets[1] for info in header.values()), default=0)
    in_order = sorted(header.items(), key=lambda item: item[1].data_offsets[0])
    return {
        name: StoredTensor(file, data + start, end - start, str(info.dtype), tuple(info.shape))
        for name, info in in_order
        for start, end in [info.data_offsets]
    }


def check_weights(folder: Path) -> None:
    """Checks that the weight files of a folder, or those that its index names, are there and complete.

    Raises:
        InputError: naming each that is missing, broken or cut off.
    """
    adapter = (folder / ADAPTER_WEIGHTS).is_file()
    if adapter:
        tensors_of_file(folder / ADAPTER_WEIGHTS)
    if not adapter or (folder / INDEX).is_file() or (folder / SINGLE).is_file():
        read_tensors(folder)


def tensor_digests(folder: str | Path) -> dict[str, str]:
    """Returns name -> SHA-256 over dtype, shape and bytes of each tensor; independent of the shards."""
    return {name: _stream(tensor) for name, tensor in read_tensors(Path(folder)).items()}


def write_shards(
    tensors: dict[str, StoredTensor],
    out: Path,
    max_shard_size: int | str,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, str]:
    """Writes tensors into shards of at most ``max_shard_size`` bytes; a larger tensor gets a shard of its own.

    Args:
        tensors: by name.
        out: an existing folder.
        max_shard_size: bytes, or a text such as ``5GB``.
        progress: called with the number of bytes of each block.

    Returns:
        The digests of what was read, as ``tensor_digests`` returns them.
    """
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    digests: dict[str, str] = {}
    for name, members in plan.filename_to_tensors.items():
        # wide types first, as in the library, so that every tensor is aligned
        ordered = sorted(members, key=lambda member: -_width(tensors[member].dtype))
        digests |= _write_file(out / name, {member: tensors[member] for member in ordered}, progress)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")
    return digests


def _weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a checkpoint: those that its index names, or the single one."""
    index, single = folder / INDEX, folder / SINGLE
    if single.is_file() and not index.is_file():
        return [single]
    if not index.is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none"
        hint = "save it with save_pretrained, which writes safetensors (reading pickled weights runs code)"
        raise InputError(Problem(str(folder), f"{SINGLE} or {INDEX}", f"weights: {others}", hint))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = preview(str(error))
        raise InputError(Problem(str(index), "an index with a weight_map", found, "save it again")) from error
    problems = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            problems.append(Problem(str(index), "names of files beside it", preview(name), "fix the index"))
        elif not (folder / name).is_file():
            problems.append(Problem(str(folder), f"the shard {name}", "no such file", "copy it too"))
    if problems:
        raise InputError(problems)
    return [folder / name for name in names]


def _stream(tensor: StoredTensor, sink: Callable[[bytes], object] = lambda block: None) -> str:
    """Passes a tensor's bytes to ``sink`` block by block; returns its digest."""
    digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}\0".encode())
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.size
        while left:
            block = stream.read(min(_BLOCK, left))
            if not block:
                raise OSError(f"{tensor.file} ends within a tensor")
            left -= len(block)
            digest.update(block)
            sink(block)
    return digest.hexdigest()


def _write_file(file: Path, tensors: dict[str, StoredTensor], progress: Callable[[int], object]) -> dict[str, str]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        return {name: _stream(tensor, lambda block: progress(out.write(block))) for name, tensor in tensors.items()}


def _width(dtype: str) -> int:
    """Returns the bits of a type from its name.

    >>> _width("BF16"), _width("F8_E4M3"), _width("BOOL")
    (16, 8, 8)
    """
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


@dataclass(frozen=True)
class LogitsCheck:
    """Result of comparing two checkpoints.

    Attributes:
        same: whether inputs and logits agree within the tolerance.
        difference: largest absolute difference of a logit, in standard deviations of all logits.
        tolerance: largest difference that counts as the same.
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

    They are loaded one after the other, so memory for one is enough.

    Args:
        a: folder of a checkpoint or an adapter, or a Hub id.
        b: the other one.
        tolerance: largest difference of logits, in standard deviations; 0 for copies, None for the tolerance of a
            merge in the model's number format.
        base: base model of an adapter whose config names another one.
        processor: processor of both, where ``a`` has none (an adapter); None compares the processors too.

    Raises:
        InputError: where one of them cannot be loaded.
    """
    import torch

    first_inputs, first, dtype = _logits(a, base, processor)
    second_inputs, second, _ = _logits(b, base, processor)
    bound = TOLERANCE.get(dtype, max(TOLERANCE.values())) if tolerance is None else tolerance
    shared = first_inputs.keys() & second_inputs.keys()
    equal = {name for name in shared if torch.equal(first_inputs[name], second_inputs[name])}
    differing = tuple(sorted((first_inputs.keys() | second_inputs.keys()) - equal))
    difference = float("inf")
    if first.shape == second.shape:
        difference = float((first - second).abs().max() / first.std())
    same = not differing and difference <= bound  # NaN is within no bound
    return LogitsCheck(same, difference, bound, first.shape[1], differing)


def load_model(folder: str | Path, base: str | Path | None = None, dtype: str = "auto") -> Any:
    """Returns the model of a checkpoint; for an adapter, PEFT's model on its base.

    Args:
        folder: a checkpoint or an adapter, or a Hub id.
        base: base model of an adapter whose config names another one.
        dtype: number format, ``auto`` for the one that the weights are stored in.

    Raises:
        InputError: where it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = (Path(folder) / "adapter_config.json").is_file()
    try:
        if adapter and base is None:
            from peft import PeftConfig

            base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        place = base if adapter else folder
        model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, device_map=device)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder))
        return model.eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        hint = "complete the folder, or name the base model of the adapter by --base"
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
    on_cpu = {name: value.cpu() for name, value in inputs.items()}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return on_cpu, logits, dtype


def _conversation() -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(2)]
    question = "Which finding at low magnification is supported by the nuclei at high magnification?"
    user = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    system = [{"type": "text", "text": "You are an expert in pathology."}]
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
