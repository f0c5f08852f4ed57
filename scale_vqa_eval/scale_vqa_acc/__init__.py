"""The metric as a folder that can be copied to a Space as it is.

Its modules import the standard library and numpy alone, except ``scale_vqa_acc`` itself, which ``evaluate`` loads; the
rest of the library imports the leaves, so that no rule and no formula is written twice.
"""

from pathlib import Path

METRIC_SCRIPT = Path(__file__).with_name("scale_vqa_acc.py")
"""The file that ``evaluate.load`` reads."""


def metric_leaves() -> list[tuple[str, str]]:
    """Returns (module name, path) of each module that the script imports, as ``evaluate``'s module cache wants."""
    names = sorted(
        path for path in METRIC_SCRIPT.parent.glob("*.py") if path.stem not in {"__init__", "app", "app_files"}
    )
    return [(path.stem, str(path)) for path in names if path != METRIC_SCRIPT]
