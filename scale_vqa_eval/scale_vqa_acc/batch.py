"""Parses many responses at once: the rules of ``parsing`` as operations on arrays of characters.

What the arrays cannot decide (white space outside ASCII beside a letter, long runs of it) goes to ``parse_response``.
The results are those of ``parse_response`` and ``keeps_format``, response by response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .parsing import ANSWER, END_ANSWER, MODES, REASONS, Mode, keeps_format, parse_response
from .tags import NOWHERE, Flags, Places, Tags, find_tags, letters_after, skip_space

CHUNK_RESPONSES: Final = 8192
CHUNK_CHARACTERS: Final = 1 << 19  # a chunk and what is made of it then stay near the processor
_CODE: Final = {reason: code for code, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class ParsedBatch:
    """Answers of n responses.

    Attributes:
        letters: (n,) ASCII code of the upper-case letter, 0 where there is none.
        reasons: (n,) index into ``REASONS``; 0 where a letter was found.
        formats: (n,) whether the published format rule is kept.
    """

    letters: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint8]
    formats: Flags

    @classmethod
    def blank(cls, size: int) -> ParsedBatch:
        """Makes the answers of n responses that are not yet parsed."""
        return cls(np.zeros(size, np.uint8), np.zeros(size, np.uint8), np.zeros(size, np.bool_))

    def __getitem__(self, place: slice) -> ParsedBatch:
        return ParsedBatch(self.letters[place], self.reasons[place], self.formats[place])


def parse_batch(
    responses: Sequence[object], mode: Mode = "reference", options: int | Sequence[int] | Places = 4
) -> ParsedBatch:
    r"""Parses a sequence of responses; memory beyond the result does not grow with their number.

    Args:
        responses: n model texts; what is no text counts as ``not_text``.
        mode: ``reference`` or ``strict``.
        options: number of options, one for all or one per response; only ``strict`` looks at it.

    >>> parse_batch(["<answer>b</answer>", None]).letters.tobytes()
    b'B\x00'
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    counts = np.broadcast_to(np.asarray(options, dtype=np.int64), (len(responses),))
    result = ParsedBatch.blank(len(responses))
    for start in range(0, len(responses), CHUNK_RESPONSES):
        place = slice(start, start + CHUNK_RESPONSES)
        _parse_mixed(list(responses[place]), mode, counts[place], result[place])
    return result


def _parse_mixed(chunk: list[object], mode: Mode, options: Places, out: ParsedBatch) -> None:
    """Parses a chunk in which an item may be no text."""
    try:
        _parse_texts(chunk, mode, options, out)  # type: ignore[arg-type]
    except TypeError:  # looking at every type beforehand would cost as much as finding the tags
        no_text = np.fromiter((not isinstance(item, str) for item in chunk), np.bool_, len(chunk))
        texts = [item if isinstance(item, str) else "" for item in chunk]
        _parse_texts(texts, mode, options, out)
        out.reasons[no_text] = _CODE["not_text"]


def _parse_texts(texts: list[str], mode: Mode, options: Places, out: ParsedBatch) -> None:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    for low, high in _cuts(lengths):
        place = slice(low, high)
        if high - low == 1 and lengths[low] > CHUNK_CHARACTERS:
            _one_by_one(texts[place], np.zeros(1, np.int64), mode, options[place], out[place])
        else:
            _parse_chunk(texts[place], lengths[place], mode, options[place], out[place])


def _cuts(lengths: Places) -> Iterator[tuple[int, int]]:
    """Yields ranges of texts that hold at most ``CHUNK_CHARACTERS``, or one longer text."""
    totals = np.cumsum(lengths)
    low = 0
    while low < lengths.size:
        before = int(totals[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(totals, before + CHUNK_CHARACTERS, side="right")))
        yield low, high
        low = high


def _parse_chunk(texts: list[str], lengths: Places, mode: Mode, options: Places, out: ParsedBatch) -> None:
    tags = find_tags(texts, lengths)
    letters, unsure = letters_after(tags, tags.answer.at + len(ANSWER))
    fill = _reference if mode == "reference" else _strict
    fill(tags, letters, options, out)
    unsure_tails = _formats(tags, letters, out)
    silent = np.flatnonzero(out.reasons == _CODE["no_answer"]).tolist()
    out.reasons[[place for place in silent if not texts[place].strip()]] = _CODE["blank"]
    if unsure.any() or unsure_tails.size:
        _one_by_one(texts, np.union1d(tags.answer.owner[unsure], unsure_tails), mode, options, out)


def _reference(tags: Tags, letters: npt.NDArray[np.uint8], options: Places, out: ParsedBatch) -> None:
    found = letters > 0
    out.letters[:] = 0
    out.letters[tags.answer.owner[found][::-1]] = letters[found][::-1]  # the first of a text is assigned last
    out.reasons[:] = np.where(out.letters > 0, _CODE["parsed"], _missing(tags, tags.answer.first(out.letters.size)))


def _strict(tags: Tags, letters: npt.NDArray[np.uint8], options: Places, out: ParsedBatch) -> None:
    size = out.letters.size
    start = tags.end_think.last(size)
    after = tags.answer.at > start[tags.answer.owner]
    owner = tags.answer.owner[after]
    answers = np.bincount(owner, minlength=size)
    opener = np.full(size, NOWHERE)
    opener[owner] = tags.answer.at[after]
    letter = np.zeros(size, np.uint8)
    letter[owner] = letters[after]
    conditions = {
        "unclosed_think": tags.think.last(size) > start,
        "answer_in_think": (answers == 0) & (tags.answer.last(size) >= 0),
        "several_answers": answers > 1,
        "not_an_option": letter.astype(np.int64) - ord("A") >= options,
        "parsed": letter > 0,
    }
    codes = [np.uint8(_CODE[name]) for name in conditions]
    out.reasons[:] = np.select(list(conditions.values()), codes, _missing(tags, opener))
    out.letters[:] = np.where(out.reasons == _CODE["parsed"], letter, 0)


def _missing(tags: Tags, opener: Places) -> npt.NDArray[np.uint8]:
    """Why a text whose answer opens at ``opener`` has no letter (blank texts are told apart later)."""
    closed = tags.end_answer.last(opener.size) > opener
    unread = np.where(closed, _CODE["not_one_letter"], _CODE["unclosed_answer"])
    return np.where(opener == NOWHERE, _CODE["no_answer"], unread).astype(np.uint8)


def _formats(tags: Tags, letters: npt.NDArray[np.uint8], out: ParsedBatch) -> Places:
    """Fills ``out.formats``; returns the texts whose end the arrays cannot decide."""
    size = out.formats.size
    answered = np.zeros(size, np.bool_)
    answered[tags.answer.owner[letters > 0]] = True
    thought = tags.think.first(size) < tags.end_think.last(size)
    closers = tags.end_answer
    later = closers.at > tags.answer.first(size)[closers.owner]
    one_block = np.bincount(closers.owner[later], minlength=size) == 1
    candidates = np.flatnonzero(answered & thought & one_block)
    tail, unsure = skip_space(tags.codes, closers.last(size)[candidates] + len(END_ANSWER))
    out.formats[:] = False
    out.formats[candidates] = tail == tags.ends[candidates]
    return candidates[unsure]


def _one_by_one(texts: list[str], places: Places, mode: Mode, options: Places, out: ParsedBatch) -> None:
    for place in places:
        letter, reason = parse_response(texts[place], mode, int(options[place]))
        out.letters[place] = ord(letter) if letter else 0
        out.reasons[place] = _CODE[reason]
        out.formats[place] = keeps_format(texts[place])
