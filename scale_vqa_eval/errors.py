"""One way to say that an input is bad: where, what was expected, what was found, and the fix."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

M = TypeVar("M", bound="BaseModel")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        location: file and row, line or column, as a reader would look it up (``test.json, row 17 (id ...)``).
        expected: what the contract asks for.
        found: what is there, shortened to one line.
        hint: what the reader can do about it.
    """

    location: str
    expected: str
    found: str
    hint: str

    def __str__(self) -> str:
        return f"{self.location}: expected {self.expected}, found {self.found}; {self.hint}"


class InputError(ValueError):
    """Raised when an input breaks the contract; carries every problem that was found, not the first alone."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("InputError needs at least one problem")
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} problems:\n"
        super().__init__(head + "\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Problem, ...]]]:
        # an exception is pickled by its message otherwise, and would come back from a worker without its problems
        return type(self), (self.problems,)


def first_line(error: BaseException, length: int = 160) -> str:
    """Returns the first line of an error's message, shortened; its kind where it has no message."""
    text = str(error).strip()
    return preview(text.splitlines()[0] if text else type(error).__name__, length)


def preview(value: object, limit: int = 80) -> str:
    """Shows a value of an input on one line of an error message.

    Args:
        value: anything; it is shown by ``repr``, control characters escaped. Of lists and objects only the first few
            levels and entries are visited, so that a small file that stands for a huge value costs nothing.
        limit: most characters kept; for texts the rest is counted.
    """
    if isinstance(value, str):
        text = repr(value) if value.isprintable() else ascii(value)
    else:
        try:
            text = (_SHORT.repr if isinstance(value, dict | list | tuple | set | frozenset) else repr)(value)
        except ValueError:  # it holds an integer of more than 4,300 digits
            text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


_SHORT = reprlib.Repr()
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxstring = _SHORT.maxother = 400
_SHORT.maxlevel = 4


def did_you_mean(value: object, names: Iterable[str]) -> str:
    """Returns the hint for a name that is not one of ``names``: the nearest of them, if one is near.

    >>> did_you_mean("tset", ["train", "test"]), did_you_mean("x", ["train", "test"])
    ("did you mean 'test'?", 'name one of those')
    """
    import difflib

    near = difflib.get_close_matches(str(value)[:200], list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else "name one of those"


def validated(model: type[M], raw: object, location: str) -> M:
    """Checks a value that came from a file against a pydantic model.

    Args:
        model: the model; its validators may raise ``InputError``, whose problems are passed on.
        raw: what the file holds, as YAML or JSON gives it.
        location: name of the file in messages.

    Raises:
        InputError: with a problem for every key that is unknown, missing or of another kind.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems: list[Problem] = []
        for one in error.errors():
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]).lstrip(".")
            where = f"{location}, {path}" if path else location
            cause, message = one.get("ctx", {}).get("error"), one["msg"].removeprefix("Input should be ")
            if isinstance(cause, InputError):
                problems += [
                    Problem(f"{where}, {inner.location}", inner.expected, inner.found, inner.hint)
                    for inner in cause.problems
                ]
            elif one["type"] == "extra_forbidden":
                known = _known_keys(model, one["loc"][:-1])
                hint = did_you_mean(one["loc"][-1], known)
                problems.append(Problem(where, f"one of {', '.join(known)}", preview(one["loc"][-1]), hint))
            elif one["type"] == "missing":
                problems.append(Problem(where, f"a value for {one['loc'][-1]}", "none", "add it"))
            else:
                message = "a mapping of keys to values" if one["type"] in ("model_type", "dict_type") else message
                problems.append(Problem(where, message, preview(one["input"]), "correct it"))
        raise InputError(problems) from error


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Returns the keys of the model that lies at a location within another, by what its fields are annotated with."""
    from pydantic import BaseModel

    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            waiting: list[object] = [model.model_fields[part].annotation]
            while waiting:
                kind = waiting.pop()
                waiting += get_args(kind)
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    model = kind
    return list(model.model_fields)
