"""Reasons for a wrong option to be wrong: parsed findings, contradiction, support, and what is not described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scale_vqa_eval.controls.exchange import PairRules
from scale_vqa_eval.controls.findings import AmbiguityModel, FindingParser, OptionReasons, read_vocabulary
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question

PARSER = FindingParser(read_vocabulary())


def stated(text: str) -> set[tuple[str, bool, str | None]]:
    return {(found.finding, found.present, found.view) for found in PARSER.statements(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Necrosis is seen at low magnification", {("necrosis", True, "low_mag")}),
        ("There is no necrosis", {("necrosis", False, None)}),
        ("Mucin pools without necrosis", {("mucin", True, None), ("necrosis", False, None)}),
        ("Pulmonary granuloma", {("granuloma", True, None), ("organ: lung", True, None)}),
        ("Without necrosis, mucin, or rosettes", {(name, False, None) for name in ("necrosis", "mucin", "rosettes")}),
        ("Necrosis rather than mucin", {("necrosis", True, None), ("mucin", False, None)}),
        ("Mucin is shown, necrosis is not seen", {("mucin", True, None), ("necrosis", False, None)}),
        ("The mid view instead emphasizes mucin", {("mucin", True, "mid_mag")}),
        ("Necrosis is not described at high power", set()),  # not described is not denied
        ("The high view does not list necrosis", set()),
        ("The low-power impression of necrosis is not corroborated at high power", {("necrosis", True, "low_mag")}),
        ("Necrosis is only listed at low power", {("necrosis", True, "low_mag")}),
        ("Mucin pools, while necrosis is absent", {("mucin", True, None), ("necrosis", False, None)}),
        ("Each other option changes the necrosis.", set()),  # says nothing of the images
    ],
)
def test_statements(text: str, expected: set[tuple[str, bool, str | None]]) -> None:
    assert stated(text) == expected


def test_only_in_one_view_denies_the_others() -> None:
    assert stated("Only the mid view shows necrosis") == {
        ("necrosis", True, "mid_mag"),
        ("necrosis", False, "low_mag"),
        ("necrosis", False, "high_mag"),
    }


def reasons(option: str, sources: str, dimension: str = "Confirmation") -> OptionReasons:
    """Returns what speaks for an option where ``sources`` is another answer on the same images."""
    rows = [("a", option, dimension), ("b", sources, "Diagnosis"), ("b", "Something else", dimension)]
    questions = [
        Question(f"{number}", "?", (text, "x"), 0, kind, slide) for number, (slide, text, kind) in enumerate(rows)
    ]
    return AmbiguityModel(questions, [slide for slide, _, _ in rows], read_vocabulary()).reasons(0, 2)


@pytest.mark.parametrize(
    ("option", "sources", "expected"),
    [
        ("Necrosis at low power", "No necrosis at low power", "contradicted"),
        ("Necrosis at low power", "No necrosis at high power", "not described"),  # of another view
        ("Necrosis", "Mucin pools", "not described"),
        ("Necrosis", "Necrosis and rosettes", "none"),
        ("Necrosis and rosettes", "Necrosis", "not described"),
        ("Nuclear atypia with prominent nucleoli", "Mucin pools", "none"),  # true of nearly any tumour
        ("Squamous cell carcinoma", "Adenocarcinoma of the colon", "excluded"),
        ("Keratin pearls", "Glioblastoma", "excluded"),  # no epithelium
        ("Adenocarcinoma of the lung", "Adenocarcinoma of the colon", "excluded"),
    ],
)
def test_reasons(option: str, sources: str, expected: str) -> None:
    assert reasons(option, sources).reason == expected


def test_the_estimate_falls_with_every_reason() -> None:
    ordered = [
        reasons("Necrosis", "Necrosis and rosettes"),
        reasons("Prominent nucleoli", "Mucin pools"),
        reasons("Necrosis", "Mucin pools"),
        reasons("Necrosis and rosettes", "Mucin pools"),
        reasons("Rosettes and necrosis", "No necrosis"),
    ]
    estimates = [found.ambiguity for found in ordered]
    assert estimates == sorted(estimates, reverse=True) and estimates[0] > 0.9 > 0.2 > estimates[-1]


def test_tumour_findings_are_less_likely_in_benign_tissue() -> None:
    benign, tumour = (reasons("Prominent nucleoli", text).ambiguity for text in ("Benign cyst", "Invasive carcinoma"))
    assert benign < tumour


def test_answers_of_one_dimension_exclude_each_other() -> None:
    texts = ("Within the stromal compartment", "Within the epithelial lining", "Nests in fibrous stroma")
    questions = [Question(f"{row}", "?", (text, "x"), 0, "Localization", f"s{row}") for row, text in enumerate(texts)]
    model = AmbiguityModel(questions, list(range(3)), read_vocabulary())
    assert model.reasons(0, 1).reason == "excluded" and model.reasons(0, 2).reason != "excluded"


def test_a_vocabulary_can_be_extended(tmp_path: Path) -> None:
    own = tmp_path / "more.yaml"
    own.write_text("findings:\n  amyloid: [amyloid]\nexclusive:\n  organ:\n    spleen: [splen]\n")
    parser = FindingParser(read_vocabulary(own))
    found = {one.finding for one in parser.statements("Splenic amyloid beside necrosis")}
    assert found == {"amyloid", "organ: spleen", "necrosis"}
    own.write_text("findings: 3\nkinds: {}\n")
    with pytest.raises(InputError) as refused:
        read_vocabulary(own)
    assert {str(own) in problem.location for problem in refused.value.problems} == {True}
    assert len(refused.value.problems) == 2


def test_similar_diagnoses_raise_the_estimate() -> None:
    def path(slide: str, gold: str, diagnosis: str) -> list[Question]:
        return [
            Question(f"{slide}1", "Which?", (gold, "x"), 0, "Localization", slide, slide, "p"),
            Question(f"{slide}2", "What?", (diagnosis, "x"), 0, "Diagnosis", slide, slide, "p"),
        ]

    questions = [
        *path("a", "Necrosis in the centre", "Glioblastoma with pseudopalisades"),
        *path("b", "Mucin at the margin", "Glioblastoma with pseudopalisades"),
        *path("c", "Keratin in the layer", "Mature teratoma of the ovary"),
    ]
    pairs = PairRules(questions)
    estimates = pairs.ambiguity(np.array([0, 2, 4]))
    assert estimates[0, 1] > 2 * estimates[0, 2] > 0
    assert (estimates == estimates.T).all() and not estimates.diagonal().any()
    organs = pairs.other_organs(np.array([1, 3, 5]))
    assert not organs[0, 1]


def test_nested_diagnoses_support_each_other_and_contradicted_ones_can_be_required() -> None:
    texts = ("adenocarcinoma", "pulmonary adenocarcinoma", "squamous cell carcinoma", "adenocarcinoma with necrosis")
    questions = [
        Question(f"{row}", "Which?", (text, "x"), 0, "Diagnosis", f"s{row}", path_id="p")
        for row, text in enumerate(texts)
    ]
    model = AmbiguityModel(questions, list(range(4)), read_vocabulary())
    rows = np.arange(4)
    supported, contradicted = model.supported(rows), model.contradicted(rows)
    assert supported[0, 1] and supported[1, 0] and not supported[1, 3] and not supported[0, 2]
    assert contradicted[0, 2] and contradicted[2, 3] and not contradicted[0, 1]
