"""``python -m scale_vqa_eval`` is the command ``scale-vqa``."""

from scale_vqa_eval.cli import main

main()
