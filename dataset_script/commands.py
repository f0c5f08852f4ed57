"""``scale-vqa build``: the ways to make a release folder."""

from __future__ import annotations

import click

from scale_vqa_eval.cli import LazyGroup

BUILDS = {
    "release": ("dataset_script.release.command", "release", "From the authors' JSON files and their images."),
    "slides": ("dataset_script.slides.command", "slides", "Grounding questions from slides that OpenSlide opens."),
    "phantom": (
        "dataset_script.phantom.build",
        "phantom",
        "Questions on procedural slides, for tests and teaching.",
    ),
    "single": ("dataset_script.single.command", "single", "Rows from questions with one image, such as PathMMU's."),
}


@click.group(cls=LazyGroup, table=BUILDS)
def build() -> None:
    """Build a release folder: Parquet files and a dataset card, as load_dataset reads them."""
