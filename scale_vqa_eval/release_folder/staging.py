"""Puts a release folder together beside its final place and moves it there, so that no half folder ever loads.

A folder's card is what makes it load, and it comes with the rename: a process killed at any moment leaves either the
old folder, the new one, or a hidden sibling that the next call clears.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.question_files import release_configs
from scale_vqa_eval.release_folder.card import write_card
from scale_vqa_eval.schema import CONFIGS


@contextlib.contextmanager
def staged_release(out: str | Path, configs: Set[str], notes: Mapping[str, str]) -> Iterator[Path]:
    """Yields a hidden folder to write ``configs`` into; on leaving, writes the card and takes the place of ``out``.

    Everything else that ``out`` holds already stays: its other configs and any file beside them.

    Args:
        out: the release folder; made, or extended where it is one already.
        configs: the configs that the caller writes as ``<config>/<split>-<shard>-of-<shards>.parquet``.
        notes: config -> Markdown paragraph for the card.

    Raises:
        InputError: where ``out`` holds something that is no release folder.
    """
    out = Path(out).absolute()
    staging = out.with_name(f".{out.name}.partial")
    retired = out.with_name(f".{out.name}.retired")
    recover_release(out)
    kept = _entries_to_keep(out, configs)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for entry in kept:
            if entry.is_dir():
                shutil.copytree(entry, staging / entry.name, copy_function=_link_or_copy)
            else:
                _link_or_copy(str(entry), str(staging / entry.name))
        yield staging
        write_card(staging, notes, previous=out / "README.md")
        _swap(staging, out, retired)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def recover_release(out: str | Path) -> None:
    """Brings back the folder of a run that was killed between the two renames that put a new one in its place."""
    out = Path(out).absolute()
    retired = out.with_name(f".{out.name}.retired")
    if retired.exists():
        if out.exists():
            shutil.rmtree(retired)
        else:
            retired.rename(out)


def _entries_to_keep(out: Path, replaced: Set[str]) -> list[Path]:
    unknown = sorted(replaced - set(CONFIGS))
    if unknown:
        raise ValueError(f"unknown config {', '.join(unknown)}; a release folder has {', '.join(CONFIGS)}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not out.is_dir():
        raise InputError(Problem(str(out), "a folder", "a file", "name another --out"))
    try:
        release_configs(out)
    except InputError as error:
        found = "a folder that holds something else"
        problem = Problem(str(out), "no folder yet, or a release folder", found, "name another --out")
        raise InputError(problem) from error
    return sorted(entry for entry in out.iterdir() if entry.name not in {*replaced, "README.md"})


def _link_or_copy(source: str, target: str) -> None:
    """Hard-links a file that stays as it is (no second copy of large shards); copies where links are not to be had."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap(staging: Path, out: Path, retired: Path) -> None:
    if out.exists():
        out.rename(retired)
    try:
        staging.rename(out)
    except OSError:
        with contextlib.suppress(OSError):
            retired.rename(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)
