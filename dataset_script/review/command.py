"""The command ``scale-vqa review``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dataset_script.review.log import ReviewLog
    from dataset_script.review.session import ReviewData


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--config", help="Config to review.  [default: the one that loads without a name]")
@click.option("--split", help="Work on this split only; the log covers all.  [default: all]")
@click.option(
    "--log",
    "log_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where decisions are appended.  [default: DIR.CONFIG.review.jsonl beside DIR]",
)
@click.option(
    "--summary",
    type=click.Choice(["md", "json"]),
    is_flag=False,
    flag_value="md",
    help="Print the review's state.",
)
@click.option("--export", "out", type=click.Path(path_type=Path), help="Write the accepted items into a new folder.")
@click.option(
    "--answer-first",
    is_flag=True,
    help="Readers answer, with or without images, before the gold answer is shown; answers are timed and logged.",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write these answers as predictions files seeing.jsonl and blind.jsonl for `scale-vqa score --partial`.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on.  [default: any free one]")
@click.option("--token", envvar="SCALE_VQA_REVIEW_TOKEN", help="Token to ask for.  [default: a new random one]")
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
    """Let two pathologists judge each question of the release folder DIR, on a page of this machine.

    Prints the address to open, with its token. Decisions are appended to a log; stop and start as you like, on one
    machine or by several processes on one file system. With --summary, --export or --answers nothing is served.
    """
    from dataset_script.review.decisions import ReviewState
    from dataset_script.review.log import ReviewLog
    from dataset_script.review.session import read_review_data

    data = read_review_data(folder, config, split)
    place = folder.absolute()
    log = ReviewLog(log_path or place.with_name(f"{place.name}.{data.config}.review.jsonl"), data.subject)
    if summary is None and out is None and answers is None:
        return _serve(data, log, host, port, token, answer_first)
    from dataset_script.review.outcome import export_accepted, markdown_summary, summarise_review, write_answers

    review_state = ReviewState(data.items)
    review_state.update(log.refresh())
    _warn_torn(log.torn)
    if answers is not None:
        counts = write_answers(data, review_state, answers)
        said = ", ".join(f"{count} {arm}" for arm, count in counts.items())
        click.echo(f"{answers}: answers of readers, {said}", err=summary is not None)
    if out is not None:
        report = export_accepted(data, review_state, out)
        lost = ", ".join(f"{count} {why}" for why, count in report["left_out"].items()) or "none"
        counted = f"{len(report['edited'])} edited; left out: {lost}; {len(report['defects'])} known defects kept"
        click.echo(f"{out}: {report['kept']} accepted items of {data.config}, {counted}", err=summary is not None)
    if summary is not None:
        figures = summarise_review(data, review_state, log.torn)
        as_json = json.dumps(figures, indent=1, ensure_ascii=True)
        click.echo(as_json if summary == "json" else markdown_summary(figures), nl=summary == "json")


def _serve(data: ReviewData, log: ReviewLog, host: str, port: int, token: str | None, answer_first: bool) -> None:
    from dataset_script.review.server import MIN_TOKEN, is_any, is_loopback, new_token, serve
    from dataset_script.review.session import ReviewSession

    if token is not None and len(token) < MIN_TOKEN:
        raise click.BadParameter(f"a token has at least {MIN_TOKEN} characters", param_hint="--token")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise click.BadParameter("a token has letters, digits and signs of ASCII", param_hint="--token")
    session = ReviewSession(data, log)
    log.check_writable()
    _warn_torn(log.torn)
    if not is_loopback(host):
        note = "whoever can read the network can read the token and the images: put an encrypting proxy before it"
        click.echo(f"warning: {host} can be reached from other machines, without encryption; {note}", err=True)
        if is_any(host):
            click.echo(f"from other machines, put this machine's name in the place of {host}", err=True)
    click.echo(f"log: {log.path}", err=True)
    click.echo("open this address; stop with Ctrl+C", err=True)
    tell = functools.partial(print, flush=True)
    serve(session, host, port, token or new_token(), tell, answer_first)


def _warn_torn(lines: list[int]) -> None:
    if lines:
        numbers = ", ".join(map(str, lines))
        click.echo(f"warning: line {numbers} of the log is incomplete and does not count", err=True)
