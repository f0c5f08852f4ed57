"""Runs ``scale-vqa`` in this process: exit code, stdout and stderr as a user gets them, without a start of Python."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from scale_vqa_eval.cli import main


def run_in_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Returns what ``scale-vqa ARGUMENTS`` gives in the folder ``cwd``."""
    command = ["scale-vqa", *map(str, arguments)]
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", command),
    ):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())
