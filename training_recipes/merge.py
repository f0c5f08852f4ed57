"""Exports a checkpoint as a standard model folder: an adapter merged into its base, optimiser states left behind.

    python training_recipes/merge.py outputs/grpo-1gpu-lora/final --out scale-reasoner

The folder loads with ``from_pretrained``, with ``scale-vqa predict --backend transformers`` and with vLLM: weights
under the published names, config, generation config, processor, and the run's ``training_metadata.json``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from training_recipes.metadata import NAME

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def export(checkpoint: Path, out: Path, base: str | None = None, dtype: str = "auto") -> Path:
    """Writes a checkpoint as a standard model folder; it appears whole or not at all.

    Args:
        checkpoint: folder with an adapter, or with a whole model.
        out: folder that is not there yet.
        base: base model of an adapter, where its own note of it does not lead anywhere.
        dtype: type of the weights; ``auto`` keeps that of the base or the checkpoint.

    Raises:
        InputError: where the checkpoint is none, its base cannot be loaded, or ``out`` is there.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if out.exists():
        raise InputError(Problem(str(out), "a folder that is not there yet", "one", "name another --out or remove it"))
    if not checkpoint.is_dir():
        raise InputError(Problem(str(checkpoint), "a checkpoint folder", "nothing there", "name another folder"))
    adapter = (checkpoint / "adapter_config.json").is_file()
    source = (base or _base_of(checkpoint)) if adapter else str(checkpoint)
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        hint = "name the adapter's base model by --base" if adapter else "name a folder with config.json and weights"
        raise InputError(Problem(source, "a vision-language model", preview(str(error), 200), hint)) from error
    if adapter:
        model = _merged(model, checkpoint)
    staged = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    place = checkpoint if _has_processor(checkpoint) else Path(source)
    AutoProcessor.from_pretrained(str(place)).save_pretrained(staged)
    for folder in (checkpoint, checkpoint.parent):
        if (folder / NAME).is_file():
            shutil.copyfile(folder / NAME, staged / NAME)
            break
    staged.rename(out)
    return out


def _merged(model: Any, checkpoint: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        expected, found = "an adapter that fits the base model", preview(str(error).splitlines()[0], 200)
        raise InputError(Problem(str(checkpoint), expected, found, "name its own base model by --base")) from error


def _base_of(checkpoint: Path) -> str:
    settings = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
    name = settings.get("base_model_name_or_path")
    if not name:
        raise InputError(Problem(str(checkpoint), "an adapter that names its base", "none", "name it by --base"))
    return str(name)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not be there.")
@click.option("--base", default=None, help="Base model of an adapter.  [default: the one it notes]")
@click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True)
def main(checkpoint: Path, out: Path, base: str | None, dtype: str) -> None:
    """Export CHECKPOINT as a standard model folder, an adapter merged into its base."""
    click.echo(export(checkpoint, out, base, dtype))


if __name__ == "__main__":
    from training_recipes.launch import reported

    reported(main)
