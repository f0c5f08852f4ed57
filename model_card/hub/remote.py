"""The repository on the Hub: reading its state, changing it, and one-line messages for its errors.

Reads are retried, writes are not. The state that the last dry run saw is saved beside the Hub's cache. With it, a
later run refuses a repository that somebody else has changed, and recognises its own commits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_card.hub.local import LocalFile, RepositoryKind
from scale_vqa_eval.errors import InputError, preview
from scale_vqa_eval.files import atomic_write

T = TypeVar("T")
INITIAL: Final = frozenset({".gitattributes", "README.md"})
"""Files that the Hub creates in a new repository."""
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_WAITS: Final = (1.0, 2.0, 4.0)
_MAX_WAIT: Final = 60.0
_CLIENTS: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class HubError(click.ClickException):
    """The Hub refused a request, failed, or cannot be reached; exit 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class HubUnreachable(HubError):
    """The Hub cannot be reached: offline mode, or no network."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of an error, or None."""
    statuses = (getattr(getattr(cause, "response", None), "status_code", None) for cause in _causes(error))
    return next((int(status) for status in statuses if status is not None), None)


def is_network(error: BaseException) -> bool:
    """Whether an error comes from a failed or interrupted connection."""
    for cause in _causes(error):
        if isinstance(cause, ConnectionError | TimeoutError):
            return not isinstance(cause, OfflineModeIsEnabled)
        if type(cause).__module__.split(".")[0] in _CLIENTS and type(cause).__name__ != "HTTPStatusError":
            return True
    return False


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    return status in TRANSIENT if status is not None else is_network(error)


def wait_after(error: BaseException, attempt: int, consequence: str) -> None:
    """Waits as long as ``Retry-After`` says (at most a minute), else 1, 2 or 4 seconds, with a message on stderr."""
    headers = (getattr(getattr(cause, "response", None), "headers", None) or {} for cause in _causes(error))
    stated = [str(one.get("Retry-After")) for one in headers if str(one.get("Retry-After", "")).isdigit()]
    seconds = min(float(stated[0]), _MAX_WAIT) if stated else _WAITS[min(attempt, len(_WAITS) - 1)]
    status = status_of(error)
    reason = f"status {status}" if status is not None else type(error).__name__
    click.echo(f"the Hub did not answer ({reason}); {consequence} in {seconds:.0f} s", err=True)
    time.sleep(seconds)


def with_retries(call: Callable[[], T]) -> T:
    """Runs an idempotent call up to four times while errors are transient; a failure to connect is raised at once."""
    for attempt in range(len(_WAITS)):
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or type(error).__name__ in ("ConnectError", "OfflineModeIsEnabled"):
                raise
            wait_after(error, attempt, "trying again")
    return call()


@contextlib.contextmanager
def translate_hub_errors(doing: str, repo: str) -> Iterator[None]:
    """Context manager: replaces errors of the Hub's client by a one-line message that says what to do.

    Raises:
        HubUnreachable: if there is no connection.
        HubError: if the Hub answers with an error.
    """
    try:
        yield
    except (HubError, InputError, click.UsageError):
        raise
    except Exception as error:
        message = _message(error, repo)
        if message is None:
            raise
        unreachable = isinstance(error, OfflineModeIsEnabled) or (status_of(error) is None and is_network(error))
        raise (HubUnreachable if unreachable else HubError)(f"{doing}: {message}") from None


def _message(error: Exception, repo: str) -> str | None:
    again = "run the same command again: it continues where it stopped"
    status = status_of(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE and run it again"
    if status is None and is_network(error):
        return f"cannot reach {constants.ENDPOINT} ({type(error).__name__}); check the network, then {again}"
    if status is None:
        return str(error) if isinstance(error, HfHubHTTPError) else None
    if status >= 500:
        return f"the Hub failed (status {status}); {again}"
    answer = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    return {
        401: f"the token was refused (401), or has no access to {repo}; log in again: hf auth login",
        403: f"the token may not write to {repo} (403); use one with write access to that namespace: hf auth login",
        404: f"{repo} does not exist (404), or the token has no access to it",
        429: f"too many requests (429); wait a few minutes, then {again}",
    }.get(status, f"the Hub refused (status {status}): {preview(answer, 200)}")


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub; ``sha256`` is known for large files, whose ``blob_id`` is that of the LFS pointer."""

    size: int
    blob_id: str
    sha256: str | None

    def holds(self, file: LocalFile) -> bool:
        """Whether the content equals a local file."""
        return self.sha256 == file.sha256 if self.sha256 is not None else self.blob_id == file.blob_id


@dataclass(frozen=True)
class RemoteState:
    """State of a repository at a revision.

    Attributes:
        commit: commit id, or None without a repository or a commit.
        exists: whether the repository exists.
        private: whether it is private, or None if unknown.
        files: path -> file.
        tags: tag -> commit.
        not_read: why the Hub was not read (no token, no network); empty if it was.
    """

    commit: str | None = None
    exists: bool = False
    private: bool | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    not_read: str = ""


class HubRepository:
    """A repository on the Hub, accessed with huggingface_hub."""

    def __init__(self, kind: RepositoryKind, name: str, token: str) -> None:
        self.kind, self.name = kind, name
        self.api = HfApi(token=token or False, library_name="scale-vqa")
        self._anonymous = not token
        self._hashes: dict[tuple[str, str], str] = {}
        self._where: dict[str, Any] = {"repo_id": name, "repo_type": kind.repo_type}

    def read(self, revision: str = "main") -> RemoteState:
        """Returns the state at a revision; an empty state if the repository does not exist."""
        with translate_hub_errors(f"reading {self.name}", self.name):
            try:
                info = self._info(revision)
            except Exception as error:
                if self._anonymous and status_of(error) == 401:
                    return RemoteState(not_read="no token, and no public repository has this name")
                raise
            if info is None:
                return RemoteState()
            return RemoteState(info.sha, True, info.private, self._files(info.sha or revision), self._tags())

    def _info(self, revision: str) -> Any:
        """Returns the Hub's information on a revision, else on the repository, or None."""
        for options in ({"revision": revision}, {}):
            try:
                return with_retries(lambda options=options: self.api.repo_info(**self._where, **options))
            except Exception as error:
                if status_of(error) != 404:
                    raise
                if isinstance(error, RepositoryNotFoundError):
                    return None
        return None

    def _files(self, commit: str) -> dict[str, RemoteFile]:
        def listed() -> dict[str, RemoteFile]:
            entries = self.api.list_repo_tree(**self._where, recursive=True, revision=commit)
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
                for entry in entries
                if hasattr(entry, "blob_id")
            }

        try:
            return with_retries(listed)
        except (EntryNotFoundError, RevisionNotFoundError):
            return {}  # a repository without a commit

    def _tags(self) -> dict[str, str]:
        try:
            refs = with_retries(lambda: self.api.list_repo_refs(**self._where))
        except Exception as error:
            if status_of(error) != 404:
                raise
            return {}  # the server does not list references; setting an existing tag will fail
        return {ref.name: ref.target_commit for ref in refs.tags}

    def compare(self, remote: RemoteState, files: Iterable[LocalFile]) -> RemoteState:
        """Adds the SHA-256 of small remote files with the same size as the local ones but another id; reads them."""
        known = dict(remote.files)
        for file in files:
            there = known.get(file.path)
            if there is None or there.holds(file) or there.sha256 is not None or there.size != file.size:
                continue
            key = file.path, there.blob_id
            if key not in self._hashes:
                self._hashes[key] = hashlib.sha256(self._content(file.path, remote.commit)).hexdigest()
            known[file.path] = replace(there, sha256=self._hashes[key])
        return replace(remote, files=known)

    def text(self, path: str, commit: str) -> str:
        """Returns the text of a small file at a commit."""
        return self._content(path, commit).decode("utf-8", "replace")

    def _content(self, path: str, commit: str | None) -> bytes:
        where = self._where | {"filename": path, "revision": commit}
        with (
            tempfile.TemporaryDirectory() as folder,
            translate_hub_errors(f"reading {path} of {self.name}", self.name),
        ):
            return Path(with_retries(lambda: self.api.hf_hub_download(**where, local_dir=folder))).read_bytes()

    def create(self, private: bool) -> None:
        """Creates the repository if it does not exist."""
        sdk = {"space_sdk": self.kind.sdk} if self.kind.sdk else {}
        with translate_hub_errors(f"creating {self.name}", self.name), contextlib.suppress(KeyError, ValueError):
            # the client raises these if the answer 409 (it exists) has no address
            with_retries(lambda: self.api.create_repo(**self._where, private=private, exist_ok=True, **sdk))

    def commit(
        self,
        files: Iterable[LocalFile],
        deletes: Iterable[str],
        message: str,
        parent: str | None,
        revision: str | None = None,
        pr: bool = False,
    ) -> tuple[str, str | None]:
        """Sends files and deletions as one commit on top of ``parent``.

        Returns:
            The commit, and ``refs/pr/N`` if a pull request was opened.

        Raises:
            Exception: any error of the Hub's client; the commit may have arrived nevertheless.
        """
        operations: list[Any] = [CommitOperationDelete(path) for path in deletes]
        for file in files:
            content = file.content if isinstance(file.content, bytes) else str(file.content.resolve())
            operations.append(CommitOperationAdd(file.path, content))
        options = {"parent_commit": parent, "revision": revision, "create_pr": pr}
        done = self.api.create_commit(**self._where, operations=operations, commit_message=message, **options)
        return done.oid, done.pr_revision

    def open_pull_request(self, title: str) -> str | None:
        """Returns ``refs/pr/N`` of the first open pull request with this title, or None."""
        with translate_hub_errors(f"listing pull requests of {self.name}", self.name):
            try:
                found = with_retries(lambda: list(self.api.get_repo_discussions(**self._where)))
            except Exception as error:
                if status_of(error) != 404:
                    raise
                return None  # the server does not list pull requests
        numbers = [
            one.num for one in found if one.is_pull_request and one.title == title and one.status in ("open", "draft")
        ]
        return f"refs/pr/{min(numbers)}" if numbers else None

    def tag(self, tag: str, commit: str) -> None:
        """Sets a tag; raises HubError if the tag exists on another commit."""
        with translate_hub_errors(f"tagging {self.name}", self.name):
            with_retries(lambda: self.api.create_tag(**self._where, tag=tag, revision=commit, exist_ok=True))
            tagged = with_retries(lambda: self.api.repo_info(**self._where, revision=tag)).sha
        if tagged != commit:
            raise HubError(f"tag {tag} of {self.name} was set to another commit ({tagged}) in the meantime")


@dataclass(frozen=True)
class RemoteSnapshot:
    """State of the repository when the plan was made, and the planned changes.

    Attributes:
        commit: commit id, or None if there was no repository.
        files: path -> id in the Hub's list.
        planned: path -> planned ids (SHA-256 and git blob), or None if the file is to be deleted.
        suspect: files that failed verification and are sent again.
    """

    commit: str | None
    files: dict[str, str]
    planned: dict[str, list[str] | None]
    suspect: tuple[str, ...] = ()

    @classmethod
    def of(cls, remote: RemoteState, planned: Iterable[LocalFile], deletes: Iterable[str]) -> RemoteSnapshot:
        ids: dict[str, list[str] | None] = {file.path: [file.sha256, file.blob_id] for file in planned}
        files = {path: file.blob_id for path, file in remote.files.items()}
        return cls(remote.commit, files, {**ids, **dict.fromkeys(deletes)})

    def continued(self, now: RemoteSnapshot) -> RemoteSnapshot:
        """Returns a copy with the plan of ``now`` added, because the folder may have changed."""
        planned = {**self.planned, **now.planned}
        for path, ids in now.planned.items():
            if ids is not None:
                planned[path] = [*ids, *(one for one in self.planned.get(path) or () if one not in ids)]
        return replace(self, planned=planned)

    def foreign(self, now: RemoteState) -> list[str]:
        """Returns the changes that somebody else made since, such as ``README.md (changed)``."""
        changes = []
        for path in sorted(self.files.keys() | now.files.keys()):
            before, after = self.files.get(path), now.files.get(path)
            initial = path in INITIAL and now.files.keys() <= INITIAL
            if (
                (after.blob_id if after else None) == before
                or (self.commit is None and (initial or path == ".gitattributes"))
                or (after is None and path in self.planned and self.planned[path] is None)
                or (after is not None and {after.sha256, after.blob_id} & set(self.planned.get(path) or ()))
            ):
                continue
            changes.append(f"{path} ({'added' if before is None else 'removed' if after is None else 'changed'})")
        return changes

    @staticmethod
    def path(repository: HubRepository, pr: bool) -> Path:
        """Returns the path of a repository's snapshot."""
        server = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in constants.ENDPOINT)
        name = f"{repository.kind.repo_type}s--{repository.name.replace('/', '--')}{'--pr' if pr else ''}.json"
        return Path(constants.HF_HOME) / "scale-vqa" / "publish" / server / name

    @classmethod
    def read(cls, path: Path) -> RemoteSnapshot | None:
        """Returns the snapshot, or None if it does not exist or cannot be read."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(found["commit"], dict(found["files"]), dict(found["planned"]), tuple(found["suspect"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Writes the snapshot atomically; raises InputError if that fails."""
        atomic_write(path, json.dumps(asdict(self), sort_keys=True), "set HF_HOME to a folder that can be written")
