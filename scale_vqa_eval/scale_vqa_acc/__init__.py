"""The metric as a folder that can be copied to a Space as it is.

Its modules import the standard library, numpy and SciPy alone, except ``scale_vqa_acc``, which ``evaluate`` loads, and
``app``, the Space's page. The rest of the package imports these modules, so no rule or formula exists twice.
"""

from pathlib import Path

METRIC_SCRIPT = Path(__file__).with_name("scale_vqa_acc.py")
"""The file that ``evaluate.load`` reads."""


def metric_leaves() -> list[tuple[str, str]]:
    """Returns (module name, path) of each module that the script imports, for ``evaluate``'s module cache."""
    others = {"__init__", "app", METRIC_SCRIPT.stem}
    return [(path.stem, str(path)) for path in sorted(METRIC_SCRIPT.parent.glob("*.py")) if path.stem not in others]
