r"""Targets of SFT: rationales whose letter is right or can be repaired, or the released conversations.

In the release, options were swapped to balance the letters, but the rationales still name the old letters and would
teach reasoning that contradicts the answer. Rationales that cite a "feature list" are left out too, because the model
never sees that list.

The released conversations have ``\n`` as two characters instead of a line break, which is repaired and counted. Their
image paths are absolute; each image is searched below a root folder by the longest suffix of its path.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, Literal

from scale_vqa_eval.audit.defects import find_defects, named_right, named_wrong
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import inside_root, sha256_file
from scale_vqa_eval.predict.images import UNREADABLE, Bounds, decode_image
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import ANSWER, END_ANSWER, END_THINK, THINK
from scale_vqa_eval.schema import LETTERS
from training_recipes.arguments import SFTArguments
from training_recipes.rows import TARGET, PromptFormat, Transform, assistant, questions_of

if TYPE_CHECKING:
    from training_recipes.selection import Candidates

Policy = Literal["checked", "repaired", "none"]
_TAGS: Final = (THINK, END_THINK, ANSWER, END_ANSWER)
_IMAGE: Final = "<image>"
_ROLES: Final = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
# \n before a lower-case letter may be a LaTeX command such as \nu or \neq
_LITERAL: Final = re.compile(r"(?:\\r)?\\n(?![a-z])")
_DOUBTFUL: Final = re.compile(r"\\n(?=[a-z])")


def with_targets(rows: Any, policy: Policy) -> tuple[Any, list[tuple[str, str]]]:
    """Adds the column ``target``; returns the rows that have a target, and (id, reason) of the others.

    Args:
        rows: rows from ``load_rows``.
        policy: ``checked`` uses rationales with the right letters or without letters; ``repaired`` also those that
            ``repaired`` can repair; ``none`` uses no rationale and leaves the think block empty.
    """
    questions = questions_of(rows)
    targets = [target_of(question, policy) for question in questions]
    pairs = zip(questions, targets, strict=True)
    left_out = [(question.id, reason) for question, (text, reason) in pairs if text is None]
    kept = [row for row, (text, _) in enumerate(targets) if text is not None]
    return rows.select(kept).add_column(TARGET, [targets[row][0] for row in kept]), left_out


def target_of(question: Question, policy: Policy) -> tuple[str | None, str]:
    """Returns (target text, "") of a question, or (None, reason)."""
    if policy == "none":
        return _target("", question.letter), ""
    rationale = question.rationale
    if rationale is None or not rationale.strip():
        return None, "no rationale"
    if any(tag in rationale for tag in _TAGS):
        return None, "the rationale contains think or answer tags"
    kinds = {defect.kind for defect in find_defects([question])}
    if "feature-list-rationale" in kinds:
        return None, "the rationale cites a feature list, not the image"
    if "rationale-letter" in kinds:
        changed = repaired(question) if policy == "repaired" else None
        if changed is None:
            how = "and it is not clear which letters it means" if policy == "repaired" else "(rationales: repaired)"
            return None, f"the rationale names another letter than the answer {question.letter} {how}"
        rationale = changed
    return _target(rationale.strip(), question.letter), ""


def repaired(question: Question) -> str | None:
    """Returns the rationale with repaired letters, or None if it is not clear which options they mean.

    Two options were swapped, so the letter that the rationale calls right and the gold letter are exchanged. This is
    safe only if the text has no other letter, or has each of the other three once in a list ("options B, C and D"),
    where their order does not matter.

    >>> repaired(Question("q", "?", ("w", "x", "y", "z"), 2, rationale="Only B fits. A, C and D add atypia."))
    'Only C fits. A, B and D add atypia.'
    >>> repaired(Question("q", "?", ("w", "x", "y", "z"), 2, rationale="Only B fits. A is too strong, D too weak."))
    """
    rationale, count = question.rationale or "", len(question.options)
    right = named_right(rationale, count)
    if len(right) != 1 or right[0] == question.letter:
        return None
    letters = LETTERS[:count]
    found = re.findall(rf"\b[{letters}]\b", rationale)
    others = [letter for letter in found if letter != right[0]]
    if right[0] == "A" and found.count("A") > 1:
        return None  # one of them may be the article
    joined = re.search(_group("".join(others)), rationale) if others else None
    if others and (sorted(others) != sorted(set(letters) - set(right)) or joined is None):
        return None
    exchange = {right[0]: question.letter, question.letter: right[0]}
    text = re.sub(rf"\b[{letters}]\b", lambda match: exchange.get(match[0], match[0]), rationale)
    if joined is not None:  # sort the letters of the list, as in the release
        start, end = joined.span()
        ordered = iter(sorted(re.findall(r"\b[A-Z]\b", text[start:end])))
        text = text[:start] + re.sub(r"\b[A-Z]\b", lambda _: next(ordered), text[start:end]) + text[end:]
    agrees = named_right(text, count) == [question.letter] and question.letter not in named_wrong(text, count)
    return text if agrees else None


def _group(letters: str) -> str:
    """Returns a pattern for a list of letters, joined by commas, ``and`` or ``or``."""
    letter = rf"\b[{letters}]\b"
    return rf"{letter}(?:(?:,|\s|/|&|and\b|or\b)+{letter}){{{len(letters) - 1}}}"


def _target(thought: str, letter: str) -> str:
    return f"{THINK}{thought}{END_THINK} {ANSWER}{letter}{END_ANSWER}"


def read_conversations(path: str | Path, root: str | Path) -> tuple[list[dict[str, Any]], int, int]:
    r"""Reads a conversation file in the layout of LLaMA-Factory (``messages``) or ShareGPT (``conversations``).

    Returns:
        The conversations (``id``: ``row N``, counted from 1; ``messages`` before the answer, with image placeholders;
        ``files`` of the images; ``target``: the assistant's last turn); the number in which ``\n`` was replaced by a
        line break; and the number that keep one before a lower-case letter, which may be LaTeX.

    Raises:
        InputError: listing rows with another layout, or with an image that is not below the root.
    """
    path, root = Path(path), Path(root).resolve()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        found, hint = preview(str(error), 160), "name a JSON list of conversations"
        raise InputError(Problem(str(path), "a conversation file", found, hint)) from error
    if not isinstance(content, list) or not content:
        found = type(content).__name__
        raise InputError(Problem(str(path), "a JSON list of conversations", found, "name another file"))
    if not root.is_dir():
        raise InputError(Problem("image_root", "a folder", preview(str(root)), "name the folder of the images"))
    problems: list[Problem] = []
    rows, repaired, doubtful = [], 0, 0
    for number, row in enumerate(content, 1):
        location = f"{path}, row {number}"
        turns = _turns(row, location, problems)
        if turns is None:
            continue
        text = "".join(text for _, text in turns)
        repaired += bool(_LITERAL.search(text))
        doubtful += bool(_DOUBTFUL.search(text))
        turns = [(role, _LITERAL.sub("\n", text)) for role, text in turns]
        images = _images(row.get("images") or [], root, location, problems)
        messages = [{"role": role, "content": _parts(text)} for role, text in turns[:-1]]
        count = sum(part["type"] == "image" for message in messages for part in message["content"])
        if count != len(images):
            expected = f"{len(images)} placeholders {_IMAGE}, one per image"
            problems.append(Problem(location, expected, str(count), "fix the row"))
        files = [str(image) for image in images]
        rows.append({"id": f"row {number}", "messages": messages, "files": files, TARGET: turns[-1][1]})
    if problems:
        raise InputError(_merged(problems))
    return rows, repaired, doubtful


def remapped(text: str, root: Path) -> Path | None:
    """Returns the file below ``root`` with the longest common suffix with a path of another machine, or None.

    Files outside ``root`` (through ``..`` or a link) are never returned.
    """
    windows = "\\" in text or re.match(r"[A-Za-z]:", text)
    path = PureWindowsPath(text) if windows else PurePosixPath(text)
    parts = path.relative_to(path.anchor).parts
    for start in range(len(parts)):
        file = None if ".." in parts[start:] else inside_root(root, "/".join(parts[start:]))
        if file is not None and file.is_file():
            return file
    return None


def _images(paths: Any, root: Path, location: str, problems: list[Problem]) -> list[Path]:
    found: list[Path] = []
    for text in paths if isinstance(paths, list) else [paths]:
        if isinstance(text, str) and (file := remapped(text, root)) is not None:
            found.append(file)
        else:
            hint = "set image_root to the images' folder"
            problems.append(Problem(location, f"an image below {root}", preview(text), hint))
    return found


def _turns(row: Any, location: str, problems: list[Problem]) -> list[tuple[str, str]] | None:
    """Returns (role, text) of each turn; None, and a problem, if there is no dialogue that ends with the assistant."""
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
        expected = "messages with role and content, the last by the assistant"
        problems.append(Problem(location, expected, preview(content, 120), "fix the row"))
        return None
    return turns


def _parts(text: str) -> list[dict[str, Any]]:
    """Splits a turn at its image placeholders; white space around a placeholder is dropped."""
    if _IMAGE not in text:
        return [{"type": "text", "text": text}] if text else []
    parts: list[dict[str, Any]] = []
    for piece in re.split(f"({_IMAGE})", text):
        if piece == _IMAGE:
            parts.append({"type": "image"})
        elif words := piece.strip():
            parts.append({"type": "text", "text": words})
    return parts


def _merged(problems: Sequence[Problem]) -> list[Problem]:
    """Joins the problems of many missing images into one, because then the root is wrong."""
    images = [problem for problem in problems if problem.expected.startswith("an image below")]
    if len(images) <= 20:
        return list(problems)
    first = images[0]
    joined = Problem(first.location, first.expected, f"{first.found} and {len(images) - 1} more missing", first.hint)
    return [joined, *(problem for problem in problems if problem not in images)]


@dataclass(frozen=True)
class ConversationRow(Transform):
    """Transforms stored conversations into trainer rows."""

    bounds: Bounds
    location: str

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        location = f"{self.location}, {row['id']}"
        images = [decode_image(Path(file).read_bytes(), f"{location}, {file}", self.bounds) for file in row["files"]]
        completion = [assistant(row[TARGET])]
        return {"id": row["id"], "prompt": json.loads(row["messages"]), "images": images, "completion": completion}


def conversation_candidates(recipe: SFTArguments, shape: PromptFormat) -> Candidates:
    """Reads the recipe's conversation file as candidates; raises InputError if the file or an image is invalid."""
    from datasets import Dataset

    from training_recipes.selection import Candidates  # imports transformers, which the exports do not need

    path = str(recipe.conversations)
    found, repaired, doubtful = read_conversations(path, str(recipe.image_root))
    print(f"{path}: {len(found)} conversations", file=sys.stderr)
    if repaired:
        print(f"{path}: a literal \\n was replaced by a line break in {repaired} conversations", file=sys.stderr)
    if doubtful:
        print(f"{path}: {doubtful} keep a \\n before a lower-case letter, which may be LaTeX", file=sys.stderr)
    sizes = [[shape.bounds.size(*_size(file, f"{path}, {row['id']}")) for file in row["files"]] for row in found]
    rows = Dataset.from_list([row | {"messages": json.dumps(row["messages"])} for row in found])
    messages, transform = [row["messages"] for row in found], ConversationRow(shape.bounds, path)
    return Candidates(rows, transform, path, messages, sizes, digest=sha256_file(path))


def _size(file: str, location: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except UNREADABLE as error:
        found = preview(str(error), 120)
        raise InputError(Problem(f"{location}, {file}", "an image", found, "restore the original")) from error
