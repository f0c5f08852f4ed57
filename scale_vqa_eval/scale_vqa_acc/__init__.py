"""The metric, in a self-contained folder that can be copied to a Space.

Its modules import only the standard library, numpy and SciPy, except ``scale_vqa_acc``, which ``evaluate`` loads, and
``app``, the Space's page. The rest of the package uses these modules for parsing and statistics.
"""
