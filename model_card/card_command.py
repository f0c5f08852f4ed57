"""``scale-vqa card``: cards from files, never from typed-in numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from model_card.hub_id import repo_option
from scale_vqa_eval.errors import InputError, Problem

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _licence_options(command: Command) -> Command:
    for option in (
        click.option("--license-link", metavar="URL", help="Its text, where the licence is `other`."),
        click.option("--license-name", metavar="NAME", help="Its name, where the licence is `other`."),
        click.option("--license", metavar="ID", help="Licence id of the Hub: apache-2.0, cc-by-4.0, other, ..."),
    ):
        command = option(command)
    return command


@click.group()
def card() -> None:
    """Write the card of a dataset, a model or the metric from the files that measured it.

    A fact that is missing is an error that names it, never a blank. Sections that you wrote by hand stay: only what
    stands between the marks of this command is replaced.
    """


@card.command()
@click.argument("folder", type=_FOLDER)
@_licence_options
@click.option("--audit", "audits", multiple=True, type=_FILE, metavar="FILE", help="`audit --json`; repeatable.")
@click.option("--curation", type=_FILE, metavar="FILE", help="The report of a curation run.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: FOLDER/README.md]")
@click.option("--croissant", is_flag=True, help="Write FOLDER/croissant.json too; needs --repo.")
@click.option(
    "--repo", callback=repo_option, metavar="ORG/NAME", help="Hub id under which the folder will be published."
)
def dataset(
    folder: Path,
    audits: tuple[Path, ...],
    curation: Path | None,
    out: Path | None,
    croissant: bool,
    repo: str | None,
    **licence: str | None,
) -> None:
    """Complete the card of the release FOLDER: splits, audit, known defects, uses, licence.

    Every config needs an audit of its rows: scale-vqa audit FOLDER --config NAME --json FILE.
    """
    from model_card import croissant as metadata
    from model_card.dataset_card import dataset_card
    from model_card.licence import stated_licence
    from scale_vqa_eval.release_folder.card import head

    if croissant and not repo:
        raise click.UsageError("--croissant needs --repo ORG/NAME: the metadata names where the data is")
    out = out or folder / "README.md"
    text = dataset_card(folder, licence, audits, curation)
    stated = stated_licence(licence, head(text), str(out), [])
    made = metadata.croissant(folder, repo, stated) if croissant and repo and stated else None
    _write(out, text)
    click.echo(str(out))
    if made is not None:
        _write(folder / metadata.NAME, made)
        click.echo(str(folder / metadata.NAME))


@card.command()
@click.option("--facts", required=True, type=_FILE, help="YAML of what only people know: ids, licence, power, ...")
@click.option("--training", required=True, type=_FILE, metavar="FILE", help="training_metadata.json of the recipe.")
@click.option(
    "--results",
    multiple=True,
    metavar="[CONFIG=]FILE",
    help="`score --json` on Scale-VQA, best with --blind; repeatable. CONFIG where the file notes none.",
)
@click.option("--transfer", multiple=True, metavar="NAME=FILE", help="`score --json` on another benchmark.")
@click.option("--published", is_flag=True, help="Add what the authors reported, marked as theirs.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder with the weights."
)
def model(
    facts: Path, training: Path, results: tuple[str, ...], transfer: tuple[str, ...], published: bool, out: Path
) -> None:
    """Write the card of trained weights: README.md with model-index, and .eval_results/scale-vqa.yaml.

    A score without a blind control is marked so everywhere.
    """
    from model_card.weights_card import weights_card

    path = out / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    named, others = _named(results, "--results"), _named(transfer, "--transfer")
    made = weights_card(facts, training, named, others, published, old, (out / "adapter_config.json").is_file())
    _write(path, made.text)
    _write(out / ".eval_results" / "scale-vqa.yaml", made.entries)
    click.echo(str(path))


@card.command()
@click.option("--folder", type=_FOLDER, help="The metric's folder.  [default: the one of this package]", metavar="DIR")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The README to write.")
def metric(folder: Path | None, out: Path) -> None:
    """Write the card of the metric's Space: its README with an example that is computed and a citation."""
    from importlib.resources import files

    from model_card.metric_card import metric_card

    _write(out, metric_card(folder or Path(str(files("scale_vqa_eval.scale_vqa_acc")))))
    click.echo(str(out))


def _named(values: tuple[str, ...], option: str) -> list[tuple[str | None, Path]]:
    """Reads ``[NAME=]FILE``; a file whose own name has an equals sign is taken as such."""
    found: list[tuple[str | None, Path]] = []
    for value in values:
        name, equals, path = value.partition("=")
        named = equals and not Path(value).is_file()
        file = Path(path if named else value)
        if not file.is_file():
            raise click.BadParameter(f"{file} is no file", param_hint=option)
        found.append((name if named else None, file))
    return found


def _write(path: Path, text: str) -> None:
    """Writes a file in one rename: a card is what makes a folder load."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(Problem(str(path), "a file that can be written", found, "name another --out")) from error
