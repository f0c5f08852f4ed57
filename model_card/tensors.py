"""Reads and writes the tensors of a checkpoint as streams, and compares checkpoints by digests and by logits.

The safetensors library needs a checkpoint in memory to write it. Here the bytes of a tensor are copied from file to
file in blocks. Format: https://github.com/huggingface/safetensors#format.
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
"""dtype -> largest difference between the logits of a merged model and of base + adapter, in standard deviations of
the logits. They differ in the order of rounding."""
_BLOCK: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Location of a tensor's bytes in a safetensors file.

    Attributes:
        start: offset in the file in bytes.
        size: number of bytes.
        dtype: type in the header, such as ``BF16``.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint by name, without reading their values.

    Raises:
        InputError: listing files that are missing, broken or truncated, and tensors that are in two files.
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
    """Returns the tensors of one safetensors file in the order of their bytes.

    Raises:
        InputError: if the file is not complete.
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
    """Checks that the weight files of a folder are complete.

    Raises:
        InputError: listing files that are missing, broken or truncated.
    """
    adapter = (folder / ADAPTER_WEIGHTS).is_file()
    if adapter:
        tensors_of_file(folder / ADAPTER_WEIGHTS)
    if not adapter or (folder / INDEX).is_file() or (folder / SINGLE).is_file():
        read_tensors(folder)


def tensor_digests(folder: str | Path) -> dict[str, str]:
    """Returns the SHA-256 of dtype, shape and bytes by tensor name; independent of the shards."""
    return {name: _stream(tensor) for name, tensor in read_tensors(Path(folder)).items()}


def write_shards(
    tensors: dict[str, StoredTensor],
    out: Path,
    max_shard_size: int | str,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, str]:
    """Writes tensors into shards; a tensor larger than ``max_shard_size`` gets its own shard.

    Args:
        tensors: tensors by name.
        out: an existing folder.
        max_shard_size: bytes, or a text such as ``5GB``.
        progress: called with the number of bytes of each block.

    Returns:
        The digests of the tensors, as from ``tensor_digests``.
    """
    plan = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    digests: dict[str, str] = {}
    for name, members in plan.filename_to_tensors.items():
        # widest types first, as in the library, so that every tensor is aligned
        ordered = sorted(members, key=lambda member: -_bits(tensors[member].dtype))
        digests |= _write_file(out / name, {member: tensors[member] for member in ordered}, progress)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n")
    return digests


def _weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a checkpoint: those in its index, or the single file."""
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
    """Passes a tensor's bytes to ``sink`` in blocks; returns its digest."""
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


def _bits(dtype: str) -> int:
    """Returns the number of bits in a type's name; 8 for BOOL."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


@dataclass(frozen=True)
class LogitsCheck:
    """Result of comparing two checkpoints.

    Attributes:
        same: whether inputs are equal and logits agree within the tolerance.
        difference: largest absolute difference of a logit, in standard deviations of all logits.
        tolerance: largest allowed difference.
        tokens: length of the prompt including image tokens.
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
        b: the other checkpoint.
        tolerance: largest difference of logits in standard deviations; 0 for copies, or None for ``TOLERANCE`` of the
            model's dtype.
        base: base model of an adapter, instead of the one in its config.
        processor: processor for both models; if None, each uses its own and their outputs are compared too.

    Raises:
        InputError: if a checkpoint cannot be loaded.
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
    same = not differing and difference <= bound  # False for NaN
    return LogitsCheck(same, difference, bound, first.shape[1], differing)


def load_model(folder: str | Path, base: str | Path | None = None, dtype: str = "auto") -> Any:
    """Returns the model of a checkpoint; for an adapter, the PEFT model on its base.

    Args:
        folder: a checkpoint or an adapter, or a Hub id.
        base: base model of an adapter, instead of the one in its config.
        dtype: dtype of the model; ``auto`` for that of the stored weights.

    Raises:
        InputError: if it cannot be loaded.
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
    """Returns inputs, float32 logits (1, tokens, vocabulary) and dtype."""
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
