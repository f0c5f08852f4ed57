"""Checkpoints: room for them before training, a mark on each whole one, and a resume that takes no other.

A save that fails leaves the one before it as it was: older checkpoints go only after a newer one is whole, and what a
failed save left behind carries no mark.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview

MARK: Final = "scale_vqa_checkpoint.json"
"""File that is written last: a checkpoint without it is not whole."""


def fingerprint(model: Any) -> dict[str, Any]:
    """Returns what two models must share for one to go on from the other's checkpoint: class and trained shapes."""
    # a weight that DeepSpeed has dealt out is empty here and notes its own size
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    shapes = sorted((name, list(getattr(weight, "ds_shape", weight.shape))) for name, weight in trained.items())
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return {
        "architecture": type(inner).__name__,
        "trained_parameters": sum(_numbers(weight) for weight in trained.values()),
        "shapes_sha256": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


def _numbers(weight: Any) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))


def mark_whole(folder: Path, print_of: dict[str, Any], step: int) -> None:
    """Marks a checkpoint as whole."""
    (folder / MARK).write_text(json.dumps({"step": step, **print_of}, indent=2) + "\n", encoding="utf-8")


def last_whole(output_dir: str | Path) -> Path | None:
    """Returns the checkpoint of the most steps that carries a mark, None where there is none."""
    whole = [path for path in Path(output_dir).glob("checkpoint-*") if (path / MARK).is_file()]
    return max(whole, key=_step, default=None)


def checkpoint_to_resume(output_dir: str | Path, print_of: dict[str, Any], main_process: bool = True) -> str | None:
    """Returns the checkpoint to go on from, None where the run has none yet; torn ones are removed and named.

    Raises:
        InputError: where the last one is of another architecture or of other trained weights.
    """
    for path in sorted(Path(output_dir).glob("checkpoint-*"), key=_step):
        if not (path / MARK).is_file() and main_process:
            print(f"{path}: not whole, a save was interrupted; removed", file=sys.stderr)
            shutil.rmtree(path, ignore_errors=True)
    found = last_whole(output_dir)
    if found is None:
        return None
    there = json.loads((found / MARK).read_text(encoding="utf-8"))
    differing = [name for name, value in print_of.items() if there.get(name) != value]
    if differing:
        name = differing[0]
        hint = "resume with the model and LoRA settings of that run, or name another output_dir"
        raise InputError(Problem(f"{found}, {name}", preview(print_of[name]), preview(there.get(name)), hint))
    return str(found)


def remove_earlier(output_dir: str | Path) -> None:
    """Removes what an earlier run left: checkpoints, tables of completions, validation answers; names each."""
    folder = Path(output_dir)
    for path in [*sorted(folder.glob("checkpoint-*"), key=_step), folder / "final"]:
        if path.is_dir():
            print(f"{path}: removed, overwrite is on", file=sys.stderr)
            shutil.rmtree(path)
    # the trainer has made the folder of its tables by now: what is in it goes, not the folder
    for path in [*folder.glob("completions/completions_*.parquet"), *folder.glob("validation/answers-*.jsonl")]:
        path.unlink()


def load_weights(model: Any, folder: str | Path) -> None:
    """Loads the weights of a whole model from a checkpoint, all of them.

    The trainer's own loading matches names leniently; a checkpoint of a vision-language model has the names of the
    published format, not those in memory, so it would load nothing, with a warning for all there is to see.

    Raises:
        RuntimeError: where a weight is missing or left over.
    """
    loaded = type(model).from_pretrained(str(folder), dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


def check_room(model: Any, config: Any) -> None:
    """Checks that the disk has room for the checkpoints that are there at a time.

    A checkpoint holds the weights that are trained (all of them, or the adapter) and, unless ``save_only_model``, two
    moments each of AdamW. With ``save_total_limit`` k there are k + 1 for a moment; without it, this looks at one.

    Raises:
        InputError: where it has not, or the folder cannot be written.
    """
    if str(config.save_strategy.value) == "no":
        return
    trained, whole = (
        sum(_numbers(weight) * weight.element_size() for weight in model.parameters() if weight.requires_grad or every)
        for every in (False, True)
    )
    one = (trained if hasattr(model, "peft_config") else whole) + (0 if config.save_only_model else 2 * trained)
    needed = one * (1 + (config.save_total_limit or 0))
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(
            Problem(str(folder), "a folder that can be written", found, "name another output_dir")
        ) from error
    if free < needed:
        expected = f"{needed / 2**30:.2f} GiB free for checkpoints"
        hint = "free room, lower save_total_limit, or set save_only_model: true (which cannot be resumed)"
        raise InputError(Problem(str(folder), expected, f"{free / 2**30:.2f} GiB", hint))


def failed_save(folder: Path, error: BaseException) -> InputError:
    """Returns what to raise after a save that failed; removes what it left, so that the next one has room."""
    shutil.rmtree(folder, ignore_errors=True)
    before = last_whole(folder.parent)
    kept = f"{before.name} is whole" if before is not None else "there is no earlier one"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = f"free room and run the same command with --resume; {kept}"
    return InputError(Problem(str(folder), "a checkpoint that can be written", preview(first, 160), hint))


def _step(path: Path) -> int:
    text = path.name.rpartition("-")[2]
    return int(text) if text.isdigit() else -1
