"""What the test double of the Hub is told to do wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class HubFault:
    """What goes wrong with requests whose ``METHOD /path`` matches.

    Attributes:
        pattern: regular expression on method and path.
        action: ``status`` (answers with ``status``), ``drop`` and ``drop after`` (no answer: before or after it is
            done), ``hang`` and ``hang after``, ``truncate`` (half of an upload is stored and called done), ``cut``
            (the connection ends in the middle of an upload), ``corrupt`` (one byte of a download is another),
            ``call`` (``do`` runs first, all else goes on).
        times: how many requests it hits.
    """

    pattern: str
    action: str = "status"
    status: int = 500
    times: int = 1
    headers: tuple[tuple[str, str], ...] = ()
    do: Callable[[], object] | None = None
