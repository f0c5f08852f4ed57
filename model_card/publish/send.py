"""Does what a plan says: creates the repository, sends what is missing in one commit, tags it.

Every step looks at what the Hub holds before it acts, so that a run that was interrupted anywhere goes on where it
stopped, and nothing is done twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from scale_vqa_eval.errors import InputError, Problem

from .hub_errors import HubError, is_network, is_transient, reason, status_of, told, wait_after
from .plan import Plan
from .record import Seen, write_record
from .remote import Remote, Repository

_ATTEMPTS: Final = 4


@dataclass(frozen=True)
class Sent:
    """What the Hub holds now: the commit, and the pull request's revision where one was opened."""

    commit: str
    pull_request: str | None


def send(plan: Plan, repository: Repository, seen: Seen, record: Path) -> Sent:
    """Brings the remote to what the plan says.

    Args:
        plan: the plan, made of the remote as it is.
        repository: the repository.
        seen: the remote as the last dry run, or this run, saw it.
        record: where ``seen`` is kept, for a run that goes on with this one.

    Raises:
        InputError: where somebody else changed the remote since ``seen``.
        HubError: where the Hub fails; the same command goes on from there.
    """
    write_record(record, seen)
    if not plan.remote.exists:
        repository.create(plan.wish.private)
        made = repository.read()
        if not made.exists:
            raise HubError(f"{plan.wish.repo} could not be made; the Hub says that it exists, but does not show it")
        if plan.wish.private and made.private is False:
            raise HubError(f"{plan.wish.repo} is public although --private was given; nothing was sent to it")
    if plan.wish.pr:
        return _as_pull_request(plan, repository, seen)
    done = _bring(plan, repository, seen, "main")
    assert done.commit is not None
    return Sent(done.commit, None)


def tag_commit(plan: Plan, sent: Sent, repository: Repository) -> None:
    """Sets the tag of the version, unless it stands already (and then for the same data)."""
    if plan.wish.tag not in plan.remote.tags:
        repository.tag(plan.wish.tag, sent.commit)


def _bring(plan: Plan, repository: Repository, seen: Seen, revision: str) -> Remote:
    """Sends what is missing on a branch or pull request until nothing is."""
    for attempt in range(_ATTEMPTS):
        now = _unchanged(plan, repository, seen, revision)
        files, deletes = plan.pending(now)
        if attempt == 0:
            files += [file for file in plan.files if file.path in seen.suspect and file not in files]
        if not files and not deletes:
            return now
        try:
            repository.upload(
                files, deletes, title(plan), now.commit, None if revision == "main" else revision, pr=False
            )
        except Exception as error:
            _after_failure(error, attempt, plan, repository, seen, revision)
    now = _unchanged(plan, repository, seen, revision)
    if any(plan.pending(now)):
        left = ", ".join(file.path for file in plan.pending(now)[0][:3])
        raise HubError(f"{plan.wish.repo} does not hold what was sent ({left}); did a file change while it was sent?")
    return now


def _after_failure(
    error: Exception, attempt: int, plan: Plan, repository: Repository, seen: Seen, revision: str
) -> None:
    """Returns where it is worth another look at the remote; else raises."""
    if status_of(error) == 412:
        now = _unchanged(plan, repository, seen, revision)
        if any(plan.pending(now)):
            raise _refused(plan, ["a commit came in between (412)"])
        return
    if not is_transient(error) or attempt == _ATTEMPTS - 1:
        with told(f"sending to {plan.wish.repo}", plan.wish.repo):
            if status_of(error) is None and not is_network(error):
                line = str(error).strip().split("\n")[0]
                raise HubError(
                    f"sending failed ({type(error).__name__}: {line}); run the same command again"
                ) from error
            raise error
    seconds = wait_after(error, attempt)
    click.echo(f"sending failed ({reason(error)}); looking what arrived in {seconds:.0f} s", err=True)
    time.sleep(seconds)


def _as_pull_request(plan: Plan, repository: Repository, seen: Seen) -> Sent:
    """Opens one pull request with all changes; one of the same title and content that is open already is gone on."""
    for attempt in range(_ATTEMPTS):
        found = repository.open_pull_request(title(plan))
        if found is not None:
            return _finished(plan, repository, seen, found)
        now = _unchanged(plan, repository, seen, "main")
        files, deletes = plan.pending(now)
        if not files and not deletes:
            return Sent(now.commit or "", None)
        try:
            commit, number = repository.upload(files, deletes, title(plan), now.commit, None, pr=True)
        except Exception as error:
            _after_failure(error, attempt, plan, repository, seen, "main")
            continue
        found = repository.open_pull_request(title(plan))
        return Sent(commit, number) if found is None else _finished(plan, repository, seen, found)
    raise HubError(f"no pull request to {plan.wish.repo} could be opened; run the same command again")


def _finished(plan: Plan, repository: Repository, seen: Seen, found: tuple[str, str]) -> Sent:
    """Sends what a pull request lacks, and takes it out of draft, in which the Hub's client may leave it."""
    revision, status = found
    done = _bring(plan, repository, seen, revision)
    if status == "draft":
        repository.mark_ready(revision)
    assert done.commit is not None
    return Sent(done.commit, revision)


def title(plan: Plan) -> str:
    """Returns the title of commit and pull request; equal for equal content."""
    import hashlib

    listing = "\n".join(f"{file.path} {file.sha256}" for file in plan.files) + "\n".join(plan.deletes)
    return f"Publish {plan.wish.kind.name} {plan.wish.tag} ({hashlib.sha256(listing.encode()).hexdigest()[:10]})"


def _unchanged(plan: Plan, repository: Repository, seen: Seen, revision: str) -> Remote:
    now = repository.compare(repository.read(revision), plan.files)
    foreign = seen.foreign(now)
    if foreign:
        raise _refused(plan, foreign)
    return now


def _refused(plan: Plan, changes: list[str]) -> InputError:
    more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
    hint = "nothing of it was overwritten; run without --yes to see the plan that goes with it"
    expected = "the repository as the last dry run, or the start of this run, saw it"
    found = f"changed by somebody else: {', '.join(changes[:5])}{more}"
    return InputError(Problem(plan.wish.repo, expected, found, hint))
