"""The folder to publish: checks its card, and lists, scans and hashes its files. Nothing is sent here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from huggingface_hub import DatasetCard, ModelCard, RepoCard, parse_eval_result_entries

from model_card.hub.contents import ScanReport
from model_card.hub.scan import OWN_SECRET, Finding, LocalSecrets, finding, scan_file
from model_card.tensors import check_weights
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.release_folder.card import INCOMPLETE, NO_LICENCE, head, marked_sections

CardKind = Literal["dataset", "model", "metric", "space"]

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("splits", "audit", "defects", "uses", "licence", "datasheet", "package"),
    "model": ("summary", "use", "results", "transfer", "training", "limits", "cost", "citation"),
    "metric": ("example", "citation"),
    "space": (),
}
"""Kind of card -> its marked sections."""
HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "dataset": ("license", "configs", "dataset_info", "task_categories", "pretty_name"),
    "model": ("license", "base_model", "datasets", "pipeline_tag", "library_name", "model-index"),
    "metric": ("license", "title", "sdk", "sdk_version", "app_file", "tags"),
    "space": ("license", "title", "sdk", "sdk_version", "app_file"),
}
"""Kind of card -> required YAML keys."""
_CLASSES: Final[Mapping[str, type[RepoCard]]] = {"dataset": DatasetCard, "model": ModelCard}
_LOCAL: Final = re.compile(r"(?<![\w:/.])(?:/(?:home|root|Users|tmp|work|mnt|data)/[\w.-]+|[A-Z]:\\\\?Users)")
_BLANK: Final = re.compile(r"\b(?:TODO|TBD|FIXME|More Information Needed)\b|\{\{\s|\{%|\bNone\b(?= \|)")
MANIFEST: Final = "publish.json"
"""File that publishing adds: names, sizes and SHA-256 of all files, and digests of the generated parts of the card."""
CARD: Final = "README.md"
LARGEST: Final = 50 * 10**9
"""Largest file that the Hub accepts, in bytes."""
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
        name: subcommand of ``publish``.
        repo_type: the Hub's name for it.
        sdk: SDK of a Space, or None.
        suffixes: allowed suffixes; other files are refused.
        loaded: patterns of files that a loader finds by name; old ones must not be left beside new ones.
    """

    name: CardKind
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
    """The options of ``scale-vqa publish``."""

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
    """A file to publish.

    Attributes:
        path: POSIX path in the repository.
        sha256: SHA-256 of its bytes.
        blob_id: git blob id, by which the Hub lists small files.
        content: its bytes, or the path of the file with these bytes.
    """

    path: str
    size: int
    sha256: str
    blob_id: str
    content: bytes | Path

    @classmethod
    def of(cls, path: str, content: bytes | Path, progress: Any = None) -> LocalFile:
        """Hashes a file, reading it once in blocks."""
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
        """Returns the content as text; raises InputError if it is not UTF-8."""
        try:
            return (self.content if isinstance(self.content, bytes) else self.content.read_bytes()).decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.start} is not UTF-8"
            raise InputError(Problem(self.path, "UTF-8 text", found, "save as UTF-8")) from None


@dataclass(frozen=True)
class LocalRelease:
    """The scanned and hashed folder; its card is not yet merged with that on the Hub.

    Attributes:
        left_out: (file that is not published, reason).
        findings: findings of the scan that ``--allow`` does not accept; nothing is published with one.
        accepted: findings that ``--allow`` accepts.
        scanned: how the files were read.
        gaps: what a complete card would state and this one does not.
        undeclared: gaps that the card does not declare; nothing is published with one.
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
    """Lists, scans and hashes the files of the folder.

    Raises:
        InputError: if the folder does not exist, a file is not in the format of its suffix, or weights are incomplete.
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
    """Lists the files of a folder.

    Returns:
        Files to publish as (path in the repository, source), files left out as (path, reason), and findings: links
        out of the folder, hidden files, files that do not belong in this kind of repository, and too large files.

    Raises:
        InputError: if the folder does not exist, has no card, or has too many files.
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
            left_out.append((name, "Python writes it when it runs"))
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
    """Lists files and links below a folder; links to folders are not followed."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [Path(place, name) for name in names]
        found += [Path(place, name) for name in folders if Path(place, name).is_symlink() or name == ".git"]
        folders[:] = [name for name in folders if name != ".git"]
    return found


def _misplaced(name: str, path: Path, root: Path, kind: RepositoryKind) -> Finding | None:
    """Returns a finding if a file must not be published, whatever it contains."""
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
        what = f"a file of type {path.suffix or 'unknown'}, which does not belong in a {kind.name}"
        hint = "remove it; weights are published as safetensors, data as Parquet"
        return finding(name, "", "unexpected", name, what, hint)
    if path.stat().st_size > LARGEST:
        what = f"{path.stat().st_size / 1e9:.1f} GB, more than {LARGEST / 1e9:.0f}"
        return finding(name, "", "too large", name, what, "write it in shards")
    return None


def check_card(folder: Path, kind: CardKind, draft: bool = False) -> list[Problem]:
    """Returns the problems of a folder's card: YAML, sections, licence, citation, local paths, blanks to fill in.

    Args:
        folder: folder with ``README.md`` and, for a model, ``.eval_results/*.yaml``.
        kind: ``dataset``, ``model``, ``metric`` or ``space`` (an app other than the metric).
        draft: accept missing sections and a missing licence if the card says that it is incomplete.
    """
    path = folder / "README.md"
    hint = "write it in the card" if kind == "space" else f"scale-vqa card {kind}"
    try:
        text = path.read_text(encoding="utf-8")
        data = head(text)
        _CLASSES.get(kind, RepoCard)(text, ignore_metadata_errors=False)
    except InputError as error:
        return list(error.problems)
    except (OSError, ValueError) as error:
        return [Problem(str(path), "a card", preview(str(error), 200), hint)]
    problems = [
        Problem(str(path), f"{name} in the metadata", "none", hint) for name in HEADS[kind] if not data.get(name)
    ]
    sections = marked_sections(text)
    if not (draft and INCOMPLETE in sections):
        if data.get("license_name") == NO_LICENCE:
            problems.append(Problem(str(path), "a licence", NO_LICENCE, f"{hint} --license"))
        missing = [name for name in SECTIONS[kind] if name not in sections]
        problems += [Problem(str(path), f"the section {name}", "none", hint) for name in missing]
    app = data.get("app_file")
    if kind in ("metric", "space") and app and not (folder / str(app)).is_file():
        problems.append(Problem(str(path), "an app_file that exists", preview(app), "name the app's script"))
    if kind != "space" and "@inproceedings{phan2026scalevqa" not in text:
        problems.append(Problem(str(path), "the paper's BibTeX", "none", hint))
    for number, line in enumerate(text.splitlines(), 1):
        location = f"{path}, line {number}"
        if _LOCAL.search(line):
            problems.append(Problem(location, "no local path", preview(line), "remove it"))
        if kind in ("dataset", "model") and _BLANK.search(line):
            problems.append(Problem(location, "no blank to fill in", preview(line), "fill it in"))
    return problems + (_eval_problems(folder) if kind == "model" else [])


def _eval_problems(folder: Path) -> list[Problem]:
    files = sorted((folder / ".eval_results").glob("*.yaml"))
    hint = "scale-vqa card model"
    if not files:
        return [Problem(str(folder / ".eval_results"), "evaluation results", "none", hint)]
    problems = []
    for file in files:
        try:
            entries = parse_eval_result_entries(parse_yaml(file.read_text(encoding="utf-8"), str(file)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(Problem(str(file), "evaluation results", preview(str(error), 160), hint))
            continue
        expected = "a blind control with each value, or a note that there is none"
        bare = [entry.notes for entry in entries if "blind control" not in (entry.notes or "")]
        problems += [Problem(str(file), expected, preview(notes), hint) for notes in bare]
    return problems


def _card_gaps(request: PublishRequest, draft: bool) -> tuple[Problem, ...]:
    """Returns what is missing in the folder's card; for a draft, without the gaps that the card declares."""
    problems = check_card(request.folder, request.kind.name, draft)
    return tuple(replace(one, location=one.location.replace(f"{request.folder}/", "")) for one in problems)
