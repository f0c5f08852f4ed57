"""What the scan found: one thing that must not go out, where it stands, and the fix."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scale_vqa_eval.errors import Problem

OWN_SECRET: Final = "own secret"
"""Kind of the finding that no ``--allow`` accepts: a secret of the person who publishes."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that stands in the way of publishing.

    Attributes:
        file: path in the release.
        place: line, or column and row, or empty for the file as a whole.
        kind: ``secret``, ``own secret``, ``local path``, ``outside``, ``hidden``, ``unexpected`` or ``too large``.
        what: what was found; a secret is masked.
        hint: what to do about it.
        mark: short digest of file, kind and the value found; ``--allow MARK`` accepts exactly this finding.
    """

    file: str
    place: str
    kind: str
    what: str
    hint: str
    mark: str

    def problem(self) -> Problem:
        location = f"{self.file}, {self.place}" if self.place else self.file
        accept = "" if self.kind == OWN_SECRET else f" (or, where that is wrong, accept it: --allow {self.mark})"
        return Problem(location, f"no {self.kind} in what is published", self.what, self.hint + accept)


def finding(file: str, place: str, kind: str, value: str, what: str, hint: str) -> Finding:
    """Returns a finding; ``value`` goes into its mark alone, ``what`` is what is shown."""
    mark = hashlib.sha256("\0".join((file, kind, value)).encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return Finding(file, place, kind, what, hint, mark)


def problems_of(findings: Sequence[Finding], most: int = 10) -> list[Problem]:
    """Returns the findings as faults: at most so many of a file, then how many more there are."""
    problems = []
    for name, group in itertools.groupby(findings, key=lambda one: one.file):
        found = list(group)
        problems += [one.problem() for one in found[:most]]
        if len(found) > most:
            kinds = ", ".join(sorted({one.kind for one in found[most:]}))
            problems.append(Problem(name, "no more", f"{len(found) - most} more ({kinds})", "--json lists them all"))
    return problems


def masked(secret: str) -> str:
    """Shows enough of a secret to find it, and no more.

    >>> masked("ghp_0123456789abcdef"), masked("short")
    ('ghp_... (20 characters)', '... (5 characters)')
    """
    return f"{secret[:4] if len(secret) >= 16 else ''}... ({len(secret)} characters)"
