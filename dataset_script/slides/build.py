"""Builds the ``grounding`` config from slides in three stages over files: plan, render, assemble."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from dataset_script.slides.build_cache import FORMAT, SlideWork, make_plan, make_regions, slide_work, work_root
from dataset_script.slides.build_report import BuildReport, SlideUse, card_note, probe_groups
from dataset_script.slides.exchange_groups import (
    CROSSABLE,
    GroundingGroup,
    cross_slide_groups,
    group_rows,
    same_slide_groups,
)
from dataset_script.slides.plan import GroundingSettings
from dataset_script.slides.slide_files import read_splits
from dataset_script.slides.workers import run_all, worker_pool
from dataset_script.splits import SPLIT_TABLE, SPLITS, patient_splits, split_table
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.release_folder.write import (
    link_or_copy,
    row_features,
    row_tables,
    shard_names,
    staged_release,
    write_parts,
)

CONFIG: Final = "grounding"
BLOCK_BYTES: Final = 250_000_000
"""Regions of the slides of one block, from which one worker writes a shard."""
MIN_TASKS: Final = 64
"""With fewer slides than this, the rendering of a slide is cut into several tasks, so that all workers have some."""

Notify = Callable[[str], None]


def build_slides(
    slides: Sequence[Path],
    patients: Mapping[str, str],
    settings: GroundingSettings,
    out: Path,
    workers: int,
    notify: Notify,
    work: Path | None = None,
    ray: str | None = None,
    splits: Mapping[str, str] | None = None,
    last_stage: str = "assemble",
) -> BuildReport | None:
    """Makes grounding questions of slides and writes them into a release folder.

    Finished work is kept as files in the work folder: killed at any point and called again, the build resumes, and the
    bytes are the same, as they are for any number of workers and on Ray.

    Args:
        slides: slide files, no two of one stem.
        patients: slide name -> patient.
        settings: what to make.
        out: the release folder.
        workers: processes that read slides.
        notify: called with lines for the terminal.
        work: the work folder, which is kept; slides that it has are not planned or rendered again. None takes a hidden
            folder beside ``out``, which is removed once ``out`` is complete.
        ray: address of a Ray cluster, or ``local``, that runs the stages.
        splits: patient -> split of patients that have one. None takes those of the build that ``out`` holds, if its
            seed is the same.
        last_stage: ``plan``, ``render`` or ``assemble``; after the first two, None is returned.

    Raises:
        InputError: with all problems of the slides, or if no question can be made; nothing is written then.
    """
    root = (work or work_root(out)).absolute()
    works = [slide_work(root, slide.absolute() if ray else slide, settings) for slide in slides]
    _clear_stale(root, works, keep=work is not None)
    _notify_dropped(out, patients, notify)
    with worker_pool(workers, ray) as run:
        run_all(run, make_plan, [(work, settings) for work in works], "slides planned")
        for one in works:
            for note in one.plan().notes:
                notify(f"{one.slide.stem}: {note}")
        if last_stage == "plan":
            return None
        run_all(run, make_regions, list(_render_tasks(works, settings)), "slides rendered")
        if last_stage == "render":
            return None
        fixed = _earlier_splits(out, settings, notify) if splits is None else splits
        if absent := sorted(set(splits or ()) - set(patients.values())):
            notify(f"{len(absent)} of {len(fixed)} patients with a given split have no slide here: {_first(absent)}")
        split_of = _splits(works, patients, settings, fixed)
        blocks = list(_blocks(root, works, patients, settings, split_of))
        _notify_uncrossed(blocks, notify)
        tally = _Tally()
        named = ((block.split, group) for block in blocks for group in block.groups())
        probes = probe_groups(tally.counted(named), settings.seed)
        if not tally.kinds:
            if work is None:
                shutil.rmtree(root)
            raise InputError([_unused(one) for one in works])
        run_all(run, write_block, blocks, "shards written")
    uses = tuple(_use(one, patients[one.slide.stem], tally) for one in works)
    counts = {split: tally.splits[split] for split in SPLITS if tally.splits[split]}
    kinds = {kind: tally.kinds[kind] for kind in settings.kinds if tally.kinds[kind]}
    report = BuildReport(uses, counts, kinds, tuple(probes), settings)
    with staged_release(out, {CONFIG}, {CONFIG: card_note(report)}) as staging:
        folder = staging / CONFIG
        folder.mkdir()
        for split in counts:
            parts = [part for block in blocks if block.split == split for part in sorted(block.folder.iterdir())]
            for part, name in zip(parts, shard_names(split, len(parts)), strict=True):
                link_or_copy(part, folder / name)
        (folder / "build.json").write_text(report.as_json(), encoding="utf-8", newline="\n")
        (folder / SPLIT_TABLE).write_bytes(split_table({use.patient: use.split for use in uses if use.split}))
    shutil.rmtree(root / "blocks" if work is not None else root)
    return report


def _notify_dropped(out: Path, patients: Mapping[str, str], notify: Notify) -> None:
    """Warns of slides of the build that ``out`` holds that this build was not given: they will no longer be in it."""
    try:
        uses = json.loads((out / CONFIG / "build.json").read_text(encoding="utf-8"))["slides"]
        dropped = sorted({use["slide"] for use in uses} - patients.keys())
    except (OSError, ValueError, KeyError, TypeError):
        return
    if dropped:
        notify(f"{out} will no longer hold {len(dropped)} slides that are not named now: {_first(dropped)}")


def _first(names: Sequence[str]) -> str:
    """Returns the first five names."""
    return ", ".join(map(preview, names[:5])) + (", ..." if len(names) > 5 else "")


def _earlier_splits(out: Path, settings: GroundingSettings, notify: Notify) -> dict[str, str]:
    """Returns the split table of the build that ``out`` holds; empty if there is none, or it had another seed."""
    table, report = out / CONFIG / SPLIT_TABLE, out / CONFIG / "build.json"
    if not table.is_file():
        return {}
    try:
        same = (
            not report.exists() or json.loads(report.read_text(encoding="utf-8"))["settings"]["seed"] == settings.seed
        )
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        notify(f"patients are split anew: the build in {out} had another seed")
        return {}
    notify(f"patients keep the splits of {table}; give another table with --splits to change them")
    return read_splits(table)


@dataclass(frozen=True)
class Block:
    """Slides of one split whose rows one worker writes.

    Attributes:
        split: its name.
        works: the cached work on each slide.
        patients: slide -> patient of these slides.
        settings: the settings of the build.
        folder: where the shards of the block lie once it is written.
    """

    split: str
    works: tuple[SlideWork, ...]
    patients: Mapping[str, str]
    settings: GroundingSettings
    folder: Path

    @property
    def slide(self) -> str:
        """The slides, for messages."""
        return f"the {len(self.works)} slides of {self.split} from {self.works[0].slide} on"

    def groups(self) -> Iterator[GroundingGroup]:
        """Yields the groups in the order of their rows; what shows the same fields comes together."""
        crossed = CROSSABLE if self.settings.distractors == "cross-slide" else frozenset()
        seed = self.settings.seed
        for work in self.works:
            kinds = [same_slide_groups(work, kind, seed) for kind in self.settings.kinds if kind not in crossed]
            yield from (group for groups in zip_longest(*kinds) for group in groups if group is not None)
        for kind in self.settings.kinds:
            if kind in crossed:
                yield from cross_slide_groups(self.works, self.patients, kind, self.split, seed)


def write_block(block: Block) -> tuple[Problem, ...]:
    """Writes the rows of a block as Parquet files into its folder, unless that is done; a folder appears complete."""
    if block.folder.exists():
        return ()
    features = row_features()
    rows = (row for group in block.groups() for row in group_rows(group, block.patients, block.settings.seed))
    partial = block.folder.with_name(f".{block.folder.name}.{os.urandom(4).hex()}")
    try:
        write_parts(partial, "part", features.arrow_schema, row_tables(rows, features))
        partial.rename(block.folder)
    except OSError:
        if not block.folder.exists():  # else a worker that counted as lost has written it
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ()


def _blocks(
    root: Path,
    works: Sequence[SlideWork],
    patients: Mapping[str, str],
    settings: GroundingSettings,
    split_of: Mapping[str, str],
) -> Iterator[Block]:
    """Yields the slides of each split in blocks of about ``BLOCK_BYTES`` of regions; a small rest joins the last."""
    for split in SPLITS:
        cut: list[list[SlideWork]] = [[]]
        size = 0
        for work in works:
            if split_of.get(patients[work.slide.stem]) != split:
                continue
            if size > BLOCK_BYTES:
                cut.append([])
                size = 0
            cut[-1].append(work)
            size += sum(work.archive(*batch).stat().st_size for batch in work.batches())
        if len(cut) > 1 and size < BLOCK_BYTES / 2:
            cut[-2] += cut.pop()
        for members in filter(None, cut):
            named = {work.slide.stem: patients[work.slide.stem] for work in members}
            key = sha256_json([FORMAT, split, [[work.folder.name for work in members], named]])[:32]
            yield Block(split, tuple(members), named, settings, root / "blocks" / key)


def _render_tasks(works: Sequence[SlideWork], settings: GroundingSettings) -> Iterator[Any]:
    parts = -(-MIN_TASKS // len(works))
    for work in works:
        batches = tuple(work.batches())
        step = max(1, -(-len(batches) // parts))
        yield from ((work, settings, batches[start : start + step]) for start in range(0, len(batches), step))


class _Tally:
    """Counts questions by split, kind and slide while groups pass by."""

    def __init__(self) -> None:
        self.splits: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.slides: dict[str, Counter[str]] = {}
        self.split_of: dict[str, str] = {}

    def counted(self, groups: Iterable[tuple[str, GroundingGroup]]) -> Iterator[GroundingGroup]:
        for split, group in groups:
            self.splits[split] += GROUP_SIZE
            self.kinds[group.kind] += GROUP_SIZE
            for member in group.members:
                self.slides.setdefault(member.slide, Counter())[group.kind] += 1
                self.split_of[member.slide] = split
            yield group


def _clear_stale(root: Path, works: Sequence[SlideWork], keep: bool) -> None:
    """Removes files that were being written; without ``keep``, also work on other slides or settings.

    Raises:
        InputError: if the folder holds anything else than finished work; nothing is removed then.
    """
    current = {"blocks", *(work.folder.name for work in works)}
    entries = [entry for entry in root.glob("*") if not entry.name.startswith(".")]
    for entry in [*entries, *root.glob("blocks/*")]:
        if not re.fullmatch(r"blocks|\.?[0-9a-f]{32}(\.[0-9a-f]{8})?", entry.name):
            expected, hint = "a new folder, or one with finished work of this command", "name another --work"
            raise InputError(Problem(str(root), expected, f"{preview(str(entry.relative_to(root)))} in it", hint))
    Path(os.path.realpath(root), "blocks").mkdir(parents=True, exist_ok=True)
    for folder in [*entries, root / "blocks"]:
        if folder.name not in current:
            if not keep:
                shutil.rmtree(folder)
            continue
        for partial in folder.glob(".*"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _splits(
    works: Sequence[SlideWork], patients: Mapping[str, str], settings: GroundingSettings, fixed: Mapping[str, str]
) -> dict[str, str]:
    """Returns patient -> split; patients without a group have none."""
    paths: Counter[str] = Counter()
    for work in works:
        count = sum(len(groups) * len(settings.kinds_of(layout)) for layout, groups in work.plan().groups.items())
        if count:
            paths[patients[work.slide.stem]] += GROUP_SIZE * count
    return patient_splits(paths, settings.seed, fixed=fixed) if paths else {}


def _notify_uncrossed(blocks: Sequence[Block], notify: Notify) -> None:
    """Warns of blocks that have too few patients for options from other slides."""
    for block in blocks:
        kinds = ", ".join(kind for kind in block.settings.kinds if kind in CROSSABLE)
        count = len(set(block.patients.values()))
        if block.settings.distractors == "cross-slide" and kinds and count < GROUP_SIZE:
            notify(
                f"{block.split}: no {kinds} with cross-slide distractors: it has {count} patients, and four are needed"
            )


def _use(work: SlideWork, patient: str, tally: _Tally) -> SlideUse:
    plan = work.plan()
    size = (round(plan.extent[0] / 1000, 3), round(plan.extent[1] / 1000, 3))
    questions = dict(tally.slides.get(plan.slide, {}))
    return SlideUse(plan.slide, patient, tally.split_of.get(plan.slide), size, questions, plan.notes)


def _unused(work: SlideWork) -> Problem:
    notes = "; ".join(work.plan().notes) or "none"
    hint = "give other slides; if they have tissue, a smaller --size or a lower --min-tissue gives more fields"
    if not any(work.plan().groups.values()) and notes.startswith("refused: "):
        hint = "follow that advice, or leave the slide out"
    return Problem(str(work.slide), "fields for at least one group of four questions", notes, hint)
