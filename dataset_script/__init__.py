"""Builders of Scale-VQA data; ``ScaleVQA`` reads a release folder as a ``datasets`` builder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataset_script.builder import ScaleVQA

__all__ = ["ScaleVQA"]


def __getattr__(name: str) -> Any:
    """Imports the builder, and ``datasets`` with it, on first use."""
    if name == "ScaleVQA":
        from dataset_script.builder import ScaleVQA

        return ScaleVQA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
