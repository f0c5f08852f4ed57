"""The block exchange: relabelling slides and paths changes nothing that a text-only reader of the file sees."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from joint_reader import accuracy, assigned, joint_votes

from scale_vqa_eval.controls.block_exchange import NOT_TEMPLATE, OTHER_SLIDE, block_exchange
from scale_vqa_eval.controls.exchange import ExchangeResult, PairRules, exchange
from scale_vqa_eval.controls.output import exchange_edits
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import DIMENSIONS

Relabelling = dict[tuple[str, str], tuple[str, str]]
"""(slide, path) -> the slide and path whose rows it takes over."""


def corpus(
    seed: int, slides: int = 6, paths: int = 3, missing: float = 0.2, shared: float = 0.3, wordings: int = 2
) -> list[Question]:
    """Questions of two templates a dimension; some paths lack one, some share an image, one slide has no high view."""
    rng = random.Random(seed)
    findings = [f"finding{number}" for number in range(300)]
    questions = []
    for slide in range(slides):
        low = ""
        for path in range(paths):
            low = low if low and rng.random() < shared else f"s{slide}/low{path}.jpg"
            images = [("low_mag", low), ("mid_mag", f"s{slide}/mid{path}.jpg")]
            images += [("high_mag", f"s{slide}/high{path}.jpg")] * (slide > 0 or path > 0)
            for dimension in DIMENSIONS:
                stem = f"Which {dimension} fits, by template {rng.randrange(wordings)}?"
                if rng.random() < missing:
                    stem = f"A free question on {slide}, {path}, {dimension}?"
                options = tuple(" ".join(rng.sample(findings, 5)) for _ in range(4))
                name = f"s{slide}"
                row = Question(
                    f"{slide}-{path}-{dimension}", stem, options, rng.randrange(4), dimension, name, name, f"p{path}"
                )
                questions.append(dataclasses.replace(row, images=tuple(images)))
    return questions


def made(questions: Sequence[Question], found: ExchangeResult) -> tuple[list[Question], dict[str, list[str]]]:
    """Returns the rows as the control writes them, and block -> its quadruples."""
    edits = exchange_edits(questions, found.groups)
    rows = [
        dataclasses.replace(
            questions[row], question=edit.question, options=edit.options, answer=edit.answer, group=edit.group
        )
        for row, edit in sorted(edits.items())
    ]
    blocks: dict[str, list[str]] = defaultdict(list)
    for group in found.groups:
        if group.quadruple not in blocks[group.block]:
            blocks[group.block].append(group.quadruple)
    return rows, blocks


def places(questions: Sequence[Question], found: ExchangeResult) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Returns block -> quadruple -> its four (slide, path), in the order of the slides' names."""
    result: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(dict)
    for group in found.groups:
        paths = sorted({(questions[row].slide or "", questions[row].path_id or "") for row in group.members})
        assert result[group.block].setdefault(group.quadruple, paths) == paths  # one quadruple, the same four paths
        assert len({slide for slide, _ in paths}) == 4
    return result


def relabelled_by_block(where: dict[str, dict[str, list[tuple[str, str]]]], order: Sequence[int]) -> Relabelling:
    """Moves every slide of every block to another one of the block, in all its quadruples."""
    return {
        path: paths[order[index]]
        for quadruples in where.values()
        for paths in quadruples.values()
        for index, path in enumerate(paths)
    }


def seen(rows: Sequence[Question]) -> Counter[tuple[str, str, str, tuple[str, ...], frozenset[str]]]:
    """What a text-only reader knows of each row: slide, path, texts, and which views there are."""
    return Counter(
        (row.slide or "", row.path_id or "", row.question, row.options, frozenset(view for view, _ in row.images))
        for row in rows
    )


def sharing(rows: Sequence[Question]) -> set[frozenset[tuple[str, str]]]:
    """Which (slide, path) share an image file."""
    files: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        for _, name in row.images:
            files[name].add((row.slide or "", row.path_id or ""))
    return {frozenset(pair) for paths in files.values() for pair in combinations(sorted(paths), 2)}


def test_slides_of_which_no_four_give_a_group_give_none() -> None:
    assert not block_exchange(PairRules(corpus(2097153, slides=5, paths=1)), 2097153).groups


@given(seed=st.integers(0, 2**32), slides=st.integers(4, 7), paths=st.integers(1, 3))
@settings(max_examples=6, deadline=None, phases=[Phase.generate])
def test_relabelling_changes_nothing_that_is_seen_and_every_reader_averages_a_quarter(
    seed: int, slides: int, paths: int
) -> None:
    questions = corpus(seed, slides, paths)
    found = block_exchange(PairRules(questions), seed)
    assert len(found.groups) <= found.bound
    rows, blocks = made(questions, found)
    where = places(questions, found)
    used = [slide for quadruples in where.values() for slide in {s for path in quadruples.values() for s, _ in path}]
    assert len(used) == len(set(used)) == 4 * len(blocks)  # a slide is in one block
    taken = [path for quadruples in where.values() for four in quadruples.values() for path in four]
    assert len(taken) == len(set(taken))  # a path is in one quadruple
    text = repr(sorted(map(repr, seen(rows).items())))

    def joint(row: Question) -> int:  # any function of the whole file's text and the row's place in it
        key = repr((text, row.slide, row.path_id, row.question, row.options))
        return hashlib.sha256(key.encode()).digest()[0] % 4

    by_row = {(row.slide, row.path_id, row.question, row.options): row for row in rows}
    right: Counter[str | None] = Counter()
    for order in permutations(range(4)):
        moved = relabelled_by_block(where, order)
        after = [
            dataclasses.replace(row, slide=slide, path_id=path)
            for row in rows
            for slide, path in [moved[row.slide or "", row.path_id or ""]]
        ]
        assert seen(after) == seen(rows)
        assert {frozenset(moved[path] for path in pair) for pair in sharing(rows)} == sharing(rows)
        for row in after:
            # the images, and with them the right answer, have moved to another slide; the texts there are the same
            shown = by_row[row.slide, row.path_id, row.question, row.options]
            right[row.group] += joint(shown) == row.answer
    assert all(Fraction(count, 24 * 4) == Fraction(1, 4) for count in right.values())
    for quadruples in where.values():  # the four paths of one quadruple alone may be relabelled as well
        for four in quadruples.values():
            texts = {path: frozenset(t for t in seen(rows) if t[:2] == path) for path in four}
            assert len({frozenset(t[2:] for t in own) for own in texts.values()}) == 1


def test_groups_are_valid() -> None:
    questions = corpus(3)
    found = block_exchange(PairRules(questions))
    assert found.groups
    for group in found.groups:
        members = [questions[row] for row in group.members]
        assert len({member.patient for member in members}) == 4
        assert len({member.dimension for member in members}) == 1
        assert group.stem in {question.question for question in questions if "template" in question.question}
    for part in found.parts.values():
        assert part.questions == 4 * part.groups + sum(part.lost.values())


def test_a_known_optimum_is_found() -> None:
    questions = corpus(5, slides=8, paths=2, missing=0, shared=0)
    questions = [question for question in questions if not (question.slide == "s0" and question.path_id == "p0")]
    found = block_exchange(PairRules(questions))
    # two blocks, of which one lacks a path: 3 quadruples of five dimensions
    assert len(found.groups) == 15


def test_one_slide_a_patient_and_only_shared_wordings() -> None:
    questions = corpus(6, slides=5, paths=2, missing=0, shared=0, wordings=1)
    questions = [
        dataclasses.replace(question, patient="s0") if question.slide == "s4" else question for question in questions
    ]
    free = dataclasses.replace(questions[0], id="free", question="A question of its own?")
    found = block_exchange(PairRules([*questions, free]))
    slides = {questions[row].slide for group in found.groups for row in group.members}
    assert len(slides & {"s0", "s4"}) == 1
    lost = sum((Counter(part.lost) for part in found.parts.values()), Counter())
    assert lost[NOT_TEMPLATE] == 1 and lost[OTHER_SLIDE] == 10


def test_texts_of_other_dimensions_keep_their_wording() -> None:
    questions = []
    for slide in range(4):
        for number, stem in enumerate(("Which organ is it?", "Which grade is it?")):
            gold = f"answer{slide}{number} only"
            row = Question(f"{slide}{number}", stem, (gold, "x"), 0, "other", f"s{slide}", f"s{slide}", "p")
            questions.append(row)
    found = block_exchange(PairRules(questions))
    assert {group.stem for group in found.groups} == {"Which organ is it?", "Which grade is it?"}
    for group in found.groups:
        assert {questions[row].question for row in group.members} == {group.stem}


def test_paths_that_share_an_image_on_one_slide_only_are_not_both_used() -> None:
    questions = corpus(7, slides=4, paths=2, missing=0, shared=0, wordings=1)
    assert len(block_exchange(PairRules(questions)).groups) == 5  # s0's first path lacks a view that all others have
    full = [
        dataclasses.replace(question, images=tuple((v, f"{question.slide}{question.path_id}{v}") for v in ("a", "b")))
        for question in questions
    ]
    assert len(block_exchange(PairRules(full)).groups) == 10
    one = [
        dataclasses.replace(question, images=(("a", "same"), question.images[1]))
        if question.slide == "s2"
        else question
        for question in full
    ]
    assert len(block_exchange(PairRules(one)).groups) == 5
    assert len(block_exchange(PairRules(one), allow_shared_images=True).groups) == 10
    every = [dataclasses.replace(q, images=(("a", f"same{q.slide}"), q.images[1])) for q in full]
    assert len(block_exchange(PairRules(every)).groups) == 10


@pytest.mark.parametrize("make", [exchange, block_exchange])
def test_the_order_of_the_options_does_not_tell_whose_they_are(make) -> None:
    """Were the order drawn from the row ids, a reader who knows the seed would draw it again."""
    questions = corpus(8, slides=4, paths=1, missing=0, shared=0, wordings=1)
    questions = [dataclasses.replace(question, images=()) for question in questions]
    golds = {question.id: question.options[question.answer] for question in questions}
    swapped = [
        dataclasses.replace(question, options=(golds[f"{other}-0-{question.dimension}"], "x"), answer=0)
        for question in questions
        for other in [{"0": 1, "1": 2, "2": 3, "3": 0}[question.id[0]]]
    ]
    before, after = ({row.options for row in made(some, make(PairRules(some)))[0]} for some in (questions, swapped))
    assert before == after and before


def test_two_controls_of_the_same_questions_tell_which_options_are_of_a_slide() -> None:
    """The guarantee is of one file: an option that both files give to a slide is most likely its own answer."""
    questions = corpus(6, slides=8, paths=2, missing=0, shared=0)
    pairs = PairRules(questions)
    rows, others = (made(questions, make(pairs))[0] for make in (block_exchange, exchange))
    options: dict[str | None, set[str]] = defaultdict(set)
    for row in others:
        options[row.slide].update(row.options)
    hits = [[text in options[row.slide] for text in row.options] for row in rows]
    credits = [own[row.answer] / max(1, sum(own)) for own, row in zip(hits, rows, strict=True)]
    assert sum(credits) / len(credits) > 0.35


def test_same_seed_same_groups() -> None:
    questions = corpus(9)
    first, again, other = (block_exchange(PairRules(questions), seed).groups for seed in (1, 1, 2))
    assert first == again != other


@pytest.fixture(scope="module")
def released(shared: Path) -> list[Question]:
    return read_questions(shared / "scale_vqa" / "val.json")


@pytest.mark.slow
def test_the_joint_reader_wins_exchange_and_not_block_exchange(released: list[Question]) -> None:
    pairs = PairRules(released)
    found = block_exchange(pairs)
    assert 25 <= len(found.groups) <= found.bound
    dimensions = Counter(released[group.members[0]].dimension for group in found.groups)
    assert set(dimensions) == set(DIMENSIONS)
    rows, _ = made(released, found)
    open_rows, _ = made(released, exchange(pairs))
    votes = joint_votes(open_rows, lambda row: row.slide)
    assert accuracy(open_rows, assigned(open_rows, votes)) > 0.45
    for unit in (lambda row: row.slide, lambda row: (row.slide, row.path_id), lambda row: row.images[0]):
        letters = assigned(rows, joint_votes(rows, unit))
        assert accuracy(rows, letters) < 0.36
    assert accuracy(rows, [0] * len(rows)) == 0.25
