"""Proves that what was published is what lies here and loads by its id: in a fresh process, with empty caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Final

import click

from scale_vqa_eval.schema import METRIC_FOLDER

from .hub_errors import HubError
from .plan import Plan
from .send import Sent

WHOLE_LIMIT: Final = 2 * 10**9
"""Bytes of a data set up to which it is also prepared as ``load_dataset`` does; above, it is streamed."""


class NotVerified(HubError):
    """Published, but not shown to be what lies here; ``wrong`` names files that came back as others."""

    def __init__(self, message: str, wrong: tuple[str, ...]) -> None:
        super().__init__(message)
        self.wrong = wrong


@dataclass(frozen=True)
class Verified:
    """What the fresh process did: files and bytes whose hashes agree, what it loaded, what it scored."""

    report: dict[str, Any]

    def line(self) -> str:
        scored = self.report["scored"]
        figures = ", ".join(f"{name} {value}" for name, value in scored.items())
        return (
            f"verified: {self.report['files']} files ({self.report['bytes']:,} bytes) downloaded into an empty cache, "
            f"every SHA-256 as here; {self.report['loaded']}; scored: {figures}"
        )


def verify(plan: Plan, sent: Sent, token: str) -> Verified:
    """Downloads, compares, loads by id and scores one batch, in a process of its own.

    Raises:
        NotVerified: where any of it fails.
    """
    with tempfile.TemporaryDirectory(prefix="scale-vqa-verify-") as home:
        request = json.dumps(_request(plan, sent))
        # -P: the working directory, where a folder may have the name of a package, is not searched
        command = [sys.executable, "-P", "-m", "model_card.publish.fresh_check"]
        process = subprocess.Popen(
            command,
            cwd=home,
            env=_environment(home, token),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        said: list[str] = []
        relay = threading.Thread(target=_relay, args=(process.stderr, said), daemon=True)
        relay.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(request)
            process.stdin.close()
            output = process.stdout.read()
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        relay.join()
    answer = _answer(output)
    if status == 0 and answer is not None and "error" not in answer:
        return Verified(answer)
    found = answer["error"] if answer and "error" in answer else "".join(said[-3:]).strip() or f"exit status {status}"
    raise NotVerified(
        f"published to {plan.wish.repo}, but NOT verified: {found}\n"
        "run the same command again: it sends anew what is missing or wrong, and verifies again",
        tuple(answer.get("wrong", ())) if answer else (),
    )


def _request(plan: Plan, sent: Sent) -> dict[str, Any]:
    size = sum(file.size for file in plan.files)
    return {
        "kind": plan.wish.kind.name,
        "repo": plan.wish.repo,
        "repo_type": plan.wish.kind.repo_type,
        "commit": sent.commit,
        "revision": sent.pull_request or sent.commit,
        "pull_request": sent.pull_request is not None,
        "files": {file.path: [file.size, file.sha256] for file in plan.files},
        "folder": str(plan.wish.folder.resolve()),
        "metric": str(METRIC_FOLDER),
        "whole": size <= WHOLE_LIMIT,
    }


def _environment(home: str, token: str) -> dict[str, str]:
    """The environment less every cache, offline switch and name of this project; the token goes by it alone."""
    dropped = ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("SCALE_VQA_") and not ("CACHE" in name and "HF" in name)
    }
    cached = {"TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE", "PYTHONPATH"}
    kept = {name: value for name, value in kept.items() if name not in cached}
    return {**kept, "HF_HOME": home, "HF_TOKEN": token, "PYTHONDONTWRITEBYTECODE": "1"}


def _relay(stream: Any, said: list[str]) -> None:
    """Passes the other process's stderr on through ours, which masks the token."""
    for line in stream:
        said.append(line)
        click.echo(line, nl=False, err=True)


def _answer(output: str) -> dict[str, Any] | None:
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                return None
    return None
