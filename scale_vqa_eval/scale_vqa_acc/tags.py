"""Finds the think and answer tags of many texts at once, as positions in one array of character codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

OTHER: Final = ord("?")
"""Stands for every character outside ASCII, as ``str.encode`` replaces them; and for itself."""
NOWHERE: Final = np.iinfo(np.int64).max

_PADDING: Final = "\0" * 64  # so that a look ahead never leaves the array
_SKIPPED: Final = 8
_SPACE: Final = np.array([code < 128 and chr(code).isspace() for code in range(256)])
_LETTER: Final = np.array([code < 128 and chr(code).isalpha() for code in range(256)])
_LESS_THAN: Final = ord("<")
_GREATER_THAN: Final = ord(">")


def _word(tag: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(tag.ljust(8, b"\0"), "little"))


_OPEN, _CLOSE, _THINK, _END_THINK = _word(b"<answer>"), _word(b"</answer"), _word(b"<think>"), _word(b"</think>")
_FIRST_SEVEN: Final = np.uint64(0x00FF_FFFF_FFFF_FFFF)


@dataclass(frozen=True)
class Tag:
    """Where one tag stands: positions (k,) of its first character, ascending, and the text (k,) that each is in."""

    at: Places
    owner: Places

    def first(self, texts: int) -> Places:
        """Position of the first in each text, ``NOWHERE`` where there is none."""
        place = np.full(texts, NOWHERE)
        place[self.owner[::-1]] = self.at[::-1]  # of equal indices the one assigned last stays
        return place

    def last(self, texts: int) -> Places:
        """Position of the last in each text, -1 where there is none."""
        place = np.full(texts, -1)
        place[self.owner] = self.at
        return place


@dataclass(frozen=True)
class Tags:
    """The four tags of a chunk of texts.

    Attributes:
        codes: characters of all texts, a NUL after each; what is not ASCII is ``OTHER``.
        words: (len(codes) - 7,) eight characters from each position on, as one number.
        ends: (n,) position of the NUL after each text.
    """

    codes: Codes
    words: npt.NDArray[np.uint64]
    ends: Places
    answer: Tag
    end_answer: Tag
    think: Tag
    end_think: Tag


def find_tags(texts: list[str], lengths: Places) -> Tags:
    """Joins the texts and finds their tags.

    Raises:
        TypeError: where an item is no text.
    """
    raw = _encoded(texts)
    codes = np.frombuffer(raw, np.uint8)
    words = np.ndarray((len(raw) - 7,), "<u8", buffer=raw, strides=(1,))
    ends = np.cumsum(lengths + 1) - 1
    at = np.flatnonzero(codes == _LESS_THAN)
    word = words[at]
    owner = np.repeat(np.arange(ends.size), np.diff(np.searchsorted(at, ends), prepend=0))

    def tag(hits: Flags) -> Tag:
        places = np.flatnonzero(hits)  # faster than the flags themselves, where most are False
        return Tag(at[places], owner[places])

    return Tags(
        codes,
        words,
        ends,
        answer=tag(word == _OPEN),
        end_answer=tag((word == _CLOSE) & (codes[at + 8] == _GREATER_THAN)),
        think=tag(word & _FIRST_SEVEN == _THINK),
        end_think=tag(word == _END_THINK),
    )


def letters_after(tags: Tags, at: Places) -> tuple[Codes, Flags]:
    """Reads ``white space, letter, white space, </answer>`` from each position on.

    Returns:
        letters: (k,) upper-case ASCII codes, 0 where something else stands there.
        unsure: (k,) where the arrays cannot tell: characters outside ASCII, a long run of white space.
    """
    at, unsure = skip_space(tags.codes, at)
    letter = tags.codes[at]
    is_letter = _LETTER[letter]
    behind, unsure_behind = skip_space(tags.codes, at + 1)
    closed = (tags.words[behind] == _CLOSE) & (tags.codes[behind + 8] == _GREATER_THAN)
    return np.where(is_letter & closed, letter & 0xDF, 0).astype(np.uint8), unsure | (is_letter & unsure_behind)


def skip_space(codes: Codes, at: Places) -> tuple[Places, Flags]:
    """Moves each position over ASCII white space, at most ``_SKIPPED`` characters.

    Returns:
        The positions and where it stopped at something that may still be white space.
    """
    for _ in range(_SKIPPED):
        space = _SPACE[codes[at]]
        if not space.any():
            return at, codes[at] == OTHER
        at = at + space
    return at, _SPACE[codes[at]] | (codes[at] == OTHER)


def _encoded(texts: list[str]) -> bytes:
    """Returns one byte per character, a NUL after each text; characters outside ASCII become ``OTHER``."""
    if not all(map(str.isascii, texts)):
        texts = [text if str.isascii(text) else text.encode("ascii", "replace").decode("ascii") for text in texts]
    return "\0".join([*texts, _PADDING]).encode("ascii")
