"""The plan of a publication: every file with its hash, and what would change on the Hub."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from scale_vqa_eval.errors import InputError, Problem

from .card_merge import MergedCard, merge_cards
from .data_claims import check_croissant_hashes, check_dataset_info, mixed_files
from .findings import OWN_SECRET, Finding, problems_of
from .inventory import LocalFile, hash_files, list_files
from .kinds import CARD, CROISSANT, MANIFEST, Kind
from .record import Seen
from .remote import INITIAL, Remote, Repository
from .scan import Own, scan_file, scan_text

_CARD_FILES: Final = frozenset({CARD, MANIFEST})


@dataclass(frozen=True)
class Wish:
    """What the person asked for."""

    kind: Kind
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
class Local:
    """The folder, scanned and hashed, its card not yet merged.

    Attributes:
        findings, accepted: of the scan; those that ``--allow`` accepts.
        gaps: what a complete card would say and the folder's does not.
        undeclared: those of them that the card does not own up to: with them nothing is published.
    """

    files: tuple[LocalFile, ...]
    left_out: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    own: Own
    gaps: tuple[Problem, ...] = ()
    undeclared: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What would be done.

    Attributes:
        remote: the repository as it was found.
        files: all files of the publication, the merged card and the manifest among them.
        deletes: files of the remote that ``--delete`` names.
        left_out: files of the folder that are not published, with why.
        accepted: findings of the scan that ``--allow`` accepts.
        card: what was kept of the remote's card.
        gaps: what the folder's card lacks; ``undeclared``: those of them for which ``--yes`` refuses.
    """

    wish: Wish
    remote: Remote
    files: tuple[LocalFile, ...]
    deletes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    accepted: tuple[Finding, ...]
    card: MergedCard
    gaps: tuple[Problem, ...] = ()
    undeclared: tuple[Problem, ...] = ()

    def pending(self, now: Remote) -> tuple[list[LocalFile], list[str]]:
        """Returns the files that a remote does not hold yet, and the deletions that are still to be made."""
        files = [file for file in self.files if file.path not in now.files or not now.files[file.path].holds(file)]
        return files, [path for path in self.deletes if path in now.files]

    def change(self, file: LocalFile) -> str:
        there = self.remote.files.get(file.path)
        return "new" if there is None else "same" if there.holds(file) else "changed"

    @property
    def only_remote(self) -> list[str]:
        return sorted(self.remote.files.keys() - {file.path for file in self.files} - set(self.deletes))

    def as_json(self) -> dict[str, Any]:
        """Returns the plan for machines."""
        rows = [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "change": self.change(file)}
            for file in self.files
        ]
        rows += [_remote_row(self.remote, path, "delete") for path in self.deletes]
        rows += [_remote_row(self.remote, path, "kept") for path in self.only_remote]
        remote = {"exists": self.remote.exists, "commit": self.remote.commit}
        return {
            "kind": self.wish.kind.name,
            "repo": self.wish.repo,
            "tag": None if self.wish.pr else self.wish.tag,
            "private": self.wish.private if self.remote.private is None else self.remote.private,
            "pull_request": self.wish.pr,
            "remote": remote,
            "files": rows,
            "left_out": [{"path": path, "why": why} for path, why in self.left_out],
            "card": {
                "kept": list(self.card.kept),
                "only_remote": list(self.card.added),
                "gaps": [str(gap) for gap in self.gaps],
                "undeclared": [str(gap) for gap in self.undeclared],
            },
            "findings": [],
            "accepted": [asdict(one) for one in self.accepted],
        }


def read_local(wish: Wish, token: str, progress: Any) -> Local:
    """Walks, scans and hashes the folder; nothing of it goes out.

    Raises:
        InputError: where the folder is none, a file cannot be read as what its name says, or weights are not whole.
    """
    files, left_out, found = list_files(wish.folder, wish.kind)
    if wish.kind.name == "model":
        from model_card.weights import check_weights

        check_weights(wish.folder)
    own = Own.of(wish.folder, token)
    bar = progress(2 * sum(path.stat().st_size for _, path in files))
    for name, path in files:
        try:
            found += scan_file(name, path, own, bar)
            if path.suffix == ".py":
                compile(path.read_bytes(), path.name, "exec")
        except (OSError, ValueError, SyntaxError) as error:
            line = str(error).strip().split("\n")[0]
            raise InputError(Problem(name, f"a readable {path.suffix} file", line, "write it again")) from None
    hashed = hash_files(files, bar)
    refused = [one for one in found if one.mark not in wish.allow or one.kind == OWN_SECRET]
    accepted = tuple(one for one in found if one not in refused)
    lacks = (card_gaps(wish), card_gaps(wish, draft=True))
    return Local(tuple(hashed), tuple(left_out), tuple(refused), accepted, own, *lacks)


def make_plan(wish: Wish, local: Local, repository: Repository, seen: Seen | None) -> Plan:
    """Compares the folder with the Hub.

    Args:
        wish: what was asked for.
        local: the folder, free of findings.
        repository: the repository to publish to.
        seen: what an earlier run saw there.

    Raises:
        InputError: where the plan would make a public repository of what was to be private, move a tag, leave files
            on the Hub that would be loaded together with the new ones, or publish a false ``dataset_info``.
    """
    remote = repository.read()
    if wish.private and remote.private is False:
        hint = "make it private in its settings on the Hub, or publish without --private"
        raise InputError(Problem(wish.repo, "a private repository, as --private says", "a public one", hint))
    card, manifest = _on_hub(repository, remote, seen)
    ours = {file.path: file for file in local.files}
    merged = merge_cards(ours[CARD].text(), card, manifest, wish.replace)
    if merged.text != ours[CARD].text():
        found = [one for one in scan_text(CARD, merged.text, local.own) if one.mark not in wish.allow]
        if found:
            raise InputError(problems_of(found))
        ours[CARD] = LocalFile.of(CARD, merged.text.encode())
    ours[MANIFEST] = _manifest(ours, merged)
    only_remote = remote.files.keys() - ours.keys()
    deletes = sorted(path for path in only_remote if _any(path, wish.delete) and path != ".gitattributes")
    for pattern in wish.delete:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in deletes):
            click.echo(f"--delete {pattern}: no file that only the Hub has is named like this", err=True)
    plan = Plan(
        wish,
        repository.compare(remote, ours.values()),
        tuple(ours[path] for path in sorted(ours)),
        tuple(deletes),
        local.left_out,
        local.accepted,
        merged,
        local.gaps,
        () if wish.incomplete_card else local.undeclared,
    )
    _check_tag(plan, repository)
    _check(plan)
    return plan


def card_gaps(wish: Wish, draft: bool = False) -> tuple[Problem, ...]:
    """Returns what a complete card would say and the folder's does not.

    Args:
        wish: what is to be published.
        draft: leave out what the card itself says that it lacks.
    """
    from model_card.card_check import check_card

    problems = check_card(wish.folder, wish.kind.name, draft)
    return tuple(replace(problem, location=problem.location.replace(f"{wish.folder}/", "")) for problem in problems)


def _on_hub(repository: Repository, remote: Remote, seen: Seen | None) -> tuple[str | None, Mapping[str, str]]:
    """Returns the remote's card and what of it was generated at the last publication."""
    made_by_us = seen is not None and seen.commit is None and remote.files.keys() <= INITIAL
    if remote.commit is None or CARD not in remote.files or made_by_us:
        return None, {}
    card = repository.text(CARD, remote.commit)
    if MANIFEST not in remote.files:
        return card, {}
    try:
        generated = json.loads(repository.text(MANIFEST, remote.commit)).get("card", {})
        return card, {str(name): str(digest) for name, digest in generated.items()}
    except (ValueError, AttributeError):
        click.echo(f"{MANIFEST} on the Hub cannot be read: what differs in the card counts as hand-written", err=True)
        return card, {}


def _manifest(files: Mapping[str, LocalFile], card: MergedCard) -> LocalFile:
    listed = {path: {"size": file.size, "sha256": file.sha256} for path, file in sorted(files.items())}
    content = {"made_by": "scale-vqa publish", "files": listed, "card": dict(sorted(card.generated.items()))}
    return LocalFile.of(MANIFEST, (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode())


def _check_tag(plan: Plan, repository: Repository) -> None:
    """Refuses to publish other data under a tag that stands: the card may change, what is loaded may not."""
    wish, remote = plan.wish, plan.remote
    stands = remote.tags.get(wish.tag)
    if stands is None or wish.pr:
        return
    tagged = remote if stands == remote.commit else repository.compare(repository.read(stands), plan.files)
    files, deletes = plan.pending(tagged)
    other = [*deletes, *(file.path for file in files if file.path not in _CARD_FILES)]
    if other:
        found = f"one that stands for other files: {', '.join(other[:3])}"
        hint = "a version once published stays as it is: make release VERSION=..., or give another --tag"
        raise InputError(Problem(f"tag {wish.tag} of {wish.repo}", "a version that is not published yet", found, hint))


def _check(plan: Plan) -> None:
    wish = plan.wish
    on_hub = frozenset(plan.only_remote)
    if wish.kind.name == "dataset":
        for file in plan.files:
            if file.path == CROISSANT:
                hashes = {one.path: one.sha256 for one in plan.files if one.path.endswith(".parquet")}
                check_croissant_hashes(file.text(), hashes)
        sources = {file.path: file.source for file in plan.files if file.source is not None}
        mixed = mixed_files(plan.card.text, sources, on_hub)
        check_dataset_info(plan.card.text, sources, on_hub, frozenset((*plan.card.kept, *plan.card.added)))
    else:
        mixed = [path for path in sorted(on_hub) if _any(path, wish.kind.loaded)]
    if mixed:
        found = f"{len(mixed)} that only the Hub has would be read along with it, such as {mixed[0]}"
        raise InputError(
            Problem(
                wish.repo, "files of this publication alone", found, f"--delete '{mixed[0]}' (a pattern) removes them"
            )
        )


def _any(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _remote_row(remote: Remote, path: str, change: str) -> dict[str, Any]:
    file = remote.files[path]
    return {"path": path, "size": file.size, "sha256": file.sha256, "change": change}
