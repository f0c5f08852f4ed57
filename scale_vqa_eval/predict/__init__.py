"""Asks a vision-language model the questions of a release, with its blind control, and keeps every answer."""

from typing import Final

DEFAULT_PROMPT: Final = "think-answer"
PROMPT_HELP: Final = "Prompt id, a YAML file of your own, or card:MODEL for the words of a model's card."
WITHOUT_IMAGES: Final = ("blind", "guess")
DROPPED_VIEW: Final = {"no-low": "low_mag", "no-mid": "mid_mag", "no-high": "high_mag"}
ABLATIONS: Final = (*WITHOUT_IMAGES, "blank", *DROPPED_VIEW, "shuffled", "circular")
ZOOM_CONTROLS: Final = ("blind", "wrong-slide", "overview-only", "random-walk", "oracle-path")
"""Controls of a model that chooses where to look (``predict --zoom``). Blind: no image at all, the same texts. Wrong
slide: another patient's slide. Overview only: no look is left. Random walk and oracle path: the looks are made before
the model is asked, at random places or at the evidence."""
