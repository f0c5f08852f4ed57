"""Runs ``scale-vqa publish`` against the test double of the Hub: in this process, or in one of its own.

The fixtures ``release`` and ``publisher`` belong to a module that takes both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command_line import run_in_process
from hub_repositories import Repository
from hub_server import TOKEN, HubServer, hub_server
from loading_data import write_folder

from scale_vqa_eval import __version__

REPO = "org/scale-vqa"
TAG = f"v{__version__}"  # that a publication has without --tag


@dataclass
class Publisher:
    """A user with a home and a working directory of their own.

    Attributes:
        server: the Hub.
        home: ``HF_HOME``.
        folder: the release folder, in the working directory.
        said: everything that any run wrote.
    """

    server: HubServer
    home: Path
    folder: Path
    said: str = ""

    def command(self, *arguments: str, kind: str = "dataset", repo: str = REPO, **env: str) -> dict[str, Any]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SCALE_VQA_"))}
        place = [] if kind == "metric" else [str(self.folder)]
        return {
            "args": [sys.executable, "-m", "scale_vqa_eval.cli", "publish", kind, *place, "--repo", repo, *arguments],
            "env": {**clean, **self.server.environment(), "HF_HOME": str(self.home), **env},
            "cwd": self.folder.parent,
            "text": True,
        }

    def run_alone(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end in a process of its own, as a user does; options in capitals are environment."""
        done = subprocess.run(**self.command(*arguments, **options), capture_output=True, timeout=300)
        self.said += done.stdout + done.stderr
        return done

    def run(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Runs the command in this process: a second of imports less; the check of what came back has its own."""
        from huggingface_hub import constants

        given = self.command(*arguments, **options)
        template = self.server.url + "/{repo_id}/resolve/{revision}/{filename}"
        hub = {"ENDPOINT": self.server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        hub |= {"HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": given["env"]["HF_HUB_DISABLE_XET"] == "1"}
        with (
            mock.patch.dict(os.environ, given["env"], clear=True),
            mock.patch.multiple(constants, **{"HF_HUB_OFFLINE": False, **hub}),
        ):
            done = run_in_process(*given["args"][3:], cwd=given["cwd"])
        self.said += done.stdout + done.stderr
        return done

    def plan(self, *arguments: str, **options: str) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        done = self.run("--json", *arguments, **options)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def kill_when_hanging(self, *arguments: str, **options: str) -> None:
        """Starts the command and kills it, without a word, when the Hub hangs as a fault of the server says."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        with subprocess.Popen(**self.command(*arguments, **options), **pipes) as process:
            assert self.server.hanging.wait(300), process.stderr and process.stderr.read()
            os.killpg(process.pid, signal.SIGKILL)
        self.server.hanging.clear()
        time.sleep(0.05)

    def repository(self, kind: str = "datasets", repo: str = REPO) -> Repository:
        return self.server.repository(kind, repo)

    def is_published(self, kind: str = "datasets", repo: str = REPO, tag: str = TAG) -> bool:
        """Whether the tag stands for every file of the folder, byte for byte."""
        repository = self.repository(kind, repo)
        if tag not in repository.tags:
            return False
        files = repository.commits[repository.tags[tag]]
        here = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return all(
            name in files and self.server.hub.bytes_of(files[name]) == path.read_bytes() for name, path in here.items()
        )


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder as the builders write it, with the card that they write; not to be changed."""
    folder = tmp_path_factory.mktemp("release") / "scale-vqa"
    write_folder(folder, 1, {"default": {"test": 12}, "text": {"test": 12}})
    return folder


@pytest.fixture
def publisher(release: Path, tmp_path: Path) -> Iterator[Publisher]:
    """A publisher with a release folder and a Hub of their own."""
    folder = tmp_path / "work" / "scale-vqa"
    shutil.copytree(release, folder)
    with hub_server(tmp_path / "hub") as server:
        yield Publisher(server, tmp_path / "home", folder)


__all__ = ["REPO", "TAG", "TOKEN", "Publisher"]
