"""The phantom's plan and questions: the text tells nothing, whatever reads it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_script.phantom.plan import (
    ASKED,
    FEATURES,
    OPTION_TEMPLATES,
    PATHS,
    SIGNS,
    WORDINGS,
    captions,
    deal_pools,
    path_questions,
    plan_slides,
)
from scale_vqa_eval.audit.clusters import is_block_exchange
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS, QUESTION_TYPES

PLANS = {"slides": st.integers(1, 40), "seed": st.integers(0, 2**32), "missing_high": st.sampled_from([0.0, 0.3])}


def asked(slides: int, seed: int, missing_high: float = 0.0) -> list[tuple[str, str, Question]]:
    """Returns (split, slide, question) of a plan."""
    return [
        (slide.split, slide.name, question)
        for slide in plan_slides(slides, seed, missing_high)
        for path in slide.paths
        for question in path_questions(slide, path)
    ]


def text_of(question: Question) -> tuple[str, tuple[str, ...]]:
    return question.question, question.options


@settings(max_examples=25, deadline=None)
@given(**PLANS)
def test_a_group_shares_its_text_and_has_each_option_right_once(slides, seed, missing_high):
    groups = defaultdict(list)
    for split, slide, question in asked(slides, seed, missing_high):
        groups[question.group].append((split, slide, question))
    for members in groups.values():
        assert len(members) == PATHS
        assert len({text_of(question) for _, _, question in members}) == 1
        assert sorted(question.letter for _, _, question in members) == list("ABCD")
        assert len({split for split, _, _ in members}) == 1
        if slides >= 12:
            assert len({slide for _, slide, _ in members}) == PATHS


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(key=st.binary(min_size=8, max_size=8), **PLANS)
def test_any_function_of_the_text_is_right_on_a_quarter_of_every_split_and_dimension(key, slides, seed, missing_high):
    right, count = Counter(), Counter()
    for split, _, question in asked(slides, seed, missing_high):
        digest = hashlib.blake2b(repr(text_of(question)).encode(), key=key).digest()
        cell = split, question.dimension
        count[cell] += 1
        right[cell] += LETTERS[digest[0] % 4] == question.letter
    assert all(4 * right[cell] == count[cell] for cell in count)


@pytest.mark.slow
def test_classifiers_trained_on_the_text_are_at_chance_on_other_splits():
    """Words of an option within its question, letter and type, fitted on train: exactly a quarter of val and test."""
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    questions = asked(24, 4)
    texts = [
        f"{question.question} {letter}_{question.dimension} {option}"
        for _, _, question in questions
        for letter, option in zip(LETTERS, question.options, strict=False)
    ]
    gold = [letter == question.letter for _, _, question in questions for letter in "ABCD"]
    words = CountVectorizer(ngram_range=(1, 3), binary=True).fit_transform(texts)
    fitted = [index for index in range(len(texts)) if questions[index // 4][0] == "train"]
    for model in (LogisticRegression(max_iter=500), RandomForestClassifier(40, random_state=0, n_jobs=1)):
        model.fit(words[fitted], [gold[index] for index in fitted])
        scores = model.predict_proba(words)[:, 1].round(9).reshape(-1, 4)
        for split in ("val", "test"):
            right = [
                LETTERS[scores[index].argmax()] == question.letter
                for index, (of, _, question) in enumerate(questions)
                if of == split
            ]
            assert 4 * sum(right) == len(right) == 80


def test_slides_in_fours_are_a_block_exchange() -> None:
    """Where every pool has four slides, relabelling them leaves all texts as they are: joint readers are at chance."""
    for slides, blocks in ((24, True), (26, False)):
        rows = []
        for plan in plan_slides(slides, 42, 0.07):
            for path in plan.paths:
                about = {"slide": plan.name, "path_id": path.path_id}
                rows += [
                    Question(one.id, one.question, one.options, one.answer, group=one.group, **about)
                    for one in path_questions(plan, path)
                ]
        assert is_block_exchange(rows) is blocks


def test_ids_are_unique_and_every_path_is_asked_all_five_dimensions():
    questions = asked(14, 3)
    assert len({question.id for _, _, question in questions}) == len(questions) == 14 * PATHS * 5
    assert Counter(question.dimension for _, _, question in questions) == dict.fromkeys(QUESTION_TYPES.values(), 56)


def test_paths_without_a_200x_view_are_asked_only_what_the_others_show():
    plans = plan_slides(60, 1, missing_high=0.5)
    bare = [(slide, path) for slide in plans for path in slide.paths if not path.has_high]
    assert 0.3 < len(bare) / 240 < 0.7
    for slide, path in bare:
        assert {question.dimension for question in path_questions(slide, path)} == {"Localization", "Explanation"}
        assert "200x" not in " ".join(" ".join(text_of(q)[1]) for q in path_questions(slide, path))
        assert set(captions(path)) == {"low_mag", "mid_mag"}


@pytest.mark.parametrize("slides", [1, 2, 3, 5, 11, 12, 13, 24, 27])
def test_pools_hold_every_slide_once_and_four_where_there_are_enough(slides):
    pools = deal_pools(slides)
    assert [number for pool in pools for number in pool] == list(range(slides))
    assert len(pools) >= min(slides, 3)
    if slides >= 12:
        assert all(4 <= len(pool) <= 7 for pool in pools)


def test_every_split_has_slides_from_three_on():
    for slides in (3, 4, 7, 12, 24):
        assert {plan.split for plan in plan_slides(slides, 42)} == {"train", "val", "test"}


def test_the_plan_follows_the_seed():
    assert plan_slides(6, 1) == plan_slides(6, 1)
    assert plan_slides(6, 1) != plan_slides(6, 2)


def test_options_of_a_question_differ_in_nothing_but_the_two_features():
    for _, _, question in asked(24, 9):
        assert len({len(option) for option in question.options}) == 1
        assert len(set(question.options)) == 4


def test_questions_name_no_value_of_the_features_they_ask_for():
    for question_type, wordings in WORDINGS.items():
        values = {
            word
            for name in ASKED[question_type]
            for phrase in FEATURES[name].phrases.values()
            for word in phrase.split()
        }
        for wording in wordings:
            assert not values & set(re.findall(r"\w+", wording.lower())), wording
        assert set(re.findall(r"{(\w+)}", OPTION_TEMPLATES[question_type])) == {"first", "second"}


def test_rationales_and_captions_state_the_facts_and_name_no_letter():
    for slide in plan_slides(8, 2):
        for path in slide.paths:
            preview = captions(path)
            for name, feature in FEATURES.items():
                true = SIGNS[name][path.facts.value(name)]
                assert true.lower() in preview[feature.view].lower()
                for value in set(feature.phrases) - {path.facts.value(name)}:
                    assert SIGNS[name][value].lower() not in preview[feature.view].lower()
            for question in path_questions(slide, path):
                assert not re.search(r"\b[A-D]\b(?!t\b)", question.rationale)
                first, second = next(ASKED[t] for t, d in QUESTION_TYPES.items() if d == question.dimension)
                assert SIGNS[first][path.facts.value(first)] in question.rationale
                assert SIGNS[second][path.facts.value(second)] in question.rationale
                right = question.options[question.answer]
                assert FEATURES[first].phrases[path.facts.value(first)] in right
                assert FEATURES[second].phrases[path.facts.value(second)] in right
