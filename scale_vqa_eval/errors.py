"""Input errors: location, what was expected, what was found, and how to fix it."""

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
    """One problem of an input.

    Attributes:
        location: file and row, line or column, such as ``test.json, row 17``.
        expected: what the input should have been.
        found: what it was, shortened to one line.
        hint: how to fix it.
    """

    location: str
    expected: str
    found: str
    hint: str

    def __str__(self) -> str:
        return f"{self.location}: expected {self.expected}, found {self.found}; {self.hint}"


class InputError(ValueError):
    """Raised for invalid input; carries every problem that was found, not only the first."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("InputError needs at least one problem")
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} problems:\n"
        super().__init__(head + "\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Problem, ...]]]:
        # exceptions are pickled by their message, so an error from a worker process would lose its problems
        return type(self), (self.problems,)


def first_line(error: BaseException, length: int = 160) -> str:
    """Returns the first line of an error's message, shortened, or its type if the message is empty."""
    text = str(error).strip()
    return preview(text.splitlines()[0] if text else type(error).__name__, length)


def preview(value: object, limit: int = 80) -> str:
    """Returns a value as one line for an error message.

    Args:
        value: any value. It is formatted by ``repr`` with control characters escaped. Only the first few levels and
            entries of a container are visited, so that even a huge value is cheap.
        limit: maximum number of characters; a longer value is cut and its length given.
    """
    if isinstance(value, str):
        text = repr(value) if value.isprintable() else ascii(value)
    else:
        try:
            text = (_SHORT.repr if isinstance(value, dict | list | tuple | set | frozenset) else repr)(value)
        except ValueError:  # an integer of more than 4,300 digits
            text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


_SHORT = reprlib.Repr()
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = 20
_SHORT.maxstring = _SHORT.maxother = 400
_SHORT.maxlevel = 4


def did_you_mean(value: object, names: Iterable[str]) -> str:
    """Returns a hint for an unknown name: the most similar of ``names``, if one is similar.

    >>> did_you_mean("tset", ["train", "test"]), did_you_mean("x", ["train", "test"])
    ("did you mean 'test'?", 'name one of those')
    """
    import difflib

    near = difflib.get_close_matches(str(value)[:200], list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else "name one of those"


def validated(model: type[M], raw: object, location: str) -> M:
    """Validates a value read from a file against a pydantic model.

    Args:
        model: the model; problems of an ``InputError`` raised by its validators are kept.
        raw: the value as parsed from YAML or JSON.
        location: name of the file in messages.

    Raises:
        InputError: lists every key that is unknown, missing or of the wrong type.
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
    """Returns the keys of the model at a location within another model, found by the annotations of its fields."""
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
