"""One way to say that an input is bad: where, what was expected, what was found, and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong with an input.

    Attributes:
        where: file and row, line or column, as a reader would look it up (``test.json, row 17 (id ...)``).
        expected: what the contract asks for.
        found: what stands there, shortened to one line.
        mend: what the reader can do about it.
    """

    where: str
    expected: str
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.mend}"


class InputError(ValueError):
    """Raised when an input breaks the contract; carries every fault that was found, not the first alone."""

    def __init__(self, faults: Fault | Sequence[Fault]) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        if not self.faults:
            raise ValueError("InputError needs at least one fault")
        head = "" if len(self.faults) == 1 else f"{len(self.faults)} faults:\n"
        super().__init__(head + "\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Fault, ...]]]:
        # an exception is pickled by its message otherwise, and would come back from a worker without its faults
        return type(self), (self.faults,)


def shown(value: object, limit: int = 80) -> str:
    """Shows a value of an input on one line of an error message.

    Args:
        value: anything; it is shown by ``repr``, control characters escaped.
        limit: most characters kept; the rest is counted, not dropped in silence.
    """
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
