"""The plan of a publication: every file with its hash, the changes on the Hub, and the reasons to refuse them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import click
import pyarrow.parquet as pq
from jinja2 import Environment

from model_card.cards.results import EVAL_YAML, eval_yaml
from model_card.cards.text import CROISSANT, MergedCard, by_config, hash_problems, merge_cards
from model_card.hub.local import CARD, MANIFEST, LocalFile, LocalRelease, PublishRequest
from model_card.hub.remote import INITIAL, HubRepository, HubUnreachable, RemoteSnapshot, RemoteState
from model_card.hub.scan import problems_of, scan_text
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.card import head

_CARD_FILES: Final = frozenset({CARD, MANIFEST})


@dataclass(frozen=True)
class PublishPlan:
    """The plan of a publication.

    Attributes:
        remote: the repository on the Hub.
        files: all files to publish, including the merged card and the manifest.
        deletes: files on the Hub that ``--delete`` matches.
    """

    request: PublishRequest
    local: LocalRelease
    remote: RemoteState
    files: tuple[LocalFile, ...]
    deletes: tuple[str, ...]
    card: MergedCard

    @property
    def undeclared(self) -> tuple[Problem, ...]:
        """Gaps of the card because of which ``--yes`` refuses."""
        return () if self.request.incomplete_card else self.local.undeclared

    @property
    def private(self) -> bool:
        """Whether the repository is, or will be, private."""
        return self.request.private if self.remote.private is None else self.remote.private

    @property
    def only_remote(self) -> list[str]:
        """Files that only the Hub has and that are kept."""
        return sorted(self.remote.files.keys() - {file.path for file in self.files} - set(self.deletes))

    def pending(self, now: RemoteState) -> tuple[list[LocalFile], list[str]]:
        """Returns the files that are not on the Hub yet, and the files that must still be deleted."""
        files = [file for file in self.files if file.path not in now.files or not now.files[file.path].holds(file)]
        return files, [path for path in self.deletes if path in now.files]

    def rows(self) -> list[dict[str, Any]]:
        """Returns path, size, sha256 and change (new, changed, same, delete, kept or unknown) of each file."""
        rows: list[dict[str, Any]] = []
        for file in self.files:
            there = self.remote.files.get(file.path)
            change = "new" if there is None else "same" if there.holds(file) else "changed"
            change = "unknown" if self.remote.not_read else change
            rows.append({"path": file.path, "size": file.size, "sha256": file.sha256, "change": change})
        for paths, change in ((self.deletes, "delete"), (self.only_remote, "kept")):
            for path in paths:
                remote = self.remote.files[path]
                rows.append({"path": path, "size": remote.size, "sha256": remote.sha256, "change": change})
        return rows

    def as_json(self) -> dict[str, Any]:
        """Returns the plan as JSON fields."""
        request, remote = self.request, self.remote
        return {
            "kind": request.kind.name,
            "repo": request.repo,
            "tag": None if request.pr else request.tag,
            "private": self.private,
            "pull_request": request.pr,
            "remote": {
                "exists": None if remote.not_read else remote.exists,
                "commit": remote.commit,
                "not_read": remote.not_read or None,
            },
            "files": self.rows(),
            "left_out": [{"path": path, "why": why} for path, why in self.local.left_out],
            "card": {
                "kept": list(self.card.kept),
                "only_remote": list(self.card.added),
                "gaps": [str(gap) for gap in self.local.gaps],
                "undeclared": [str(gap) for gap in self.undeclared],
            },
            "scan": self.local.scanned.as_json(),
            "findings": [],
            "accepted": [asdict(one) for one in self.local.accepted],
        }

    def table(self) -> str:
        """Returns the plan as text."""
        source = files("model_card").joinpath("templates", "plan.txt.j2").read_text(encoding="utf-8")
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        # file names are input and may contain control characters
        printable = lambda path: path if path.isprintable() else ascii(path)  # noqa: E731
        environment.filters |= {"size": size_text, "printable": printable}
        pending, deletes = self.pending(self.remote)
        total = sum(file.size for file in pending)
        accepted = f", {len(self.local.accepted)} findings accepted by --allow" if self.local.accepted else ""
        values = {"pending": len(pending), "total": total, "deletes": len(deletes)}
        text = environment.from_string(source).render(plan=self, scan=self.local.scanned.lines(accepted), **values)
        return text.rstrip("\n")


def make_plan(
    request: PublishRequest,
    local: LocalRelease,
    repository: HubRepository,
    seen: RemoteSnapshot | None,
    may_skip_hub: bool,
) -> PublishPlan:
    """Compares the folder with the Hub.

    Args:
        request: the options.
        local: the folder, without findings.
        repository: the repository on the Hub.
        seen: state of the repository in an earlier run, or None.
        may_skip_hub: plan without the Hub if it cannot be reached.

    Raises:
        InputError: if the repository is public despite ``--private``, a tag would move, files on the Hub would be
            loaded together with the new ones, or ``dataset_info`` or Croissant metadata would be wrong.
    """
    try:
        remote = repository.read()
    except HubUnreachable as error:
        if not may_skip_hub:
            raise
        remote = RemoteState(not_read=error.message)
    if request.private and remote.private is False:
        hint = "make it private in its settings on the Hub, or publish without --private"
        raise InputError(Problem(request.repo, "a private repository (--private)", "a public one", hint))
    ours = {file.path: file for file in local.files}
    text = ours[CARD].text()
    merged = merge_cards(text, *_card_on_hub(repository, remote, seen), request.replace)
    if merged.text != text:
        found = [one for one in scan_text(CARD, merged.text, local.secrets) if one.mark not in request.allow]
        if found:
            raise InputError(problems_of(found))
        ours[CARD] = LocalFile.of(CARD, merged.text.encode())
    benchmark = eval_yaml(request.folder) if request.kind.name == "dataset" else None
    if benchmark is not None:
        if EVAL_YAML in ours and ours[EVAL_YAML].text() != benchmark:
            click.echo(f"the folder's {EVAL_YAML} is replaced by the one made from its config hub", err=True)
        ours[EVAL_YAML] = LocalFile.of(EVAL_YAML, benchmark.encode())
    elif request.kind.name == "dataset" and EVAL_YAML not in ours:
        click.echo("not a benchmark of the Hub: no config hub (scale-vqa build hub adds it)", err=True)
    ours[MANIFEST] = _manifest(ours, merged)
    removable = sorted(remote.files.keys() - ours.keys() - {".gitattributes"})
    deletes = tuple(path for path in removable if _matches(path, request.delete))
    for pattern in request.delete:
        if not fnmatch.filter(deletes, pattern):
            click.echo(f"--delete {pattern}: matches no file that only the Hub has", err=True)
    files = tuple(ours[path] for path in sorted(ours))
    plan = PublishPlan(request, local, repository.compare(remote, files), files, deletes, merged)
    problems = [*_tag_problems(plan, repository), *_claim_problems(plan)]
    if problems:
        raise InputError(problems)
    return plan


def _card_on_hub(
    repository: HubRepository, remote: RemoteState, seen: RemoteSnapshot | None
) -> tuple[str | None, Mapping[str, str]]:
    """Returns the card on the Hub, and the digests of its parts as they were generated at the last publication."""
    created_by_us = seen is not None and seen.commit is None and remote.files.keys() <= INITIAL
    if remote.commit is None or CARD not in remote.files or created_by_us:
        return None, {}
    card = repository.text(CARD, remote.commit)
    if MANIFEST not in remote.files:
        return card, {}
    try:
        generated = json.loads(repository.text(MANIFEST, remote.commit)).get("card", {})
        return card, {str(name): str(digest) for name, digest in generated.items()}
    except (ValueError, AttributeError):
        click.echo(f"{MANIFEST} on the Hub cannot be read: all changes of the card count as hand-written", err=True)
        return card, {}


def _manifest(files: Mapping[str, LocalFile], card: MergedCard) -> LocalFile:
    listed = {path: {"size": file.size, "sha256": file.sha256} for path, file in sorted(files.items())}
    content = {"made_by": "scale-vqa publish", "files": listed, "card": dict(sorted(card.generated.items()))}
    return LocalFile.of(MANIFEST, (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode())


def _tag_problems(plan: PublishPlan, repository: HubRepository) -> list[Problem]:
    """Refuses other data under an existing tag; only the card may change."""
    request, remote = plan.request, plan.remote
    tagged = remote.tags.get(request.tag)
    if tagged is None or request.pr:
        return []
    state = remote if tagged == remote.commit else repository.compare(repository.read(tagged), plan.files)
    files, deletes = plan.pending(state)
    other = [*deletes, *(file.path for file in files if file.path not in _CARD_FILES)]
    if not other:
        return []
    found = f"a tag of other files: {', '.join(other[:3])}"
    hint = "the files of a published version do not change: make release VERSION=..., or give another --tag"
    location = f"tag {request.tag} of {request.repo}"
    return [Problem(location, "a version that is not published yet", found, hint)]


def _claim_problems(plan: PublishPlan) -> list[Problem]:
    """Checks that card and Croissant metadata agree with the files, and that no old files are loaded with new ones."""
    on_hub = frozenset(plan.only_remote)
    problems: list[Problem] = []
    if plan.request.kind.name == "dataset":
        sources = {file.path: file.content for file in plan.files if not isinstance(file.content, bytes)}
        hashes = {file.path: file.sha256 for file in plan.files if file.path.endswith(".parquet")}
        for file in plan.files:
            if file.path == CROISSANT:
                problems += hash_problems(CROISSANT, file.text(), hashes)
        kept = frozenset((*plan.card.kept, *plan.card.added))
        problems += dataset_info_problems(plan.card.text, sources, on_hub, kept)
        mixed = mixed_files(plan.card.text, sources, on_hub)
    else:
        mixed = [path for path in sorted(on_hub) if _matches(path, plan.request.kind.loaded)]
    if mixed:
        found = f"{len(mixed)} files that only the Hub has would be loaded too, such as {mixed[0]}"
        hint = f"--delete '{mixed[0]}' (a pattern) removes them"
        problems.append(Problem(plan.request.repo, "only files of this publication", found, hint))
    return problems


def dataset_info_problems(
    card: str, local: Mapping[str, Path], on_hub: frozenset[str], kept: frozenset[str]
) -> list[Problem]:
    """Returns problems where ``dataset_info`` differs from the Parquet files, which would make ``load_dataset`` fail.

    Args:
        card: the merged card.
        local: path in the repository -> local file.
        on_hub: paths of the files that only the Hub has.
        kept: names of the parts of the card that are taken from the Hub.
    """
    metadata = head(card)
    infos = by_config(metadata.get("dataset_info"))
    problems = []
    for name, split, patterns in _splits(metadata):
        files = [local[path] for path in sorted(local) if _matches(path, patterns) and path.endswith(".parquet")]
        if name not in infos or not files or any(_matches(path, patterns) for path in on_hub):
            continue  # data that only the Hub has, or a mixture, which mixed_files reports
        stated = {str(one.get("name")): one.get("num_examples") for one in infos[name].get("splits") or []}
        columns = [str(feature.get("name")) for feature in infos[name].get("features") or []]
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        found = pq.read_schema(files[-1]).names
        location = f"README.md, dataset_info of {name}"
        hint = "build the config again: its card was written for other files"
        if f"dataset_info:{name}" in kept:
            location = f"README.md on the Hub, dataset_info of {name}"
            hint = f"--replace dataset_info:{name} takes the folder's; or fix it on the Hub"
        if stated.get(split) != rows:
            expected = f"{rows} rows of {split}, as in the files"
            problems.append(Problem(location, expected, f"{stated.get(split)}", hint))
        elif sorted(columns) != sorted(found):
            problems.append(Problem(location, f"the columns {', '.join(found)}", preview(", ".join(columns)), hint))
    return problems


def mixed_files(card: str, local: Mapping[str, Path], on_hub: frozenset[str]) -> list[str]:
    """Returns the files that only the Hub has and that a config of the card would load together with local ones."""
    mixed: set[str] = set()
    for _, _, patterns in _splits(head(card)):
        if any(_matches(path, patterns) for path in local):
            mixed |= {path for path in on_hub if _matches(path, patterns)}
    return sorted(mixed)


def _splits(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yields config, split and file patterns of each split in a card's YAML."""
    for name, config in by_config(metadata.get("configs")).items():
        files = config.get("data_files") or []
        listed = [{"split": "train", "path": files}] if isinstance(files, str) else files
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, Mapping):
                path = entry.get("path", [])
                patterns = [path] if isinstance(path, str) else path
                yield name, str(entry.get("split", "train")), [one.removeprefix("./") for one in patterns]


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def size_text(size: int) -> str:
    """Formats bytes in units of 1000.

    >>> size_text(0), size_text(999), size_text(1_500_000)
    ('0 B', '999 B', '1.5 MB')
    """
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
