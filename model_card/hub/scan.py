"""Scans files for secrets and local paths before they are published.

The formats of secrets are those of the regular-expression plug-ins of detect-secrets (without their network requests)
and a few more. Random strings without a known format are not reported, because hashes, row ids and vocabularies look
like them.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import os
import pkgutil
import re
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_card.hub.contents import VOCABULARIES, Batch, ScanReport, TextPart, read_contents, without_escapes
from scale_vqa_eval.errors import Problem

OWN_SECRET: Final = "own secret"
"""Kind of finding that ``--allow`` does not accept: a secret of the user who publishes."""
_BREAK: Final = "\n\0\n"  # separator of texts that are searched together; no rule matches across it
_MAX_KEYWORD_LINE: Final = 2000
_SECRET_HINT: Final = "remove and revoke it: somebody may have copied it already"
_PATH_HINT: Final = "replace it with a relative path or a name"
_SECRET_KEY: Final = re.compile(r"pass|pwd|secret|token|key|auth|cred|wandb|aws|login|cookie|bearer", re.IGNORECASE)

_RULES: Final = {
    "hf_ api_org_": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "aiza": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "sk-": r"\bsk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{40,}",
    "sk-ant-": r"\bsk-ant-[A-Za-z0-9_-]{24,}",
    "private": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "github_pat_": r"\bgithub_pat_[A-Za-z0-9_]{40,}",
    "npm_": r"\bnpm_[A-Za-z0-9]{36}\b",
    "r8_": r"\br8_[A-Za-z0-9]{30,}\b",
    "gsk_": r"\bgsk_[A-Za-z0-9]{40,}\b",
    "nvapi-": r"\bnvapi-[A-Za-z0-9_-]{40,}",
    "wandb": (r"(?i)\bwandb_v1_[A-Za-z0-9_]{20,}|wandb[^\n]{0,40}?(?<![0-9a-f])([0-9a-f]{40})(?![0-9a-f])"),
    "aws amazon secret": (
        r"(?i)(?:aws|amazon|secret)[\w .-]{0,30}?(?:key|secret)\w{0,10}[\"'\s]*[:=>]{1,2}\s*[\"']?"
        r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
    ),
    "akia asia": (
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b[^\0]{0,100}?(?<![A-Za-z0-9/+=])(?=[^\0]{0,39}[/+g-z])"
        r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
    ),
    "bearer": r"(?i)\bbearer\s+(?=[^\s\"']*\d)([A-Za-z0-9._~+/-]{20,}=*)",
    "machine": r"(?i)\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S{4,})",
}
"""Lower-case literals, one of which is in every match -> rule. If it has a group, this is the secret."""
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_BASIC: Final = re.compile(r"(?i)\bbasic\s+([A-Za-z0-9+/]{8,}={0,2})(?![A-Za-z0-9+/=])")
# IP addresses are not secrets; the rules of IBM take most of the time; that of Artifactory matches common words
_LEFT_OUT: Final = {
    "IPPublicDetector",
    "IbmCloudIamDetector",
    "IbmCosHmacDetector",
    "SoftlayerDetector",
    "ArtifactoryDetector",
}

_ROOTS: Final = (
    "home|Users|root|mnt|media|scratch|data|datasets|work|workspace|srv|opt|var|tmp|private|Volumes|gpfs|lustre|nfs|"
    "cluster|storage|export|dbfs|kaggle|content|mount|project|projects|groups|net"
)
_LOCAL_PATH: Final = re.compile(
    rf"(?<![\w.:/~$}}>)-])/(?:{_ROOTS})/[\w.@+~-]+(?:/[^\s\"'`<>|,;)\]\\]*)?"
    r"|\bfile://+[^\s\"'`<>)]+"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\\\?|/)(?:Users|Documents and Settings|home|data|temp)(?:\\\\?|/)[^\s\"'`<>|]*"
    r"|(?<![\w/])~/[\w.][^\s\"'`<>|,;)]*"
)
_WHOLE_PATH: Final = re.compile(
    r"/[^/\s]+(?:/[^/\s]+)+/?|[A-Za-z]:[\\/][^\n]+|\\\\[\w.-]+\\[^\n\\]+(?:\\[^\n\\]+)*|file://\S+"
)
"""A value that consists of an absolute path with any root."""

_ANCHORED: Final = re.compile(
    rb"hf_[A-Za-z0-9]{34}(?![A-Za-z0-9])|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|ghp_[A-Za-z0-9]{36}"
    rb"|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20}|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"
    rb"|AIza[0-9A-Za-z_-]{35}|sk-ant-[A-Za-z0-9_-]{24,}"
)
_ANCHORED_PATH: Final = re.compile(
    rb"(?<![\w.:/])/(?:home|Users|root|scratch|mnt)/[\w.@+-]{2,}(?:/[\w.@+ -]+)*|[A-Za-z]:\\Users\\[\w.@+-]{2,}"
)
# (literals, pattern): the fast search for the literals comes first
_RAW: Final = (
    ((b"hf_", b"AKIA", b"ASIA", b"ghp_", b"github_pat_", b"glpat-", b"PRIVATE KEY", b"AIza", b"sk-ant-"), _ANCHORED),
    ((b"/home/", b"/Users/", b"/root/", b"\\Users\\", b"/scratch/", b"/mnt/"), _ANCHORED_PATH),
)


@dataclass(frozen=True, order=True)
class Finding:
    """A reason not to publish.

    Attributes:
        file: path in the release.
        place: line, key, or column and rows; empty for the complete file.
        kind: ``secret``, ``own secret``, ``local path``, ``outside``, ``hidden``, ``unexpected`` or ``too large``.
        what: description; secrets are masked.
        hint: how to fix it.
        mark: short digest of file, kind and value, for ``--allow MARK``.
    """

    file: str
    place: str
    kind: str
    what: str
    hint: str
    mark: str

    def problem(self) -> Problem:
        """Returns the finding as a problem."""
        location = f"{self.file}, {self.place}" if self.place else self.file
        accept = "" if self.kind == OWN_SECRET else f" (or, if it is a false alarm, accept it: --allow {self.mark})"
        return Problem(location, f"no {self.kind} in what is published", self.what, self.hint + accept)


def finding(file: str, place: str, kind: str, value: str, what: str, hint: str) -> Finding:
    """Returns a finding with its mark; ``value`` is hashed, ``what`` is displayed."""
    mark = hashlib.sha256("\0".join((file, kind, value)).encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return Finding(file, place, kind, what, hint, mark)


def problems_of(findings: Sequence[Finding], limit: int = 10) -> list[Problem]:
    """Returns findings as problems: at most ``limit`` per file, then the number of the others."""
    problems = []
    for name, group in itertools.groupby(findings, key=lambda one: one.file):
        found = list(group)
        problems += [one.problem() for one in found[:limit]]
        if more := found[limit:]:
            kinds = ", ".join(sorted({one.kind for one in more}))
            problems.append(Problem(name, "no other findings", f"{len(more)} more ({kinds})", "--json lists them all"))
    return problems


def masked(secret: str) -> str:
    """Returns the first characters and the length of a secret, enough to find it.

    >>> masked("ghp_0123456789abcdef"), masked("short")
    ('ghp_... (20 characters)', '... (5 characters)')
    """
    return f"{secret[:4] if len(secret) >= 16 else ''}... ({len(secret)} characters)"


@dataclass(frozen=True)
class LocalSecrets:
    """Secrets and paths of this machine.

    Attributes:
        secrets: the token, and values of environment variables with names such as ``*_TOKEN``.
        places: absolute paths, longest first.
    """

    secrets: tuple[str, ...]
    places: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, token: str | None) -> LocalSecrets:
        """Collects the secrets of this process, and the paths of a folder and its surroundings."""
        named = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
        values = {value for name, value in os.environ.items() if named.search(name) and len(value) >= 12}
        values = {value for value in values if not Path(value).exists()} | ({token} if token else set())
        places = {str(folder.absolute()), str(folder.resolve().parent), str(Path.home()), str(Path.cwd())}
        places = {place for place in places | {tempfile.gettempdir()} if place.count("/") + place.count("\\") > 1}
        return cls(tuple(sorted(values)), tuple(sorted(places, key=len, reverse=True)))


def scan_file(name: str, path: Path, own: LocalSecrets, report: ScanReport) -> list[Finding]:
    """Returns the findings of a file, one per value, secrets first.

    Raises:
        OSError, pyarrow.ArrowInvalid: if the file is not in the format of its suffix.
    """
    found = [one for batch in read_contents(name, path, report) for one in _in_batch(name, batch, own)]
    unique = {one.mark: one for one in reversed(found)}  # the first occurrence of each value
    return sorted(unique.values(), key=lambda one: (one.kind != OWN_SECRET, one.kind != "secret", one.place))


def scan_text(name: str, text: str, own: LocalSecrets) -> list[Finding]:
    """Returns the findings of a text, such as a merged card."""
    found = _in_batch(name, Batch([TextPart("", text)]), own)
    return sorted({one.mark: one for one in found}.values())


def _in_batch(name: str, batch: Batch, own: LocalSecrets) -> Iterator[Finding]:
    """Searches the joined texts of a batch, and its bytes."""
    paths = Path(name).name not in VOCABULARIES
    parts = [part for part in batch.parts if part.text]
    if paths:
        # for rules that need the name of a field before its value
        named = [part for part in parts if len(part.text) <= _MAX_KEYWORD_LINE and _SECRET_KEY.search(part.key)]
        parts += [TextPart(part.place, f'{part.key} = "{part.text}"') for part in named]
    starts = list(itertools.accumulate((len(part.text) + len(_BREAK) for part in parts), initial=0))
    text = _BREAK.join(part.text for part in parts)

    def place(position: int) -> str:
        part = parts[index := bisect_right(starts, position) - 1]
        line = part.text.count("\n", 0, position - starts[index]) + 1
        return part.place or f"line {line}"

    plain = without_escapes(text)
    for variant in (text,) if plain == text else (text, plain):
        for kind, value, start in _in_text(variant, own, paths):
            yield _found(name, place(start), kind, value)
    for part in parts if paths else ():
        if (part.text[0] in "/\\f" or part.text[1:2] == ":") and _WHOLE_PATH.fullmatch(part.text):
            yield _found(name, part.place or "line 1", "local path", part.text)
    for where, content in batch.raw:
        for secret in own.secrets:
            if secret.encode() in content:
                yield _found(name, where, OWN_SECRET, secret)
        for (literals, pattern), kind in zip(_RAW, ("secret", "local path"), strict=True):
            if (paths or kind == "secret") and any(literal in content for literal in literals):
                for match in pattern.finditer(content):
                    yield _found(name, where, kind, match.group().decode("ascii", "replace"))


def _in_text(text: str, own: LocalSecrets, paths: bool) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, value, position)."""
    for secret in own.secrets:
        if (start := text.find(secret)) >= 0:
            yield OWN_SECRET, secret, start
    ascii_text = _NOT_ASCII.sub(" ", text)  # a letter with an accent ends a key
    lowered = ascii_text.lower()
    for literals, pattern in secret_patterns():
        for match in pattern.finditer(ascii_text) if any(one in lowered for one in literals) else ():
            yield "secret", match[match.lastindex or 0], match.start(match.lastindex or 0)
    for match in _BASIC.finditer(text):
        if _is_login(match[1]):
            yield "secret", match[1], match.start(1)
    if paths:
        for match in _LOCAL_PATH.finditer(text):
            yield "local path", match.group(), match.start()
        for own_place in own.places:
            for match in re.finditer(re.escape(own_place) + r"(?![\w-])", text):
                yield "local path", own_place, match.start()
        start = 0
        for line in text.splitlines(keepends=True):
            if len(line) <= _MAX_KEYWORD_LINE and _SECRET_KEY.search(line):
                for value in _keyword_detector()(line):
                    # ignore words and placeholders
                    if len(value) >= 8 and re.search(r"\d", value) and not re.search(r"[<>{}$\s()]", value):
                        yield "secret", value, start
            start += len(line)


def _is_login(text: str) -> bool:
    """Whether a text is the base64 form of ``user:password``."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return b":" in decoded and all(32 <= byte < 127 for byte in decoded)


@functools.cache
def secret_patterns() -> tuple[tuple[Sequence[str], re.Pattern[str]], ...]:
    """Returns (literals, pattern) of all known formats of secrets; the last group of a pattern, if any, is the secret.

    Raises:
        ModuleNotFoundError: if detect-secrets is not installed (extra ``publish``).
    """
    import detect_secrets.plugins as plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    found: list[tuple[Sequence[str], re.Pattern[str]]] = [
        (tuple(literals.split()), re.compile(text)) for literals, text in _RULES.items()
    ]
    for info in sorted(pkgutil.iter_modules(plugins.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{plugins.__name__}.{info.name}")
        for name, plugin in sorted(vars(module).items()):
            concrete = inspect.isclass(plugin) and not inspect.isabstract(plugin)
            if concrete and issubclass(plugin, RegexBasedDetector) and name not in _LEFT_OUT:
                found += [(("",), pattern) for pattern in plugin().denylist]
    return tuple(found)


@functools.cache
def _keyword_detector() -> Callable[[str], Any]:
    """Returns detect-secrets' search for ``password = "..."`` and the like."""
    from detect_secrets.plugins.keyword import KeywordDetector

    return KeywordDetector().analyze_string


def _found(name: str, place: str, kind: str, value: str) -> Finding:
    if kind == "local path":
        shortened = json.dumps(value if len(value) <= 80 else f"{value[:80]}...")
        return finding(name, place, kind, value, f"the path {shortened}", _PATH_HINT)
    what = f"{'your own secret' if kind == OWN_SECRET else 'what looks like a secret'}, {masked(value)}"
    return finding(name, place, kind, value, what, _SECRET_HINT)
