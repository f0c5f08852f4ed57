"""Untrusted text made safe to look at: what would hide, reorder or break a line is shown as its code."""

from __future__ import annotations

import unicodedata
from typing import Final

_KEPT: Final = frozenset("\n\t")
_HIDING: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def visible(text: str) -> str:
    r"""Replaces control, format (bidirectional, zero-width), surrogate and private characters by ``\u{CODE}``.

    >>> visible("gold\u202e option\x00")
    'gold\\u{202E} option\\u{0}'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{{{ord(letter):X}}}" if unicodedata.category(letter) in _HIDING and letter not in _KEPT else letter
        for letter in text
    )
