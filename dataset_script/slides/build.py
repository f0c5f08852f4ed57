"""Builds the ``grounding`` config from slides: plans, regions, splits, probe, rows, card."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from dataset_script.slides.build_cache import SlideWork, make_plan, make_regions, slide_work, work_root
from dataset_script.slides.build_report import BuildReport, SlideUse, card_note
from dataset_script.slides.exchange_groups import (
    CROSSABLE,
    GroundingGroup,
    cross_slide_groups,
    group_rows,
    same_slide_groups,
)
from dataset_script.slides.settings import GroundingSettings
from dataset_script.slides.shortcut_probe import probe_groups
from dataset_script.slides.workers import Task, TaskRunner, worker_pool
from dataset_script.splits import SPLITS, patient_splits
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.write import write_release

CONFIG: Final = "grounding"

Notify = Callable[[str], None]


def build_slides(
    slides: Sequence[Path],
    patients: Mapping[str, str],
    settings: GroundingSettings,
    out: Path,
    workers: int,
    notify: Notify,
) -> BuildReport:
    """Makes grounding questions of slides and writes them into a release folder.

    Finished work is kept in a hidden folder beside ``out`` until the release folder is complete: killed at any point
    and called again, the build resumes, and the bytes are the same, as they are for any number of workers.

    Args:
        slides: slide files, no two of one stem.
        patients: slide name -> patient.
        settings: what to make.
        out: the release folder.
        workers: processes that read slides.
        notify: called with lines for the terminal.

    Raises:
        InputError: with all problems of the slides, or where no question can be made; nothing is written then.
    """
    root = work_root(out)
    works = [slide_work(root, slide, settings) for slide in slides]
    _clear_stale(root, works)
    with worker_pool(workers) as run:
        _finish(run, make_plan, ((work, settings) for work in works), "slides planned", len(works))
        for work in works:
            for note in work.plan().notes:
                notify(f"{work.slide.stem}: {note}")
        tasks = ((work, settings, layout, start) for work in works for layout, start in work.batches())
        batches = sum(1 for work in works for _ in work.batches())
        _finish(run, make_regions, tasks, "region batches read", batches)
    splits = _splits(works, patients, settings)
    _notify_uncrossed(splits, patients, settings, notify)
    tally = _Tally()
    probes = probe_groups(tally.counted(_all_groups(splits, patients, settings)), settings.seed)
    if not tally.kinds:
        shutil.rmtree(root)
        raise InputError([_unused(work) for work in works])
    uses = tuple(_use(work, patients[work.slide.stem], tally) for work in works)
    counts = {split: tally.splits[split] for split in SPLITS if tally.splits[split]}
    kinds = {kind: tally.kinds[kind] for kind in settings.kinds if tally.kinds[kind]}
    report = BuildReport(uses, counts, kinds, tuple(probes), settings)
    with tqdm(total=report.questions, desc="rows written", unit="row") as bar:
        rows = {
            split: _rows(_groups(split, splits[split], patients, settings), patients, settings.seed, bar)
            for split in counts
        }
        files = {f"{CONFIG}/build.json": report.as_json().encode()}
        write_release(out, {CONFIG: rows}, {CONFIG: card_note(report)}, files=files)
    shutil.rmtree(root)
    return report


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


def _finish(
    run: TaskRunner[Task],
    function: Callable[[Task], tuple[Problem, ...]],
    tasks: Iterable[Task],
    what: str,
    total: int,
) -> None:
    """Runs all tasks under a progress bar and raises their problems together."""
    problems: set[Problem] = set()
    for problems_found in tqdm(
        run(function, tasks), desc=what, total=total, unit="batch" if "batch" in what else "slide"
    ):
        problems |= set(problems_found)
    if problems:
        raise InputError(sorted(problems))


def _clear_stale(root: Path, works: Sequence[SlideWork]) -> None:
    """Removes what an earlier build of other slides or settings left, and files that were being written."""
    root.mkdir(parents=True, exist_ok=True)
    current = {work.folder.name for work in works}
    for folder in root.iterdir():
        if folder.name not in current:
            shutil.rmtree(folder)
            continue
        for partial in folder.glob(".*"):
            partial.unlink()


def _splits(
    works: Sequence[SlideWork], patients: Mapping[str, str], settings: GroundingSettings
) -> dict[str, list[SlideWork]]:
    """Returns split -> slides, no patient in two; slides without a group are in none."""
    paths: Counter[str] = Counter()
    for work in works:
        count = sum(len(groups) * len(settings.kinds_of(layout)) for layout, groups in work.plan().groups.items())
        if count:
            paths[patients[work.slide.stem]] += GROUP_SIZE * count
    split_of = patient_splits(paths, settings.seed) if paths else {}
    return {split: [work for work in works if split_of.get(patients[work.slide.stem]) == split] for split in SPLITS}


def _notify_uncrossed(
    splits: Mapping[str, Sequence[SlideWork]], patients: Mapping[str, str], settings: GroundingSettings, notify: Notify
) -> None:
    """Warns of splits that have too few patients for options from other slides."""
    kinds = ", ".join(kind for kind in settings.kinds if kind in CROSSABLE)
    if settings.distractors != "cross-slide" or not kinds:
        return
    for split, works in splits.items():
        count = len({patients[work.slide.stem] for work in works})
        if count < GROUP_SIZE:
            notify(f"{split}: no {kinds} with cross-slide distractors: it has {count} patients, and four are needed")


def _all_groups(
    splits: Mapping[str, Sequence[SlideWork]], patients: Mapping[str, str], settings: GroundingSettings
) -> Iterator[tuple[str, GroundingGroup]]:
    for split, works in splits.items():
        yield from ((split, group) for group in _groups(split, works, patients, settings))


def _groups(
    split: str, works: Sequence[SlideWork], patients: Mapping[str, str], settings: GroundingSettings
) -> Iterator[GroundingGroup]:
    """Yields the groups of a split in the order of its rows."""
    crossed = CROSSABLE if settings.distractors == "cross-slide" else frozenset()
    for work in works:
        for kind in settings.kinds:
            if kind not in crossed:
                yield from same_slide_groups(work, kind, settings.seed)
    for kind in settings.kinds:
        if kind in crossed:
            yield from cross_slide_groups(works, patients, kind, split, settings.seed)


def _rows(
    groups: Iterable[GroundingGroup], patients: Mapping[str, str], seed: int, bar: Any
) -> Iterator[dict[str, Any]]:
    for group in groups:
        for row in group_rows(group, patients, seed):
            bar.update()
            yield row


def _use(work: SlideWork, patient: str, tally: _Tally) -> SlideUse:
    plan = work.plan()
    size = (round(plan.extent[0] / 1000, 3), round(plan.extent[1] / 1000, 3))
    questions = dict(tally.slides.get(plan.slide, {}))
    return SlideUse(plan.slide, patient, tally.split_of.get(plan.slide), size, questions, plan.notes)


def _unused(work: SlideWork) -> Problem:
    notes = "; ".join(work.plan().notes) or "none"
    hint = "give slides with more tissue, a smaller --size, other --views, or a lower --min-tissue"
    return Problem(str(work.slide), "fields for at least one group of four questions", notes, hint)
