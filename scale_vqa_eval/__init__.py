"""Scale-VQA: the benchmark's vocabulary, its metric, its leakage audit and its controls.

Importing this package is cheap: no torch, no datasets, no numpy.
"""

__version__ = "0.1.0"
