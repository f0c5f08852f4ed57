"""The plan of a publication: every file with its hash, what would change on the Hub, and what forbids it.

The generated card is merged with the one on the Hub: what a person wrote there stays. A card is a set of parts: every
key of its YAML, every config of ``configs`` and ``dataset_info``, the text before the first heading, and every section
under a second-level heading. The manifest of the last publication states how each part was generated then. So, for
each part:

- only one of the two cards has it: it is in the merged card (unless it is as generated then, and no longer generated);
- the remote's part is as generated then: nobody changed it, so the new one replaces it;
- otherwise somebody wrote it: it stays, word for word, and the plan names it.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Final

import click
from jinja2 import Environment

from model_card.cards.check import CROISSANT, by_config, dataset_info_problems, hash_problems, mixed_files
from model_card.cards.results import EVAL_YAML, eval_yaml
from model_card.cards.text import dump_yaml
from model_card.hub.local import CARD, MANIFEST, LocalFile, LocalRelease, PublishRequest
from model_card.hub.remote import INITIAL, HubRepository, HubUnreachable, RemoteSnapshot, RemoteState
from model_card.hub.scan import problems_of, scan_text
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.release_folder.card import body, by_heading, head

_BY_CONFIG: Final = ("configs", "dataset_info")

CardPart = tuple[str, str]
"""("yaml", key), ("configs" or "dataset_info", config) or ("section", heading)."""


@dataclass(frozen=True)
class MergedCard:
    """A merged card.

    Attributes:
        text: what is published.
        kept: names of the parts that stay as on the Hub although the folder's differ.
        added: names of the parts that only the Hub has.
        generated: digest of every part of the folder's card, for the manifest.
    """

    text: str
    kept: tuple[str, ...]
    added: tuple[str, ...]
    generated: dict[str, str]


def merge_cards(
    local: str, remote: str | None, generated: Mapping[str, str], replace: frozenset[str] = frozenset()
) -> MergedCard:
    """Returns the card to publish.

    Args:
        local: the folder's card.
        remote: the card on the Hub, or None.
        generated: name of a part -> digest of it as generated for the last publication; empty if unknown.
        replace: names of parts that the folder's card replaces in any case; ``card`` for all.

    Raises:
        InputError: if the YAML of one of the cards cannot be read, or ``replace`` names no part.
    """
    ours = _parts(local, "the folder's card")
    digests = {_name_of(part): _digest(value) for part, value in ours.items()}
    if remote is None or remote == local:
        return MergedCard(local, (), (), digests)
    theirs = _parts(remote, "the card on the Hub")
    known = {_name_of(part) for part in (*ours, *theirs)} | {"card"}
    if unknown := sorted(replace - known):
        expected = f"one of {', '.join(sorted(known))}"
        raise InputError(Problem("--replace", expected, ", ".join(unknown), "name a part that the plan names"))
    kept, added, merged = [], [], dict(ours)
    for part, value in theirs.items():
        name = _name_of(part)
        as_generated = generated.get(name) == _digest(value)
        if name in replace or "card" in replace:
            continue
        if part not in ours:
            if not as_generated or part[0] in _BY_CONFIG:
                merged[part] = value
                added.append(name)
        elif _digest(value) != digests[name] and not as_generated:
            merged[part] = value
            kept.append(name)
    text = local if merged == ours else remote if merged == theirs else _written(merged, list(ours), list(theirs))
    return MergedCard(text, tuple(kept), tuple(added), digests)


def _name_of(part: CardPart) -> str:
    """Returns how a part is named to people: ``license``, ``dataset_info:default``, ``## Limits``."""
    group, key = part
    if group == "section":
        return f"## {key}" if key else "text before the first heading"
    return key if group == "yaml" else f"{group}:{key}"


def _parts(text: str, whose: str) -> dict[CardPart, Any]:
    try:
        front = head(text)
    except InputError as error:
        raise InputError([Problem(f"YAML of {whose}", e.expected, e.found, e.hint) for e in error.problems]) from None
    parts: dict[CardPart, Any] = {}
    for key, value in front.items():
        if key in _BY_CONFIG:
            parts |= {(key, config): entry for config, entry in by_config(value).items()}
        else:
            parts["yaml", str(key)] = value
    return parts | {("section", heading): section for heading, section in by_heading(body(text)).items()}


def _digest(value: Any) -> str:
    plain = json.loads(json.dumps(value.strip() if isinstance(value, str) else value, default=str))
    return sha256_json(plain)[:16]


def _written(parts: Mapping[CardPart, Any], ours: list[CardPart], theirs: list[CardPart]) -> str:
    """Joins parts: in the folder's order; what only the remote has goes after the part that it follows there."""
    order = list(ours)
    for index, part in enumerate(theirs):
        if part not in order:
            before = next((one for one in reversed(theirs[:index]) if one in order and one[0] == part[0]), None)
            order.insert(order.index(before) + 1 if before else len(order), part)
    front: dict[str, Any] = {}
    sections = []
    for part in (part for part in order if part in parts):
        if part[0] == "yaml":
            front[part[1]] = parts[part]
        elif part[0] in _BY_CONFIG:
            front.setdefault(part[0], []).append(parts[part])
        else:
            sections.append(parts[part].strip("\n"))
    if "configs" in front:
        front["configs"] = _one_default(front["configs"], {part[1] for part in ours if part[0] == "configs"})
    text = "\n\n".join(sections)
    return f"---\n{dump_yaml(front)}---\n\n{text}\n" if front else f"{text}\n"


def _one_default(configs: list[dict[str, Any]], ours: set[str]) -> list[dict[str, Any]]:
    """Leaves one default config: the folder's, where both cards have one."""
    defaults = [entry for entry in configs if entry.get("default")]
    if len(defaults) < 2:
        return configs
    chosen = next((entry for entry in defaults if str(entry.get("config_name")) in ours), defaults[0])
    return [
        entry if entry is chosen or not entry.get("default") else {k: v for k, v in entry.items() if k != "default"}
        for entry in configs
    ]


_CARD_FILES: Final = frozenset({CARD, MANIFEST})


@dataclass(frozen=True)
class PublishPlan:
    """What would be done.

    Attributes:
        local: the folder.
        remote: the repository as it was found.
        files: all files of the publication, with the merged card and the manifest.
        deletes: files of the remote that ``--delete`` names.
        card: the merged card.
    """

    request: PublishRequest
    local: LocalRelease
    remote: RemoteState
    files: tuple[LocalFile, ...]
    deletes: tuple[str, ...]
    card: MergedCard

    @property
    def undeclared(self) -> tuple[Problem, ...]:
        """Gaps of the card for which ``--yes`` refuses."""
        return () if self.request.incomplete_card else self.local.undeclared

    @property
    def private(self) -> bool:
        """Whether the repository is private, or will be."""
        return self.request.private if self.remote.private is None else self.remote.private

    @property
    def only_remote(self) -> list[str]:
        """Files that only the remote has and that stay."""
        return sorted(self.remote.files.keys() - {file.path for file in self.files} - set(self.deletes))

    def pending(self, now: RemoteState) -> tuple[list[LocalFile], list[str]]:
        """Returns the files that a remote does not hold yet, and the deletions that are still to be made."""
        files = [file for file in self.files if file.path not in now.files or not now.files[file.path].holds(file)]
        return files, [path for path in self.deletes if path in now.files]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the table of files: path, size, sha256 and change (new, changed, same, delete, kept or unknown)."""
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
        """Returns the plan for machines."""
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
        """Returns what would change, file by file, and which parts of the remote's card stay."""
        source = files("model_card").joinpath("templates", "plan.txt.j2").read_text(encoding="utf-8")
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        # control characters are escaped: a file's name comes from a folder or the Hub
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
        request: what the user asked for.
        local: the folder, free of findings.
        repository: the repository to publish to.
        seen: what an earlier run saw there.
        may_skip_hub: plan without the Hub if it cannot be reached or the repository cannot be seen.

    Raises:
        InputError: if the plan would publish in a public repository what was to be private, move a tag, leave files
            on the Hub that would be loaded together with the new ones, or publish a false ``dataset_info``.
    """
    try:
        remote = repository.read()
    except HubUnreachable as error:
        if not may_skip_hub:
            raise
        remote = RemoteState(not_read=error.message)
    if request.private and remote.private is False:
        hint = "make it private in its settings on the Hub, or publish without --private"
        raise InputError(Problem(request.repo, "a private repository, as --private says", "a public one", hint))
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
            click.echo(f"the folder's own {EVAL_YAML} is replaced by that of its config hub", err=True)
        ours[EVAL_YAML] = LocalFile.of(EVAL_YAML, benchmark.encode())
    elif request.kind.name == "dataset" and EVAL_YAML not in ours:
        click.echo("not a benchmark of the Hub: no config hub (scale-vqa build hub adds it)", err=True)
    ours[MANIFEST] = _manifest(ours, merged)
    removable = sorted(remote.files.keys() - ours.keys() - {".gitattributes"})
    deletes = tuple(path for path in removable if _matches(path, request.delete))
    for pattern in request.delete:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in deletes):
            click.echo(f"--delete {pattern}: no file that only the Hub has matches", err=True)
    files = tuple(ours[path] for path in sorted(ours))
    plan = PublishPlan(request, local, repository.compare(remote, files), files, deletes, merged)
    problems = [*_tag_problems(plan, repository), *_claim_problems(plan)]
    if problems:
        raise InputError(problems)
    return plan


def _card_on_hub(
    repository: HubRepository, remote: RemoteState, seen: RemoteSnapshot | None
) -> tuple[str | None, Mapping[str, str]]:
    """Returns the remote's card and the digests of its parts as generated at the last publication."""
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


def _tag_problems(plan: PublishPlan, repository: HubRepository) -> list[Problem]:
    """Refuses other data under an existing tag: the card may change, the files that are loaded may not."""
    request, remote = plan.request, plan.remote
    tagged = remote.tags.get(request.tag)
    if tagged is None or request.pr:
        return []
    state = remote if tagged == remote.commit else repository.compare(repository.read(tagged), plan.files)
    files, deletes = plan.pending(state)
    other = [*deletes, *(file.path for file in files if file.path not in _CARD_FILES)]
    if not other:
        return []
    found = f"one that is set for other files: {', '.join(other[:3])}"
    hint = "a published version keeps its files: make release VERSION=..., or give another --tag"
    location = f"tag {request.tag} of {request.repo}"
    return [Problem(location, "a version that is not published yet", found, hint)]


def _claim_problems(plan: PublishPlan) -> list[Problem]:
    """Returns where the card or Croissant metadata would be false, or old files would be loaded with new ones."""
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
        found = f"{len(mixed)} that only the Hub has would be read with them, such as {mixed[0]}"
        hint = f"--delete '{mixed[0]}' (a pattern) removes them"
        problems.append(Problem(plan.request.repo, "files of this publication alone", found, hint))
    return problems


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
