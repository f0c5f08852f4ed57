"""``scale-vqa curate``: captions into a benchmark that needs its images, in four steps that resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from dataset_script.curate.engine import ENGINES
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
    help="Do this step alone, from what the earlier ones left; repeatable.  [default: all, in order]",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that image paths are relative to.  [default: INPUT's folder]",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of answers and steps; kept, as it is what was paid for.  [default: OUT.curation]",
)
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Who runs the shards.")
@click.option("--workers", type=click.IntRange(1), help="Tasks that Ray runs at a time.  [default: the cores]")
def curate(
    captions: Path,
    out: Path,
    config: Path,
    steps: tuple[str, ...],
    images: Path | None,
    work: Path | None,
    engine: str,
    workers: int | None,
) -> None:
    """Make a benchmark of the captioned paths in INPUT (JSON Lines, a slide a line) that needs its images.

    Steps: decompose captions into features, generate questions, screen them with readers who see no image, construct
    the release folder with its audit and curation report. Every answer of a model is kept in the work folder: killed,
    limited or interrupted, the same command goes on and pays for nothing twice.
    """
    from dataset_script.curate import pipeline
    from dataset_script.curate.asking.settings import read_settings
    from dataset_script.curate.features.captions import read_paths
    from dataset_script.curate.work import open_work

    settings = read_settings(config)
    root = images or captions.absolute().parent
    folder = work or out.absolute().with_name(f"{out.name}.curation")
    wanted = [step for step in _STEPS if not steps or step in steps]
    if not (folder / "paths.json").is_file() or "decompose" in wanted:
        read_paths(captions, root)  # every image is checked before anything is paid for
    _check_out(out, wanted)
    run = pipeline.Run(
        settings,
        open_work(folder, captions, settings),
        root,
        engine,
        workers or len(os.sched_getaffinity(0)),
        progress=True,
    )
    report: dict[str, Any] = {}
    for step in wanted:
        click.echo(f"step {step}", err=True)
        if step == "construct":
            report = pipeline.construct(run, out)
            _say(out, report)
        else:
            account = {"decompose": pipeline.decompose, "generate": pipeline.generate, "screen": pipeline.screen}[
                step
            ](run)
            _say_step(step, account)


def _check_out(out: Path, wanted: list[str]) -> None:
    """Says that OUT cannot be written before anything is asked."""
    from scale_vqa_eval.release_folder.write import check_out

    if "construct" not in wanted:
        return
    try:
        check_out(out)
    except InputError as error:
        raise click.UsageError(f"--out {out} cannot be written: {error}") from error


def _say_step(step: str, account: dict[str, Any]) -> None:
    """Says on standard error what a step made, and by name what it could not use."""
    if step == "decompose":
        click.echo(f"{account['features']} features of {account['paths']} paths", err=True)
    elif step == "generate":
        click.echo(f"{account['items']} questions, {account['in_exchange_sets']} of them in exchange sets", err=True)
    else:
        click.echo(f"{account['passed']} questions passed {len(account['rounds'])} rounds", err=True)
    for name, count in account.get("outcomes", {}).get("tries", {}).items():
        click.echo(f"warning: {step}: {count} replies: {name}", err=True)
    if account["lost"]:
        click.echo(f"warning: {step}: {len(account['lost'])} dropped; the report names each with its reason", err=True)


def _say(out: Path, report: dict[str, Any]) -> None:
    found, total = report["blind"]["ensemble"], report["costs"]["total"]
    click.echo(
        f"{out}: {report['questions']['n']} questions; without images {100 * found['accuracy']:.1f}% "
        f"[{100 * found['ci_low']:.1f}, {100 * found['ci_high']:.1f}], audit: {report['blind']['verdict']}; "
        f"{total['calls']} calls, {total['cost']:.2f} spent; {out / 'curation_report.md'}"
    )
