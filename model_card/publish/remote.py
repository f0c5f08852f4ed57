"""The repository on the Hub: what it holds now, and the few things that are done to it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from .hub_errors import HubError, patiently, status_of, told
from .inventory import LocalFile
from .kinds import Kind

INITIAL: Final = frozenset({".gitattributes", "README.md"})
"""What the Hub itself puts into a repository that is made."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub; ``sha256`` is listed for large files, ``blob_id`` (of a large one: its pointer's) for all."""

    size: int
    blob_id: str
    sha256: str | None

    def holds(self, file: LocalFile) -> bool:
        """Whether the bytes are those of a local file."""
        return self.sha256 == file.sha256 if self.sha256 is not None else self.blob_id == file.blob_id


@dataclass(frozen=True)
class Remote:
    """What a revision of a repository holds.

    Attributes:
        commit: None where there is no repository, or it has none.
        exists: whether there is a repository.
        private: None where there is no repository, or the Hub does not say.
        files: path -> file.
        tags: tag -> commit.
    """

    commit: str | None = None
    exists: bool = False
    private: bool | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Repository:
    """One repository on the Hub, through the Hub's own client; reads are repeated, writes are not."""

    def __init__(self, kind: Kind, name: str, token: str) -> None:
        from huggingface_hub import HfApi

        self.kind, self.name = kind, name
        self.api = HfApi(token=token, library_name="scale-vqa")
        self._read: dict[tuple[str, str], str] = {}
        self._where: dict[str, Any] = {"repo_id": name, "repo_type": kind.repo_type}

    def read(self, revision: str = "main") -> Remote:
        """Returns what a revision holds; an empty ``Remote`` where there is no such repository."""
        with told(f"reading {self.name}", self.name):
            info = self._info(revision)
            if info is None:
                return Remote()
            return Remote(info.sha, True, info.private, self._files(info.sha or revision), self._tags())

    def _info(self, revision: str) -> Any:
        """Returns what the Hub says of a revision; of the repository where it has none yet; None where neither is."""
        from huggingface_hub.errors import RepositoryNotFoundError

        for location in ({"revision": revision}, {}):
            try:
                return patiently(lambda location=location: self.api.repo_info(**self._where, **location))
            except Exception as error:
                if status_of(error) != 404:
                    raise
                if isinstance(error, RepositoryNotFoundError):
                    return None
        return None

    def compare(self, remote: Remote, files: Iterable[LocalFile]) -> Remote:
        """Returns the remote with the SHA-256 of files whose listed id leaves it open whether they are the local ones.

        Those are small files of the same size and another id: they are read, so that no id is taken on trust.
        """
        known = dict(remote.files)
        for file in files:
            there = known.get(file.path)
            if there is None or there.holds(file) or there.sha256 is not None or there.size != file.size:
                continue
            if (file.path, there.blob_id) not in self._read:
                content = self._content(file.path, remote.commit)
                self._read[file.path, there.blob_id] = hashlib.sha256(content).hexdigest()
            known[file.path] = replace(there, sha256=self._read[file.path, there.blob_id])
        return replace(remote, files=known)

    def text(self, path: str, commit: str) -> str:
        """Returns a small text file of a commit."""
        return self._content(path, commit).decode("utf-8", "replace")

    def _content(self, path: str, commit: str | None) -> bytes:
        with tempfile.TemporaryDirectory() as folder, told(f"reading {path} of {self.name}", self.name):
            place = patiently(
                lambda: self.api.hf_hub_download(**self._where, filename=path, revision=commit, local_dir=folder)
            )
            return Path(place).read_bytes()

    def create(self, private: bool) -> None:
        """Makes the repository; one that exists is left as it is."""
        sdk = {"space_sdk": self.kind.sdk} if self.kind.sdk else {}
        with told(f"creating {self.name}", self.name), contextlib.suppress(KeyError, ValueError):
            # a KeyError or ValueError is the client not finding an address in the answer "it exists already" (409)
            patiently(lambda: self.api.create_repo(**self._where, private=private, exist_ok=True, **sdk))

    def upload(
        self,
        files: list[LocalFile],
        deletes: list[str],
        message: str,
        parent: str | None,
        revision: str | None,
        pr: bool,
    ) -> tuple[str, str | None]:
        """Sends files and deletions on top of ``parent``.

        Returns:
            Commit, and ``refs/pr/N`` where a pull request was opened.

        Raises:
            whatever the Hub's client raises: what it means depends on what the repository then holds.
        """
        with staged(files) as folder:
            done = self.api.upload_folder(
                **self._where,
                folder_path=folder,
                commit_message=message,
                parent_commit=parent,
                revision=revision,
                create_pr=pr,
                delete_patterns=[glob.escape(path) for path in deletes] or None,
            )
        return done.oid, done.pr_revision

    def open_pull_request(self, title: str) -> tuple[str, str] | None:
        """Returns (``refs/pr/N``, status) of the open pull request with this title, None where there is none."""
        with told(f"listing pull requests of {self.name}", self.name):
            try:
                found = patiently(lambda: list(self.api.get_repo_discussions(**self._where)))
            except Exception as error:
                if status_of(error) != 404:
                    raise
                return None  # a server that lists none
        for one in sorted(found, key=lambda one: one.num):
            if one.is_pull_request and one.title == title and one.status in ("open", "draft"):
                return f"refs/pr/{one.num}", one.status
        return None

    def mark_ready(self, revision: str) -> None:
        """Opens a pull request that is a draft for review."""
        with told(f"opening {revision} of {self.name}", self.name):
            number = int(revision.rsplit("/", 1)[-1])
            self.api.change_discussion_status(self.name, number, "open", repo_type=self.kind.repo_type)

    def tag(self, tag: str, commit: str) -> None:
        """Sets a tag; one that stands there already is left, and must be of this commit.

        Raises:
            HubError: where the tag is of another commit.
        """
        with told(f"tagging {self.name}", self.name):
            patiently(lambda: self.api.create_tag(**self._where, tag=tag, revision=commit, exist_ok=True))
            stands = patiently(lambda: self.api.repo_info(**self._where, revision=tag)).sha
        if stands != commit:
            raise HubError(f"tag {tag} of {self.name} was set to another commit ({stands}) in the meantime")

    def _files(self, commit: str) -> dict[str, RemoteFile]:
        def listed() -> dict[str, RemoteFile]:
            entries = self.api.list_repo_tree(**self._where, recursive=True, revision=commit)
            return {
                entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
                for entry in entries
                if hasattr(entry, "blob_id")
            }

        from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

        try:
            return patiently(listed)
        except (EntryNotFoundError, RevisionNotFoundError):
            return {}  # a repository without a commit

    def _tags(self) -> dict[str, str]:
        try:
            refs = patiently(lambda: self.api.list_repo_refs(**self._where))
        except Exception as error:
            if status_of(error) != 404:
                raise
            return {}  # a server that lists no references: a tag that stands is found when it is set
        return {ref.name: ref.target_commit for ref in refs.tags}


@contextlib.contextmanager
def staged(files: list[LocalFile]) -> Iterator[Path]:
    """Yields a folder that looks like what is to be sent: links to the files, and what was merged as a file."""
    with tempfile.TemporaryDirectory(prefix="scale-vqa-publish-") as name:
        folder = Path(name)
        for file in files:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.content is not None:
                place.write_bytes(file.content)
            else:
                assert file.source is not None
                place.symlink_to(file.source.resolve())
        yield folder
