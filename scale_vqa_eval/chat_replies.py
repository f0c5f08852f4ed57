"""Parses replies of chat servers: JSON or an event stream, text or typed parts, reasoning, refusals and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scale_vqa_eval.errors import preview

FATAL_STATUS: Final = frozenset({401, 402, 403, 404, 405})
"""HTTP statuses that all other calls would get too: wrong key, no credit, no permission, unknown model or path."""
MESSAGE_LIMIT: Final = 300
"""Maximum length of a server's error message, in characters; the rest is cut."""
_FILTERED: Final = re.compile(
    r"content[_ -]?(?:filter|policy|management)|moderation|flagged|safety|responsible ?ai|data_?inspection_?failed"
    r"|(?:inappropriate|sensitive) content|high risk|usage polic|guardrail",
    re.IGNORECASE,
)
"""Matches errors by which a provider refuses a prompt because of its content."""
_REFUSAL_FINISH: Final = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "sensitive"}
)


@dataclass(frozen=True, slots=True)
class CallResult:
    """The result of one call.

    Attributes:
        text: the answer, or None.
        reasoning: reasoning that the server returns separately from the answer, or None.
        finish: the server's finish reason (``stop``, ``length``, ...).
        prompt_tokens: number of prompt tokens reported by the server, or None.
        completion_tokens: number of completion tokens reported by the server, or None.
        cached_tokens: number of prompt tokens from the server's prefix cache, or None.
        served: model name reported by the server, or None.
        failure: why there is no answer, or None.
        fatal: whether every other call would fail in the same way.
        refused: whether the model or its provider declined this prompt; other prompts may be answered.
        tool_calls: tool calls that the model requests, in the API's format. If there is no text beside them,
            ``failure`` is set as well, for runs without tools.
    """

    text: str | None = None
    reasoning: str | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    served: str | None = None
    failure: str | None = None
    fatal: bool = False
    refused: bool = False
    tool_calls: tuple[Mapping[str, Any], ...] = ()


def read_reply(content: bytes, status: int) -> CallResult:
    """Parses the body of a reply with its HTTP status; failures are results too."""
    document = _document(content)
    error = document.get("error") if isinstance(document, Mapping) else None
    if status >= 400 or error:
        return _error_result(error if error else document, status, content)
    choices = document.get("choices") if isinstance(document, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else None
    if choice is None:
        shown = preview(content[:200].decode("utf-8", "replace"), 120)
        return CallResult(failure=f"malformed reply: no choice with a message in {shown}")
    if isinstance(choice.get("error"), Mapping):
        return _error_result(choice["error"], status, content)
    finish = choice.get("finish_reason")
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, thoughts, refusal, unknown = _message_parts(message.get("content"))
    refusal = message.get("refusal") or refusal
    if refusal or str(finish).lower() in _REFUSAL_FINISH:
        reason = str(refusal) if refusal else f"finish reason {finish}"
        return CallResult(failure=f"refusal: {reason}", refused=True)
    named = (message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    reasoning = next((value for value in named if isinstance(value, str) and value), thoughts) or None
    if str(finish).lower() == "error":
        return CallResult(failure="malformed reply: the generation ended in an error")
    if unknown:
        return CallResult(failure=f"malformed reply: the content is not text but {unknown}")
    calls, failure = _tool_calls(message.get("tool_calls")), None
    if text is None and reasoning is None and finish != "length":
        held = "a tool call" if calls else f"no content (finish reason {finish})"
        failure = f"malformed reply: {held} instead of a text"
    usage = document.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    served = document.get("model")
    return CallResult(
        text=None if failure else text or "",
        reasoning=reasoning,
        finish=finish if isinstance(finish, str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, Mapping) else None,
        served=served if isinstance(served, str) else None,
        failure=failure,
        tool_calls=calls,
    )


def _tool_calls(raw: Any) -> tuple[Mapping[str, Any], ...]:
    """Returns the tool calls of a message; the pieces of a streamed call share an index and are joined."""
    calls: dict[Any, dict[str, Any]] = {}
    for number, piece in enumerate(raw if isinstance(raw, list) else []):
        if not isinstance(piece, Mapping):
            continue
        index, function = piece.get("index"), piece.get("function")
        function = function if isinstance(function, Mapping) else {}
        key = index if isinstance(index, int | str) else f"call {number}"
        call = calls.setdefault(key, {"id": "", "name": "", "arguments": ""})
        call["id"] = call["id"] or str(piece.get("id") or f"call_{number}")
        call["name"] += str(function.get("name") or "")
        arguments = function.get("arguments")
        call["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return tuple(
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls.values()
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _error_result(error: Any, status: int, content: bytes) -> CallResult:
    """Returns the failure described by an error reply, which may come with status 200."""
    code = error.get("code") if isinstance(error, Mapping) else None
    if status < 400:
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
    message = error.get("message") if isinstance(error, Mapping) else error
    if not message:
        message = content[:MESSAGE_LIMIT].decode("utf-8", "replace")
    elif not isinstance(message, str):
        message = json.dumps(message)
    noted = f" ({code})" if isinstance(code, str) and code not in message else ""
    refused = status == 451 or (status in (400, 403, 422) and bool(_FILTERED.search(f"{message} {code}")))
    fatal = (status in FATAL_STATUS and not refused) or code == "insufficient_quota"
    return CallResult(failure=f"status {status}: {message}{noted}", fatal=fatal, refused=refused)


def _message_parts(content: Any) -> tuple[str | None, str, str, str]:
    """Returns text (or None), reasoning, refusal, and a description of the first part of an unknown type."""
    if content is None or isinstance(content, str):
        return content, "", "", ""
    parts = content if isinstance(content, list) else [content]
    found: dict[str, list[str]] = {"text": [], "thoughts": [], "refusal": []}
    for part in parts:
        kind = str(part.get("type", "text")) if isinstance(part, Mapping) else "text"
        text = _texts(part)
        if "thinking" in kind or "reasoning" in kind:  # redacted reasoning has no text
            found["thoughts"].append(text or "")
        elif kind in ("text", "output_text", "refusal") and text is not None:
            found["refusal" if kind == "refusal" else "text"].append(text)
        else:
            return None, "", "", f"a part {preview(part)}"
    text = "".join(found["text"]) if found["text"] else None
    return text, "".join(found["thoughts"]), "".join(found["refusal"]), ""


def _texts(value: Any) -> str | None:
    """Returns the text of a part at any depth, or None."""
    if isinstance(value, list):
        return "".join(_texts(one) or "" for one in value)
    if isinstance(value, Mapping):
        names = ("text", "thinking", "reasoning", "summary", "refusal")
        return next((text for name in names if (text := _texts(value.get(name))) is not None), None)
    return value if isinstance(value, str) else None


def _document(content: bytes) -> Any:
    """Returns the JSON of a reply, the chunks of an event stream joined, or None if it is not JSON."""
    text = content.decode("utf-8", "replace").strip("\ufeff \t\r\n")
    try:
        return _joined_stream(text) if text.startswith(("data:", "event:", ":")) else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _joined_stream(text: str) -> Any:
    """Joins the chunks of an event stream into one reply; returns None if the stream is incomplete or malformed."""
    message: dict[str, Any] = {}
    reply: dict[str, Any] = {}
    finish, ended = None, False
    for line in text.split("\n"):  # splitlines would also split at characters that JSON strings may contain
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or not data:
            continue
        if data == "[DONE]":
            ended = True
            break
        chunk = json.loads(data)
        if not isinstance(chunk, Mapping) or chunk.get("error"):
            return chunk
        reply |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {} if isinstance(choice, Mapping) else None
            if not isinstance(delta, Mapping):
                return None
            if choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            for name, value in delta.items():
                if isinstance(value, str | list) and value and name != "role":
                    if not isinstance(value, type(message.get(name, value))):
                        return None
                    message[name] = message[name] + value if name in message else value
    if not (ended or finish):
        return None
    return reply | {"choices": [{"message": message, "finish_reason": finish}]}
