"""Parses the answer letter in a model's response; never guesses.

There are two rules. ``reference`` is the accuracy rule published with ScaleReasoner-R1 (arXiv:2606.17412): the first
``<answer>letter</answer>`` anywhere in the response, with any letter. ``strict`` is ours: a single answer, after the
think block, with a letter of the question. All rules take linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from string import ascii_letters
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Mode = Literal["reference", "strict"]
MODES: Final[tuple[Mode, ...]] = ("reference", "strict")

THINK: Final = "<think>"
END_THINK: Final = "</think>"
ANSWER: Final = "<answer>"
END_ANSWER: Final = "</answer>"

REASONS: Final[tuple[str, ...]] = (
    "parsed",
    "not_text",
    "blank",
    "no_answer",
    "unclosed_answer",
    "not_one_letter",
    "answer_in_think",
    "unclosed_think",
    "several_answers",
    "not_an_option",
)
"""Parse outcomes; the index is the code in ``ParsedBatch.reasons``. The last four occur in strict mode only."""
_CODES: Final = {reason: code for code, reason in enumerate(REASONS)}

ACCURACY_WEIGHT: Final = 0.8
FORMAT_WEIGHT: Final = 0.2
"""Weights of accuracy and format in the published reward."""

# white space is followed by a letter or a tag, so there is no quadratic backtracking
_FIRST = re.compile(rf"{ANSWER}\s*([A-Za-z])\s*{END_ANSWER}")
_CONTENT = re.compile(rf"\s*([A-Za-z])\s*{END_ANSWER}")


class Parsed(NamedTuple):
    """The letter of a response, upper case, or None with the reason."""

    letter: str | None
    reason: str


_PARSED: Final = {letter: Parsed(letter.upper(), "parsed") for letter in ascii_letters}


@dataclass(frozen=True)
class ParsedBatch:
    """Parse results of n responses.

    Attributes:
        letters: (n,) ASCII code of the upper-case letter, or 0 if there is none.
        reasons: (n,) index into ``REASONS``; 0 if there is a letter.
        formats: (n,) whether the response satisfies the published format rule.
    """

    letters: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint8]
    formats: npt.NDArray[np.bool_]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> ParsedBatch:
        return ParsedBatch(self.letters[rows], self.reasons[rows], self.formats[rows])


def parse_response(response: object, mode: Mode = "reference", options: int = 4) -> Parsed:
    r"""Parses the answer letter of a response.

    Args:
        response: the model's text; other values give ``not_text``.
        mode: ``reference`` or ``strict``.
        options: number of options of the question; used by ``strict`` only.

    Returns:
        The letter with reason ``parsed``, or None with another one of ``REASONS``.

    >>> parse_response("<think>Glands.</think> <answer> b\n</answer>")
    Parsed(letter='B', reason='parsed')
    >>> parse_response("<answer>A.</answer>").reason
    'not_one_letter'
    >>> parse_response("<think>It is <answer>A</answer></think>", "strict").reason
    'answer_in_think'
    """
    if not isinstance(response, str):
        return Parsed(None, "not_text")
    if mode == "reference":
        match = _FIRST.search(response)
        return _PARSED[match[1]] if match else Parsed(None, _missing(response, 0))
    if mode == "strict":
        return _strict(response, options)
    raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def parse_batch(
    responses: Sequence[object], mode: Mode = "reference", options: int | Sequence[int] | npt.NDArray[np.int64] = 4
) -> ParsedBatch:
    r"""Parses a sequence of responses; see ``parse_response`` and ``keeps_format``.

    Args:
        responses: n model texts.
        mode: ``reference`` or ``strict``.
        options: number of options, one for all or one per response.

    >>> parse_batch(["<answer>b</answer>", None]).letters.tobytes()
    b'B\x00'
    """
    size = len(responses)
    letters, reasons, formats = bytearray(size), bytearray(size), bytearray(size)
    counts: Iterable[int] = np.asarray(options)
    if np.ndim(options) == 0:
        counts = repeat(int(np.asarray(options)), size)
    for row, (response, count) in enumerate(zip(responses, counts, strict=True)):
        match = _FIRST.search(response) if isinstance(response, str) else None
        formats[row] = match is not None and _formatted(match)
        if match is not None and mode == "reference":
            letters[row] = ord(match[1]) & ~0x20  # upper case
            continue
        letter, reason = parse_response(response, mode, count)
        reasons[row] = _CODES[reason]
        letters[row] = ord(letter) if letter else 0
    return ParsedBatch(
        np.frombuffer(letters, np.uint8), np.frombuffer(reasons, np.uint8), np.frombuffer(formats, np.bool_)
    )


def keeps_format(response: object) -> bool:
    """Returns whether a response satisfies the published format rule.

    The rule needs a think block anywhere and exactly one ``<answer>...</answer>`` block with one letter, followed only
    by white space. The published rule also allows text before an inner ``<answer>`` in the block.

    >>> keeps_format("<think></think> <answer>Z</answer>"), keeps_format("<answer>A</answer>")
    (True, False)
    """
    match = _FIRST.search(response) if isinstance(response, str) else None
    return match is not None and _formatted(match)


def _formatted(match: re.Match[str]) -> bool:
    """Returns whether a response satisfies the format rule, given the match of its first letter."""
    response, start, end = match.string, match.start(), match.end()
    if response[end:].strip():
        return False
    opener = response.find(ANSWER, 0, start)
    if opener >= 0 and response.find(END_ANSWER, opener, start) >= 0:  # another block before this one
        return False
    think = response.find(THINK)
    return think >= 0 and response.find(END_THINK, think) >= 0


def _strict(response: str, options: int) -> Parsed:
    end = response.rfind(END_THINK)
    start = 0 if end < 0 else end + len(END_THINK)
    if response.find(THINK, start) >= 0:
        return Parsed(None, "unclosed_think")
    opener = response.find(ANSWER, start)
    if opener < 0:
        inside = response.find(ANSWER, 0, start) >= 0
        return Parsed(None, "answer_in_think" if inside else _missing(response, start))
    content = opener + len(ANSWER)
    if response.find(ANSWER, content) >= 0:
        return Parsed(None, "several_answers")
    match = _CONTENT.match(response, content)
    if match is None:
        return Parsed(None, _missing(response, content - len(ANSWER)))
    letter = match[1].upper()
    return Parsed(letter, "parsed") if ord(letter) - ord("A") < options else Parsed(None, "not_an_option")


def _missing(response: str, start: int) -> str:
    """Returns the reason why there is no letter after ``start``."""
    opener = response.find(ANSWER, start)
    if opener < 0:
        return "no_answer" if response.strip() else "blank"
    return "unclosed_answer" if response.find(END_ANSWER, opener) < 0 else "not_one_letter"
