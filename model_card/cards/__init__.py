"""``scale-vqa card``: cards of datasets, models and the metric, written from result files."""

from __future__ import annotations

from typing import Final

from scale_vqa_eval.cli import LazyGroup

card: Final = LazyGroup(
    name="card",
    help="""Write the card of a dataset, a model or the metric from measured results.

    A missing fact is an error. Text that you wrote by hand is kept: only the text between the markers of this command
    is replaced.
    """,
    table={
        "dataset": ("model_card.cards.dataset", "dataset", "Complete the card of a release folder."),
        "model": ("model_card.cards.model", "model", "Write the card of trained weights."),
        "metric": ("model_card.cards.text", "metric", "Write the card of the metric's Space."),
    },
)
