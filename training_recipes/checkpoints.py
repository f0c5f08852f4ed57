"""Checkpoints: a mark on each complete one, a resume that accepts no other, and clear errors of a full disk.

A save that fails leaves the one before it as it was: older checkpoints are deleted only after a newer one is written.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from scale_vqa_eval.errors import InputError, Problem, first_line, preview
from scale_vqa_eval.files import sha256_json, write_json

MARK: Final = "scale_vqa_checkpoint.json"
"""File that is written last: a checkpoint without it is not complete."""
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
_DISK_MESSAGES: Final = ("os error", "No space left", "I/O error", "PytorchStreamWriter", "file write failed")
"""What safetensors and torch make of an OSError."""


class MarkCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete once every process has saved its part.

    Attributes:
        trained: the ``fingerprint`` of the model.
    """

    def __init__(self, trained: dict[str, Any]) -> None:
        self.trained = trained

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if args.should_save:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_json(folder / MARK, {"step": state.global_step, **self.trained})


def fingerprint(model: Any) -> dict[str, Any]:
    """Returns what a model must share with a checkpoint to continue from it: class and shapes of trained weights."""
    # a weight that DeepSpeed has sharded is empty here and notes its own size
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    shapes = sorted((name, list(getattr(weight, "ds_shape", weight.shape))) for name, weight in trained.items())
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return {
        "architecture": type(inner).__name__,
        "trained_parameters": sum(_numel(weight) for weight in trained.values()),
        "shapes_sha256": sha256_json(shapes),
    }


def _numel(weight: Any) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))


def bytes_of_checkpoint(model: Any, upcast: bool = False) -> tuple[int, int]:
    """Returns the bytes of the weights that are saved (all, or the adapter), and of AdamW's two moments.

    ``upcast`` counts trained weights as float32, as accelerate makes them under FSDP2 with mixed precision.
    """
    saved, moments = 0, 0
    for weight in model.parameters():
        size = _numel(weight) * (4 if upcast and weight.requires_grad else weight.element_size())
        moments += 2 * size if weight.requires_grad else 0
        saved += size if weight.requires_grad or not hasattr(model, "peft_config") else 0
    return saved, moments


def last_complete(output_dir: str | Path) -> Path | None:
    """Returns the complete checkpoint with the most steps, or None."""
    return next((path for path in reversed(_checkpoints(output_dir)) if (path / MARK).is_file()), None)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    steps = {path: path.name.rpartition("-")[2] for path in Path(output_dir).glob("checkpoint-*")}
    return sorted(steps, key=lambda path: int(steps[path]) if steps[path].isdigit() else -1)


def remove_incomplete(output_dir: str | Path) -> list[Path]:
    """Removes checkpoints whose save was interrupted; returns them."""
    torn = [path for path in _checkpoints(output_dir) if not (path / MARK).is_file()]
    for path in torn:
        shutil.rmtree(path, ignore_errors=True)
    return torn


def checkpoint_to_resume(output_dir: str | Path, trained: dict[str, Any], main_process: bool = True) -> str | None:
    """Returns the checkpoint to continue from, or None; incomplete ones are removed and named.

    Raises:
        InputError: if the last one is of another architecture or has other trained weights.
    """
    for path in remove_incomplete(output_dir) if main_process else ():
        print(f"{path}: not complete, its save was interrupted; removed", file=sys.stderr)
    found = last_complete(output_dir)
    if found is None:
        return None
    saved = json.loads((found / MARK).read_text(encoding="utf-8"))
    for name, value in trained.items():
        if saved.get(name) != value:
            hint = "resume with the model and LoRA settings of that run, or name another output_dir"
            raise InputError(Problem(f"{found}, {name}", preview(value), preview(saved.get(name)), hint))
    return str(found)


def remove_earlier(output_dir: str | Path) -> None:
    """Removes what an earlier run left: checkpoints, tables of completions, validation answers; names each."""
    folder = Path(output_dir)
    for path in [*_checkpoints(folder), folder / "final"]:
        if path.is_dir():
            print(f"{path}: removed, overwrite is on", file=sys.stderr)
            shutil.rmtree(path)
    # the trainer has made the folder of its tables by now: the files go, the folder stays
    for path in [*folder.glob("completions/completions_*.parquet"), *folder.glob("validation/answers-*.jsonl")]:
        path.unlink()


def load_weights(model: Any, folder: str | Path) -> None:
    """Loads all weights of a model from a checkpoint.

    The trainer's own loading matches names leniently; a checkpoint of a vision-language model has the names of the
    published format, not those in memory, so it would load nothing, with a warning only.

    Raises:
        RuntimeError: if a weight is missing or left over.
    """
    loaded = type(model).from_pretrained(str(folder), dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


@contextmanager
def disk_errors(output_dir: str | Path, folder: Path | None = None) -> Iterator[None]:
    """Turns an error of the disk into one clear error, and removes what was half written.

    Args:
        output_dir: of the run.
        folder: what is being written; None for whatever a training run writes.

    Raises:
        InputError: naming the checkpoint that is complete.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = str(error).strip()
        known = error.errno in _DISK_ERRORS if isinstance(error, OSError) else any(m in text for m in _DISK_MESSAGES)
        if not known:
            raise
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        torn = remove_incomplete(output_dir)
        complete = last_complete(output_dir)
        kept = f"{complete.name} is complete" if complete is not None else "there is no earlier checkpoint"
        location, hint = folder or (torn or [output_dir])[-1], f"free disk space and run again with --resume; {kept}"
        found = first_line(error)
        raise InputError(Problem(str(location), "a disk that can be written", found, hint)) from error
