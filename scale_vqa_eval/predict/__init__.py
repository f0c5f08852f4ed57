"""Runs vision-language models on the questions of a release, with and without images, and stores every answer."""

from typing import Final

DEFAULT_PROMPT: Final = "think-answer"
PROMPT_HELP: Final = "Prompt id, a YAML file of your own, or card:MODEL for the prompt in a model's card."
WITHOUT_IMAGES: Final = ("blind", "guess")
DROPPED_VIEW: Final = {"no-low": "low_mag", "no-mid": "mid_mag", "no-high": "high_mag"}
ABLATIONS: Final = (*WITHOUT_IMAGES, "blank", *DROPPED_VIEW, "shuffled", "circular")
ZOOM_CONTROLS: Final = ("blind", "wrong-slide", "overview-only", "random-walk", "oracle-path")
"""Controls of ``predict --zoom``. Blind: the same texts without any image. Wrong slide: another patient's slide.
Overview only: no looks. Random walk and oracle path: the looks are made for the model, at random places or at the
evidence."""
