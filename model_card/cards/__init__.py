"""``scale-vqa card``: cards of data, models and the metric, made from files and never from typed-in numbers."""

from __future__ import annotations

from typing import Final

from scale_vqa_eval.cli import LazyGroup

card: Final = LazyGroup(
    name="card",
    help="""Write the card of a dataset, a model or the metric from the files that measured it.

    A missing fact is an error that names it, never a blank. Sections that you wrote by hand stay: only the text
    between the marks of this command is replaced.
    """,
    table={
        "dataset": ("model_card.cards.dataset", "dataset", "Complete the card of a release folder."),
        "model": ("model_card.cards.model", "model", "Write the card of trained weights."),
        "metric": ("model_card.cards.text", "metric", "Write the card of the metric's Space."),
    },
)
