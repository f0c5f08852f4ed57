"""``scale-vqa score`` and ``scale-vqa compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scale_vqa_acc.parsing import MODES, Mode
from scale_vqa_eval.scoring.comparison import compare_answers
from scale_vqa_eval.scoring.predictions import read_predictions
from scale_vqa_eval.scoring.results import comparison_table, score_table, write_json
from scale_vqa_eval.scoring.score import doubts, join, provenance, score_answers

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _shared_options(command: Command) -> Command:
    for option in (
        click.option(
            "--json", "json_path", metavar="FILE", type=click.Path(dir_okay=False), help="Write the results."
        ),
        click.option(
            "--mode",
            type=click.Choice(MODES),
            default="reference",
            show_default=True,
            help="How the letter is read: the published rule, or ours (after the think block, once, a letter of the "
            "question).",
        ),
        click.option("--config", help="Config of a release folder or Hub id.  [default: its default]"),
        click.option("--split", help="Score this split only.  [default: all]"),
        click.option(
            "--data",
            required=True,
            metavar="DATA",
            help="Release folder, Hub id, Parquet, or JSON/JSONL/CSV with the gold answers.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("predictions", type=_FILE)
@_shared_options
@click.option("--blind", type=_FILE, metavar="FILE", help="The same model's answers without images.")
def score(
    predictions: Path,
    data: str,
    split: str | None,
    config: str | None,
    mode: Mode,
    json_path: str | None,
    blind: Path | None,
) -> None:
    """Score PREDICTIONS (JSONL: id, response): accuracy by dimension with patient-clustered 95% intervals.

    Every question needs one response; a response that cannot be read is wrong and counted, never guessed.
    """
    run, blind_run = _both(read_predictions, predictions, blind)
    questions = read_questions(data, split, config)
    answers, blind_answers = _both(lambda one: join(one, questions, mode), run, blind_run)
    _warn(doubts(run, questions, blind_run))
    results = score_answers(answers, blind_answers)
    results["provenance"] = provenance(run, questions, data, split, config, mode)
    if blind_run is not None:
        results["provenance"]["blind"] = {
            "predictions": str(blind),
            "predictions_hash": blind_run.digest,
            **blind_run.noted,
        }
    _show(score_table(results), results, json_path)


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@_shared_options
def compare(
    a: Path, b: Path, data: str, split: str | None, config: str | None, mode: Mode, json_path: str | None
) -> None:
    """Compare two predictions files on the same questions: paired, clustered by patient.

    Exact McNemar stands beside it as a second opinion; dimensions are corrected by Holm's method.
    """
    first, second = _both(read_predictions, a, b)
    questions = read_questions(data, split, config)
    left, right = _both(lambda one: join(one, questions, mode), first, second)
    _warn([*doubts(first, questions), *doubts(second, questions)])
    comparison = compare_answers(left, right)
    for name, run in (("a", first), ("b", second)):
        comparison[name] = provenance(run, questions, data, split, config, mode)
    _show(comparison_table(comparison), comparison, json_path)


def _both(read: Callable[[Any], Any], first: Any, second: Any) -> tuple[Any, Any]:
    """Reads one thing or two and raises the faults of both together."""
    problems: list[Problem] = []
    found: list[Any] = []
    for one in (first, second):
        try:
            found.append(None if one is None else read(one))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return found[0], found[1]


def _warn(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"warning: {line}", err=True)


def _show(table: str, content: dict[str, Any], json_path: str | None) -> None:
    if json_path is not None:
        write_json(json_path, content)
    click.echo(table)
