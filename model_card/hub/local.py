"""A release folder as it would be published: its files with sizes and hashes, scanned; nothing of it is sent here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from model_card.cards.check import check_card
from model_card.hub.contents import ScanReport
from model_card.hub.scan import OWN_SECRET, Finding, LocalSecrets, finding, scan_file
from model_card.tensors import check_weights
from scale_vqa_eval.errors import InputError, Problem

MANIFEST: Final = "publish.json"
"""File that publishing adds: names, sizes and SHA-256 of all files, and which parts of the card were generated."""
CARD: Final = "README.md"
LARGEST: Final = 50 * 10**9
"""Bytes; the Hub takes no larger file."""
_MAX_FILES: Final = 100_000
_HIDDEN_KEPT: Final = (".eval_results",)
_DOWNLOADED: Final = ".cache/huggingface/"
_TEXT: Final = frozenset({".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".cff", ".bib", ".csv"})
_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".svg"})
_APP: Final = _TEXT | _PICTURES | {".py", ".css", ".html", ".parquet"}


@dataclass(frozen=True)
class RepositoryKind:
    """A kind of repository.

    Attributes:
        name: as the user types it.
        repo_type: the Hub's name for it.
        sdk: of a Space, else None.
        suffixes: suffixes of the files that belong into it; others are refused.
        loaded: patterns of files that are loaded by name, so that an old one beside new ones would be read too.
    """

    name: Literal["dataset", "metric", "space", "model"]
    repo_type: str
    sdk: str | None
    suffixes: frozenset[str]
    loaded: tuple[str, ...] = ()


KINDS: Final = {
    kind.name: kind
    for kind in (
        RepositoryKind("dataset", "dataset", None, _TEXT | _PICTURES | {".parquet", ".html"}),
        RepositoryKind("metric", "space", "gradio", _APP),
        RepositoryKind("space", "space", "gradio", _APP),
        RepositoryKind(
            "model",
            "model",
            None,
            _TEXT | _PICTURES | {".safetensors", ".jinja", ".model", ".tiktoken"},
            ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.bin", "adapter_config.json"),
        ),
    )
}


@dataclass(frozen=True)
class PublishRequest:
    """What the user asked for; the options of ``scale-vqa publish``."""

    kind: RepositoryKind
    repo: str
    folder: Path
    tag: str
    private: bool = False
    pr: bool = False
    delete: tuple[str, ...] = ()
    replace: frozenset[str] = frozenset()
    allow: frozenset[str] = frozenset()
    incomplete_card: bool = False


@dataclass(frozen=True)
class LocalFile:
    """A file that is to be published.

    Attributes:
        path: in the repository, POSIX.
        sha256: of its bytes.
        blob_id: its id as a git blob, by which the Hub lists small files.
        content: its bytes, or the path of the file that has them.
    """

    path: str
    size: int
    sha256: str
    blob_id: str
    content: bytes | Path

    @classmethod
    def of(cls, path: str, content: bytes | Path, progress: Any = None) -> LocalFile:
        """Returns a file with its hashes, read once, in blocks."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        if isinstance(content, bytes):
            sha256.update(content)
            blob.update(content)
        else:
            with content.open("rb") as file:
                while block := file.read(1 << 20):
                    sha256.update(block)
                    blob.update(block)
                    if progress is not None:
                        progress.update(len(block))
        return cls(path, size, sha256.hexdigest(), blob.hexdigest(), content)

    def text(self) -> str:
        """Returns the content as text.

        Raises:
            InputError: if it is not UTF-8.
        """
        try:
            return (self.content if isinstance(self.content, bytes) else self.content.read_bytes()).decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is not UTF-8"
            raise InputError(Problem(self.path, "UTF-8 text", found, "save as UTF-8")) from None


@dataclass(frozen=True)
class LocalRelease:
    """The folder, scanned and hashed; its card is not merged with the remote's yet.

    Attributes:
        left_out: files that are not published, with the reason.
        findings: what the scan found; ``accepted``: those that ``--allow`` accepts.
        gaps: what a complete card would state and the folder's does not.
        undeclared: the gaps that the card does not admit itself; with them nothing is published.
        scanned: how each file was read.
    """

    files: tuple[LocalFile, ...]
    left_out: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    secrets: LocalSecrets
    scanned: ScanReport
    gaps: tuple[Problem, ...] = ()
    undeclared: tuple[Problem, ...] = ()


def read_local(request: PublishRequest, token: str, progress: Any) -> LocalRelease:
    """Walks, scans and hashes the folder.

    Raises:
        InputError: if there is no such folder, a file cannot be read as its name says, or weights are incomplete.
    """
    files, left_out, found = list_files(request.folder, request.kind)
    if request.kind.name == "model":
        check_weights(request.folder)
    secrets, scanned = LocalSecrets.of(request.folder, token), ScanReport()
    bar = progress(2 * sum(path.stat().st_size for _, path in files))
    for name, path in files:
        try:
            found += scan_file(name, path, secrets, scanned)
            if path.suffix == ".py":
                compile(path.read_bytes(), path.name, "exec")
        except (OSError, ValueError, SyntaxError) as error:
            line = str(error).strip().split("\n")[0]
            raise InputError(Problem(name, f"a readable {path.suffix} file", line, "write it again")) from None
        bar.update(path.stat().st_size)
    hashed = tuple(LocalFile.of(name, path, bar) for name, path in files)
    refused = tuple(one for one in found if one.mark not in request.allow or one.kind == OWN_SECRET)
    accepted = tuple(one for one in found if one not in refused)
    gaps, undeclared = (_card_gaps(request, draft) for draft in (False, True))
    return LocalRelease(hashed, tuple(left_out), refused, accepted, secrets, scanned, gaps, undeclared)


def list_files(
    folder: Path, kind: RepositoryKind
) -> tuple[list[tuple[str, Path]], list[tuple[str, str]], list[Finding]]:
    """Walks a release folder.

    Returns:
        Files to publish as (path in the repository, source), files left out as (path, reason), and findings: links
        that leave the folder, hidden files, files that do not belong into this kind of repository, files too large.

    Raises:
        InputError: if there is no such folder, it has no card, or far too many files.
    """
    if not folder.is_dir():
        hint = "name the folder to publish"
        raise InputError(Problem(str(folder), f"the folder of a {kind.name}", "no folder", hint))
    if not (folder / CARD).exists():
        hint = f"write it first{'' if kind.name == 'space' else f': scale-vqa card {kind.name}'}"
        raise InputError(Problem(f"{folder}/{CARD}", "a card", "no such file", hint))
    root = folder.resolve()
    files: list[tuple[str, Path]] = []
    left_out: list[tuple[str, str]] = []
    found: list[Finding] = []
    downloaded = 0
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in path.parts or path.suffix == ".pyc":
            left_out.append((name, "made by Python when it runs"))
        elif name == MANIFEST:
            left_out.append((name, "publishing writes a new one"))
        elif name == ".gitattributes":
            left_out.append((name, "the Hub keeps its own"))
        elif name.startswith(_DOWNLOADED):
            downloaded += 1
        elif problem := _misplaced(name, path, root, kind):
            found.append(problem)
        else:
            files.append((name, path))
    if downloaded:
        left_out.append((_DOWNLOADED, f"{downloaded} files of the Hub client's download cache"))
    if len(files) > _MAX_FILES:
        raise InputError(Problem(str(folder), f"at most {_MAX_FILES} files", f"{len(files)}", "write larger shards"))
    return files, left_out, found


def _walk(folder: Path) -> list[Path]:
    """Returns files and broken links below a folder; links to folders are listed, not followed."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [Path(place, name) for name in names]
        found += [Path(place, name) for name in folders if Path(place, name).is_symlink() or name == ".git"]
        folders[:] = [name for name in folders if name != ".git"]
    return found


def _misplaced(name: str, path: Path, root: Path, kind: RepositoryKind) -> Finding | None:
    """Returns why a file must not be published, whatever it contains."""
    hidden = [part for part in Path(name).parts if part.startswith(".") and part not in _HIDDEN_KEPT]
    if hidden:
        hint = "remove it from the folder, or publish from a clean one"
        return finding(name, "", "hidden", name, f"the hidden file or folder {hidden[0]}", hint)
    if path.is_symlink() and (not path.exists() or not path.resolve().is_relative_to(root) or path.is_dir()):
        what = "a link that leads nowhere" if not path.exists() else "a link to a folder or out of the release"
        return finding(name, "", "outside", name, what, "put the file itself there, or remove the link")
    if not path.is_file():
        return finding(name, "", "unexpected", name, "not a plain file", "remove it")
    if path.suffix.lower() not in kind.suffixes and path.name not in ("LICENSE", "NOTICE"):
        what = f"a file of type {path.suffix or 'unknown'}, which does not belong into a {kind.name}"
        hint = "remove it; weights are published as safetensors, data as Parquet"
        return finding(name, "", "unexpected", name, what, hint)
    if path.stat().st_size > LARGEST:
        what = f"{path.stat().st_size / 1e9:.1f} GB, more than {LARGEST / 1e9:.0f}"
        return finding(name, "", "too large", name, what, "write it in shards")
    return None


def _card_gaps(request: PublishRequest, draft: bool) -> tuple[Problem, ...]:
    """Returns what a complete card would state and the folder's does not; a draft may lack what it admits itself."""
    problems = check_card(request.folder, request.kind.name, draft)
    return tuple(replace(one, location=one.location.replace(f"{request.folder}/", "")) for one in problems)
