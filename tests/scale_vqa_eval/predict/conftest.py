"""Fixtures of the tests of local backends: a small release and a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
from predict_release import make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa", paths=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_qwen import make_tiny_qwen

    return make_tiny_qwen(tmp_path_factory.mktemp("model") / "tiny")
