"""One way to say that an input is bad: where, what was expected, what was found, and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        location: file and row, line or column, as a reader would look it up (``test.json, row 17 (id ...)``).
        expected: what the contract asks for.
        found: what stands there, shortened to one line.
        hint: what the reader can do about it.
    """

    location: str
    expected: str
    found: str
    hint: str

    def __str__(self) -> str:
        return f"{self.location}: expected {self.expected}, found {self.found}; {self.hint}"


class InputError(ValueError):
    """Raised when an input breaks the contract; carries every fault that was found, not the first alone."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("InputError needs at least one fault")
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} faults:\n"
        super().__init__(head + "\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Problem, ...]]]:
        # an exception is pickled by its message otherwise, and would come back from a worker without its faults
        return type(self), (self.problems,)


def preview(value: object, limit: int = 80) -> str:
    """Shows a value of an input on one line of an error message.

    Args:
        value: anything; it is shown by ``repr``, control characters escaped.
        limit: most characters kept; the rest is counted, not dropped in silence.
    """
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
