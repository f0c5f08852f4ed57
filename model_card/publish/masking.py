"""Keeps the token out of everything that a process writes: output, logs, warnings, tracebacks."""

from __future__ import annotations

import sys
from typing import Any, TextIO


class MaskedStream:
    """A text stream that writes ``hf_***`` where a secret would stand; everything else is the stream it wraps."""

    def __init__(self, stream: TextIO, secret: str) -> None:
        self._stream = stream
        self._secret = secret

    def write(self, text: str) -> int:
        return self._stream.write(text.replace(self._secret, "hf_***"))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_streams(secret: str) -> None:
    """Wraps stdout and stderr for the rest of the process, and the handlers of loggers that hold them already.

    For the rest of it, because a traceback is written last of all.
    """
    import logging

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream, secret))
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        stream = getattr(handler, "stream", None)
        if getattr(stream, "name", "") in ("<stdout>", "<stderr>") and not isinstance(stream, MaskedStream):
            handler.setStream(MaskedStream(stream, secret))
