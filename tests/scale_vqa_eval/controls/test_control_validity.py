"""Which right answers may stand beside each other."""

from __future__ import annotations

import pytest

from scale_vqa_eval.controls.exchange import ValidityLimits, claims, compatible, gold_problem
from scale_vqa_eval.questions import Question
from scale_vqa_eval.text import same_text, tokens

LIMITS = ValidityLimits()


def pair_allowed(one: str, other: str, patients: tuple[str, str] = ("p", "q"), **limits: float) -> bool:
    return bool(compatible([one, other], [(), ()], patients, ValidityLimits(**limits))[0, 1])


@pytest.mark.parametrize(
    ("one", "other", "allowed"),
    [
        ("Dense lymphocytic infiltrate around ducts", "Keratin pearls in squamous nests", True),
        ("Necrosis", "necrosis.", False),  # the same but for case and punctuation
        ("Clear cell carcinoma", "Clear cell carcinoma with hemorrhage and long rows of nests", False),
        ("Necrosis is seen in the tumour centre", "No necrosis is seen", False),
        ("\u0660", "\u0661", True),  # digits of another script are words too
        ("\u816b\u7624\u7ec6\u80de\u574f\u6b7b", "\u816b\u7624\u7ec6\u80de\u589e\u751f", False),  # by character
    ],
)
def test_pairs(one: str, other: str, allowed: bool) -> None:
    assert pair_allowed(one, other) is allowed
    assert pair_allowed(other, one) is allowed


def test_jaccard_at_the_limit_is_refused() -> None:
    one, other = "a1 a2 a3 a4 a5 a6 a7 b1 b2 b3 b4 b5 b6", "a1 a2 a3 a4 a5 a6 a7 c1 c2 c3 c4 c5 c6 c7"
    assert len(tokens(one) & tokens(other)) / len(tokens(one) | tokens(other)) == 0.35
    assert not pair_allowed(one, other)
    assert pair_allowed(one, other, max_jaccard=0.351)


def test_one_patient_never_meets_itself() -> None:
    assert not pair_allowed("Keratin pearls", "Dense lymphocytes", ("p", "p"))


def test_gold_that_is_right_on_the_other_images_is_refused() -> None:
    golds = ["Keratin pearls in nests", "Dense lymphocytic infiltrate", "Mucin pools"]
    truths = [["a dense lymphocytic infiltrate"], [], []]
    allowed = compatible(golds, truths, ["p", "q", "r"], LIMITS)
    assert not allowed[0, 1] and not allowed[1, 0]  # the second gold is said to be true of the first's images
    assert allowed[0, 2] and allowed[1, 2]


def test_claims_are_directed() -> None:
    close = claims(["Mucin pools", "Keratin pearls"], [["mucin pools"], ["dense lymphocytes"]], LIMITS)
    assert close.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    "gold",
    [
        "None of the above",
        "All of the options",
        "A and C",
        "Both A and C are right",
        "B",
        "(D)",
        "none of these",
        "Neither B nor D",
        "Any of the other choices",
        "Option C",
    ],
)
def test_golds_that_refer_to_other_options(gold: str) -> None:
    assert gold_problem(Question("1", "q", (gold, "x"), 0)) == "the right answer refers to other options"


@pytest.mark.parametrize(
    "gold",
    ["Type A spermatogonia", "Hepatitis B", "None of the glands shows atypia", "All of the nuclei are enlarged", "42"],
)
def test_golds_that_do_not(gold: str) -> None:
    assert gold_problem(Question("1", "q", (gold, "x"), 0)) is None


def test_gold_without_words() -> None:
    assert gold_problem(Question("1", "q", ("??", "x"), 0)) == "the right answer has no word"


def test_stems_are_the_same_up_to_case_and_space_alone() -> None:
    assert same_text("Which  option\nfits? ") == same_text("which option fits?")
    assert same_text("Is it > 4?") != same_text("Is it < 4?")
