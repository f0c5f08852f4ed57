"""Fields of a file that were written by hand or by another program: all that is missing or wrong, at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import Problem, preview

Kinds = Mapping[str, type | tuple[type, ...]]

_NAMES = {
    str: "text",
    dict: "an object",
    list: "a list",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
}


def check_fields(
    path: Path, content: Mapping[str, Any], needed: Kinds, optional: Kinds, hint: str, problems: list[Problem]
) -> None:
    """Adds a fault for each needed field that is missing and each field of another kind.

    Args:
        path: the file, as faults name it.
        content: its content; a dotted name looks inside.
        needed: dotted name -> kind.
        optional: the same; may be missing or null.
        hint: how to fix it.
        problems: added to.
    """
    for name, kind in {**needed, **optional}.items():
        value = field_of(content, name)
        if value is None or value == "" or value == {}:
            if name in needed:
                problems.append(Problem(str(path), f"{name}: {_shown_kind(kind)}", "none", hint))
        elif not _is(value, kind):
            problems.append(Problem(str(path), f"{name}: {_shown_kind(kind)}", preview(value), hint))


def field_of(content: Mapping[str, Any], name: str) -> Any:
    """Returns the value under a dotted name; None where there is none.

    >>> field_of({"a": {"b": 1}}, "a.b"), field_of({"a": 1}, "a.b")
    (1, None)
    """
    value: Any = content
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and value >= 0
    return isinstance(value, kind) and not (kind is int and value < 0)


def _shown_kind(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(_NAMES.get(one, one.__name__) for one in kinds)
