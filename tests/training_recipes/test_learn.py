"""`make learn`: its questions are crossed or leaky as said, its stages run, resume and report what was measured."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import click
import pytest

pytest.importorskip("skia")
pytest.importorskip("trl")

from click.testing import CliRunner

from dataset_script.phantom.build import phantom
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.schema import VIEWS
from training_recipes.learn.data import (
    ALL,
    ANCHORED,
    BY_BOTH,
    BY_FIRST,
    CONFIG,
    JOINT,
    ROTATIONS,
    colours,
    crossed,
    features,
    leaky,
    main,
    paths_of,
    right,
)
from training_recipes.learn.run import plan, run, run_steps
from training_recipes.rows import load_rows

pytestmark = pytest.mark.xdist_group("learn")
SLIDES = 12


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Folder of a run after the stages ``draw`` and ``questions``."""
    out = tmp_path_factory.mktemp("run") / "learn"
    out.mkdir()
    drawn = ["--slides", str(SLIDES), "--size", "56", "--out", str(out / "data"), "--workers", "1"]
    for command, arguments in ((phantom, drawn), (main, ["folders", str(out / "data"), str(out)])):
        done = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return out


def test_views_have_the_size_asked_for(out):
    import io

    from PIL import Image

    row = load_rows(str(out / "data"), CONFIG, "test")[0]
    assert Image.open(io.BytesIO(row["high_mag"]["bytes"])).size == (56, 56)


def test_the_text_of_crossed_questions_tells_nothing(out):
    letters = defaultdict(list)
    for question in read_questions(out / "crossed", "test", CONFIG):
        letters[question.question, question.options, question.group].append(question.letter)
    assert letters and all(sorted(group) == list("ABCD") for group in letters.values())


def test_options_keep_the_meaning_of_the_right_one(out):
    whole = {question.id: question for question in read_questions(out / "data", "test", CONFIG)}
    for question in read_questions(out / "crossed", "test", CONFIG):
        right = whole[question.id].options[whole[question.id].answer].split()
        words = question.options[question.answer].replace(",", "").split()
        assert all(any(word == other.strip(",") for other in right) for word in words)
        assert question.options == tuple(sorted(question.options))


def test_counting_words_answers_every_leaky_question_and_no_crossed_one_better_than_chance(out):
    def most_shared(question: Question) -> int:
        clauses = [option.split(", ") for option in question.options]
        counts = [sum(a == b for other in clauses for a, b in zip(own, other, strict=True)) for own in clauses]
        return counts.index(max(counts))

    share = {}
    for name in ("crossed", "leaky"):
        questions = read_questions(out / name, "test", CONFIG)
        share[name] = sum(most_shared(question) == question.answer for question in questions) / len(questions)
    assert share == {"crossed": 0.25, "leaky": 1.0}


def test_rationales_name_the_options_that_hold_each_feature():
    options = ("glandular type, grade two", "sheetlike type, grade one")
    options += ("sheetlike type, grade two", "glandular type, grade one")
    question = Question("q", "?", options, 2, "Diagnosis")
    assert features(options)[2] == ("sheetlike", "two")
    asked = crossed(question)
    assert asked["options"] == ["glandular, one", "glandular, two", "sheetlike, one", "sheetlike, two"]
    assert asked["answer"] == 3 and asked["rationale"] == "sheetlike C D, two B D"
    other = Question("r", "?", ("margin now", "centre now"), 0, "Localization")
    asked = leaky(question, other)
    assert asked["options"][asked["answer"]] == "sheetlike, two, margin"


def truth(out: Path, split: str) -> dict[tuple[str, str], set[str]]:
    """Returns everything that the questions about each path ask for."""
    return {
        (path.rows["Diagnosis"]["wsi_name"], path.rows["Diagnosis"]["path_id"]): {
            phrase for question in path.questions.values() for phrase in right(question)
        }
        for path in paths_of(str(out / "data"), split)
    }


def test_single_view_questions_show_one_view_and_say_what_that_view_shows(out):
    facts, rows = truth(out, "test"), load_rows(str(out / "single"), CONFIG, "test")
    assert len(rows) == 2 * len(facts)
    for row in rows:
        assert [view for view in VIEWS if row[view] is not None] == [
            {"10x?": "low_mag", "40x?": "mid_mag"}[row["question"]]
        ]
        assert set(row["options"][row["answer"]].split(JOINT)) <= facts[row["wsi_name"], row["path_id"]]
        assert len(set(row["options"])) == 4 and row["options"] == sorted(row["options"])


@pytest.mark.parametrize("folder", ["taught-single", "taught"])
def test_sft_learns_what_is_seen_and_two_ways_to_decide(out, folder):
    facts, first = truth(out, "train"), 0
    rows = load_rows(str(out / folder), CONFIG, "train")
    for row in rows:
        *said, way = [clause.rstrip(" ABCD") for clause in row["rationale"].split(JOINT)]
        assert set(said) <= facts[row["wsi_name"], row["path_id"]]
        assert (len(said) > 2) == row["question"].endswith(ALL)
        answer = row["options"][row["answer"]].split(JOINT)
        assert answer[0] == said[0] and way == (BY_BOTH if answer[1] == said[1] else BY_FIRST)
        first += way == BY_FIRST
    assert len(rows) > 100 and abs(first / len(rows) - ANCHORED) < 0.1


def test_training_paths_are_shown_in_eight_ways(out):
    paths = paths_of(str(out / "data"), "train")
    rows = load_rows(str(out / "crossed"), CONFIG, "train")
    assert len(rows) == len(ROTATIONS) * len(paths)
    views = defaultdict(set)
    for row in rows:
        views[row["wsi_name"], row["path_id"]].add(row["low_mag"]["bytes"])
    assert {len(ways) for ways in views.values()} == {len(ROTATIONS)}


def test_every_stage_runs_and_reports(out):
    """Two steps each, in this process: what is learnt is shown by ``make learn`` itself."""
    from training_recipes import grpo, sft
    from training_recipes.learn import run as learn

    recipes = {"sft.py": sft.main, "grpo.py": grpo.main}
    modules = {"training_recipes.learn.data": main, "training_recipes.learn.run": learn.main}
    steps = plan(out, SLIDES, 1, ("--max_steps", "2", "--eval_steps", "1"))
    commands = [command for step in steps for track in step for command in track.values()]
    for program, *rest in commands[2:]:  # drawn and written before
        if program == "-m":
            modules[rest[0]].main(rest[1:], standalone_mode=False)
        else:
            small = ["--per_device_train_batch_size", "8", "--num_generations", "4"]
            name = Path(program).name
            recipes[name]([*rest, *(small if name == "grpo.py" else ())])
    images = json.loads((out / "model-0" / "processor_config.json").read_text())["image_processor"]
    assert {name: images[name] for name in ("image_mean", "image_std")} == colours(str(out / "taught"))
    found = json.loads((out / "results.json").read_text())
    for tests in found["test"].values():
        assert [tests[kind][0]["n"] for kind in learn.KINDS] == [
            len(read_questions(out / kind, "test", CONFIG)) for kind in learn.KINDS
        ]
    assert set(found["twins"]) == {"crossed", "leaky"}
    (curves,) = found["grpo"]
    assert curves["eval_accuracy"][0] == curves["named"][0] == [0, 1, 2]
    assert all(len(curves[name][1]) == 2 for name in learn.LOGGED)
    assert (out / "curves.png").stat().st_size > 10_000
    assert "| after GRPO, with images |" in (out / "results.md").read_text()


def test_a_run_goes_on_after_a_stage_that_failed(tmp_path):
    mark = tmp_path / "mark"
    first = ["-c", f"open({str(mark)!r}, 'a').write('x')"]
    with pytest.raises(click.ClickException, match="no space"):
        run_steps([[{"first": first}, {"second": ["-c", "raise SystemExit('no space')"]}]], tmp_path)
    assert set(run_steps([[{"first": first}, {"second": ["-c", ""]}]], tmp_path)) == {"first", "second"}
    assert mark.read_text() == "x"


def test_a_trial_does_not_pass_for_the_whole_run(tmp_path):
    run({"train": ["-c", "", "--max_steps", "2"]}, tmp_path)
    run({"train": ["-c", "", "--max_steps", "2"]}, tmp_path)
    with pytest.raises(click.ClickException, match=r"other settings \(train\)"):
        run({"train": ["-c", ""]}, tmp_path)
