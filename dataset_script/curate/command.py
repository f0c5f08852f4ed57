"""``scale-vqa curate``: makes questions that need the images from captions, in four resumable steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionedPath, read_paths, shared_images
from dataset_script.curate.distractors import build_options, find_implications
from dataset_script.curate.exchange_planning import plan_groups
from dataset_script.curate.generate import (
    QuestionPlan,
    decompose_paths,
    features_schema,
    plan_questions,
    question_schema,
    specs_of,
    write_candidates,
)
from dataset_script.curate.roles import RoleClient, outcomes, with_format
from dataset_script.curate.work import (
    CurationSettings,
    RoleSettings,
    WorkFolder,
    add_reports,
    open_work,
    read_lines,
    read_settings,
    write_lines,
)
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import write_json
from scale_vqa_eval.llm import Spending


@dataclass(frozen=True)
class CurationRun:
    """The settings and folders of a run; without an image root, images are not compared."""

    settings: CurationSettings
    work: WorkFolder
    images: Path | None = None
    progress: bool = True

    def clients(self, role: RoleSettings, spent: Mapping[str, float] | None = None) -> dict[int, RoleClient]:
        """Returns shard -> client of a role; the clients share one spending, which starts at ``spent``."""
        total = Spending(**spent or {})
        return {
            shard: RoleClient(role, self.work.answers(role.name, shard), self.progress, total)
            for shard in range(self.work.shards)
        }


def plan(run: CurationRun) -> QuestionPlan:
    """Returns the questions to ask of each path; patients who share an image share a split."""
    paths = run.work.all_paths()
    linked = shared_images(paths, run.images, run.work.root / "links.json")["patients"] if run.images else {}
    return plan_questions(paths, run.settings.seed, linked)


def decompose(run: CurationRun) -> dict[str, Any]:
    """Step 1: writes ``features/`` and its report ``features.json``; returns the report."""
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
    """Step 2: writes ``drafts/`` (by the model), ``items.jsonl`` (with options) and the report ``items.json``."""
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
        drafts = [result.value for result in results if result.value is not None]
        write_lines(run.work.part("drafts", shard), (one.as_row() for one in drafts))
        written += drafts
        lost = [[result.label, *result.failed[-1]] for result in results if result.value is None]
        reports.append({"asked": len(specs), "drafts": len(drafts), "outcomes": outcomes(results), "lost": lost})
    report = add_reports(reports)
    report |= {"lost": sorted(report["lost"]), "spent": asdict(spent)}
    write_json(run.work.report_file("drafts"), report)
    patient_of = {key: path.patient for key, path in questions.paths.items()}
    implied = find_implications(run.work.rows("features"), patient_of)
    seed, grouped = run.settings.seed, run.settings.exchange_sets
    built = build_options(written, seed, (), grouped, groups, questions.linked, implied)
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
    """Step 3: writes ``screened.jsonl`` (the questions that passed) and the report ``screened.json``."""
    from dataset_script.curate.leakage_test import Adversary
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
    """Step 4: writes the release folder, its audit and the curation report from ``screened.jsonl``."""
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
    """Reads ``items.jsonl`` or ``screened.jsonl``; raises InputError if a path is no longer in the captions."""
    return [Candidate.from_row(row, paths) for row in read_lines(file)]


_STEPS = ("decompose", "generate", "screen", "construct")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("captions", metavar="INPUT", type=_FILE)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The release folder, such as scale-vqa.")
@click.option("--config", type=_FILE, required=True, help="curate.yaml: the endpoint of each role, limits, seed.")
@click.option(
    "--step",
    "steps",
    type=click.Choice(_STEPS),
    multiple=True,
    help="Run only this step, from the files of the earlier steps; may be repeated.  [default: all, in order]",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that image paths are relative to.  [default: INPUT's folder]",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the paid answers and the files of each step.  [default: OUT.curation]",
)
@click.option("--engine", type=click.Choice(["local"]), hidden=True, expose_value=False)
def curate(
    captions: Path, out: Path, config: Path, steps: tuple[str, ...], images: Path | None, work: Path | None
) -> None:
    """Make questions that need the images from the captioned paths in INPUT (JSON Lines, one slide per line).

    Steps: decompose captions into features, generate questions, screen them with text-only readers, and construct the
    release folder with its audit and curation report. All model answers are kept in the work folder: after a kill, a
    limit or an interrupt, the same command continues and pays for nothing twice.
    """
    settings = read_settings(config)
    root = images or captions.absolute().parent
    folder = work or out.absolute().with_name(f"{out.name}.curation")
    wanted = [step for step in _STEPS if not steps or step in steps]
    if not (folder / "paths.json").is_file() or "decompose" in wanted:
        read_paths(captions, root)  # check every image before paying for a model call
    if "construct" in wanted:
        _check_out(out)
    run = CurationRun(settings, open_work(folder, captions, settings), root)
    actions = {"decompose": decompose, "generate": generate, "screen": screen}
    for step in wanted:
        click.echo(f"step {step}", err=True)
        if step == "construct":
            _print_result(out, construct(run, out))
        else:
            _print_step(step, actions[step](run))


def _check_out(out: Path) -> None:
    """Preflight check: raises UsageError if OUT cannot be written."""
    from scale_vqa_eval.release_folder.write import check_out

    try:
        check_out(out)
    except InputError as error:
        raise click.UsageError(f"--out {out} cannot be written: {error}") from error


def _print_step(step: str, report: dict[str, Any]) -> None:
    """Prints the result of a step, and warnings about unusable replies, on standard error."""
    if step == "decompose":
        click.echo(f"{report['features']} features of {report['paths']} paths", err=True)
    elif step == "generate":
        click.echo(f"{report['items']} questions, {report['in_exchange_sets']} of them in exchange groups", err=True)
    else:
        click.echo(f"{report['passed']} questions passed {len(report['rounds'])} rounds", err=True)
    for name, count in report.get("outcomes", {}).get("tries", {}).items():
        click.echo(f"warning: {step}: {count} replies: {name}", err=True)
    if report["lost"]:
        click.echo(f"warning: {step}: {len(report['lost'])} dropped; the report names each with its reason", err=True)


def _print_result(out: Path, report: dict[str, Any]) -> None:
    from scale_vqa_eval.text import percent

    found, total = report["blind"]["ensemble"], report["costs"]["total"]
    click.echo(
        f"{out}: {report['questions']['n']} questions; without images {percent(found['accuracy'])}% "
        f"[{percent(found['ci_low'])}, {percent(found['ci_high'])}], audit: {report['blind']['verdict']}; "
        f"{total['calls']} calls, {total['cost']:.2f} spent; {out / 'curation_report.md'}"
    )
