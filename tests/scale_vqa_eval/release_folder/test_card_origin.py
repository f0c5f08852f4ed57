"""The card of a folder claims the paper's data, and experts, only for rows that come from the paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from predict_release import rows

from model_card.cards.dataset import croissant_metadata
from model_card.cards.text import Licence
from scale_vqa_eval.release_folder.card import head
from scale_vqa_eval.release_folder.write import write_release


@pytest.mark.parametrize(
    ("sources", "title", "annotators", "of_paper"),
    [
        (("Scale-VQA release (arXiv:2606.17412)",), "Scale-VQA", ["expert-generated", "machine-generated"], True),
        (("phantom",), "Questions on synthetic slides in the format of Scale-VQA", ["machine-generated"], False),
        (
            ("slide geometry",),
            "Questions from slide geometry in the format of Scale-VQA",
            ["machine-generated"],
            False,
        ),
        (("slide geometry", "phantom"), "Questions in the format of Scale-VQA", ["machine-generated"], False),
        (("somebody's",), "Questions in the format of Scale-VQA", None, False),
    ],
)
def test_title_annotators_and_citation_follow_the_source_of_the_rows(
    tmp_path: Path, sources: tuple[str, ...], title: str, annotators: list[str] | None, of_paper: bool
) -> None:
    made = [row | {"source": sources[index % len(sources)]} for index, row in enumerate(rows(1))]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"test": made}}, {"default": "Made for a test."})
    text = (folder / "README.md").read_text()
    front = head(text)
    assert (front["pretty_name"], front.get("annotations_creators")) == (title, annotators)
    assert f"\n# {title}\n" in text and "@inproceedings{phan2026scalevqa" in text
    assert ("no question of the paper" in text) is not of_paper
    cited = json.loads(croissant_metadata(folder, "org/x", Licence("mit")))["citeAs"]
    assert cited.startswith("Phan et al.") is of_paper and "Phan et al." in cited
