"""Training recipes: ``sft.py`` and ``grpo.py`` on TRL, one YAML a run, and what turns rows into trainer rows."""
