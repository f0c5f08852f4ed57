"""``scale-vqa publish``: what would change on the Hub, and, with ``--yes``, does it and proves it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click

from model_card.hub_id import repo_option
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.schema import METRIC_FOLDER

from .findings import problems_of
from .kinds import KINDS
from .masking import mask_streams
from .plan import Wish, make_plan, read_local
from .record import Seen, read_record, record_path, write_record
from .table import plan_table

_INSTEAD: Final = "or, knowing that, --incomplete-card"
_TAG: Final = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


def _tag(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _TAG.fullmatch(value) or ".." in value:
        raise click.BadParameter(f"a tag is letters, digits, '.', '-', '_' and '+', got {value!r}")
    return value


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("folder", required=False, type=click.Path(path_type=Path)),
        click.option("--repo", required=True, callback=repo_option, metavar="ORG/NAME", help="Where to on the Hub."),
        click.option("--private", is_flag=True, help="Make the repository private; refused where it is public."),
        click.option("--pr", is_flag=True, help="As one pull request; the tag is set when it is merged."),
        click.option("--yes", is_flag=True, help="Do it.  [default: say what would be done]"),
        click.option(
            "--tag", callback=_tag, default=f"v{__version__}", show_default=True, help="Tag of this version."
        ),
        click.option("--delete", multiple=True, metavar="PATTERN", help="Delete these files that only the Hub has."),
        click.option(
            "--replace", multiple=True, metavar="PART", help="Overwrite a part of the card kept from the Hub."
        ),
        click.option("--allow", multiple=True, metavar="MARK", help="Accept one finding of the scan, by its mark."),
        click.option("--incomplete-card", is_flag=True, help="Publish a card that lacks what it does not own up to."),
        click.option("--no-verify", is_flag=True, help="Do not download it again; it then counts as not verified."),
        click.option("--json", "as_json", is_flag=True, help="Print plan and outcome as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def publish() -> None:
    """Publish the data set, the metric or the weights to the Hub: a dry run, unless --yes is given."""


@publish.command()
@_options
def dataset(folder: Path | None, **options: Any) -> None:
    """Publish a release FOLDER.  [default: ./scale-vqa]"""
    from scale_vqa_eval.release_folder.read import release_configs

    place = folder or Path("scale-vqa")
    if place.is_dir():
        release_configs(place)
    _publish("dataset", place, options)


@publish.command()
@_options
def metric(folder: Path | None, **options: Any) -> None:
    """Publish the metric as a Space, from its FOLDER.  [default: the metric of this package]"""
    place = folder or METRIC_FOLDER
    name = options["repo"].split("/")[1]
    if place.is_dir() and not (place / f"{name}.py").is_file():
        scripts = ", ".join(sorted(path.stem for path in place.glob("*_acc.py"))) or "the script"
        raise click.UsageError(
            f"evaluate.load('{options['repo']}') reads {name}.py, which {place.name} does not have; "
            f"name the repository as its script: ORG/{scripts}"
        )
    _publish("metric", place, options)


@publish.command()
@_options
def model(folder: Path | None, **options: Any) -> None:
    """Publish the weights in FOLDER: safetensors, processor, chat template, configs, card."""
    if folder is None:
        raise click.UsageError("name the folder of the weights")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise click.UsageError(f"{folder} has no weights as safetensors; prepare them with `scale-vqa weights`")
    for name in () if options["no_verify"] or not options["yes"] else ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:  # said before anything is sent, not when it is to be verified
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    _publish("model", folder, options)


@publish.command()
@_options
def space(folder: Path | None, **options: Any) -> None:
    """Publish the Gradio app in FOLDER, such as the leaderboard, as a Space."""
    if folder is None:
        raise click.UsageError("name the folder of the app")
    _publish("space", folder, options)


def _publish(kind: str, folder: Path, options: dict[str, Any]) -> None:
    token = _token()
    mask_streams(token)
    wish = Wish(
        KINDS[kind],
        options["repo"],
        folder,
        options["tag"],
        options["private"],
        options["pr"],
        options["delete"],
        frozenset(options["replace"]),
        frozenset(options["allow"]),
        options["incomplete_card"],
    )
    local = read_local(wish, token, _progress)
    if local.findings:
        if options["as_json"]:
            found = [asdict(one) for one in local.findings]
            _print_json({"kind": kind, "repo": wish.repo, "published": False, "verified": False, "findings": found})
        raise InputError(problems_of(local.findings))
    if local.undeclared and options["yes"] and not wish.incomplete_card:
        if options["as_json"]:
            gaps = [str(gap) for gap in local.undeclared]
            _print_json({"kind": kind, "repo": wish.repo, "published": False, "verified": False, "undeclared": gaps})
        raise InputError([replace(gap, hint=f"{gap.hint} ({_INSTEAD})") for gap in local.undeclared])
    _with_hub(wish, local, token, options)


def _with_hub(wish: Wish, local: Any, token: str, options: dict[str, Any]) -> None:
    from .remote import Repository
    from .send import send, tag_commit

    repository = Repository(wish.kind, wish.repo, token)
    record = record_path(repository, wish.pr)
    seen = read_record(record)
    plan = make_plan(wish, local, repository, seen)
    outcome: dict[str, Any] = {**plan.as_json(), "published": False, "commit": None, "verified": False}
    if not options["as_json"]:
        click.echo(plan_table(plan))
    now = Seen.of(plan.remote, list(plan.files), list(plan.deletes))
    start = now if seen is None else seen.going_on(now)
    if not options["yes"]:
        write_record(record, now)
        if options["as_json"]:
            _print_json(outcome)
        else:
            refuses = f"--yes refuses the card as it is ({_INSTEAD})"
            then = refuses if plan.undeclared else "the same command with --yes publishes this"
            click.echo(f"dry run: nothing was sent; {then}")
        return
    sent = send(plan, repository, start, record)
    if not wish.pr:
        tag_commit(plan, sent, repository)
    outcome |= {"published": True, "commit": sent.commit, "pull_request_revision": sent.pull_request}
    _say(options, f"published: {wish.repo} at {sent.pull_request or sent.commit}" + _tagged(plan, sent))
    try:
        if options["no_verify"]:
            _say(options, "NOT verified, as --no-verify says")
        else:
            checked = _verified(plan, sent, token, start, record)
            outcome |= {"verified": True, "verification": checked.report}
            _say(options, checked.line())
        record.unlink(missing_ok=True)
    finally:
        if options["as_json"]:
            _print_json(outcome)


def _verified(plan: Any, sent: Any, token: str, seen: Seen, record: Path) -> Any:
    """Verifies; which files came back as others is kept, so that the next run sends them once more."""
    from .verify import NotVerified, verify

    try:
        return verify(plan, sent, token)
    except NotVerified as error:
        write_record(record, replace(seen, suspect=error.wrong))
        raise


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise click.UsageError(
            "no token for the Hub; log in with `hf auth login` (or set HF_TOKEN to a token with write access)"
        )
    return token


def _tagged(plan: Any, sent: Any) -> str:
    wish = plan.wish
    if wish.pr:
        return f"; set the tag {wish.tag} once it is merged" if sent.pull_request else "; nothing was to be changed"
    stands = plan.remote.tags.get(wish.tag)
    return f", tag {wish.tag}" + (f" (it stands at {stands[:12]})" if stands not in (None, sent.commit) else "")


def _say(options: dict[str, Any], line: str) -> None:
    click.echo(line, err=options["as_json"])


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="scanning and hashing", delay=2, leave=False)
