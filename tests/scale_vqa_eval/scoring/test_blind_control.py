"""A score is shown beside a blind control only if the control is one: each way around it is refused or marked."""

from __future__ import annotations

import json

import pytest

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.scoring.baselines import as_response, respond
from scale_vqa_eval.scoring.results import score_table
from scale_vqa_eval.scoring.score import questions_digest, score_files

ROWS = [
    {
        "question": f"Which finding is seen in field {number}?",
        "options": {"A": f"dense stroma {number}", "B": "nests", "C": "fat", "D": "necrosis and much more"},
        "answer": "ABCD"[number * 7 % 4],
        "extra_info": {
            "wsi_name": f"TCGA-AA-{1000 + number % 8}-01Z-00-DX1",
            "path_id": f"p{number}",
            "question_type": "type_" + "ABCDE"[number % 5],
        },
    }
    for number in range(80)
]
IDS = ["::".join(row["extra_info"].values()) for row in ROWS]
GOLD = ["ABCD".index(row["answer"]) for row in ROWS]
SEEING = {"model": "m/M-1", "prompt_id": "p@1", "sampling": {"n": 1}, "ablation": None}
BLIND = SEEING | {"ablation": "blind"}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    return str(tmp_path / "data.json")


def written(path, responses, provenance=None, ids=IDS, **fields):
    lines = [{"id": name, "response": text} | fields for name, text in zip(ids, responses, strict=True)]
    if provenance is not None:
        lines[0]["provenance"] = provenance
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def right_on(count):
    return [as_response(gold if number < count else (gold + 1) % 4) for number, gold in enumerate(GOLD)]


def scored(data, run, *blind, **more):
    return score_files(run, data, None, None, "reference", blind=blind, **more)[0]


def test_a_blind_run_of_the_same_model_is_a_control(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    results = scored(data, run, written(tmp_path / "blind.jsonl", right_on(32), BLIND))
    assert results["blind_withheld"] is None and results["visual_gain"] == pytest.approx(60 / 80 - 32 / 80)
    assert results["leakage_adjusted_accuracy"] == pytest.approx((0.75 - 0.4) / 0.6)
    low, high = results["leakage_adjusted_interval"]
    assert low < results["leakage_adjusted_accuracy"] < high <= 1
    part = results["by_dimension"]["Diagnosis"]
    assert part["leakage_adjusted_interval"][0] <= part["leakage_adjusted_accuracy"]
    assert results["provenance"]["blind"]["ablation"] == "blind"


@pytest.mark.parametrize(
    ("blind", "provenance", "reason"),
    [
        (right_on(20), None, "the ablation None"),
        (right_on(20), {**BLIND, "ablation": None}, "the ablation None"),
        (right_on(20), {**BLIND, "ablation": "no-low"}, "the ablation 'no-low'"),
        (right_on(20), {**BLIND, "model": "another"}, "'another' instead of 'm/M-1'"),
        (right_on(20), {**BLIND, "prompt_id": "q@1"}, "the same prompt_id"),
        (right_on(20), {**BLIND, "sampling": {"n": 5}}, "the same sampling"),
        (right_on(20), {**BLIND, "data_hash": "0" * 64}, "another data hash"),
        (["I cannot see an image."] * 80, BLIND, "100.0%"),
        ([*right_on(20)[:78], "no", "no"], BLIND, "2.5%"),
    ],
)
def test_what_is_not_a_control_gives_no_gain(data, tmp_path, blind, provenance, reason):
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    results = scored(data, run, written(tmp_path / "blind.jsonl", blind, provenance))
    assert results["blind"] is results["visual_gain"] is results["leakage_adjusted_accuracy"] is None
    assert "visual_gain" not in results["by_dimension"]["Diagnosis"]
    assert any(reason in line for line in results["blind_withheld"]["reasons"]), results["blind_withheld"]
    table = score_table(results)
    assert "withheld" in table and reason in table and "Visual gain" not in table


def test_the_run_itself_is_not_its_control(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    assert "the scored file itself" in str(scored(data, run, run)["blind_withheld"]["reasons"])
    again = tmp_path / "again.jsonl"
    again.write_text(run.read_text() + "\n")
    assert scored(data, run, again)["visual_gain"] is None
    results = scored(data, written(tmp_path / "b.jsonl", right_on(60), BLIND), written(run, right_on(20), BLIND))
    assert "a scored run that saw all images" in str(results["blind_withheld"]["reasons"])


def test_two_text_only_baselines_have_no_visual_gain(data, tmp_path):
    """Neither file names a model that was asked: "medoid beside longest" is not a control."""
    questions = read_questions(data)
    run, blind = (written(tmp_path / f"{name}.jsonl", respond(name, questions)) for name in ("medoid", "longest"))
    assert scored(data, run, blind)["visual_gain"] is None
    written(blind, respond("longest", questions), {"ablation": "blind"})
    assert scored(data, run, blind)["visual_gain"] is None
    written(blind, respond("longest", questions), {"model": "longest", "ablation": "blind"})
    assert scored(data, run, blind)["visual_gain"] is None


def test_refusing_to_answer_blind_earns_nothing(data, tmp_path):
    """Below the limit an unparsed response counts as a guess, and the blind score is never below chance."""
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    fair, silent = right_on(20), right_on(20)
    silent[0] = "I refuse."  # it was right
    blind = tmp_path / "blind.jsonl"
    before = scored(data, run, written(blind, fair, BLIND))
    after = scored(data, run, written(blind, silent, BLIND))
    assert before["blind"]["guess_corrected"] == after["blind"]["guess_corrected"] == 0.25
    assert scored(data, run, written(blind, right_on(0), BLIND))["visual_gain"] == pytest.approx(0.5)
    leaky = right_on(40)
    leaky[0] = ""
    assert scored(data, run, written(blind, leaky, BLIND))["blind"]["guess_corrected"] == pytest.approx(39.25 / 80)


def test_a_blind_run_of_one_letter_is_named(data, tmp_path):
    """It parses, so it is a control, but it admits as little as a refusal: its blind score is chance."""
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    results = scored(data, run, written(tmp_path / "blind.jsonl", [as_response(0)] * 80, BLIND))
    assert results["blind"]["guess_corrected"] == 0.25 and results["blind_runs"][0]["one_letter"] == 1.0
    assert "nearly always gives the same answer" in score_table(results)
    results = scored(data, run, written(tmp_path / "blind.jsonl", right_on(20), BLIND))
    assert "nearly always gives the same answer" not in score_table(results)


def test_the_larger_of_blind_and_guess_is_the_control(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING)
    blind = written(tmp_path / "blind.jsonl", right_on(30), BLIND)
    guess = written(tmp_path / "guess.jsonl", right_on(40), BLIND | {"ablation": "guess", "prompt_id": "p-guess@1"})
    for order in ((blind, guess), (guess, blind)):
        results = scored(data, run, *order)
        assert results["blind"]["accuracy"] == 0.5 and results["provenance"]["blind"]["ablation"] == "guess"
        assert {one["ablation"]: one["accuracy"] for one in results["blind_runs"]} == {"blind": 0.375, "guess": 0.5}
    assert "Blind runs: guess 50.0%, blind 37.5%" in score_table(results)
    refused = written(tmp_path / "refused.jsonl", ["no"] * 80, BLIND | {"ablation": "guess"})
    assert scored(data, run, blind, refused)["blind"]["accuracy"] == 0.375


def test_flips_truncation_and_the_ceiling_stand_beside_the_score(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(60), SEEING, finish="stop")
    lines = run.read_text().splitlines()
    run.write_text("\n".join([*lines[:76], *(line.replace('"stop"', '"length"') for line in lines[76:])]))
    shuffled = written(tmp_path / "shuffled.jsonl", right_on(40), SEEING | {"ablation": "shuffled"})
    audit = tmp_path / "audit.json"
    best = {"name": "forest", "accuracy": 0.7, "ci_low": 0.6, "ci_high": 0.8}
    report = {
        "strongest": best,
        "verdict": "leaks",
        "provenance": {"data_hash": questions_digest(read_questions(data))},
    }
    audit.write_text(json.dumps(report))
    results = scored(data, run, shuffled=shuffled, audit=audit)
    assert results["flips"]["rate"] == 0.25 and results["truncated"] == {"n": 4, "rate": 0.05}
    assert results["text_only_ceiling"]["accuracy"] == 0.7
    table = score_table(results)
    assert "token limit: 4 (5.0%)" in table and "another patient's images: 25.0%" in table and "forest" in table
    audit.write_text(json.dumps(report | {"provenance": {"data_hash": "0" * 64}}))
    with pytest.raises(InputError, match="an audit of these questions"):
        scored(data, run, audit=audit)


def test_a_run_on_phantom_does_not_appear_as_default(tmp_path):
    from predict_release import rows

    from scale_vqa_eval.release_folder.write import write_release

    folder = write_release(tmp_path / "scale-vqa", {"phantom": {"test": list(rows(4))}}, {"phantom": "for a test"})
    questions: list[Question] = read_questions(folder)
    run = written(tmp_path / "run.jsonl", respond("longest", questions), SEEING, [one.id for one in questions])
    for data in (folder, next((folder / "phantom").glob("*.parquet"))):
        results, warnings = score_files(run, str(data), None, None, "reference")
        assert results["provenance"]["config"] == "phantom" and not warnings
    written(run, respond("longest", questions), SEEING | {"config": "default"}, [one.id for one in questions])
    assert "'default', not on 'phantom'" in score_files(run, str(folder), None, None, "reference")[1][0]


def test_weights_weigh_and_a_missing_one_is_named(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(40), SEEING)
    weights = {name: 1.0 if number < 40 else 0.25 for number, name in enumerate(IDS)}
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"method": "screened", "seed": 42, "reader": "blind", "weights": weights}))
    lines = [{"id": name, "weight": weight} for name, weight in weights.items()]
    rows = tmp_path / "weights.jsonl"
    rows.write_text("\n".join(json.dumps(line) for line in lines))
    found = scored(data, run, weights=path)["weighted"]
    assert found["accuracy"] == pytest.approx(40 / 50) and found["weights"]["method"] == "screened"
    assert found["effective_size"] == pytest.approx(50**2 / (40 + 40 / 16)) and not found["too_small"]
    assert found["interval"][0] < 0.8 < found["interval"][1]
    assert found["by_dimension"]["Diagnosis"]["too_small"], "16 questions"
    again = scored(data, run, weights=rows)["weighted"]
    assert again["accuracy"] == found["accuracy"]
    assert "Leak-weighted accuracy: 80.0%" in score_table(scored(data, run, weights=path))
    rows.write_text("\n".join(json.dumps(line) for line in lines[1:]))
    with pytest.raises(InputError, match="a weight for every question, found none for"):
        scored(data, run, weights=rows)
    rows.write_text("\n".join([rows.read_text(), json.dumps(lines[1])]))
    with pytest.raises(InputError, match="one weight for each id"):
        scored(data, run, weights=rows)
    rows.write_text(
        "".join(json.dumps({"id": name, "weight": 1.0 if name == IDS[0] else 1e-300}) + "\n" for name in IDS)
    )
    found = scored(data, run, weights=rows)
    assert found["weighted"]["effective_size"] == pytest.approx(1) and found["weighted"]["too_small"]
    assert "Too small an effective size: all, " in score_table(found)
    rows.write_text("".join(json.dumps({"id": name, "weight": 1e-200}) + "\n" for name in IDS))
    assert scored(data, run, weights=rows)["weighted"]["effective_size"] == pytest.approx(80)
    rows.write_text(json.dumps({"id": "a", "weight": 0}))
    with pytest.raises(InputError, match="above 0 and at most 1"):
        scored(data, run, weights=rows)


def test_a_part_of_the_questions_is_scored_only_when_asked_for_and_marked(data, tmp_path):
    run = written(tmp_path / "run.jsonl", right_on(60)[:30], SEEING, IDS[:30])
    blind = written(tmp_path / "blind.jsonl", right_on(20), BLIND)
    with pytest.raises(InputError, match="a response to every question"):
        scored(data, run)
    results = scored(data, run, blind, partial=True)
    assert results["partial"] == {"answered": 30, "of": 80} and results["n"] == 30 and results["visual_gain"] > 0
    assert score_table(results).startswith("PARTIAL: 30 of 80 questions")
    written(run, ["x"], SEEING, ["unknown"])
    with pytest.raises(InputError, match="a response to 'unknown'"):
        scored(data, run, partial=True)


def test_bare_letters_are_explained(data, tmp_path):
    run = written(tmp_path / "run.jsonl", ["B", "(c)", " D. "] * 20 + right_on(20)[60:], SEEING)
    warnings = score_files(run, data, None, None, "reference")[1]
    assert (
        len(warnings) == 1
        and "60 of 80 responses are a bare letter" in warnings[0]
        and "<answer>B</answer>" in warnings[0]
    )
    written(run, ["B"] * 39 + right_on(20)[39:], SEEING)
    assert score_files(run, data, None, None, "reference")[1] == []
