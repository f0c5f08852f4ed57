"""The files of a release folder as they would be published, with sizes and hashes; what does not belong is found."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem

from .findings import Finding, finding
from .kinds import CARD, MANIFEST, Kind

LARGEST: Final = 50 * 10**9
"""Bytes; the Hub takes no larger file."""
_MAX_FILES: Final = 100_000
_HIDDEN_KEPT: Final = (".eval_results",)
_DOWNLOADED: Final = ".cache/huggingface/"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class LocalFile:
    """A file that is to be published.

    Attributes:
        path: in the repository, POSIX.
        source: where its bytes are; None where they are ``content`` (a merged card, the manifest).
        size: bytes.
        sha256, blob_id: its SHA-256, and its id as a git blob, by which the Hub lists small files.
    """

    path: str
    size: int
    sha256: str
    blob_id: str
    source: Path | None = None
    content: bytes | None = None

    @classmethod
    def of(cls, path: str, content: bytes) -> LocalFile:
        """Returns a file whose bytes are at hand."""
        return cls(path, len(content), hashlib.sha256(content).hexdigest(), _blob(content), None, content)

    def text(self) -> str:
        """Returns the content as text.

        Raises:
            InputError: where it is no UTF-8.
        """
        content = self.content if self.content is not None else self.source.read_bytes() if self.source else b""
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                Problem(self.path, "UTF-8 text", f"byte {error.start} is none", "save as UTF-8")
            ) from None


def list_files(folder: Path, kind: Kind) -> tuple[list[tuple[str, Path]], list[tuple[str, str]], list[Finding]]:
    """Walks a release folder.

    Returns:
        Files to publish as (path in the repository, source), files left out as (path, why), and findings: links that
        leave the folder, hidden files, files that do not belong into this kind of repository, files too large.

    Raises:
        InputError: where there is no such folder, it has no card, or far too many files.
    """
    if not folder.is_dir():
        raise InputError(
            Problem(str(folder), f"the folder of a {kind.name}", "no folder", "name the folder to publish")
        )
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
            left_out.append((name, "written anew by publishing"))
        elif name == ".gitattributes":
            left_out.append((name, "the Hub keeps its own"))
        elif name.startswith(_DOWNLOADED):
            downloaded += 1
        elif problem := _misplaced(name, path, root, kind):
            found.append(problem)
        else:
            files.append((name, path))
    if downloaded:
        left_out.append((_DOWNLOADED, f"{downloaded} files by which the Hub's client knows what it downloaded"))
    if len(files) > _MAX_FILES:
        raise InputError(Problem(str(folder), f"at most {_MAX_FILES} files", f"{len(files)}", "write larger shards"))
    if not (folder / CARD).exists():
        hint = f"write it first{'' if kind.name == 'space' else f': scale-vqa card {kind.name}'}"
        raise InputError(Problem(f"{folder}/{CARD}", "a card", "no such file", hint))
    return files, left_out, found


def hash_files(files: list[tuple[str, Path]], progress: Any = None) -> list[LocalFile]:
    """Reads every file once, in blocks, and returns it with its hashes."""
    return [_hashed(name, path, progress) for name, path in files]


def _walk(folder: Path) -> list[Path]:
    """Files and broken links below a folder; links to folders are not followed but listed."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [Path(place, name) for name in names]
        found += [Path(place, name) for name in folders if Path(place, name).is_symlink() or name == ".git"]
        folders[:] = [name for name in folders if name != ".git"]
    return found


def _misplaced(name: str, path: Path, root: Path, kind: Kind) -> Finding | None:
    hidden = [part for part in Path(name).parts if part.startswith(".") and part not in _HIDDEN_KEPT]
    if hidden:
        hint = "remove it from the folder, or publish from a clean one"
        return finding(name, "", "hidden", name, f"the hidden file or folder {hidden[0]}", hint)
    if path.is_symlink() and (not path.exists() or not path.resolve().is_relative_to(root) or path.is_dir()):
        target = "a link that leads nowhere" if not path.exists() else "a link to a folder or out of the release"
        return finding(name, "", "outside", name, target, "put the file itself there, or remove the link")
    if not path.is_file():
        return finding(name, "", "unexpected", name, "no plain file", "remove it")
    if not kind.belongs(name):
        what = f"a file of type {path.suffix or 'unknown'}, which does not belong into a {kind.name}"
        hint = "remove it; weights go out as safetensors, data as Parquet"
        return finding(name, "", "unexpected", name, what, hint)
    if path.stat().st_size > LARGEST:
        what = f"{path.stat().st_size / 1e9:.1f} GB, more than {LARGEST / 1e9:.0f}"
        return finding(name, "", "too large", name, what, "write it in shards")
    return None


def _hashed(name: str, path: Path, progress: Any) -> LocalFile:
    size = path.stat().st_size
    whole, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
            blob.update(block)
            if progress is not None:
                progress.update(len(block))
    return LocalFile(name, size, whole.hexdigest(), blob.hexdigest(), path)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
