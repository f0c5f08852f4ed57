"""The commands ``scale-vqa score``, ``compare`` and ``report``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from scale_vqa_eval.files import atomic_write, write_json
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scale_vqa_acc.parsing import MODES, Mode
from scale_vqa_eval.scoring.predictions import join, read_predictions
from scale_vqa_eval.scoring.results import comparison_table, score_table
from scale_vqa_eval.scoring.score import compare_answers, consistency_warnings, provenance, read_each, score_files
from scale_vqa_eval.text import one_line

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DATA = click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Release folder, Hub id, Parquet, or JSON/JSONL/CSV with the gold answers.",
)
_MODE = click.option(
    "--mode",
    type=click.Choice(MODES),
    default="reference",
    show_default=True,
    help="Parsing rule: the published rule, or strict (a single answer after the think block, and a valid letter).",
)
_JSON = click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(dir_okay=False), help="Write the results as JSON."
)


def _question_options(command: Command) -> Command:
    for option in (
        _JSON,
        _MODE,
        click.option("--config", help="Config of a release folder or Hub id.  [default: its default]"),
        click.option("--split", help="Score this split only.  [default: all]"),
        _DATA,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("predictions", type=_FILE)
@_question_options
@click.option(
    "--blind",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="The same model's answers without images; of a blind and a guess run, the larger score is the control.",
)
@click.option("--shuffled", type=_FILE, metavar="FILE", help="Its answers with another patient's images: flip rate.")
@click.option("--audit", type=_FILE, metavar="FILE", help="audit --json of the same questions: text-only ceiling.")
@click.option("--weights", type=_FILE, metavar="FILE", help="Leak weights, for the leak-weighted accuracy.")
@click.option("--partial", is_flag=True, help="Score only the questions that have a response; the results say so.")
@click.option("--csv", "csv_path", metavar="FILE", type=click.Path(dir_okay=False), help="Write the figures as CSV.")
def score(predictions: Path, json_path: str | None, csv_path: str | None, **given: Any) -> None:
    """Score PREDICTIONS (JSONL: id, response; or results of Inspect, lmms-eval or VLMEvalKit): accuracy by dimension
    with patient-clustered 95% intervals.

    Every question needs one response. A response that cannot be parsed is wrong; letters are never guessed.
    """
    results, warnings = score_files(predictions, **given)
    _warn(warnings)
    if results["partial"]:
        _warn([f"partial: {results['partial']['answered']} of {results['partial']['of']} questions are scored"])
    if csv_path is not None:
        from scale_vqa_eval.scoring.report_files import score_csv

        atomic_write(csv_path, score_csv(results), "name another --csv")
    _show(score_table(results), results, json_path)


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@_question_options
def compare(
    a: Path, b: Path, data: str, split: str | None, config: str | None, mode: Mode, json_path: str | None
) -> None:
    """Compare two predictions files on the same questions: paired, clustered by patient.

    Dimensions are corrected by Holm's method.
    """
    runs = read_each(read_predictions, [a, b])
    questions = read_questions(data, split, config)
    comparison = compare_answers(*read_each(lambda one: join(one, questions, mode), runs))
    for name, run in zip("ab", runs, strict=True):
        comparison[name] = provenance(run, questions, data, split, config, mode)
        _warn(consistency_warnings(run, questions, comparison[name]["config"]))
    _show(comparison_table(comparison), comparison, json_path)


def _names(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.rpartition("=") for value in values]
    for (model, _, name), value in zip(pairs, values, strict=True):
        if not model or not name:
            raise click.BadParameter(f"expected MODEL=NAME, found {value!r}")
    return {model: name for model, _, name in pairs}


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_FILE, metavar="RUN.jsonl...")
@_DATA
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the report.")
@click.option("--published", is_flag=True, help="Add the accuracies published for the test split.")
@click.option("--published-file", type=_FILE, help="Add the accuracies in a YAML or JSON file.")
@click.option("--name", "given", multiple=True, callback=_names, metavar="MODEL=NAME", help="Name of a model.")
@click.option("--audit", "audits", type=_FILE, multiple=True, help="audit --json of the questions: text-only ceiling.")
@click.option("--config", help="Config of runs that do not state one.  [default: the default config]")
@click.option("--split", help="Split of runs that do not state one.  [default: all]")
@_MODE
def report(
    runs: tuple[Path, ...],
    data: str,
    out: Path,
    published: bool,
    published_file: Path | None,
    given: dict[str, str],
    audits: tuple[Path, ...],
    config: str | None,
    split: str | None,
    mode: Mode,
) -> None:
    """Make the tables and plots of a paper from runs of one or several models.

    The first line of each RUN states its model, config, split and ablation, as written by predict; a RUN may also be
    an Inspect log, lmms-eval's logged samples or VLMEvalKit's table of predictions. The runs of one model with all
    images and under ablations become one row; a missing run is shown as not run.
    """
    from scale_vqa_eval.scoring.measures import report_sections, with_published
    from scale_vqa_eval.scoring.report_files import write_report
    from scale_vqa_eval.scoring.results import read_reported_scores
    from scale_vqa_eval.scoring.runs import QuestionSets, read_runs, system_names, with_screened

    if published and published_file:
        raise click.UsageError("--published and --published-file cannot be combined")
    read = read_runs(runs, data, config, split)
    if unknown := sorted(given.keys() - {run.system.model for run in read}):
        raise click.BadParameter(f"no run is of the model {unknown[0]!r}", param_hint="--name")
    names = system_names(read, given)
    if repeated := sorted(name for name in set(names.values()) if list(names.values()).count(name) > 1):
        raise click.BadParameter(f"two models would be called {repeated[0]!r}", param_hint="--name")
    sets = QuestionSets(data)
    sections = report_sections(with_screened(read, sets), sets, names, mode, audits)
    if published or published_file:
        sections = with_published(sections, read_reported_scores(published_file or "scale-vqa-test"))
    _warn(line for section in sections for line in section.warnings())
    for path in write_report(out, sections, read, names, data, mode):
        click.echo(path)


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"warning: {one_line(line)}", err=True)


def _show(table: str, content: dict[str, Any], json_path: str | None) -> None:
    if json_path is not None:
        write_json(json_path, content, "name another --json")
    click.echo(table)
