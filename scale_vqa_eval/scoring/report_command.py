"""The command ``scale-vqa report``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.audit.published import read_published
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.scale_vqa_acc.parsing import MODES, Mode
from scale_vqa_eval.scoring.latex import latex_tables
from scale_vqa_eval.scoring.measures import NO_BLIND, Block, report_blocks, with_published
from scale_vqa_eval.scoring.runs import QuestionSets, Run, System, read_runs, system_names, with_screened
from scale_vqa_eval.scoring.tables import csv_table, markdown_report
from scale_vqa_eval.text import one_line

_SHIPPED = "scale-vqa-test"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _names(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.rpartition("=") for value in values]
    for (model, _, name), value in zip(pairs, values, strict=True):
        if not model or not name:
            raise click.BadParameter(f"expected MODEL=NAME, found {value!r}")
    return {model: name for model, _, name in pairs}


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_FILE, metavar="RUN.jsonl...")
@click.option(
    "--data", required=True, help="Release folder, Hub id, Parquet, or JSON/JSONL/CSV with the gold answers."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the report.")
@click.option("--published", is_flag=True, help="Put the accuracies published for the test split beside the runs.")
@click.option("--published-file", type=_FILE, help="Put accuracies of a YAML or JSON file beside the runs.")
@click.option("--name", "given", multiple=True, callback=_names, metavar="MODEL=NAME", help="What to call a model.")
@click.option("--config", help="Config of the runs that do not note one.  [default: the data's]")
@click.option("--split", help="Split of the runs that do not note one.  [default: all]")
@click.option("--mode", type=click.Choice(MODES), default="reference", show_default=True, help="As in score.")
def report(
    runs: tuple[Path, ...],
    data: str,
    out: Path,
    published: bool,
    published_file: Path | None,
    given: dict[str, str],
    config: str | None,
    split: str | None,
    mode: Mode,
) -> None:
    """Join runs of one model or several into the tables and plots of a paper.

    Each RUN says in its first line which model, config, split and ablation it is of, as predict writes it. Runs of a
    model with, without and with other images, and with the options turned, become one row; what was not run is shown
    as not run.
    """
    if published and published_file:
        raise click.UsageError("--published and --published-file do not go together")
    read = read_runs(runs, data, config, split)
    names = _named(read, given)
    sets = QuestionSets(data)
    every = with_screened(read, sets)
    blocks = report_blocks(every, sets, names, mode)
    if published or published_file:
        blocks = with_published(blocks, read_published(published_file or _SHIPPED))
    for line in _warnings(blocks):
        click.echo(f"warning: {one_line(line)}", err=True)
    for path in write_report(out, blocks, _about(read, names, data, mode)):
        click.echo(path)


def write_report(out: Path, blocks: Sequence[Block], about: Sequence[str]) -> list[Path]:
    """Writes the tables as Markdown, LaTeX and CSV, and the plots; the same figures give the same bytes.

    Returns:
        The files written.

    Raises:
        InputError: where the folder cannot be written.
    """
    from scale_vqa_eval.scoring.plots import block_plots

    files: dict[str, bytes] = {}
    preview: dict[int, list[tuple[str, str]]] = {}
    for place, block in enumerate(blocks):
        for plot, (title, png, svg) in block_plots(block).items():
            stem = f"{plot}-{_slug(block)}"
            stem = stem if f"{stem}.png" not in files else f"{stem}-{place + 1}"
            files |= {f"{stem}.png": png, f"{stem}.svg": svg}
            preview.setdefault(place, []).append((title, f"{stem}.png"))
    texts = {
        "report.md": markdown_report(blocks, preview, about),
        "report.tex": latex_tables(blocks),
        "report.csv": csv_table(blocks),
    }
    files = {name: text.encode() for name, text in texts.items()} | files
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            partial = out / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(out / name)
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(Problem(str(out), "a folder that can be written", found, "name another --out")) from error
    return [out / name for name in files]


def _slug(block: Block) -> str:
    words = f"{block.place.config} {block.place.split}"
    return re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")[:60] or "questions"


def _named(runs: Sequence[Run], given: dict[str, str]) -> dict[System, str]:
    unknown = sorted(given.keys() - {run.system.model for run in runs})
    if unknown:
        raise click.BadParameter(f"no run is of the model {unknown[0]!r}", param_hint="--name")
    names = system_names(runs, given)
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise click.BadParameter(f"two models would be called {twice[0]!r}", param_hint="--name")
    return names


def _warnings(blocks: Sequence[Block]) -> list[str]:
    lines = [f"{block.place.title}: {note}" for block in blocks for note in block.notes]
    for block in blocks:
        runs = [row for row in block.rows if not row.published]
        lines += [f"{block.place.title}: {row.name}: {NO_BLIND}" for row in runs if "blind" not in row.figures]
        lines += [
            f"{block.place.title}: {row.name}: no run with all images; its ablations stand alone"
            for row in runs
            if "accuracy" not in row.figures
        ]
    return lines


def _about(runs: Sequence[Run], names: dict[System, str], data: str, mode: Mode) -> list[str]:
    lines = [f"scale-vqa {__version__}, parsing mode {mode}, data {Path(data).name if Path(data).exists() else data}"]
    for run in runs:
        digest: Any = run.predictions.digest[:16]
        what = run.ablation or "all images"
        lines.append(f"{names[run.system]}; {run.place.title}; {what}: {run.predictions.path.name}, sha256 {digest}")
    return lines
