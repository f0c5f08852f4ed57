"""Runs vision-language models on the questions of a release, with and without images, and stores every answer."""

from pathlib import Path
from typing import Final

import click

IMAGES_OPTION: Final = click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the image paths of a JSON file are relative to.  [default: the file's folder]",
)
DEFAULT_PROMPT: Final = "think-answer"
PROMPT_HELP: Final = "Prompt id, a YAML file of your own, or card:MODEL for the prompt in a model's card."
WITHOUT_IMAGES: Final = ("blind", "guess")
DROPPED_VIEW: Final = {"no-low": "low_mag", "no-mid": "mid_mag", "no-high": "high_mag"}
ABLATIONS: Final = (*WITHOUT_IMAGES, "blank", *DROPPED_VIEW, "shuffled", "circular")
ZOOM_CONTROLS: Final = ("blind", "wrong-slide", "overview-only", "random-walk", "oracle-path")
"""Controls of ``predict --zoom``. Blind: the same texts without any image. Wrong slide: another patient's slide.
Overview only: no looks. Random walk and oracle path: the looks are made for the model, at random places or at the
evidence."""
