"""``scale-vqa weights``: prepares a checkpoint for publication, and merges LoRA adapters.

A full checkpoint is copied as a stream. Merging an adapter, or converting to another dtype, loads the model into
memory once.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click
from tqdm import tqdm

from model_card.tensors import (
    ADAPTER_WEIGHTS,
    TOLERANCE,
    load_model,
    read_tensors,
    same_logits,
    tensor_digests,
    tensors_of_file,
    write_shards,
)
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import exclusive_output, write_json

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
"""Files that are copied with the weights. Others, such as optimizer states and pickles, are not."""
ADAPTER_CONFIG: Final = "adapter_config.json"
_PATH_KEYS: Final = ("_name_or_path", "name_or_path")
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
"""What is needed to load a model -> sets of files, one of which must be complete."""


@dataclass(frozen=True)
class PreparedWeights:
    """A folder of weights that is ready for publication.

    Attributes:
        kind: ``full`` (a copy with the same bytes per tensor), ``merged`` (LoRA merged into its base), ``converted``
            (to another dtype) or ``adapter``.
        tensors: number of tensors.
        size: bytes of the weight files.
        shards: names of the weight files.
        base: base model of an adapter, or None.
    """

    folder: Path
    kind: Literal["full", "merged", "converted", "adapter"]
    tensors: int
    size: int
    shards: tuple[str, ...]
    base: str | None = None


def _size(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", value.strip(), re.IGNORECASE):
        raise click.BadParameter(f"{value!r} is not a size such as 5GB or 500MB")
    return value


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="New folder.")
@click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", callback=_size, help="Largest weight file."
)
@click.option("--base", metavar="MODEL", help="Base model of a LoRA adapter, and source of missing files.")
@click.option("--keep-adapter", is_flag=True, help="Leave a LoRA adapter unmerged.  [default: merge it]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Dtype of the weights; auto keeps that of the checkpoint or its base.",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Load source and result, one after the other, and compare their logits.",
)
def weights(
    checkpoint: Path, out: Path, max_shard_size: str, base: str | None, keep_adapter: bool, dtype: str, check: bool
) -> int:
    """Prepare CHECKPOINT for publication: safetensors shards, processor, chat template, generation config.

    A LoRA adapter is merged into its base. Exit 1 if the logits differ from those of CHECKPOINT.
    """
    new = prepare_weights(checkpoint, out, max_shard_size, not keep_adapter, base, dtype)
    click.echo(f"{new.folder}: {new.kind}, {new.tensors} tensors, {new.size} bytes, {len(new.shards)} files")
    if not check:
        return 0
    tolerance = max(TOLERANCE.values()) if dtype != "auto" else None if new.kind == "merged" else 0.0
    own = (checkpoint / "tokenizer_config.json").is_file()  # many adapters have no processor
    result = same_logits(checkpoint, out, tolerance, base or new.base, processor=None if own else out)
    verdict = "the same" if result.same else "NOT the same"
    click.echo(
        f"logits of {result.tokens} tokens: {verdict}; largest difference {result.difference:.3g} standard "
        f"deviations, allowed {result.tolerance:.3g}"
        + (f"; inputs differ: {', '.join(result.inputs)}" if result.inputs else ""),
        err=not result.same,
    )
    return 0 if result.same else 1


def prepare_weights(
    checkpoint: str | Path,
    out: str | Path,
    max_shard_size: int | str = "5GB",
    merge_lora: bool = True,
    base: str | Path | None = None,
    dtype: str = "auto",
) -> PreparedWeights:
    """Prepares a checkpoint for publication: safetensors shards, processor, chat template, configs.

    Args:
        checkpoint: a full checkpoint (``model*.safetensors``) or a LoRA adapter (``adapter_config.json``).
        out: a new folder; it is complete or does not exist.
        max_shard_size: size of the largest weight file in bytes, or a text such as ``5GB``.
        merge_lora: whether to merge an adapter into its base model.
        base: folder or Hub id of the base model, instead of the one in an adapter's config, which it replaces if the
            adapter is kept. Also the source of files that the checkpoint lacks.
        dtype: dtype of the weights; ``auto`` keeps that of the checkpoint or its base.

    Raises:
        InputError: listing everything that is missing or broken.
    """
    source, out = Path(checkpoint), Path(out).absolute()
    if not source.is_dir():
        raise InputError(Problem(str(source), "the folder of a checkpoint", "no folder", "name one"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(Problem(str(out), "a new folder", "one with files", "name another, or empty it"))
    adapter = (source / ADAPTER_CONFIG).is_file()
    adapter_base = _base_of(source, base) if adapter else None
    kind: Any = ("merged" if merge_lora else "adapter") if adapter else "full" if dtype == "auto" else "converted"
    with _staging(out) as staging:
        _copy_side_files(source, staging, base if base is not None else adapter_base, kind == "adapter")
        if kind == "full":
            _copy_full(source, staging, max_shard_size)
        elif kind == "adapter":
            _copy_adapter(source, staging, adapter_base or "")
        else:
            _save_loaded(source, staging, adapter_base, max_shard_size, dtype)
    files = sorted(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    tensors = tensors_of_file(out / ADAPTER_WEIGHTS) if kind == "adapter" else read_tensors(out)
    return PreparedWeights(out, kind, len(tensors), size, tuple(file.name for file in files), adapter_base)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yields a hidden folder that is renamed to ``out`` at the end, or removed after an error."""
    with exclusive_output(out) as target:
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            if target.exists():
                target.rmdir()  # it is empty
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _copy_full(source: Path, out: Path, max_shard_size: int | str) -> None:
    tensors = read_tensors(source)
    total = sum(tensor.size for tensor in tensors.values())
    free = shutil.disk_usage(out).free
    if total > free:
        expected, found = f"disk space for {total / 1e9:.1f} GB of weights", f"{free / 1e9:.1f} GB free"
        raise InputError(Problem(str(out.parent), expected, found, "free some space"))
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=None) as bar:
        read = write_shards(tensors, out, max_shard_size, bar.update)
    if tensor_digests(out) != read:
        hint = "check the disk and run again"
        raise InputError(Problem(str(out), "the weights that were written", "other bytes", hint))


def _save_loaded(source: Path, out: Path, base: str | None, max_shard_size: int | str, dtype: str) -> None:
    """Loads a model, merges an adapter into it with PEFT, and saves it; ``safe_merge`` refuses NaN weights."""
    model = load_model(source, base, dtype)
    if base is not None:
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            found = preview(str(error), 160)
            hint = "train it again"
            raise InputError(Problem(str(source), "an adapter that can be merged", found, hint)) from error
    generation = (out / "generation_config.json").read_bytes()
    model.save_pretrained(out, max_shard_size=max_shard_size)
    (out / "generation_config.json").write_bytes(generation)  # keep the checkpoint's, not the base model's


def _copy_adapter(source: Path, out: Path, base: str) -> None:
    if not (source / ADAPTER_WEIGHTS).is_file():
        raise InputError(Problem(str(source), ADAPTER_WEIGHTS, "no such file", "save the adapter as safetensors"))
    if Path(base).is_absolute() or Path(base).is_dir():
        hint = "give the Hub id of the base model by --base, or merge the adapter"
        raise InputError(Problem(str(source / ADAPTER_CONFIG), "a base that others can load", preview(base), hint))
    shutil.copyfile(source / ADAPTER_WEIGHTS, out / ADAPTER_WEIGHTS)
    write_json(out / ADAPTER_CONFIG, _read_json(source / ADAPTER_CONFIG) | {"base_model_name_or_path": base})


def _base_of(source: Path, base: str | Path | None) -> str:
    config = _read_json(source / ADAPTER_CONFIG)
    named = base if base is not None else config.get("base_model_name_or_path")
    if not named:
        location = str(source / ADAPTER_CONFIG)
        raise InputError(Problem(location, "base_model_name_or_path", "none", "name the base model by --base"))
    return str(named)


def _copy_side_files(source: Path, out: Path, base: str | Path | None, adapter: bool) -> None:
    """Copies the files that loading needs besides the weights, from the checkpoint or else its base."""
    for name in SIDE_FILES:
        if (source / name).is_file() and not (adapter and name == "config.json"):
            _copy_without_paths(source / name, out / name)
    missing = _missing(out, adapter)
    if missing and base is not None:
        folder = _base_folder(str(base))
        # take all files of a kind from the base: two halves of different tokenizers do not work
        for name in sorted({name for kind in missing for files in _NEEDED[kind] for name in files}):
            if (folder / name).is_file():
                _copy_without_paths(folder / name, out / name)
        missing = _missing(out, adapter)
    hint = "save the processor and the model into the folder, or name a base that has them"
    problems = [
        Problem(str(source), f"{kind}: {' or '.join(' + '.join(files) for files in _NEEDED[kind])}", "none", hint)
        for kind in missing
    ]
    if not adapter and (out / "config.json").is_file() and "auto_map" in _read_json(out / "config.json"):
        found = "auto_map in config.json: remote code"
        problems.append(Problem(str(source), "an architecture of transformers", found, "publish it by hand"))
    if problems:
        raise InputError(problems)


def _missing(folder: Path, adapter: bool) -> list[str]:
    """Returns the keys of ``_NEEDED`` without a complete set of files; an adapter needs no configuration."""
    kinds = [kind for kind in _NEEDED if not (adapter and kind == "configuration")]
    found = [kind for kind in kinds if not any(all((folder / name).is_file() for name in s) for s in _NEEDED[kind])]
    configs = [folder / name for name in ("tokenizer_config.json", "processor_config.json")]
    if any("chat_template" in _read_json(config) for config in configs if config.is_file()):
        found = [kind for kind in found if kind != "chat template"]
    return found


def _base_folder(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=list(SIDE_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        hint, found = "name a folder, or a Hub id that this machine can reach", preview(str(error), 160)
        raise InputError(Problem(f"base model {base}", "its processor and configs", found, hint)) from error


def _copy_without_paths(source: Path, target: Path) -> None:
    """Copies a file without the keys of a JSON config that have a local path as value."""
    content = _read_json(source) if source.suffix == ".json" else {}
    local = [key for key in _PATH_KEYS if isinstance(content.get(key), str) and Path(content[key]).is_absolute()]
    if local:
        write_json(target, {key: value for key, value in content.items() if key not in local})
    else:
        shutil.copyfile(source, target)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), "JSON", preview(str(error)), "save it again")) from error
    if not isinstance(content, dict):
        raise InputError(Problem(str(path), "a JSON object", preview(content), "save it again"))
    return content
