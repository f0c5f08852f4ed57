"""Asks a vision-language model the questions of a release, with its blind control, and keeps every answer."""

from typing import Final

DEFAULT_PROMPT: Final = "think-answer"
PROMPT_HELP: Final = "Prompt id, a YAML file of your own, or card:MODEL for the words of a model's card."
