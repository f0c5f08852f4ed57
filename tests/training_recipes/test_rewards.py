"""The optional terms of the reward, and the callables that a trainer is given."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from response_texts import anything, responses

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.rewards import (
    accuracy_reward,
    compute_score,
    pathscale_reward,
    structure_reward,
    visual_gain_reward,
)
from scale_vqa_eval.schema import VIEWS
from training_recipes.rewards import TERMS, reward_functions, text_of
from training_recipes.verl_reward import compute_score as verl_score

LOW, MID, HIGH = VIEWS

STRUCTURE = [
    # what the reasoning says, views shown, reward
    ("At 10x nests, at 40x stroma, at 200x atypia.", VIEWS, 1.0),
    ("Low power: nests. Mid power: stroma. High power: atypia.", VIEWS, 1.0),
    ("The low-magnification view and the INTERMEDIATE magnification and high mag.", VIEWS, 1.0),
    ("At 10\u00d7 and 40 x and 200X.", VIEWS, 1.0),
    ("At 10x nests.", VIEWS, 1 / 3),
    ("At 10x nests, at 200x atypia.", (LOW, HIGH), 1.0),
    ("At 10x nests, at 40x stroma, at 200x atypia.", (LOW, HIGH), 2 / 3),
    ("At higher power atypia, at lower power nests.", VIEWS, 0.0),
    ("A high grade tumour of low cohesion in mid life.", VIEWS, 0.0),
    ("At 110x, 2.40x and 200xyz.", VIEWS, 0.0),
    ("Nests.", (), 1.0),
    ("Nests at 10x.", (), 0.0),
    ("", VIEWS, 0.0),
]


@pytest.mark.parametrize("thought, views, reward", STRUCTURE)
def test_structure_golden_table(thought, views, reward):
    assert structure_reward(f"<think>{thought}</think> <answer>A</answer>", views) == pytest.approx(reward)


def test_only_what_is_thought_counts():
    assert structure_reward("At 10x, 40x and 200x. <think>Nests.</think><answer>A</answer>", VIEWS) == 0.0
    assert structure_reward("At 10x, 40x and 200x.", VIEWS) == 0.0
    assert structure_reward("<think>10x</think> then <think>40x, 200x</think>", VIEWS) == 1.0


@given(anything, st.sets(st.sampled_from(VIEWS)))
def test_structure_never_raises_and_stays_in_range(response, views):
    assert 0.0 <= structure_reward(response, views) <= 1.0


I1, I2, I3 = (f"- **Image {number}:** Glands.\n" for number in (1, 2, 3))
HEAD, REST, B = "**Image analysis:**\n", "**Option evaluation:**\n- **Option A:** No.\n", "<answer>B</answer>"


def thought(*parts, answer=B):
    return f"<think>{''.join(parts)}</think>\n{answer}"


PATHSCALE = [
    # response to a question whose answer is B, images shown, accuracy, structure, format
    (thought(HEAD, I1, I2, I3, REST), 3, 1, 1, 1),
    (thought("I compare.\n", HEAD, I1, I2, I3, REST, "So B."), 3, 1, 1, 1),
    (thought(HEAD, I1, I2, REST), 2, 1, 1, 1),
    (thought(HEAD, I1, I2, I3), 3, 1, 1, 1),  # without an option evaluation the part goes on to the end
    # number and order of the labels
    (thought(HEAD, I1, I2, REST), 3, 1, 0, 1),
    (thought(HEAD, I1, I2, I3, REST), 2, 1, 0, 1),
    (thought(HEAD, I2, I1, I3, REST), 3, 1, 0, 1),
    (thought(HEAD, I1, I1, I2, REST), 2, 1, 0, 1),
    (thought(HEAD, I1, I3, REST), 2, 1, 0, 1),
    (thought(HEAD, I2, I3, REST), 2, 1, 0, 1),
    (thought(HEAD, "- **Image 0:** x\n", I1, REST), 2, 1, 0, 1),
    (thought(HEAD, "Glands in all.\n", REST), 3, 1, 0, 1),
    # one image: none, or only 1
    (thought(HEAD, "Glands.\n", REST), 1, 1, 1, 1),
    (thought(HEAD, I1, REST), 1, 1, 1, 1),
    (thought(HEAD, I1, I2, REST), 1, 1, 0, 1),
    (thought(HEAD, I2, REST), 1, 1, 0, 1),
    (thought(HEAD, I1, I1, REST), 1, 1, 0, 1),
    # an empty or a missing part
    (thought(HEAD, REST), 1, 1, 0, 1),
    (thought(HEAD, " \n ", REST), 1, 1, 0, 1),
    (thought(HEAD), 1, 1, 0, 1),
    (thought("Glands.\n", REST), 1, 1, 0, 1),
    (thought(I1, I2, I3, REST), 3, 1, 0, 1),
    (thought(REST, HEAD, I1, I2), 2, 1, 1, 1),  # the evaluation counts only after the analysis
    (thought("Image analysis:\n", I1, I2, REST), 2, 1, 0, 1),
    # how a label is written
    (thought(HEAD, "**Image 1:** x\n**Image 2:** y\n", REST), 2, 1, 1, 1),
    (thought(HEAD, "  -  **Image 1:** x\n\n\n\t- **Image 2:** y\n", REST), 2, 1, 1, 1),
    (thought("**IMAGE ANALYSIS:**", "- **image 1:** x\n- **IMAGE  02 :** y\n", REST), 2, 1, 1, 1),
    (thought(HEAD, "- **Image 1:** x - **Image 2:** y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, "See **Image 1:** x\nand **Image 2:** y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, "* **Image 1:** x\n* **Image 2:** y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, "- Image 1: x\n- Image 2: y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, "- **Image one:** x\n- **Image two:** y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, "- **Image 1**: x\n- **Image 2**: y\n", REST), 2, 1, 0, 1),
    (thought(HEAD, I1, I2, "**option evaluation:**\n", I3), 2, 1, 1, 1),  # labels after the part do not count
    # the letter
    (thought(HEAD, I1, I2, REST, answer="<answer>A</answer>"), 2, 0, 1, 1),
    (thought(HEAD, I1, I2, REST, answer="<answer> b </answer>"), 2, 1, 1, 1),
    (thought(HEAD, I1, I2, REST, answer="<answer>Z</answer>"), 2, 0, 1, 1),
    (thought(HEAD, I1, I2, REST, answer="B"), 2, 0, 1, 0),
    (thought(HEAD, I1, I2, REST, answer="<answer>B. Glands</answer>"), 2, 0, 1, 0),
    # the form of the output
    (thought(HEAD, I1, I2, REST) + " Done.", 2, 1, 1, 0),
    ("So: " + thought(HEAD, I1, I2, REST), 2, 1, 1, 0),
    (f" \n{thought(HEAD, I1, I2, REST)}\n ", 2, 1, 1, 1),
    (f"<think>{HEAD}{I1}{I2}{REST}</think> so <answer>B</answer>", 2, 1, 1, 0),
    (f"<think>{HEAD}{I1}{I2}{REST}{B}", 2, 1, 0, 0),
    (f"{HEAD}{I1}{I2}{REST}{B}", 2, 1, 0, 0),
    (f"<THINK>{HEAD}{I1}{I2}{REST}</THINK>{B}", 2, 1, 1, 0),  # the parts are found in any case, the form is not
    (f"<think>{HEAD}{I1}</think><think>{I2}</think>{B}", 2, 1, 0, 1),  # the first think block counts
    (f"<think></think>{B}", 1, 1, 0, 1),
    (B, 3, 1, 0, 0),
    ("", 3, 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("response, images, accuracy, structure, form", PATHSCALE)
def test_pathscale_golden_table(response, images, accuracy, structure, form):
    assert pathscale_reward(response, "B", images) == 0.75 * accuracy + 0.20 * structure + 0.05 * form


def test_pathscale_takes_linear_time_and_any_response():
    for text in ("<think>" * 50_000, f"<think>{HEAD}" + "\n- " * 50_000 + "</think>", "</think> " * 50_000):
        assert pathscale_reward(text, "B", 3) == 0.0
    assert pathscale_reward(None, "B", 3) == 0.0
    assert pathscale_reward(thought(HEAD, f"- **Image {'9' * 10_000}:** x", REST), "B", 2) == pytest.approx(0.8)


shares = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4).map(lambda raw: [one / sum(raw) for one in raw])


@given(responses, st.sampled_from("ABCD"), shares)
def test_visual_gain_is_accuracy_less_the_blind_share(text, gold, blind):
    gain = visual_gain_reward(text, gold, blind)
    right = accuracy_reward(text, gold)
    assert -1.0 <= gain <= 1.0
    assert gain >= right - max(blind)
    assert (gain > 0) == bool(right) or blind["ABCD".index(gold)] == 1.0


def test_visual_gain_pays_for_what_only_the_image_tells():
    blind = [0.7, 0.1, 0.1, 0.1]
    right, shortcut, slip = (f"<answer>{letter}</answer>" for letter in "BAC")
    gains = [visual_gain_reward(text, "B", blind) for text in (right, slip, shortcut)]
    assert gains == sorted(gains, reverse=True) and gains[0] == 0.9
    assert visual_gain_reward("<answer>A</answer>", "A", blind) < gains[0]
    assert visual_gain_reward("no idea", "A", blind) == 0.0


@given(st.lists(responses, min_size=1, max_size=5), st.data())
def test_a_term_gives_each_completion_its_reward(texts, data):
    gold = data.draw(st.lists(st.sampled_from("ABCD"), min_size=len(texts), max_size=len(texts)))
    columns = {
        "answer": gold,
        "option_count": [4] * len(texts),
        "views": [list(VIEWS)] * len(texts),
        "image_count": [3] * len(texts),
        "blind_prior": [[0.25] * 4] * len(texts),
        "id": [str(place) for place in range(len(texts))],
    }
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    logged: dict[str, float] = {}
    given_out = {
        term: function(completions=completions, prompts=[], log_metric=logged.__setitem__, **columns)
        for term, function in zip(TERMS, reward_functions(TERMS, None, True), strict=True)
    }
    assert given_out["reference"] == [compute_score(*pair) for pair in zip(texts, gold, strict=True)]
    assert given_out["strict"] == [compute_score(*pair, "strict") for pair in zip(texts, gold, strict=True)]
    assert given_out["pathscale"] == [pathscale_reward(*pair, 3) for pair in zip(texts, gold, strict=True)]
    assert given_out["structure"] == [structure_reward(text, VIEWS) for text in texts]
    mean = sum(given_out["reference"]) / len(texts)
    assert mean == pytest.approx(0.8 * logged["reference/accuracy"] + 0.2 * logged["reference/format"])


def test_terms_are_picklable_and_named():
    functions = reward_functions(TERMS, [1.0, 1.0, 1.0, 0.1, 0.1], True)
    again = pickle.loads(pickle.dumps(functions))
    assert [function.__name__ for function in again] == list(TERMS)
    text = [[{"role": "assistant", "content": [{"type": "text", "text": "<think></think><answer>B</answer>"}]}]]
    assert again[0](completions=text, answer=["B"]) == [1.0]


def test_a_template_that_opens_the_think_block_costs_no_reward():
    completion, columns = ["Glands.</think> <answer>B</answer>"], {"answer": ["B"], "image_count": [1]}
    for term, without in (("reference", 0.8), ("strict", 0.8), ("pathscale", 0.75)):
        assert reward_functions([term], None, False)[0](completion, **columns) == pytest.approx([without])
    for term in ("reference", "strict"):
        assert reward_functions([term], None, False, True)[0](completion, **columns) == [1.0]


def test_a_question_without_a_blind_answer_has_no_visual_gain():
    gain = reward_functions(["visual_gain"], None, True)[0]
    assert gain(
        completions=["<answer>A</answer>"] * 2, answer=["A", "A"], blind_prior=[None, [0.4, 0.2, 0.2, 0.2]]
    ) == [
        None,
        0.6,
    ]


@pytest.mark.parametrize(
    "terms, weights, prior, said",
    [
        (["reference", "accuracy"], None, False, "found 'accuracy'"),
        ([], None, False, "at least one term"),
        (["reference"], [0.5, 0.5], False, "1 weights, one per term, found 2"),
        (["visual_gain"], None, False, "blind_prior"),
    ],
)
def test_wrong_terms_are_refused(terms, weights, prior, said):
    with pytest.raises(InputError, match=said):
        reward_functions(terms, weights, prior)


@given(responses, st.sampled_from("ABCD"))
def test_verl_gets_the_reference_reward(text, gold):
    assert verl_score("scale-vqa", text, gold, {"id": "x"}) == compute_score(text, gold)


def test_verl_rows_of_another_source_are_refused():
    with pytest.raises(ValueError, match="'gsm8k'"):
        verl_score("gsm8k", "<answer>A</answer>", "A")


def test_text_of_a_completion_is_found_in_every_form():
    assert text_of("x") == text_of([{"role": "assistant", "content": "x"}]) == "x"
    assert (
        text_of([{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}])
        == "xy"
    )
    assert text_of([]) == ""


def test_verl_pays_for_the_format_where_the_template_opened_the_think_block():
    assert verl_score("scale-vqa", "The glands fuse.\n</think> <answer>B</answer>", "B") == 1.0
