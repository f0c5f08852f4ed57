"""The command ``scale-vqa review``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--config", help="Config to review.  [default: the one that loads without a name]")
@click.option("--split", help="Review only this split; the log covers all splits.  [default: all]")
@click.option(
    "--log",
    "log_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that decisions are appended to.  [default: DIR.CONFIG.review.jsonl beside DIR]",
)
@click.option(
    "--summary",
    type=click.Choice(["md", "json"]),
    is_flag=False,
    flag_value="md",
    help="Print the state of the review.",
)
@click.option("--export", "out", type=click.Path(path_type=Path), help="Write the accepted items into a new folder.")
@click.option(
    "--answer-first",
    is_flag=True,
    help="Readers answer, with or without images, before they see the gold answer; answers are timed and logged.",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write these answers as predictions files (seeing.jsonl, blind.jsonl) for `scale-vqa score --partial`.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on.  [default: any free port]")
@click.option("--token", envvar="SCALE_VQA_REVIEW_TOKEN", help="Access token.  [default: a new random token]")
def review(
    folder: Path,
    config: str | None,
    split: str | None,
    log_path: Path | None,
    summary: str | None,
    out: Path | None,
    answer_first: bool,
    answers: Path | None,
    host: str,
    port: int,
    token: str | None,
) -> None:
    """Let two pathologists judge each question of the release folder DIR on a local web page.

    Prints the address to open, including its token. Decisions are appended to a log, so you can stop and restart at
    any time; several processes may use one log. With --summary, --export or --answers no page is served.
    """
    from dataset_script.review.decisions import ReviewState
    from dataset_script.review.log import ReviewLog
    from dataset_script.review.session import read_review_data

    data = read_review_data(folder, config, split)
    default_log = folder.absolute().with_name(f"{folder.absolute().name}.{data.config}.review.jsonl")
    log = ReviewLog(log_path or default_log, data.subject)
    decisions = log.refresh()
    if log.torn:
        lines = ", ".join(map(str, log.torn))
        click.echo(f"warning: line {lines} of the log is incomplete and does not count", err=True)
    if summary is None and out is None and answers is None:
        from dataset_script.review.server import serve

        return serve(data, log, host, port, token, answer_first)
    from dataset_script.review.outcome import export_accepted, markdown_summary, summarise_review, write_answers

    review_state = ReviewState(data.items)
    review_state.update(decisions)
    if answers is not None:
        counts = write_answers(data, review_state, answers)
        listed = ", ".join(f"{count} {arm}" for arm, count in counts.items())
        click.echo(f"{answers}: answers of readers, {listed}", err=summary is not None)
    if out is not None:
        report = export_accepted(data, review_state, out)
        lost = ", ".join(f"{count} {why}" for why, count in report["left_out"].items()) or "none"
        counted = f"{len(report['edited'])} edited; left out: {lost}; {len(report['defects'])} known defects kept"
        click.echo(f"{out}: {report['kept']} accepted items of {data.config}, {counted}", err=summary is not None)
    if summary is not None:
        figures = summarise_review(data, review_state, log.torn)
        as_json = json.dumps(figures, indent=1, ensure_ascii=True)
        click.echo(as_json if summary == "json" else markdown_summary(figures), nl=summary == "json")
