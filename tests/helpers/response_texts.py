"""Hypothesis strategies for model responses: tags well and badly formed, white space and characters of every kind."""

from __future__ import annotations

from hypothesis import strategies as st

SPACES = [" ", "\n", "\t", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", " ", " ", " " * 8, " " * 9]
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<think></think>",
    "<think>Glands at 40x.\n</think>",
    "<answer>A</answer>",
    "<answer> b\n</answer>",
    "<answer>Z</answer>",
    "<answer>A.</answer>",
    "<answer>\xa0C\xa0</answer>",
    "<Answer>A</Answer>",
    "</answer",
    "<",
    ">",
    "A",
    "é",
    "\x7f",
    "\0",
    "�",
    "😀",
    "\ud800",
    "\u017f",
    "Å",
    *SPACES,
]
responses = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)
anything = (
    responses | st.none() | st.integers() | st.floats() | st.binary(max_size=4) | st.lists(st.text(), max_size=2)
)
