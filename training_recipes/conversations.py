r"""Reads the released SFT conversations: ``messages`` and absolute ``images`` a row, and fixes what is known wrong.

The released texts hold a backslash and an n where a line break was meant; such are put right and counted. The image
paths are those of another machine; each is found below a root of one's own by its longest end that exists there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview

_PLACE: Final = "<image>"
_ROLES: Final = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
# a command such as \nu or \neq would go on with a small letter; a line break that was meant does not
_LITERAL: Final = re.compile(r"(?:\\r)?\\n(?![a-z])")
_DOUBTFUL: Final = re.compile(r"\\n(?=[a-z])")


@dataclass(frozen=True)
class Conversation:
    """One conversation to learn its last turn.

    Attributes:
        id: row number in the file, counted from 1, as ``row N``.
        messages: turns before the answer, content in parts, a place for each image.
        answer: the assistant's last turn.
        images: image files, in the places' order.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    answer: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class Conversations:
    """A conversation file.

    Attributes:
        rows: its conversations.
        repaired: rows in which a literal backslash-n was made a line break.
        doubtful: rows that keep one before a small letter, which may be a command of LaTeX.
    """

    rows: tuple[Conversation, ...]
    repaired: int
    doubtful: int


def read_conversations(path: str | Path, root: str | Path) -> Conversations:
    """Reads a conversation file in the layout of LLaMA-Factory (``messages``) or ShareGPT (``conversations``).

    Args:
        path: JSON list.
        root: folder that the images lie below.

    Raises:
        InputError: with every row that breaks the layout, or whose image is not below the root.
    """
    path, root = Path(path), Path(root).resolve()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        hint = "name a JSON list of conversations"
        raise InputError(Problem(str(path), "a conversation file", preview(str(error), 160), hint)) from error
    if not isinstance(content, list) or not content:
        raise InputError(
            Problem(str(path), "a JSON list of conversations", type(content).__name__, "name another file")
        )
    if not root.is_dir():
        raise InputError(Problem("image_root", "a folder", preview(str(root)), "name the folder of the images"))
    problems: list[Problem] = []
    rows, repaired, doubtful = [], 0, 0
    for number, row in enumerate(content, 1):
        location = f"{path}, row {number}"
        turns = _turns(row, location, problems)
        if turns is None:
            continue
        whole = "".join(text for _, text in turns)
        repaired += bool(_LITERAL.search(whole))
        doubtful += bool(_DOUBTFUL.search(whole))
        turns = [(role, _LITERAL.sub("\n", text)) for role, text in turns]
        images = _images(row.get("images") or [], root, location, problems)
        messages = tuple({"role": role, "content": _parts(text)} for role, text in turns[:-1])
        places = sum(part["type"] == "image" for message in messages for part in message["content"])
        if places != len(images):
            found = f"{places} of them"
            problems.append(Problem(location, f"{len(images)} places {_PLACE}, one an image", found, "fix the row"))
        rows.append(Conversation(f"row {number}", messages, turns[-1][1], tuple(images)))
    if problems:
        raise InputError(_together(problems, root))
    return Conversations(tuple(rows), repaired, doubtful)


def remapped(text: str, root: Path) -> Path | None:
    """Returns the file below ``root`` that a path of another machine means, by its longest end that exists there.

    None where there is none; what leads out of the root, by ``..`` or by a link, is none.
    """
    parts = (PureWindowsPath(text) if "\\" in text or re.match(r"[A-Za-z]:", text) else PurePosixPath(text)).parts
    for start in range(len(parts)):
        end = [part for part in parts[start:] if part not in ("/", "\\")]
        if not end or ".." in end or end[0].endswith((":", ":\\")):
            continue
        file = root.joinpath(*end).resolve()
        if file.is_file() and file.is_relative_to(root):
            return file
    return None


def _images(paths: Any, root: Path, location: str, problems: list[Problem]) -> list[Path]:
    found: list[Path] = []
    for text in paths if isinstance(paths, list) else [paths]:
        file = remapped(text, root) if isinstance(text, str) and "\0" not in text else None
        if file is None:
            problems.append(
                Problem(location, f"an image below {root}", preview(text), "set image_root to the images' folder")
            )
        else:
            found.append(file)
    return found


def _turns(row: Any, location: str, problems: list[Problem]) -> list[tuple[str, str]] | None:
    """Returns (role, text) of each turn, the last one the assistant's; None, and a fault, where the row is none."""
    content = row.get("messages") or row.get("conversations") if isinstance(row, Mapping) else None
    turns = []
    for turn in content if isinstance(content, list) else []:
        role = _ROLES.get(str(turn.get("role", turn.get("from")))) if isinstance(turn, Mapping) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(text, str):
            turns = []
            break
        turns.append((role, text))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        expected = "messages with role and content, the last the assistant's"
        problems.append(Problem(location, expected, preview(content, 120), "fix the row"))
        return None
    return turns


def _parts(text: str) -> list[dict[str, Any]]:
    r"""Splits a turn at its image places; white space beside a place goes.

    >>> _parts("<image>\n<image>\n\nWhich?")
    [{'type': 'image'}, {'type': 'image'}, {'type': 'text', 'text': 'Which?'}]
    """
    pieces = text.split(_PLACE)
    parts: list[dict[str, Any]] = []
    for place, piece in enumerate(pieces):
        if place:
            parts.append({"type": "image"})
        words = piece.strip() if len(pieces) > 1 else piece
        if words:
            parts.append({"type": "text", "text": words})
    return parts


def _together(problems: Sequence[Problem], root: Path) -> list[Problem]:
    """Joins the faults of images, where more than a few are missing: the root is wrong, not some files."""
    images = [problem for problem in problems if problem.expected.startswith("an image below")]
    if len(images) <= 20:
        return list(problems)
    first = images[0]
    joined = Problem(first.location, first.expected, f"{first.found} and {len(images) - 1} more missing", first.hint)
    return [joined, *(problem for problem in problems if problem not in images)]
