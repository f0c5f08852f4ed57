"""Builds the ``grounding`` config from slides: plans, regions, splits, probe, rows, card."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from dataset_script.slides.build_report import BuildReport, SlideUse, card_note
from dataset_script.slides.fours import FOUR
from dataset_script.slides.grounding_rows import group_rows
from dataset_script.slides.groups import CROSSABLE, Group, cross_slide_groups, same_slide_groups
from dataset_script.slides.option_probe import probe_groups
from dataset_script.slides.settings import Settings
from dataset_script.slides.work_folder import SlideWork, slide_work, work_root
from dataset_script.slides.workers import Run, Task, make_plan, make_regions, worker_pool
from dataset_script.splits import SPLITS, patient_splits
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.write import write_release

CONFIG: Final = "grounding"

Tell = Callable[[str], None]


def build_slides(
    slides: Sequence[Path], patients: Mapping[str, str], settings: Settings, out: Path, workers: int, tell: Tell
) -> BuildReport:
    """Makes grounding questions of slides and writes them into a release folder.

    Done work is kept in a hidden folder beside ``out`` until the release folder stands: killed at any point and called
    again, the build goes on where it was, and the bytes are the same; so they are for any number of workers.

    Args:
        slides: slide files, no two of one stem.
        patients: slide name -> patient.
        settings: what to make.
        out: the release folder.
        workers: processes that read slides.
        tell: takes lines for the person who waits.

    Raises:
        InputError: with all faults of the slides, or where no question can be made; nothing is written then.
    """
    root = work_root(out)
    works = [slide_work(root, slide, settings) for slide in slides]
    _clear_stale(root, works)
    with worker_pool(workers) as run:
        _finish(run, make_plan, ((work, settings) for work in works), "slides planned", len(works))
        for work in works:
            for note in work.plan().notes:
                tell(f"{work.slide.stem}: {note}")
        tasks = ((work, settings, layout, start) for work in works for layout, start in work.batches())
        batches = sum(1 for work in works for _ in work.batches())
        _finish(run, make_regions, tasks, "region batches read", batches)
    splits = _splits(works, patients, settings)
    _tell_uncrossed(splits, patients, settings, tell)
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

    def counted(self, groups: Iterable[tuple[str, Group]]) -> Iterator[Group]:
        for split, group in groups:
            self.splits[split] += FOUR
            self.kinds[group.kind] += FOUR
            for member in group.members:
                self.slides.setdefault(member.slide, Counter())[group.kind] += 1
                self.split_of[member.slide] = split
            yield group


def _finish(
    run: Run[Task], function: Callable[[Task], tuple[Problem, ...]], tasks: Iterable[Task], what: str, total: int
) -> None:
    """Runs tasks under a progress bar to the end and raises all their faults together."""
    problems: set[Problem] = set()
    for found in tqdm(run(function, tasks), desc=what, total=total, unit="batch" if "batch" in what else "slide"):
        problems |= set(found)
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


def _splits(works: Sequence[SlideWork], patients: Mapping[str, str], settings: Settings) -> dict[str, list[SlideWork]]:
    """Returns split -> slides, no patient in two; slides without any four are in none."""
    paths: Counter[str] = Counter()
    for work in works:
        count = sum(len(fours) * len(settings.kinds_of(layout)) for layout, fours in work.plan().fours.items())
        if count:
            paths[patients[work.slide.stem]] += FOUR * count
    split_of = patient_splits(paths, settings.seed) if paths else {}
    return {split: [work for work in works if split_of.get(patients[work.slide.stem]) == split] for split in SPLITS}


def _tell_uncrossed(
    splits: Mapping[str, Sequence[SlideWork]], patients: Mapping[str, str], settings: Settings, tell: Tell
) -> None:
    """Names the splits that have too few patients for options from other slides."""
    kinds = ", ".join(kind for kind in settings.kinds if kind in CROSSABLE)
    if settings.distractors != "cross-slide" or not kinds:
        return
    for split, works in splits.items():
        count = len({patients[work.slide.stem] for work in works})
        if count < FOUR:
            tell(f"{split}: no {kinds} with cross-slide distractors: it has {count} patients, and four are needed")


def _all_groups(
    splits: Mapping[str, Sequence[SlideWork]], patients: Mapping[str, str], settings: Settings
) -> Iterator[tuple[str, Group]]:
    for split, works in splits.items():
        yield from ((split, group) for group in _groups(split, works, patients, settings))


def _groups(
    split: str, works: Sequence[SlideWork], patients: Mapping[str, str], settings: Settings
) -> Iterator[Group]:
    """Yields the groups of a split in the order of its rows."""
    crossed = CROSSABLE if settings.distractors == "cross-slide" else frozenset()
    for work in works:
        for kind in settings.kinds:
            if kind not in crossed:
                yield from same_slide_groups(work, kind, settings.seed)
    for kind in settings.kinds:
        if kind in crossed:
            yield from cross_slide_groups(works, patients, kind, split, settings.seed)


def _rows(groups: Iterable[Group], patients: Mapping[str, str], seed: int, bar: Any) -> Iterator[dict[str, Any]]:
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
