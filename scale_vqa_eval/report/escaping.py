"""Names and texts that others wrote, made safe for the formats of a report."""

from __future__ import annotations

import re
from typing import Final

from scale_vqa_eval.audit.visible import visible

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    **{letter: f"\\{letter}" for letter in "{}$&#%_"},
}
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>|~&$!#@^\"]|(?<=www)\.|:(?=//))", re.IGNORECASE)
_LAST_LATIN: Final = 0x17F


def one_line(text: str) -> str:
    """Returns a text on one line, with what would hide or reorder it shown as its code."""
    return " ".join(visible(text).split())


def latex(text: str) -> str:
    r"""Escapes a text for LaTeX; letters beyond Latin Extended-A, which need fonts of their own, are shown as codes.

    >>> latex("50% of {a_b} & \\input{x}")
    '50\\% of \\{a\\_b\\} \\& \\textbackslash{}input\\{x\\}'
    """
    escaped = "".join(
        _LATEX.get(letter, letter if ord(letter) <= _LAST_LATIN else f"[U+{ord(letter):04X}]")
        for letter in one_line(text)
    )
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash


def markdown(text: str) -> str:
    r"""Escapes a text for a cell or a paragraph of Markdown (GFM): no markup, HTML, link or further cell comes of it.

    >>> markdown("a|b <b>*x*")
    'a\\|b \\<b\\>\\*x\\*'
    """
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def csv_text(text: str) -> str:
    """Returns a text that a spreadsheet takes for text: an apostrophe stands before what it would run as a formula.

    >>> csv_text("=1+1"), csv_text("gpt-5.2")
    ("'=1+1", 'gpt-5.2')
    """
    line = one_line(text)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line
