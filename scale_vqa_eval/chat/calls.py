"""One chat completion over HTTP: the client, its pace, and what went wrong in words that hold no key."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
)
from openai.types.chat import ChatCompletion

from scale_vqa_eval.errors import InputError, Problem, preview

FATAL_STATUS: Final = frozenset({401, 403, 404})
"""Statuses that every further call would meet too: wrong key, no right, no such model or path."""

_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|Bearer)[-_ ][A-Za-z0-9*_\-.]{8,}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call.

    Attributes:
        text: the answer; None where there was none.
        finish: the server's finish reason (``stop``, ``length``, ``content_filter``, ...).
        prompt_tokens: as the server counted them, None where it did not.
        completion_tokens: likewise.
        cached_tokens: those of the prompt that the server took from its prefix cache, None where it does not say.
        served: name of the model as the server gives it.
        failure: why there is no answer; None where there is one.
        fatal: every other call would fail the same way.
    """

    text: str | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    served: str | None = None
    failure: str | None = None
    fatal: bool = False


class Pacer:
    """Spaces HTTP requests, retries included, to at most ``per_minute``; counts them in ``sent``."""

    def __init__(self, per_minute: float | None) -> None:
        self.sent = 0
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def __call__(self, request: object) -> None:
        self.sent += 1
        now = asyncio.get_running_loop().time()
        slot = max(now, self._next)
        self._next = slot + self._gap
        if slot > now:
            await asyncio.sleep(slot - now)


def endpoint_name(url: str) -> str:
    """Returns an endpoint without user, password and trailing slash: its name in files and messages.

    >>> endpoint_name("http://me:secret@localhost:8000/v1/")
    'http://localhost:8000/v1'

    Raises:
        InputError: where it is no http(s) address, or carries a query (which may hold a key, and is not sent on).
    """
    parts = urlsplit(url)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    expected = "the base address of an OpenAI-compatible API, such as http://localhost:8000/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(Problem("chat endpoint", expected, preview(bare), "give scheme, host and path"))
    if parts.query or parts.fragment:
        raise InputError(Problem("chat endpoint", expected, f"{bare} with a query", "leave out what follows the path"))
    return bare


def open_client(url: str, key_variable: str, timeout: float, retries: int, pacer: Pacer) -> AsyncOpenAI:
    """Returns a client whose retries back off, honour Retry-After and keep to the pace.

    Args:
        url: base address of the API.
        key_variable: environment variable that holds the API key; where it is unset a dummy is sent, as local servers
            want none.
        timeout: seconds until an unanswered request is given up.
        retries: how often a request is sent again after 408, 409, 429, 5xx, a timeout or a lost connection.
        pacer: paces every HTTP request.
    """
    return AsyncOpenAI(
        base_url=url,
        api_key=os.environ.get(key_variable) or "none",
        timeout=timeout,
        max_retries=retries,
        http_client=DefaultAsyncHttpxClient(event_hooks={"request": [pacer]}, timeout=timeout),
    )


async def ask(
    client: AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], key: str
) -> Outcome:
    """Asks once (the client retries what can be retried) and returns what became of it; raises nothing of the API's.

    Args:
        client: from ``open_client``.
        model: name of the model.
        messages: chat messages.
        sampling: further fields of the request (temperature, max_tokens, seed, ...).
        key: sent as ``Idempotency-Key``, so that a server that knows the header bills a retried request once.
    """
    try:
        reply = await client.post(
            "/chat/completions",
            body={"model": model, "messages": [dict(message) for message in messages], **sampling},
            options={"headers": {"Idempotency-Key": key}},
            cast_to=ChatCompletion,
        )
        return _read(reply)
    except APIStatusError as error:
        return Outcome(
            failure=_masked(f"status {error.status_code}: {error.message}", client.api_key),
            fatal=error.status_code in FATAL_STATUS,
        )
    except APITimeoutError:
        return Outcome(failure="timeout: no answer in time, at every try")
    except APIConnectionError as error:
        return Outcome(failure=_masked(f"connection: {error.__cause__ or error}", client.api_key))
    except (APIError, ValueError, TypeError) as error:
        return Outcome(failure=_masked(f"malformed reply: {error}", client.api_key))


def _read(reply: object) -> Outcome:
    """Reads a reply that the client has not validated: servers differ in what they leave out."""
    choices = getattr(reply, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        return Outcome(failure=f"malformed reply: no choice with a message in {preview(reply, 120)}")
    content = getattr(message, "content", None)
    if not isinstance(content, str | None):
        return Outcome(failure=f"malformed reply: the content is no text but {preview(content)}")
    usage = getattr(reply, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    counts.append(getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None))
    prompt, completion, cached = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    served = getattr(reply, "model", None)
    finish = getattr(choices[0], "finish_reason", None) if isinstance(choices, list) else None
    return Outcome(
        text=content or "",
        finish=finish if isinstance(finish, str) else None,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        served=served if isinstance(served, str) else None,
    )


def _masked(message: str, key: str) -> str:
    """Returns one line of a server's message with anything that is or looks like a key taken out."""
    line = " ".join(message.split())
    if key and key != "none":
        line = line.replace(key, "[key]")
    return _KEY_LIKE.sub("[key]", line)[:300]
