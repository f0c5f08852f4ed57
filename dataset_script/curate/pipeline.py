"""The steps of the curation, each from the files of the one before: decompose, generate, screen, construct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionedPath
from dataset_script.curate.cooccurrence import find_implications
from dataset_script.curate.decompose import decompose_paths
from dataset_script.curate.decompose import reply_schema as features_schema
from dataset_script.curate.distractors import build_options
from dataset_script.curate.exchange_planning import plan_groups
from dataset_script.curate.generate import QuestionPlan, plan_questions, specs_of, write_candidates
from dataset_script.curate.generate import reply_schema as question_schema
from dataset_script.curate.roles import RoleClient, outcomes, with_format
from dataset_script.curate.settings import CurationSettings, RoleSettings
from dataset_script.curate.work import WorkFolder, add_reports, read_lines, write_lines
from scale_vqa_eval.files import write_json
from scale_vqa_eval.llm import Spending


@dataclass(frozen=True)
class CurationRun:
    """What every step needs.

    Attributes:
        settings: ``curate.yaml``.
        work: the work folder.
        images: folder that image paths are relative to; None leaves images aside.
        progress: show bars on standard error.
    """

    settings: CurationSettings
    work: WorkFolder
    images: Path | None = None
    progress: bool = True

    def clients(self, role: RoleSettings, spent: Mapping[str, float] | None = None) -> dict[int, RoleClient]:
        """Returns shard -> client of a role; all share one spending, which starts with what was spent before."""
        total = Spending(**spent or {})
        return {
            shard: RoleClient(role, self.work.answers(role.name, shard), self.progress, total)
            for shard in range(self.work.shards)
        }


def plan(run: CurationRun) -> QuestionPlan:
    """Returns what is asked of each path; patients who share an image share a split."""
    from dataset_script.curate.deduplicate import shared_images

    paths = run.work.all_paths()
    linked = shared_images(paths, run.images, run.work.root / "links.json")["patients"] if run.images else {}
    return plan_questions(paths, run.settings.seed, linked)


def decompose(run: CurationRun) -> dict[str, Any]:
    """Step 1: ``features/``; returns its report, which is also written to ``features.json``."""
    role = with_format(run.settings.roles.decompose, "features", features_schema())
    reports, spent = [], Spending()
    for shard in range(run.work.shards):
        client = RoleClient(role, run.work.answers("decompose", shard), run.progress, spent)
        rows, report = decompose_paths(run.work.paths(shard), client, run.settings.tries)
        write_lines(run.work.part("features", shard), rows)
        reports.append(report)
    report = add_reports(reports)
    report |= {"lost": sorted(report["lost"]), "spent": asdict(spent)}
    write_json(run.work.report_file("features"), report)
    return report


def generate(run: CurationRun) -> dict[str, Any]:
    """Step 2: ``drafts/`` by the model, ``items.jsonl`` with their options by code; report in ``items.json``."""
    run.work.report("features")
    questions = plan(run)
    groups = plan_groups(run.work, questions, run.settings.seed) if run.settings.exchange_sets else []
    pairs = {row: pair for group in groups for row, pair in group.members}
    role = with_format(run.settings.roles.generate, "question", question_schema())
    written: list[Candidate] = []
    reports, spent = [], Spending()
    for shard in range(run.work.shards):
        client = RoleClient(role, run.work.answers("generate", shard), run.progress, spent)
        features = {row["path"]: row for row in read_lines(run.work.part("features", shard))}
        specs = specs_of(questions, [path.key for path in run.work.paths(shard)], features, pairs)
        results = write_candidates(specs, client, run.settings.tries)
        here = [result.value for result in results if result.value is not None]
        write_lines(run.work.part("drafts", shard), (one.as_row() for one in here))
        written += here
        lost = [[result.label, *result.failed[-1]] for result in results if result.value is None]
        reports.append({"asked": len(specs), "drafts": len(here), "outcomes": outcomes(results), "lost": lost})
    report = add_reports(reports)
    report |= {"lost": sorted(report["lost"]), "spent": asdict(spent)}
    write_json(run.work.report_file("drafts"), report)
    patient_of = {key: path.patient for key, path in questions.paths.items()}
    implied = find_implications(run.work.rows("features"), patient_of)
    built = build_options(
        written, run.settings.seed, (), run.settings.exchange_sets, groups, questions.linked, implied
    )
    write_lines(run.work.root / "items.jsonl", (one.as_row() for one in built.candidates))
    report |= {
        "items": len(built.candidates),
        "sets_planned": len(groups),
        "in_exchange_sets": sum(one.group is not None for one in built.candidates),
        "one_geometry": sum(one.same_geometry for one in built.candidates),
        "contrasts": dict(sorted(Counter(source for one in built.candidates for source in one.sources).items())),
        "waiting": dict(sorted(built.refused.items())),
        "go_together": sorted([aspect, " ".join(value), other] for (aspect, value), other in implied),
        "linked_patients": questions.linked_groups,
    }
    write_json(run.work.report_file("items"), report)
    return report


def screen(run: CurationRun) -> dict[str, Any]:
    """Step 3: ``screened.jsonl`` with the questions that passed; the report of all rounds in ``screened.json``."""
    from dataset_script.curate.adversaries import Adversary
    from dataset_script.curate.screening import CandidatePool, ScreeningSetup, cause_schema
    from dataset_script.curate.screening import screen as run_rounds

    generated = run.work.report("items")
    questions, roles = plan(run), run.settings.roles
    features = {row["path"]: row for row in run.work.rows("features")}
    specs = specs_of(questions, list(questions.paths), features, {})
    adversaries = [
        Adversary(one, run.work.root / "answers" / f"adversary-{number}", run.progress)
        for number, one in enumerate(roles.adversary, 1)
    ]
    setup = ScreeningSetup(
        settings=run.settings,
        adversaries=adversaries,
        generate=run.clients(with_format(roles.generate, "question", question_schema()), generated["spent"]),
        analyse=run.clients(with_format(roles.analyse, "cause", cause_schema())),
        shard_of=run.work.shard_of,
        implied=frozenset(
            ((aspect, tuple(words.split())), other) for aspect, words, other in generated["go_together"]
        ),
    )
    pool = CandidatePool(
        specs={spec.id: spec for spec in specs},
        written={row["id"]: Candidate.from_row(row, questions.paths) for row in run.work.rows("drafts")},
        candidates={one.id: one for one in read_candidates(run.work.root / "items.jsonl", questions.paths)},
        waiting=generated["waiting"],
    )
    result = run_rounds(setup, pool)
    write_lines(run.work.root / "screened.jsonl", (one.as_row() for one in result.passed))
    report = {
        "rounds": result.rounds,
        "passed": len(result.passed),
        "lost": [list(one) for one in sorted(result.lost)],
        "adversaries": [one.report() for one in adversaries],
        "alpha": run.settings.alpha,
    }
    write_json(run.work.report_file("screened"), report)
    return report


def construct(run: CurationRun, out: Path) -> dict[str, Any]:
    """Step 4: the release folder, its audit and the curation report, from ``screened.jsonl``."""
    from dataset_script.curate.deduplicate import shared_images
    from dataset_script.curate.report import write_curated_release

    assert run.images is not None
    files = {"decompose": "features", "generate": "items", "screen": "screened"}
    steps = {step: run.work.report(file) for step, file in files.items()}
    questions = plan(run)
    candidates = read_candidates(run.work.root / "screened.jsonl", questions.paths)
    paths = run.work.all_paths()
    twins = shared_images(paths, run.images, run.work.root / "links.json")["twins"]
    slides, patients = ({getattr(path, name) for path in paths} for name in ("slide", "patient"))
    about = {
        "input": {**run.work.report("paths"), "slides": len(slides), "patients": len(patients)},
        "linked_patients": questions.linked_groups,
    }
    return write_curated_release(candidates, run.images, twins, out, run.settings, steps, about)


def read_candidates(file: Path, paths: Mapping[str, CaptionedPath]) -> list[Candidate]:
    """Returns the candidates of ``items.jsonl`` or ``screened.jsonl``.

    Raises:
        InputError: if one is about a path that the captions do not have any more.
    """
    return [Candidate.from_row(row, paths) for row in read_lines(file)]
