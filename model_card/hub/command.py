"""``scale-vqa publish``: shows what would change on the Hub; with ``--yes``, publishes and verifies it.

A publication creates the repository, sends the missing files in one commit and tags it. Every step reads the state of
the Hub first, so an interrupted run can be repeated and does nothing twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

import click
from huggingface_hub import get_token

from model_card.cards.text import repo_option
from model_card.hub.local import KINDS, LocalRelease, PublishRequest, read_local
from model_card.hub.plan import PublishPlan, make_plan
from model_card.hub.remote import (
    HubError,
    HubRepository,
    RemoteSnapshot,
    RemoteState,
    is_network,
    is_transient,
    status_of,
    translate_hub_errors,
    wait_after,
)
from model_card.hub.scan import problems_of
from model_card.hub.verify import NotVerified, Sent, verify
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.schema import METRIC_FOLDER

_ATTEMPTS: Final = 4
_INSTEAD: Final = "or publish it as it is: --incomplete-card"
_TAG: Final = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_LOG_IN: Final = "log in with `hf auth login` (or set HF_TOKEN to a token with write access)"


def _tag(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _TAG.fullmatch(value) or ".." in value:
        raise click.BadParameter(f"a tag is letters, digits, '.', '-', '_' and '+', got {value!r}")
    return value


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("folder", required=False, type=click.Path(path_type=Path)),
        click.option("--repo", required=True, callback=repo_option, metavar="ORG/NAME", help="Repository on the Hub."),
        click.option("--private", is_flag=True, help="Make the repository private; refused if it is public."),
        click.option("--pr", is_flag=True, help="Open a pull request; set the tag when it is merged."),
        click.option("--yes", is_flag=True, help="Publish.  [default: only show the plan]"),
        click.option(
            "--tag", callback=_tag, default=f"v{__version__}", show_default=True, help="Tag of this version."
        ),
        click.option(
            "--delete", multiple=True, metavar="PATTERN", help="Delete matching files that only the Hub has."
        ),
        click.option("--replace", multiple=True, metavar="PART", help="Overwrite a part of the card that was kept."),
        click.option("--allow", multiple=True, metavar="MARK", help="Accept one finding of the scan, by its mark."),
        click.option("--incomplete-card", is_flag=True, help="Publish a card with gaps that it does not declare."),
        click.option("--no-verify", is_flag=True, help="Skip the download that verifies the publication."),
        click.option("--json", "as_json", is_flag=True, help="Print plan and result as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def publish() -> None:
    """Publish the dataset, the metric or the weights to the Hub; a dry run unless --yes is given.

    The dry run works without a token or a network, but then it cannot compare with the files on the Hub.
    """


@publish.command()
@_options
def dataset(folder: Path | None, **options: Any) -> None:
    """Publish a release FOLDER.  [default: ./scale-vqa]"""
    folder = folder or Path("scale-vqa")
    if folder.is_dir():
        release_configs(folder)
    _publish("dataset", folder, options)


@publish.command()
@_options
def metric(folder: Path | None, **options: Any) -> None:
    """Publish the metric as a Space, from its FOLDER.  [default: the metric of this package]"""
    folder = folder or METRIC_FOLDER
    name = options["repo"].split("/")[1]
    if folder.is_dir() and not (folder / f"{name}.py").is_file():
        scripts = ", ".join(sorted(path.stem for path in folder.glob("*_acc.py"))) or "the script"
        raise click.UsageError(
            f"evaluate.load('{options['repo']}') reads {name}.py, which {folder.name} does not have; "
            f"name the repository as its script: ORG/{scripts}"
        )
    _publish("metric", folder, options)


@publish.command()
@_options
def model(folder: Path | None, **options: Any) -> None:
    """Publish the weights in FOLDER, with processor and card."""
    if folder is None:
        raise click.UsageError("name the folder of the weights")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise click.UsageError(f"{folder} has no weights as safetensors; prepare them with `scale-vqa weights`")
    for name in () if options["no_verify"] or not options["yes"] else ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:  # fail before anything is sent
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    _publish("model", folder, options)


@publish.command()
@_options
def space(folder: Path | None, **options: Any) -> None:
    """Publish the Gradio app in FOLDER as a Space."""
    if folder is None:
        raise click.UsageError("name the folder of the app")
    _publish("space", folder, options)


def _publish(kind: str, folder: Path, options: dict[str, Any]) -> None:
    token = get_token() or ""
    if options["yes"] and not token:
        raise click.UsageError(f"no token for the Hub; {_LOG_IN}")
    mask_streams(token)
    request = PublishRequest(
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
    local = read_local(request, token, _progress)
    refused: dict[str, Any] = {"kind": kind, "repo": request.repo, "published": False, "verified": False}
    if local.findings:
        if options["as_json"]:
            scan = {"scan": local.scanned.as_json(), "findings": [asdict(one) for one in local.findings]}
            _print_json(refused | scan)
        raise InputError(problems_of(local.findings))
    if local.undeclared and options["yes"] and not request.incomplete_card:
        if options["as_json"]:
            _print_json(refused | {"undeclared": [str(gap) for gap in local.undeclared]})
        raise InputError([replace(gap, hint=f"{gap.hint} ({_INSTEAD})") for gap in local.undeclared])
    _with_hub(request, local, token, options)


def _with_hub(request: PublishRequest, local: LocalRelease, token: str, options: dict[str, Any]) -> None:
    repository = HubRepository(request.kind, request.repo, token)
    record = RemoteSnapshot.path(repository, request.pr)
    seen = RemoteSnapshot.read(record)
    plan = make_plan(request, local, repository, seen, may_skip_hub=not options["yes"])
    result: dict[str, Any] = {**plan.as_json(), "published": False, "commit": None, "verified": False}

    def say(line: str) -> None:
        click.echo(line, err=options["as_json"])

    if not options["as_json"]:
        click.echo(plan.table())
    now = RemoteSnapshot.of(plan.remote, plan.files, plan.deletes)
    start = now if seen is None else seen.continued(now)
    if not options["yes"]:
        if not plan.remote.not_read:
            now.write(record)
        if options["as_json"]:
            _print_json(result)
            return
        then = "the same command with --yes publishes this" if token else f"to publish, {_LOG_IN}"
        then = f"--yes refuses the card as it is ({_INSTEAD})" if plan.undeclared else then
        click.echo(f"dry run: nothing was sent; {then}")
        return
    sent = send(plan, repository, start, record)
    tagged = f", tag {request.tag}"
    if not request.pr:
        if request.tag not in plan.remote.tags:
            repository.tag(request.tag, sent.commit)
        existing = plan.remote.tags.get(request.tag, sent.commit)
        tagged += f" (it remains at {existing[:12]})" if existing != sent.commit else ""
    else:
        tagged = (
            f"; set the tag {request.tag} once it is merged" if sent.pull_request else "; there was nothing to change"
        )
    result |= {"published": True, "commit": sent.commit, "pull_request_revision": sent.pull_request}
    say(f"published: {request.repo} at {sent.pull_request or sent.commit}{tagged}")
    try:
        if options["no_verify"]:
            say("NOT verified (--no-verify)")
        else:
            report = verify(plan, sent, token)
            result |= {"verified": True, "verification": report}
            figures = ", ".join(f"{name} {value}" for name, value in report["scored"].items())
            say(
                f"verified: {report['files']} files ({report['bytes']:,} bytes) downloaded into an empty cache, every "
                f"SHA-256 equal to the local one; {report['loaded']}; scored: {figures}"
            )
        record.unlink(missing_ok=True)
    except NotVerified as error:
        replace(start, suspect=tuple(error.wrong)).write(record)  # the next run sends these files again
        raise HubError(str(error)) from None
    finally:
        if options["as_json"]:
            _print_json(result)


def send(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot, record: Path) -> Sent:
    """Brings the remote to the planned state.

    Args:
        plan: the plan.
        repository: the repository.
        seen: state of the remote in the last dry run or, if there was none, in this run.
        record: file in which ``seen`` is saved for the next run.

    Raises:
        InputError: if somebody else changed the remote since ``seen``.
        HubError: if the Hub fails; the same command continues from there.
    """
    seen.write(record)
    request = plan.request
    if not plan.remote.exists:
        repository.create(request.private)
        created = repository.read()
        if not created.exists:
            raise HubError(f"{request.repo} could not be created: the Hub says that it exists, but does not show it")
        if request.private and created.private is False:
            raise HubError(f"{request.repo} is public although --private was given; nothing was sent to it")
    if request.pr:
        return _as_pull_request(plan, repository, seen)
    return Sent(_send_pending(plan, repository, seen, "main").commit or "", None)


def _send_pending(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot, revision: str) -> RemoteState:
    """Sends the pending files to a branch or pull request until none is left."""
    for attempt in range(_ATTEMPTS):
        now = _unchanged(plan, repository, seen, revision)
        files, deletes = plan.pending(now)
        if attempt == 0:
            files += [file for file in plan.files if file.path in seen.suspect and file not in files]
        if not files and not deletes:
            return now
        try:
            repository.commit(files, deletes, _title(plan), now.commit, revision)
        except Exception as error:
            _after_failure(error, attempt, plan, repository, seen, revision)
    now = _unchanged(plan, repository, seen, revision)
    if any(plan.pending(now)):
        left = ", ".join(file.path for file in plan.pending(now)[0][:3])
        raise HubError(f"{repository.name} does not have what was sent ({left}); did a file change meanwhile?")
    return now


def _after_failure(
    error: Exception,
    attempt: int,
    plan: PublishPlan,
    repository: HubRepository,
    seen: RemoteSnapshot,
    revision: str,
) -> None:
    """Raises an error after a failed commit unless another attempt can help."""
    if status_of(error) == 412:
        if any(plan.pending(_unchanged(plan, repository, seen, revision))):
            raise _refused(plan, ["a commit came in between (412)"])
    elif is_transient(error) and attempt < _ATTEMPTS - 1:
        wait_after(error, attempt, "checking what arrived")
    elif status_of(error) is None and not is_network(error):
        line = str(error).strip().split("\n")[0]
        raise HubError(f"sending failed ({type(error).__name__}: {line}); run the same command again") from error
    else:
        with translate_hub_errors(f"sending to {repository.name}", repository.name):
            raise error


def _as_pull_request(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot) -> Sent:
    """Opens one pull request with all changes, or completes the open one with the same title."""
    for attempt in range(_ATTEMPTS):
        revision = repository.open_pull_request(_title(plan))
        if revision is not None:
            return Sent(_send_pending(plan, repository, seen, revision).commit or "", revision)
        now = _unchanged(plan, repository, seen, "main")
        files, deletes = plan.pending(now)
        if not files and not deletes:
            return Sent(now.commit or "", None)
        try:
            return Sent(*repository.commit(files, deletes, _title(plan), now.commit, pr=True))
        except Exception as error:
            _after_failure(error, attempt, plan, repository, seen, "main")
    raise HubError(f"no pull request to {repository.name} could be opened; run the same command again")


def _title(plan: PublishPlan) -> str:
    """Returns the title of the commit or pull request, with a digest of the content."""
    listing = "\n".join(f"{file.path} {file.sha256}" for file in plan.files) + "\n".join(plan.deletes)
    digest = hashlib.sha256(listing.encode()).hexdigest()[:10]
    return f"Publish {plan.request.kind.name} {plan.request.tag} ({digest})"


def _unchanged(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot, revision: str) -> RemoteState:
    now = repository.compare(repository.read(revision), plan.files)
    if foreign := seen.foreign(now):
        raise _refused(plan, foreign)
    return now


def _refused(plan: PublishPlan, changes: list[str]) -> InputError:
    more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
    hint = "these changes were not overwritten; run without --yes to see the plan for the new state"
    expected = "the repository unchanged since the last dry run or the start of this run"
    found = f"changed by somebody else: {', '.join(changes[:5])}{more}"
    return InputError(Problem(plan.request.repo, expected, found, hint))


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def _progress(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="scanning and hashing", delay=2, leave=False)


class MaskedStream:
    """Wraps a text stream and writes ``hf_***`` instead of a secret."""

    def __init__(self, stream: TextIO, secret: str) -> None:
        self._stream = stream
        self._secret = secret

    def write(self, text: str) -> int:
        return self._stream.write(text.replace(self._secret, "hf_***"))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_streams(secret: str) -> None:
    """Masks a secret on stdout, stderr and in their logging handlers until the process ends (for late tracebacks)."""
    if not secret:
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream, secret))
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        stream = getattr(handler, "stream", None)
        if getattr(stream, "name", "") in ("<stdout>", "<stderr>") and not isinstance(stream, MaskedStream):
            handler.setStream(MaskedStream(stream, secret))
