"""The steps of the curation, each from the files of the one before: decompose, generate, screen, construct."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dataset_script.curate.asking.limits import left_over, shared_out, spent_by, summed
from dataset_script.curate.asking.prompts import prompt_accounts
from dataset_script.curate.asking.role import Role, with_format
from dataset_script.curate.asking.settings import RoleSettings, Settings
from dataset_script.curate.engine import run_shards
from dataset_script.curate.features.captions import CaptionedPath
from dataset_script.curate.features.step import DecomposeTask, decompose_shard
from dataset_script.curate.questions.companions import companions
from dataset_script.curate.questions.drafts import Draft, Order
from dataset_script.curate.questions.drafts import reply_schema as question_schema
from dataset_script.curate.questions.items import Item, Place
from dataset_script.curate.questions.options import assemble
from dataset_script.curate.questions.plan import PathPlan, plan_questions
from dataset_script.curate.questions.planned_sets import plan_sets
from dataset_script.curate.questions.step import DraftTask, draft_shard, forms_of, shard_orders
from dataset_script.curate.work import WorkFolder, shard_of, write_lines
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json
from scale_vqa_eval.schema import row_id

STEPS: Final = ("decompose", "generate", "screen", "construct")


@dataclass(frozen=True)
class Run:
    """What every step needs.

    Attributes:
        settings: ``curate.yaml``.
        work: the work folder.
        images: folder that image paths are relative to; None where images are left aside.
        engine: ``local`` or ``ray``.
        workers: tasks that Ray runs at a time: they share the pace of a role.
        progress: show bars on standard error.
    """

    settings: Settings
    work: WorkFolder
    images: Path | None = None
    engine: str = "local"
    workers: int = 1
    progress: bool = True


def decompose(run: Run) -> dict[str, Any]:
    """Step 1: ``features/``; returns its account, which it also leaves in ``features.json``."""
    tries, progress = run.settings.tries, run.progress and run.engine == "local"

    def task(shard: int, role: RoleSettings) -> DecomposeTask:
        return DecomposeTask(run.work, shard, role, tries, progress)

    return _over_shards(run, "features", run.settings.decompose, task, decompose_shard)


def generate(run: Run) -> dict[str, Any]:
    """Step 2: ``drafts/`` by the model, ``items.jsonl`` with their options by our code; account in ``items.json``."""
    run.work.account("features")
    plans, links = plan(run)
    location = places(run, plans)
    forms, tries, progress = forms_of(plans), run.settings.tries, run.progress and run.engine == "local"
    linked = {patient: members[0] for members in links for patient in members}
    sets = plan_sets(run.work, plans, location, linked, run.settings.seed) if run.settings.exchange_sets else []
    pairs = {row: pair for one in sets for row, pair in one.members}

    def task(shard: int, role: RoleSettings) -> DraftTask:
        own = {path.key: forms[path.key] for path in run.work.paths(shard)}
        rows = [
            row_id(location[key].slide, location[key].path_id, name) for key, types in own.items() for name in types
        ]
        return DraftTask(
            run.work, shard, role, tries, own, {row: pairs[row] for row in rows if row in pairs}, progress
        )

    account = _over_shards(run, "drafts", run.settings.generate, task, draft_shard)
    drafts = [Draft.from_row(row) for row in run.work.rows("drafts")]
    apart = companions(run.work.rows("features"), {key: place.patient for key, place in location.items()})
    found = assemble(drafts, location, run.settings.seed, (), run.settings.exchange_sets, sets, linked, apart)
    write_lines(run.work.root / "items.jsonl", (item.as_row() for item in found.items))
    account |= {
        "items": len(found.items),
        "sets_planned": len(sets),
        "in_exchange_sets": sum(item.group is not None for item in found.items),
        "one_geometry": sum(item.exact for item in found.items),
        "contrasts": _counted(source for item in found.items for source in item.sources),
        "waiting": dict(sorted(found.refused.items())),
        "go_together": sorted([aspect, " ".join(said), other] for (aspect, said), other in apart),
        "linked_patients": links,
    }
    write_json(run.work.summary("items"), account)
    return account


def screen(run: Run) -> dict[str, Any]:
    """Step 3: ``screened.jsonl`` with the questions that passed; the account of all rounds in ``screened.json``."""
    from dataset_script.curate.screening.rounds import Screening
    from dataset_script.curate.screening.rounds import screen as run_rounds

    made = run.work.account("items")
    plans, _ = plan(run)
    location = places(run, plans)
    state = Screening(
        settings=run.settings,
        places=location,
        orders=_orders(run, plans),
        adversaries=_adversaries(run),
        generate=_roles(run, "generate", run.settings.generate, made["spent"]),
        analyse=_roles(run, "analyse", run.settings.analyse, {}),
        shard_of=lambda key: shard_of(key, run.work.shards),
        items={item.id: item for item in read_items(run.work.root / "items.jsonl", location)},
        waiting=dict(made["waiting"]),
        drafts={row["id"]: Draft.from_row(row) for row in run.work.rows("drafts")},
        apart=frozenset(((aspect, tuple(said.split())), other) for aspect, said, other in made["go_together"]),
    )
    run_rounds(state)
    items = [state.items[row] for row in sorted(state.items)]
    write_lines(run.work.root / "screened.jsonl", (item.as_row() for item in items))
    account = {
        "rounds": state.rounds,
        "passed": len(items),
        "lost": [list(one) for one in sorted(state.lost)],
        "adversaries": [one.account() for one in state.adversaries],
        "alpha": run.settings.alpha,
    }
    write_json(run.work.summary("screened"), account)
    return account


def construct(run: Run, out: Path) -> dict[str, Any]:
    """Step 4: the release folder, its audit and the curation report, from ``screened.jsonl``."""
    from dataset_script.curate.construction.build import build
    from dataset_script.curate.construction.shared_images import twin_paths

    assert run.images is not None
    accounts = {name: run.work.account(file) for name, file in _ACCOUNTS.items()}
    plans, links = plan(run)
    items = list(read_items(run.work.root / "screened.jsonl", places(run, plans)))
    paths = _bare_paths(run)
    twins = twin_paths(paths, run.images, run.work.root / "links.json")
    images = {path.key: dict(path.images) for path in paths}
    about = {
        "input": run.work.account("paths"),
        "slides": len({path.slide for path in paths}),
        "patients": len({path.patient for path in paths}),
        "prompts": prompt_accounts(),
        "linked_patients": links,
    }
    return build(items, images, run.images, twins, out, run.settings, accounts, about)


_ACCOUNTS: Final = {"decompose": "features", "generate": "items", "screen": "screened"}


def plan(run: Run) -> tuple[dict[str, PathPlan], list[list[str]]]:
    """Returns what is asked of each path, and the groups of patients that share a split for sharing an image."""
    from dataset_script.curate.construction.shared_images import linked_patients

    paths = _bare_paths(run)
    linked = linked_patients(paths, run.images, run.work.root / "links.json") if run.images is not None else {}
    groups: dict[str, list[str]] = {}
    for patient, stands_for in sorted(linked.items()):
        groups.setdefault(stands_for, []).append(patient)
    return plan_questions(paths, run.settings.seed, linked), [members for _, members in sorted(groups.items())]


def _bare_paths(run: Run) -> list[CaptionedPath]:
    """Returns every path without its captions, which are most of the memory."""
    return [replace(path, texts=()) for shard in range(run.work.shards) for path in run.work.paths(shard)]


def places(run: Run, plans: Mapping[str, PathPlan]) -> dict[str, Place]:
    """Returns path key -> where it belongs and what its captions say."""
    return {
        path.key: Place(
            path.slide, path.patient, path.path_id, plans[path.key].split, tuple(text for _, text in path.texts)
        )
        for shard in range(run.work.shards)
        for path in run.work.paths(shard)
    }


def _over_shards(
    run: Run, step: str, role: RoleSettings, task: Callable[[int, RoleSettings], Any], function: Callable[[Any], Any]
) -> dict[str, Any]:
    """Runs a step on every shard within the limits of its role, and leaves the joined account."""
    shards = range(run.work.shards)
    if run.engine == "local":
        done: list[dict[str, Any]] = []
        for shard in shards:
            spent = spent_by(account["spent"] for account in done)
            done.append(function(task(shard, left_over(role, spent))))
    else:
        sizes = [len(run.work.paths(shard)) for shard in shards]
        tasks = [
            task(shard, shared_out(role, sizes[shard] / max(1, sum(sizes)), min(run.workers, len(shards))))
            for shard in shards
        ]
        done = run_shards(run.engine, function, tasks)
    account = summed(done)
    account["lost"] = sorted(account["lost"])
    write_json(run.work.summary(step), account)
    return account


def _orders(run: Run, plans: Mapping[str, PathPlan]) -> dict[str, Order]:
    forms = forms_of(plans)
    return {order.id: order for shard in range(run.work.shards) for order in shard_orders(run.work, shard, forms, {})}


def _roles(run: Run, name: str, role: RoleSettings, spent: Mapping[str, float]) -> dict[int, Role]:
    """Returns a role for each shard; they run one after the other, and what is left of the limits is theirs."""
    from dataset_script.curate.screening.analysis import reply_schema as cause_schema
    from scale_vqa_eval.llm import Spending

    schema = question_schema() if name == "generate" else cause_schema()
    settings = with_format(left_over(role, spent), "question" if name == "generate" else "cause", schema)
    purse = Spending()
    return {
        shard: Role(settings, run.work.answers(name, shard), run.progress, purse) for shard in range(run.work.shards)
    }


def _adversaries(run: Run) -> list[Any]:
    from dataset_script.curate.screening.readers import Adversary

    return [
        Adversary(one, run.work.answers(f"adversary-{number}"), run.progress, run.engine, run.workers)
        for number, one in enumerate(run.settings.adversaries, 1)
    ]


def read_items(file: Path, location: Mapping[str, Place]) -> list[Item]:
    """Returns the questions of ``items.jsonl`` or ``screened.jsonl``.

    Raises:
        InputError: where one is about a path that the captions have no more.
    """
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    gone = next((row["draft"]["path"] for row in rows if row["draft"]["path"] not in location), None)
    if gone is not None:
        found = "none: the captions have changed since"
        raise InputError(Problem(f"{file}: path {gone}", "a path of the captions", found, "run all steps again"))
    return [Item.from_row(row, location) for row in rows]


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
