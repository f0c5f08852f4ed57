"""Runs a recipe's main function: an input that is wrong ends as one line a fault, exit 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from scale_vqa_eval.errors import InputError


def reported(main: Callable[[], object]) -> None:
    """Calls ``main``; prints the faults of an ``InputError``, once for all processes, and exits 1."""
    try:
        main()
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            for fault in error.faults:
                print(f"error: {fault}", file=sys.stderr)
        sys.exit(1)
