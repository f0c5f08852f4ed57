"""Text helpers: words, negations, number formats, and escaping for display."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jinja2 import Environment

_WORD: Final = re.compile(r"\w+")
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # scripts without spaces between words
NEGATION: Final = re.compile(
    r"\b(?:no|not|non|none|never|neither|nor|without|absent|absence|lack\w*|fail\w*|cannot|\w+n't|rather than|"
    r"instead|except\w*|exclu\w*|negative|devoid|free)\b",
    re.IGNORECASE,
)
"""Negation words, which the audit counts and the controls and curation balance."""

_KEPT: Final = frozenset("\n\t")
_HIDING: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
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


def words(text: str) -> list[str]:
    """Returns the words of a text in order, NFKC-normalised and case-folded; Chinese and kana are split by character.

    >>> words("Non-necrotic Stroma")
    ['non', 'necrotic', 'stroma']
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_UNSPACED.sub(r" \g<0> ", folded))


def tokens(text: str) -> frozenset[str]:
    """Returns the set of words of a text.

    >>> sorted(tokens("Non-necrotic stroma, stroma"))
    ['necrotic', 'non', 'stroma']
    """
    return frozenset(words(text))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Returns |intersection| / |union|; 1.0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


def negations(text: str) -> list[str]:
    """Returns the negation words of a text in lower case, in order.

    >>> negations("Not necrotic, without mitoses")
    ['not', 'without']
    """
    return [match.lower() for match in NEGATION.findall(text)]


def same_text(text: str) -> str:
    """Returns a key that is equal for texts that differ only in case, white space or Unicode form (NFKC).

    >>> same_text("Which  option fits?") == same_text("which option fits? ")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def percent(share: float, digits: int = 1) -> str:
    """Formats a share as per cent without the sign, rounding halves away from zero: 0.8905 -> '89.1'."""
    return _rounded(share, digits, "")


def points(share: float, digits: int = 1) -> str:
    """Formats a difference of shares in signed percentage points: 0.254 -> '+25.4'."""
    return _rounded(share, digits, "+")


def _rounded(share: float, digits: int, sign: str) -> str:
    # through six decimals: the float 89.05 is slightly smaller than 89.05, but has to become 89.1
    value = Decimal(f"{100 * share:.6f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{value if value else abs(value):{sign}}"  # no -0.0


def interval(ends: Sequence[float], digits: int = 1) -> str:
    """Formats an interval of shares in per cent: (0.2, 0.3) -> '20.0 to 30.0'."""
    return f"{percent(ends[0], digits)} to {percent(ends[1], digits)}"


def p_value(p: float) -> str:
    """Formats a p-value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table whose first row is the header; the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def html_environment(package: str, **settings: Any) -> Environment:
    """Returns the jinja2 environment of the HTML templates in a package's folder ``templates``.

    Every text is escaped, and characters that hide or reorder text are shown by their codes; an undefined name is an
    error. ``settings`` are passed to ``jinja2.Environment``.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        **settings,
    )


def markdown_environment(package: str, **filters: Any) -> Environment:
    """Returns the jinja2 environment of the Markdown templates in a package's folder ``templates``.

    Filters: ``md`` escapes a text; ``percent`` (a dash for None) and ``interval`` format shares.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    dash = {"percent": lambda share: "-" if share is None else percent(share)}
    environment.filters |= {"md": markdown, "interval": interval, **dash, **filters}
    return environment


def escape_invisible(text: str) -> str:
    r"""Replaces control, format (bidirectional, zero-width), surrogate and private characters by ``\u{CODE}``.

    >>> escape_invisible("gold\u202e option\x00")
    'gold\\u{202E} option\\u{0}'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{{{ord(letter):X}}}" if unicodedata.category(letter) in _HIDING and letter not in _KEPT else letter
        for letter in text
    )


def one_line(text: str) -> str:
    """Returns a text on one line, with characters that hide or reorder text shown by their codes."""
    return " ".join(escape_invisible(text).split())


def latex(text: str) -> str:
    r"""Escapes a text for LaTeX; letters beyond Latin Extended-A, which need special fonts, are shown by their codes.

    >>> latex("50% of {a_b} & \\input{x}")
    '50\\% of \\{a\\_b\\} \\& \\textbackslash{}input\\{x\\}'
    """
    escaped = "".join(
        _LATEX.get(letter, letter if ord(letter) <= _LAST_LATIN else f"[U+{ord(letter):04X}]")
        for letter in one_line(text)
    )
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash


def markdown(text: str) -> str:
    r"""Escapes a text for a table cell or paragraph of Markdown (GFM): markup, HTML, links and cell separators.

    >>> markdown("a|b <b>*x*")
    'a\\|b \\<b\\>\\*x\\*'
    """
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def csv_text(text: str) -> str:
    """Returns a text for a spreadsheet, with an apostrophe before what would be run as a formula.

    >>> csv_text("=1+1"), csv_text("gpt-5.2")
    ("'=1+1", 'gpt-5.2')
    """
    line = one_line(text)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def restore_thoughts(text: str, reasoning: str | None = None) -> str:
    """Returns a response with its reasoning inside ``<think> </think>``.

    A server may return the reasoning separately from the text; a chat template may contain the opening tag, so that
    the text has only the closing tag. A text that contains its reasoning is returned unchanged.

    >>> restore_thoughts("<answer>B</answer>", "Glands fuse.")
    '<think>Glands fuse.</think>\\n<answer>B</answer>'
    >>> restore_thoughts("Glands fuse.</think> <answer>B</answer>")
    '<think>Glands fuse.</think> <answer>B</answer>'
    """
    if reasoning and reasoning.strip() not in text:
        return f"<think>{reasoning}</think>\n{text}"
    opening, closing = text.find("<think>"), text.find("</think>")
    return f"<think>{text}" if closing >= 0 and not 0 <= opening < closing else text
