"""Scale-VQA: the language of the benchmark, its metric, its leakage audit and its controls.

Importing this package is cheap (no torch, no datasets). It makes the bare names resolve in this process:
``datasets.load_dataset("scale-vqa")`` and ``evaluate.load("scale_vqa_acc")`` (see ``bare_names``).
"""

from scale_vqa_eval.release_folder import aliases as _bare_names

__version__ = "0.1.0"

_bare_names.install()
