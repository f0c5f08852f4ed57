"""Answer-first reading: the gold answer stays hidden until a reader has answered; answers become predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from review_release import make_review_release

from dataset_script.review.command import review
from dataset_script.review.decisions import Key
from dataset_script.review.log import ReviewLog
from dataset_script.review.session import CONTROL_REPORT, ReviewerState, ReviewSession, read_review_data
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.scoring.command import score


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_review_release(tmp_path_factory.mktemp("answers") / "scale-vqa", paths=4, grouped=True)


def session_of(release: Path, log: Path) -> ReviewSession:
    data = read_review_data(release)
    return ReviewSession(data, ReviewLog(log, data.subject))


def gold(session: ReviewSession, key: Key) -> str:
    return session.data.items[key].question.letter


def panel(session: ReviewSession, viewer: ReviewerState) -> str:
    from dataset_script.review.server import render_item

    return render_item(session, viewer)


def test_a_reader_answers_before_the_gold_answer_is_shown(release: Path, tmp_path: Path) -> None:
    session = session_of(release, tmp_path / "log")
    viewer = session.advance(ReviewerState("Ada", "seeing"))
    assert viewer.at is not None and session.answering(viewer)
    before = panel(session, viewer)
    assert "<em>answer</em>" not in before and "Seen at 10x" not in before and 'class="gold"' not in before
    assert "image/" in before
    with pytest.raises(InputError, match="an answer before the verdict"):
        session.decide(viewer, "accept", "")
    with pytest.raises(InputError, match="an answer of A to D, found ''"):
        session.answer(viewer, "")
    after = session.answer(viewer, "B")
    assert after.at == viewer.at and not session.answering(after)
    revealed = panel(session, after)
    assert "<em>answer</em>" in revealed and "Seen at 10x" in revealed and "You answered <b>B</b>" in revealed
    assert session.decide(after, "accept", "").at != viewer.at
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["review-log", "seeing", "review"]
    assert lines[1]["verdict"] == "B" and lines[1]["seconds"] >= 0


def test_the_blind_arm_shows_no_image_and_takes_one_answer(release: Path, tmp_path: Path) -> None:
    session = session_of(release, tmp_path / "log")
    first = session.advance(ReviewerState("Bo", "blind"))
    assert "image/" not in panel(session, first) and "no image" not in panel(session, first)
    after = session.answer(first, "C")
    assert after.at != first.at and session.back(after).at == after.at, "an answer is not taken back"
    with pytest.raises(InputError, match="waits for an answer, found an item that this reader has answered"):
        session_of(release, tmp_path / "log").answer(first, "D")
    reviewed = session.advance(ReviewerState("Cy", "review"))
    session.decide(reviewed, "accept", "")
    assert session.advance(ReviewerState("Cy", "blind")).at != reviewed.at, "who saw the gold answer is not asked"


@pytest.mark.slow
def test_answers_become_predictions_and_confirm_groups(release: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    session = session_of(release, log)
    viewer = session.advance(ReviewerState("Ada", "seeing"))
    wrong = session.data.chosen[1]
    while viewer.at is not None:
        letter = gold(session, viewer.at)
        viewer = session.answer(viewer, "ABCD".replace(letter, "")[0] if viewer.at == wrong else letter)
        viewer = session.decide(viewer, "accept", "")
    viewer = session.advance(ReviewerState("Bo", "blind"))
    while viewer.at is not None:
        viewer = session.answer(viewer, "A")
    command = [str(release), "--log", str(log)]
    done = CliRunner().invoke(review, [*command, "--summary", "json"], catch_exceptions=False)
    answers = json.loads(done.stdout)["answers"]
    count = len(session.data.chosen)
    assert answers["seeing"]["answers"] == count and answers["seeing"]["accuracy"] == pytest.approx(1 - 1 / count)
    group = session.data.items[wrong].question.group
    assert answers["groups_doubted"] == [f"{group} (test)"] and answers["groups_confirmed"] == 4
    text = CliRunner().invoke(review, [*command, "--summary"], catch_exceptions=False).stdout
    assert f"{group}" in text and "| blind |" in text
    out = tmp_path / "answers"
    assert CliRunner().invoke(review, [*command, "--answers", str(out)], catch_exceptions=False).exit_code == 0
    for arm, accuracy in (("seeing", 1 - 1 / count), ("blind", 0.25)):
        results = tmp_path / f"{arm}.json"
        scored = CliRunner().invoke(
            score, [str(out / f"{arm}.jsonl"), "--data", str(release), "--json", str(results)], catch_exceptions=False
        )
        assert scored.exit_code == 0, scored.output
        assert json.loads(results.read_text())["accuracy"] == pytest.approx(accuracy)


def test_no_answer_is_one_error(release: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one answer in the log, found none"):
        CliRunner().invoke(
            review,
            [str(release), "--log", str(tmp_path / "log"), "--answers", str(tmp_path / "out")],
            catch_exceptions=False,
        )
    assert not (tmp_path / "out").exists()


def test_the_most_ambiguous_groups_come_first(tmp_path: Path) -> None:
    folder = make_review_release(tmp_path / "scale-vqa", paths=4, grouped=True)
    report = folder / "default" / CONTROL_REPORT
    report.write_text(json.dumps({"ambiguity": {"estimate": 0.2, "groups": {"g3": 0.6, "g1": 0.1}}}))
    data = read_review_data(folder)
    groups = [data.items[key].question.group for key in data.chosen]
    assert groups[:4] == ["g3"] * 4 and groups[4:8] == ["g1"] * 4
    report.write_text("[1]")
    with pytest.raises(InputError, match="a control report"):
        read_review_data(folder)
