"""Does what a plan says: creates the repository, sends what is missing in one commit, tags it.

Every step reads the state of the Hub before it acts, so that an interrupted run continues where it stopped and nothing
is done twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_card.hub.plan import PublishPlan
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
from scale_vqa_eval.errors import InputError, Problem

_ATTEMPTS: Final = 4


@dataclass(frozen=True)
class Sent:
    """The commit on the Hub, and the revision of the pull request if one was opened."""

    commit: str
    pull_request: str | None


def send(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot, record: Path) -> Sent:
    """Brings the remote to the state that the plan describes.

    Args:
        plan: made of the remote as it is.
        repository: the repository.
        seen: the remote as the last dry run, or this run, saw it.
        record: file for ``seen``, for a run that continues this one.

    Raises:
        InputError: if somebody else changed the remote since ``seen``.
        HubError: if the Hub fails; the same command continues from there.
    """
    seen.write(record)
    request = plan.request
    if not plan.remote.exists:
        repository.create(request.private)
        made = repository.read()
        if not made.exists:
            raise HubError(f"{request.repo} could not be made; the Hub says that it exists, but does not show it")
        if request.private and made.private is False:
            raise HubError(f"{request.repo} is public although --private was given; nothing was sent to it")
    if request.pr:
        return _as_pull_request(plan, repository, seen)
    return Sent(_bring(plan, repository, seen, "main").commit or "", None)


def tag_commit(plan: PublishPlan, sent: Sent, repository: HubRepository) -> None:
    """Sets the tag of the version, unless it exists (and then for the same data)."""
    if plan.request.tag not in plan.remote.tags:
        repository.tag(plan.request.tag, sent.commit)


def _bring(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot, revision: str) -> RemoteState:
    """Sends what is missing on a branch or pull request until nothing is."""
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
        raise HubError(f"{repository.name} does not hold what was sent ({left}); did a file change meanwhile?")
    return now


def _after_failure(
    error: Exception,
    attempt: int,
    plan: PublishPlan,
    repository: HubRepository,
    seen: RemoteSnapshot,
    revision: str,
) -> None:
    """Returns if it is worth another look at the remote; else raises."""
    if status_of(error) == 412:
        if any(plan.pending(_unchanged(plan, repository, seen, revision))):
            raise _refused(plan, ["a commit came in between (412)"])
    elif is_transient(error) and attempt < _ATTEMPTS - 1:
        wait_after(error, attempt, "looking what arrived")
    elif status_of(error) is None and not is_network(error):
        line = str(error).strip().split("\n")[0]
        raise HubError(f"sending failed ({type(error).__name__}: {line}); run the same command again") from error
    else:
        with translate_hub_errors(f"sending to {repository.name}", repository.name):
            raise error


def _as_pull_request(plan: PublishPlan, repository: HubRepository, seen: RemoteSnapshot) -> Sent:
    """Opens one pull request with all changes, or completes the open one of the same title and content."""
    for attempt in range(_ATTEMPTS):
        revision = repository.open_pull_request(_title(plan))
        if revision is not None:
            return Sent(_bring(plan, repository, seen, revision).commit or "", revision)
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
    """Returns the title of commit and pull request; equal for equal content."""
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
    hint = "nothing of it was overwritten; run without --yes to see the plan for the new state"
    expected = "the repository as the last dry run, or the start of this run, saw it"
    found = f"changed by somebody else: {', '.join(changes[:5])}{more}"
    return InputError(Problem(plan.request.repo, expected, found, hint))
