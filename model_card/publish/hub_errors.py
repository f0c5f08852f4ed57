"""What can go wrong between here and the Hub, said in one line: what happened, and what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click

from scale_vqa_eval.errors import preview

T = TypeVar("T")
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_WAITS: Final = (1.0, 2.0, 4.0)
_LONGEST_WAIT: Final = 60.0
_CLIENTS: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class HubError(click.ClickException):
    """The Hub refused, failed or cannot be reached; exit 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status that an error, or what it was raised from, came with."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None and getattr(response, "status_code", None) is not None:
            return int(response.status_code)
        seen = seen.__cause__ or seen.__context__
    return None


def is_network(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is a connection that failed or ended early."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError):
            return type(seen).__name__ != "OfflineModeIsEnabled"
        if type(seen).__module__.split(".")[0] in _CLIENTS and type(seen).__name__ != "HTTPStatusError":
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    status = status_of(error)
    return status in TRANSIENT if status is not None else is_network(error)


def wait_after(error: BaseException, attempt: int) -> float:
    """Returns for how many seconds to wait: as the Hub says, at most a minute; else 1, 2, 4."""
    seen: BaseException | None = error
    while seen is not None:
        headers = getattr(getattr(seen, "response", None), "headers", None) or {}
        if str(headers.get("Retry-After", "")).isdigit():
            return min(float(headers["Retry-After"]), _LONGEST_WAIT)
        seen = seen.__cause__ or seen.__context__
    return _WAITS[min(attempt, len(_WAITS) - 1)]


def patiently(call: Callable[[], T]) -> T:
    """Runs a call that can be repeated without harm, up to four times while it fails for a passing reason.

    No connection at all is said at once: whoever is offline knows the fix.
    """
    for attempt in range(len(_WAITS)):
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or type(error).__name__ in ("ConnectError", "OfflineModeIsEnabled"):
                raise
            seconds = wait_after(error, attempt)
            click.echo(f"the Hub did not answer ({reason(error)}); trying again in {seconds:.0f} s", err=True)
            time.sleep(seconds)
    return call()


def reason(error: BaseException) -> str:
    """Returns status or kind of an error, short."""
    status = status_of(error)
    return f"status {status}" if status is not None else type(error).__name__


@contextlib.contextmanager
def told(doing: str, repo: str) -> Iterator[None]:
    """Turns what the Hub's client raises into one line that says what to do; other errors pass.

    Raises:
        HubError: for every answer of the Hub that is an error, and for a connection that fails.
    """
    try:
        yield
    except (HubError, click.UsageError):
        raise
    except Exception as error:
        message = _message(error, repo)
        if message is None:
            raise
        raise HubError(f"{doing}: {message}") from None


def _message(error: Exception, repo: str) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    again = "nothing is half done that the same command, run again, would not finish"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE and run it again"
    status = status_of(error)
    if status == 401:
        return f"the token was refused (401), or {repo} is not for it; log in again: hf auth login"
    if status == 403:
        return f"the token may not write to {repo} (403); use one with write access to that namespace: hf auth login"
    if status == 404:
        return f"{repo} is not there (404), or the token may not see it"
    if status == 429:
        return f"too many requests (429); wait some minutes and run the same command again: {again}"
    if status is not None and status >= 500:
        return f"the Hub failed (status {status}); {again}"
    if status is not None:
        said = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
        return f"the Hub refused (status {status}): {preview(said, 200)}"
    if is_network(error):
        return f"cannot reach {constants.ENDPOINT} ({type(error).__name__}); check the network; {again}"
    return str(error) if isinstance(error, HfHubHTTPError) else None
