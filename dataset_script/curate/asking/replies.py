"""What a model replied: a JSON object, or by name what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from scale_vqa_eval.llm import ChatReply

OUTCOMES: Final[Mapping[str, str]] = {
    "timeout": "no answer in time, at every try",
    "rate-limited": "refused for its rate (status 429), at every try",
    "server-error": "the server failed (status 5xx), at every try",
    "request-refused": "the server refused the request (status 4xx)",
    "connection": "no connection, at every try",
    "malformed-reply": "what the server sent is no completion",
    "refusal": "the model declined to answer",
    "empty": "an empty reply",
    "truncated": "the reply was cut off at its token limit",
    "malformed-json": "no JSON object in the reply",
    "schema": "JSON, but not what was asked for",
    "no-feature": "no feature of the reply stands in the captions",
    "identical-options": "two or more of the four options would be the same",
    "answer-no-option": "the right answer is none of the path's features or options",
    "wrong-scales": "features of scales that this question type does not join",
    "wrong-pair": "other features than the two that the exchange set of the question joins",
    "stem-names-answer": "the question itself names what only the right option says",
    "feature-list": "the text speaks of a feature list, a caption or a report instead of the image",
    "injection-suspected": "a caption holds what reads as an instruction to a model; its path is left out whole",
}
"""Outcome -> what it means. Nothing that goes wrong with a reply has a name outside of this table."""

_REFUSAL: Final = re.compile(
    r"^\W*(?:(?:i(?:'|\u2019)?m|i am|we are)\s+(?:very\s+|so\s+)?(?:sorry|unable|not able|afraid)"
    r"|sorry\b|i\s+(?:can(?:'|\u2019)?t|can ?not|won(?:'|\u2019)?t|must decline|will not)\b|as an ai\b"
    r"|unfortunately,? i\b)",
    re.IGNORECASE,
)
_FENCE: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_THOUGHT: Final = re.compile(r"<think>.*?</think>", re.DOTALL)


class BadReply(ValueError):
    """A reply that cannot be used: ``outcome`` is a key of ``OUTCOMES``, the message says what was found."""

    def __init__(self, outcome: str, detail: str) -> None:
        assert outcome in OUTCOMES, outcome
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


def failed_call(failure: str) -> str:
    """Returns the outcome of a call that got no answer.

    >>> failed_call("status 429: slow down"), failed_call("timeout: no answer in time, at every try")
    ('rate-limited', 'timeout')
    """
    if failure.startswith("status"):
        status = failure.split()[1].rstrip(":")
        return "rate-limited" if status == "429" else "server-error" if status >= "500" else "request-refused"
    if failure.startswith("malformed"):
        return "malformed-reply"
    if failure.startswith("refusal"):
        return "refusal"
    return "timeout" if failure.startswith("timeout") else "connection"


def json_object(reply: ChatReply) -> dict[str, Any]:
    """Returns the JSON object of a reply; a code fence, a thought before it and text around it are put up with.

    Raises:
        BadReply: where the call failed, or the reply is a refusal, empty, cut off, or holds no JSON object.
    """
    if reply.failure is not None:
        raise BadReply(failed_call(reply.failure), reply.failure)
    if reply.finish == "content_filter":
        raise BadReply("refusal", "stopped by the endpoint's content filter")
    text = _THOUGHT.sub("", reply.text or "").strip()
    if not text:
        raise BadReply("truncated" if reply.finish == "length" else "empty", "no text")
    found = _first_object(text)
    if found is not None:
        return found
    if _REFUSAL.match(text):
        raise BadReply("refusal", " ".join(text.split())[:160])
    raise BadReply("truncated" if reply.finish == "length" else "malformed-json", " ".join(text.split())[:160])


def _first_object(text: str) -> dict[str, Any] | None:
    fenced = [match.group(1).strip() for match in _FENCE.finditer(text)]
    start = text.find("{")
    for candidate in (*fenced, text, text[start:] if start >= 0 else ""):
        try:
            value, _ = json.JSONDecoder().raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def text_of(value: Mapping[str, Any], name: str, limit: int, needed: bool = True) -> str:
    """Returns a text field of a reply on one line.

    Raises:
        BadReply: ``schema``, where it is no text, is absent though needed, or is longer than ``limit`` characters.
    """
    found = value.get(name)
    if found is None and not needed:
        return ""
    if not isinstance(found, str) or (needed and not found.strip()):
        raise BadReply("schema", f"{name} is {type(found).__name__}, not a text")
    line = " ".join(found.split())
    if len(line) > limit:
        raise BadReply("schema", f"{name} has {len(line)} characters, more than {limit}")
    return line
