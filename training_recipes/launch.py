"""Runs a recipe's main function: an input that is wrong ends as one line a fault, exit 1."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

from scale_vqa_eval.errors import InputError

OTHERS_WAIT: Final = 5.0
"""Seconds that a process other than the first gives the first to say the same."""


def reported(main: Callable[[], object]) -> None:
    """Calls ``main``; prints the faults of an ``InputError`` and exits 1.

    Of several processes the first speaks, and its launcher ends the others. What another finds alone, such as an image
    of its own share that cannot be decoded, that one says.
    """
    try:
        main()
    except InputError as error:
        rank, who = os.environ.get("RANK", "0"), ""
        if rank != "0":
            time.sleep(OTHERS_WAIT)
            who = f"process {rank}: "
        for problem in error.problems:
            print(f"error: {who}{problem}", file=sys.stderr, flush=True)
        sys.exit(1)
