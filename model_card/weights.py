"""Makes a checkpoint ready to be published: safetensors shards, LoRA merged or not, everything that loading needs.

What others call::

    prepare_weights(checkpoint, out, max_shard_size="5GB", merge_lora=True, base=None) -> PreparedWeights
    same_logits(a, b, tolerance=0.0, base=None) -> LogitsCheck          (in model_card.logits)
    tensor_digests(folder) -> {tensor name: sha256}                     (in model_card.tensor_files)

A full checkpoint is cut into shards as a stream: its bytes are copied, its memory is a block. Merging a LoRA adapter
holds the base model in memory once, as PEFT does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tqdm import tqdm

from model_card.tensor_files import INDEX, SINGLE, read_tensors, tensor_digests, write_shards
from scale_vqa_eval.errors import InputError, Problem, preview

Kind = Literal["full", "merged", "adapter"]

SIDE_FILES: Final = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What is taken along beside the weights; nothing else is: optimizer states and pickles stay where they are."""
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_PATH_KEYS: Final = ("_name_or_path", "name_or_path")


@dataclass(frozen=True)
class PreparedWeights:
    """A folder that is ready to be published.

    Attributes:
        folder: where it is.
        kind: ``full`` (a copy, the same bytes per tensor), ``merged`` (LoRA added to its base) or ``adapter``.
        tensors: number of tensors.
        size: bytes of the weight files.
        shards: names of the weight files.
        base: what an adapter was trained on; None for a full checkpoint.
    """

    folder: Path
    kind: Kind
    tensors: int
    size: int
    shards: tuple[str, ...]
    base: str | None = None


def prepare_weights(
    checkpoint: str | Path,
    out: str | Path,
    max_shard_size: int | str = "5GB",
    merge_lora: bool = True,
    base: str | Path | None = None,
) -> PreparedWeights:
    """Writes a checkpoint as it is published: weights in safetensors shards, processor, chat template, configs.

    Args:
        checkpoint: a full checkpoint (``model*.safetensors``) or a LoRA adapter (``adapter_config.json``).
        out: a folder that is made; it appears whole or not at all.
        max_shard_size: bytes of a weight file at most, or a text like ``5GB``.
        merge_lora: add an adapter to its base model; False leaves it an adapter.
        base: folder or Hub id: what an adapter stands on where its config does not say so rightly, and where the
            files beside the weights come from that the checkpoint lacks. For an adapter left as such it has to be
            the Hub id that its config shall name, where that names a folder of this machine.

    Raises:
        InputError: naming everything that is missing or broken at once.
    """
    source, out = Path(checkpoint), Path(out).absolute()
    if not source.is_dir():
        raise InputError(Problem(str(source), "a checkpoint's folder", "no folder", "name one"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            Problem(str(out), "a folder that is not there yet", "one with files", "name another, or clear it")
        )
    adapter = (source / ADAPTER_CONFIG).is_file()
    stands_on = _base_of(source, base) if adapter else None
    with _staging(out) as staging:
        _take_along(source, staging, base if base is not None else stands_on, adapter and not merge_lora)
        if not adapter:
            _copy_full(source, staging, max_shard_size)
        elif merge_lora:
            _merge(source, staging, stands_on or "", max_shard_size)
        else:
            _copy_adapter(source, staging, stands_on or "")
    kind: Kind = "full" if not adapter else "merged" if merge_lora else "adapter"
    files = sorted(out.glob("*.safetensors"))
    count = len(read_tensors(out)) if kind != "adapter" else _adapter_tensors(out)
    return PreparedWeights(
        out, kind, count, sum(file.stat().st_size for file in files), tuple(file.name for file in files), stands_on
    )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yields a hidden folder beside ``out`` that takes its place at the end; it is cleared where anything fails."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():
            out.rmdir()  # empty, as was checked
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _copy_full(source: Path, out: Path, max_shard_size: int | str) -> None:
    tensors = read_tensors(source)
    total = sum(tensor.size for tensor in tensors.values())
    free = shutil.disk_usage(out).free
    if total > free:
        found = f"{free / 1e9:.1f} GB free"
        raise InputError(Problem(str(out.parent), f"room for {total / 1e9:.1f} GB of weights", found, "make room"))
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None) as bar:
        read = write_shards(tensors, out, max_shard_size, bar.update)
    if tensor_digests(out) != read:
        found = "other bytes than were written"
        raise InputError(Problem(str(out), "the weights as written", found, "look after the disk and run again"))


def _merge(source: Path, out: Path, base: str, max_shard_size: int | str) -> None:
    """Adds the adapter to its base by PEFT; ``safe_merge`` refuses weights that are no numbers."""
    from model_card.logits import load_model

    model = load_model(source, base)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        found = preview(str(error), 160)
        raise InputError(Problem(str(source), "an adapter that can be merged", found, "train it again")) from error
    generation = (out / "generation_config.json").read_bytes()
    merged.save_pretrained(out, max_shard_size=max_shard_size)
    (out / "generation_config.json").write_bytes(generation)  # the checkpoint's own, not what the base was loaded with


def _copy_adapter(source: Path, out: Path, base: str) -> None:
    if not (source / ADAPTER_WEIGHTS).is_file():
        raise InputError(Problem(str(source), ADAPTER_WEIGHTS, "no such file", "save the adapter as safetensors"))
    if Path(base).is_absolute() or Path(base).is_dir():
        hint = "give the Hub id of the base model, or merge the adapter"
        raise InputError(Problem(str(source / ADAPTER_CONFIG), "a base that others can load", preview(base), hint))
    shutil.copyfile(source / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    _write_json(out / ADAPTER_CONFIG, config)
    _adapter_tensors(out)


def check_weights(folder: Path) -> None:
    """Looks whether the weight files of a folder, or those that its index names, are there and whole.

    Raises:
        InputError: naming each that is missing, broken or cut off.
    """
    if (folder / ADAPTER_WEIGHTS).is_file():
        _adapter_tensors(folder)
    if (folder / INDEX).is_file() or (folder / SINGLE).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        read_tensors(folder)


def _adapter_tensors(folder: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
            return len(list(file.keys()))
    except SafetensorError as error:
        location = str(folder / ADAPTER_WEIGHTS)
        raise InputError(
            Problem(location, "a complete safetensors file", preview(str(error)), "save it again")
        ) from error


def _base_of(source: Path, base: str | Path | None) -> str:
    try:
        named = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        location = str(source / ADAPTER_CONFIG)
        raise InputError(
            Problem(location, "an adapter's configuration", preview(str(error)), "save it again")
        ) from error
    found = str(base) if base is not None else named
    if not found:
        location = str(source / ADAPTER_CONFIG)
        raise InputError(Problem(location, "base_model_name_or_path", "none", "name the base model"))
    return found


def _take_along(source: Path, out: Path, base: str | Path | None, adapter: bool) -> None:
    """Copies what loading needs beside the weights, from the checkpoint or its base; names what neither has."""
    for name in SIDE_FILES:
        if (source / name).is_file() and not (adapter and name == "config.json"):
            _copy_side(source / name, out / name)
    missing = _missing(out, adapter)
    if missing and base is not None:
        folder = _base_folder(str(base))
        # the kinds of file are taken as a whole: half a tokenizer of each would be neither
        wanted = {name for kind in missing for files in _NEEDED[kind] for name in files}
        for name in sorted(wanted):
            if (folder / name).is_file():
                _copy_side(folder / name, out / name)
        missing = _missing(out, adapter)
    problems = [
        Problem(str(source), f"{kind}: {' or '.join(' + '.join(files) for files in _NEEDED[kind])}", "none", _MEND)
        for kind in missing
    ]
    if not adapter and (out / "config.json").is_file() and "auto_map" in _read_json(out / "config.json"):
        found = "auto_map in config.json: code of its own"
        problems.append(Problem(str(source), "an architecture of transformers", found, "publish it by hand"))
    if problems:
        raise InputError(problems)


_NEEDED: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "configuration": (("config.json",),),
    "generation config": (("generation_config.json",),),
    "image processor": (("preprocessor_config.json",), ("processor_config.json",)),
    "tokenizer": (
        ("tokenizer.json", "tokenizer_config.json"),
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
        ("tokenizer.model", "tokenizer_config.json"),
    ),
    "chat template": (("chat_template.jinja",), ("chat_template.json",)),
}
"""Kind of file -> the sets of files of which one has to be there."""
_MEND: Final = "save the processor and the model into the folder, or name the base that has them"


def _missing(folder: Path, adapter: bool) -> list[str]:
    found = [
        kind for kind, sets in _NEEDED.items() if not any(all((folder / name).is_file() for name in s) for s in sets)
    ]
    if "chat template" in found and any(
        "chat_template" in _read_json(folder / name)
        for name in ("tokenizer_config.json", "processor_config.json")
        if (folder / name).is_file()
    ):
        found.remove("chat template")
    return [kind for kind in found if not (adapter and kind == "configuration")]


def _base_folder(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=list(SIDE_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        hint = "name a folder, or a Hub id that this machine can reach"
        raise InputError(
            Problem(f"base model {base}", "its processor and configs", preview(str(error), 160), hint)
        ) from error


def _copy_side(source: Path, target: Path) -> None:
    """Copies a file beside the weights, less the paths of this machine that some of them note."""
    if source.suffix != ".json":
        shutil.copyfile(source, target)
        return
    content = _read_json(source)
    local = [key for key in _PATH_KEYS if isinstance(content.get(key), str) and Path(content[key]).is_absolute()]
    if not local:
        shutil.copyfile(source, target)
        return
    _write_json(target, {key: value for key, value in content.items() if key not in local})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), "JSON", preview(str(error)), "save it again")) from error
    if not isinstance(content, dict):
        raise InputError(Problem(str(path), "a JSON object", preview(content), "save it again"))
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
