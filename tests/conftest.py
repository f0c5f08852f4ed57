"""Fixtures that several tests share: where the real data lies, and a fresh process with a fresh HF_HOME."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real slides and questions; the test is skipped where there is none."""
    folder = Path(os.environ.get("SCALE_VQA_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data is absent: {folder} (set SCALE_VQA_SHARED)")
    return folder


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a new process, offline, with an HF_HOME and a working directory of its own."""

    def run(code: str, cwd: Path | None = None, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "hf_home"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCALE_VQA_"))}
        clean |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **env}
        clean.pop("PYTHONPATH", None)
        location = cwd or tmp_path / "elsewhere"
        location.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", code], cwd=location, env=clean, capture_output=True, text=True, timeout=timeout
        )

    return run
