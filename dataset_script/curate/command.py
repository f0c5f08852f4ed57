"""``scale-vqa curate``: captions into a benchmark that needs its images, in four steps that resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scale_vqa_eval.errors import InputError

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
    help="Run this step alone, from the files of the earlier ones; repeatable.  [default: all, in order]",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that image paths are relative to.  [default: INPUT's folder]",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the paid answers and the files of each step.  [default: OUT.curation]",
)
@click.option("--engine", type=click.Choice(["local"]), hidden=True, expose_value=False)
def curate(
    captions: Path, out: Path, config: Path, steps: tuple[str, ...], images: Path | None, work: Path | None
) -> None:
    """Make a benchmark of the captioned paths in INPUT (JSON Lines, a slide a line) that needs its images.

    Steps: decompose captions into features, generate questions, screen them with text-only readers, construct the
    release folder with its audit and curation report. Every answer of a model is kept in the work folder: after a
    kill, a limit or an interrupt, the same command continues and pays for nothing twice.
    """
    from dataset_script.curate import pipeline
    from dataset_script.curate.captions import read_paths
    from dataset_script.curate.settings import read_settings
    from dataset_script.curate.work import open_work

    settings = read_settings(config)
    root = images or captions.absolute().parent
    folder = work or out.absolute().with_name(f"{out.name}.curation")
    wanted = [step for step in _STEPS if not steps or step in steps]
    if not (folder / "paths.json").is_file() or "decompose" in wanted:
        read_paths(captions, root)  # every image is checked before anything is paid for
    if "construct" in wanted:
        _check_out(out)
    run = pipeline.CurationRun(settings, open_work(folder, captions, settings), root)
    actions = {"decompose": pipeline.decompose, "generate": pipeline.generate, "screen": pipeline.screen}
    for step in wanted:
        click.echo(f"step {step}", err=True)
        if step == "construct":
            _print_result(out, pipeline.construct(run, out))
        else:
            _print_step(step, actions[step](run))


def _check_out(out: Path) -> None:
    """Preflight check: refuses an OUT that cannot be written before any model is asked."""
    from scale_vqa_eval.release_folder.write import check_out

    try:
        check_out(out)
    except InputError as error:
        raise click.UsageError(f"--out {out} cannot be written: {error}") from error


def _print_step(step: str, report: dict[str, Any]) -> None:
    """Prints on standard error what a step made, and by name what it could not use."""
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
