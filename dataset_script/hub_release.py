"""Reads a data set on the Hub in the authors' layout: one JSON file per split, and images in any layout.

Downloads are kept in the cache of the Hub client, so that an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import click
from tqdm import tqdm

from dataset_script.image_files import StoredFile
from scale_vqa_eval.errors import InputError, Problem, did_you_mean, preview
from scale_vqa_eval.files import parse_json
from scale_vqa_eval.schema import CONFIGS

SPLIT_NAMES: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Word in a file's name -> split."""
_ROW_FIELDS: Final = frozenset({"question", "options", "answer", "extra_info"})
_WORKERS: Final = 8
_HTTP_CLIENTS: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Converts the errors of the Hub client to an InputError."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    try:
        yield
    except Exception as error:
        # the client's HTTP library differs between versions; a file of unexpected size raises a bare OSError
        bare = isinstance(error, OSError) and error.filename is None and error.errno is None
        if not (isinstance(error, known) or bare or type(error).__module__.split(".")[0] in _HTTP_CLIENTS):
            raise
        found = " ".join((str(error) or type(error).__name__).split())[:200]
        hint = "check the id, `hf auth login` and the network; the same command resumes"
        raise InputError(Problem(repo, "a data set on the Hub", found, hint)) from error


@dataclass(frozen=True)
class HubFolder:
    """A data set on the Hub at one commit, or a part of it, as an ``ImageFiles``; files are downloaded when needed.

    Attributes:
        repo: Hub id.
        commit: id of the commit.
        sizes: path below ``under`` -> size of every file.
        under: folder that paths are relative to, with a trailing slash, or an empty string.
    """

    repo: str
    commit: str
    sizes: Mapping[str, int]
    under: str = ""

    @classmethod
    def read(cls, repo: str, revision: str | None = None) -> HubFolder:
        """Reads the listing of a repository at a branch, tag or commit (None for the newest commit).

        Raises:
            InputError: if it cannot be read.
        """
        from huggingface_hub import HfApi

        api = HfApi(library_name="scale-vqa")
        with hub_errors(f"{repo}@{revision}" if revision else repo):
            commit = str(api.repo_info(repo, repo_type="dataset", revision=revision).sha)
            tree = api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True)
            return cls(repo, commit, {entry.path: entry.size for entry in tree if hasattr(entry, "blob_id")})

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.repo}/{self.under}".rstrip("/")

    @property
    def is_release_folder(self) -> bool:
        """Whether it has Parquet files as written by ``scale-vqa build``."""
        return any(re.fullmatch(rf"({'|'.join(CONFIGS)})/[^/]+-\d+-of-\d+\.parquet", path) for path in self.sizes)

    def below(self, path: str) -> HubFolder:
        """Returns the part of the repository below a folder, or one of its archives.

        Raises:
            InputError: if there is no such path.
        """
        path = path.removeprefix("./").strip("/")
        if path in self.sizes:
            return replace(self, sizes={path: self.sizes[path]})
        under = "" if path in ("", ".") else f"{path}/"
        sizes = {one.removeprefix(under): size for one, size in self.sizes.items() if one.startswith(under)}
        if not sizes:
            known = {*self.sizes, *(one.rpartition("/")[0] for one in self.sizes)} - {""}
            raise InputError(Problem(self.repo, "a folder or archive of it", path, did_you_mean(path, sorted(known))))
        return replace(self, sizes=sizes, under=under)

    def listing(self) -> Iterable[tuple[str, int]]:
        return self.sizes.items()

    def exact(self, name: str) -> StoredFile | str:
        opened = lambda: self.local(name).open("rb")  # noqa: E731
        return StoredFile(name, self.sizes[name], "", opened) if name in self.sizes else "no file there"

    def local(self, path: str) -> Path:
        from huggingface_hub import hf_hub_download

        with hub_errors(self.repo):
            return Path(hf_hub_download(self.repo, self.under + path, repo_type="dataset", revision=self.commit))

    def peek(self, path: str) -> IO[bytes]:
        if not path.lower().endswith(".zip"):
            return self.local(path).open("rb")
        from huggingface_hub import HfFileSystem

        with hub_errors(self.repo):  # only the directory at the end of the ZIP file is downloaded
            opened: IO[bytes] = HfFileSystem().open(f"datasets/{self.repo}@{self.commit}/{self.under}{path}", "rb")
            return opened

    def fetch(self, paths: Iterable[str]) -> None:
        """Downloads files in parallel, unless they are in the client's cache."""
        wanted = sorted(set(paths))
        with ThreadPoolExecutor(_WORKERS) as pool:
            try:
                for _ in tqdm(pool.map(self.local, wanted), "files downloaded", total=len(wanted), disable=None):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def question_files(hub: HubFolder, named: Mapping[str, str]) -> dict[str, str]:
    """Returns split -> path of the JSON files with questions.

    Files are recognised by their content, and splits by a word in the file name or in the name of a parent folder.
    Files without such a word are read only if there are no others.

    Args:
        hub: the repository.
        named: split -> path as given by the user; if not empty, other files are ignored.

    Raises:
        InputError: if there is no such file, two files have the same split, or the split of a file is unknown.
    """
    listed = sorted(path for path in hub.sizes if path.lower().endswith(".json"))
    if missing := [path for path in named.values() if path not in hub.sizes]:
        nearest = did_you_mean(missing[0], listed)
        raise InputError([Problem(hub.repo, "the files of --json", preview(path), nearest) for path in missing])
    if named:
        return dict(named)
    rows: dict[str, int] = {}
    for paths in ([path for path in listed if _splits(path)], [path for path in listed if not _splits(path)]):
        if not rows:
            hub.fetch(paths)
            rows = {path: count for path in paths if (count := _question_count(hub.local(path), path)) is not None}
    shown = "; ".join(f"{path} ({count} rows)" for path, count in rows.items()) or f"none of {len(listed)} JSON files"
    splits = [_splits(path) for path in rows]
    if not rows or any(len(names) != 1 for names in splits) or len(set.union(*splits)) < len(splits):
        expected = "one JSON file of questions for each split, with train, val or test in its name"
        raise InputError(
            Problem(hub.repo, expected, shown, "give them as --json SPLIT=PATH, with paths in the data set")
        )
    click.echo(f"questions: {shown}", err=True)
    return {names.pop(): path for names, path in zip(splits, rows, strict=True)}


def _splits(path: str) -> set[str]:
    """Returns the splits named by a file name, or else by the nearest parent folder that names one."""
    for part in reversed(path.lower().split("/")):
        if words := {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part) if word in SPLIT_NAMES}:
            return words
    return set()


def _question_count(file: Path, path: str) -> int | None:
    """Returns the number of rows of a questions file, 0 if it is damaged, or None for other files."""
    try:
        rows = parse_json(file.read_bytes().decode("utf-8-sig"), path)
    except (InputError, UnicodeDecodeError):
        return 0 if _splits(path) and "/" not in path else None
    listed = rows if isinstance(rows, list) else []
    return len(listed) if any(isinstance(row, dict) and row.keys() >= _ROW_FIELDS for row in listed[:100]) else None
