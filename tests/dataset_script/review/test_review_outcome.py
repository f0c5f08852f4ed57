"""What comes of reviews: who may decide what, agreement, the summary, and the release of accepted items."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import load_dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from review_release import HOSTILE, make_review_release, rows
from sklearn.metrics import cohen_kappa_score

from dataset_script.review.command import review
from dataset_script.review.decisions import VERDICTS, Decision, checked_decision, checked_name, person_of
from dataset_script.review.log import ReviewLog
from dataset_script.review.outcome import agreement
from dataset_script.review.session import ReviewerState, ReviewSession, read_review_data
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import write_release

QUESTION = Question("q", "Which?", ("gland", "stroma", "nerve", "fold"), 1, rationale="B shows it.")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_review_release(tmp_path_factory.mktemp("outcome") / "scale-vqa")


def session_of(release: Path, log: Path) -> ReviewSession:
    data = read_review_data(release)
    return ReviewSession(data, ReviewLog(log, data.subject))


def work(session: ReviewSession, name: str, verdicts: list[Any], stage: str = "review") -> None:
    """Lets a reviewer decide on what waits, in order; an edit is given as a dict."""
    viewer = session.advance(ReviewerState(name, stage))
    for verdict in verdicts:
        assert viewer.at is not None
        edit = verdict if isinstance(verdict, dict) else None
        viewer = session.decide(viewer, "edit" if edit else verdict, f"{name} says so", edit)


# --- one decision


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "Ada\u202eB", "\x00", "\u200b"])
def test_a_reviewer_has_a_name_that_can_be_read(name: str) -> None:
    with pytest.raises(InputError, match="reviewer: expected a name"):
        checked_name(name)


def test_one_person_writes_a_name_in_several_ways() -> None:
    assert person_of("Dr. Ada  Lovelace") == person_of(" dr. ADA lovelace") != person_of("Dr. Ada")


def test_reasons_are_needed_for_all_but_accept() -> None:
    made = Decision(("test", "q"), "review", " Ada ", "accept")
    assert checked_decision(made, QUESTION).reviewer == "Ada"
    for verdict, edit in (("reject", {}), ("edit", {"question": "What?"})):
        with pytest.raises(InputError, match=f"a reason for {verdict}"):
            checked_decision(Decision(("test", "q"), "review", "Ada", verdict, "  ", edit), QUESTION)
    with pytest.raises(InputError, match="a verdict of"):
        checked_decision(Decision(("test", "q"), "review", "Ada", "maybe", "x"), QUESTION)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({}, "changes something"),
        ({"question": " Which? ", "options": list(QUESTION.options)}, "changes something"),
        ({"question": " "}, "a question"),
        ({"options": ["gland", "", "nerve", "fold"]}, "option B"),
        ({"options": ["gland", "Stroma.", "stroma", "fold"]}, "4 different options"),
        ({"options": ["gland", "stroma"]}, "4 option texts"),
        ({"options": "gland"}, "4 option texts"),
        ({"answer": "E"}, "an answer of A to D"),
        ({"answer": "A"}, "a rationale for the answer A, found one that names B"),
        ({"rationale": "Only C shows it."}, "a rationale for the answer B, found one that names C"),
        ({"rationale": "Options A and B are wrong."}, "calls B wrong"),
        ({"question": "x" * 20_001}, "at most 20000"),
        ({"id": "other"}, "an edit of question, options"),
    ],
)
def test_an_edit_that_breaks_the_row_is_refused(edit: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_decision(Decision(("test", "q"), "review", "Ada", "edit", "so", edit), QUESTION)


def test_an_edit_keeps_what_it_changes_alone() -> None:
    edit = {"question": "Which? ", "options": ["gland", "stroma", "nerve", "a fold "], "answer": "B", "rationale": ""}
    whole = checked_decision(Decision(("test", "q"), "review", "Ada", "edit", "so", edit), QUESTION)
    assert whole.edit == {"options": ["gland", "stroma", "nerve", "a fold"], "rationale": ""}


def test_line_ends_and_the_other_options_stay_as_they_were() -> None:
    texts = ("gland ", "stroma\r\nand vessels", "nerve", "fold")
    question = replace(QUESTION, question="What\r\nis it?", options=texts, rationale="Seen\rat 10x.")
    as_the_browser_sends = {
        "question": "What\nis it?",
        "options": ["gland", "stroma\nand vessels", "nerve", "a fold"],
        "answer": question.letter,
        "rationale": "Seen\nat 10x.",
    }
    made = Decision(("test", "q"), "review", "Ada", "edit", "so", as_the_browser_sends)
    assert checked_decision(made, question).edit == {"options": ["gland ", "stroma\r\nand vessels", "nerve", "a fold"]}


# --- who may decide what


def test_two_reviews_close_an_item_and_stand(release: Path, tmp_path: Path) -> None:
    session = session_of(release, tmp_path / "log")
    first = session.advance(ReviewerState("Ada", "review"))
    after = session.decide(first, "accept", "")
    again = session.decide(session.back(after), "reject", "on second thoughts")
    assert again.at == after.at and len(session.status_of(first.at).reviews) == 1  # type: ignore[arg-type]
    other = session.decide(session.advance(ReviewerState("ada ", "review")), "accept", "")
    assert other.seen[-1] != first.at, "the same person under another spelling does not review twice"
    session.decide(session.advance(ReviewerState("Bo", "review")), "accept", "")
    assert session.status_of(first.at).status == "disagreed"  # type: ignore[arg-type]
    for name in ("Ada", "Bo", "Cy"):
        with pytest.raises(InputError, match="2 reviews, which are final"):
            session.decide(ReviewerState(name, "review", first.at), "accept", "")


def test_a_disagreement_is_settled_by_a_third_or_by_both(release: Path, tmp_path: Path) -> None:
    session = session_of(release, tmp_path / "log")
    edit = {"question": "What joins them?"}
    work(session, "Ada", ["accept", "accept", "accept", edit])
    work(session, "Bo", ["reject", "reject", "accept", {"question": "What parts them?"}])
    keys = list(session.data.chosen[:4])
    assert [session.status_of(key).status for key in keys] == ["disagreed", "disagreed", "agreed", "disagreed"]
    with pytest.raises(InputError, match="an item that is agreed"):
        session.decide(ReviewerState("Cy", "adjudication", keys[2]), "accept", "")
    with pytest.raises(InputError, match="an item that is not reviewed"):
        session.decide(ReviewerState("Cy", "adjudication", session.data.chosen[5]), "accept", "")
    work(session, "Cy", ["accept"], "adjudication")
    assert session.status_of(keys[0]).outcome == "accept"
    work(session, "Ada", ["accept", edit], "adjudication")
    assert session.status_of(keys[1]).status == "disagreed", "one of the two alone settles nothing"
    assert session.advance(ReviewerState("Ada", "adjudication")).at is None
    work(session, "Bo", ["accept", edit], "adjudication")
    assert [session.status_of(key).status for key in (keys[1], keys[3])] == ["adjudicated"] * 2
    assert session.status_of(keys[3]).final.edit == edit  # type: ignore[union-attr]


def test_items_put_off_come_again_at_the_end(release: Path, tmp_path: Path) -> None:
    session = session_of(release, tmp_path / "log")
    viewer = session.advance(ReviewerState("Ada", "review"))
    postpone = [viewer.at]
    viewer = session.postpone(viewer)
    order = []
    while viewer.at is not None:
        order.append(viewer.at)
        viewer = session.decide(viewer, "accept", "")
    assert order == [*session.data.chosen[1:], *postpone]


def test_two_desks_on_one_log_see_each_other(release: Path, tmp_path: Path) -> None:
    here, there = (session_of(release, tmp_path / "log") for _ in range(2))
    work(here, "Ada", ["accept"])
    work(there, "Bo", ["accept"])
    assert here.status_of(here.data.chosen[0]).status == "agreed"
    with pytest.raises(InputError, match="which are final"):
        here.decide(ReviewerState("Cy", "review", here.data.chosen[0]), "accept", "")


# --- agreement

verdict = st.sampled_from(VERDICTS)


@settings(max_examples=60, deadline=None)
@example([("accept", "accept", "a"), ("accept", "reject", "a"), ("reject", "accept", "b")])
@given(st.lists(st.tuples(verdict, verdict, st.sampled_from("abcde")), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn_and_lies_in_its_interval(items: list[tuple[str, str, str]]) -> None:
    first, second, clusters = (list(column) for column in zip(*items, strict=True))
    found = agreement(first, second, clusters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(first, second, labels=list(VERDICTS))
    if found.kappa is None:
        assert np.isnan(expected) or len(set(first + second)) == 1
    else:
        assert found.kappa == pytest.approx(expected)
    if found.interval is not None:
        assert -1.0001 <= found.interval[0] <= found.kappa + 1e-9 and found.kappa <= found.interval[1] + 1e-9 <= 1.001
    assert agreement(second, first, clusters).kappa == pytest.approx(found.kappa)


def test_the_interval_covers_and_widens_with_clusters() -> None:
    rng = np.random.default_rng(0)

    def draw(patients: int, each: int) -> tuple[list[str], list[str], list[str]]:
        """Half of the patients are judged alike, the other half at random: kappa is one half, but for noise."""
        first, second, names = [], [], []
        for patient in range(patients):
            alike = rng.random() < 0.5
            for _ in range(each):
                one = VERDICTS[rng.integers(3)]
                first.append(one)
                second.append(one if alike else VERDICTS[rng.integers(3)])
                names.append(str(patient))
        return first, second, names

    hits = 0
    for _ in range(200):
        low, high = agreement(*draw(30, 5)).interval or (0, 0)
        hits += low <= 0.5 <= high
    assert 178 <= hits <= 200, "95% of 200, less what chance and 30 patients allow"
    first, second, names = draw(30, 20)
    clustered = agreement(first, second, names).interval
    independent = agreement(first, second, [str(number) for number in range(len(first))]).interval
    assert clustered and independent
    assert clustered[1] - clustered[0] > 1.5 * (independent[1] - independent[0])


def test_perfect_agreement_of_few_patients_is_not_certain() -> None:
    found = agreement(["accept", "reject"] * 5, ["accept", "reject"] * 5, [str(n // 2) for n in range(10)])
    assert found.kappa == 1.0 and found.method == "clopper-pearson"
    assert found.interval is not None and found.interval[0] < 0.5 and found.interval[1] == pytest.approx(1.0)
    alone = agreement(["accept", "reject"], ["accept", "edit"], ["p", "p"])
    assert alone.interval is None and alone.method == "undefined"


# --- summary and export


@pytest.fixture
def reviewed(release: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A release with a log: 15 items, of which one rejected, one edited, one open, the last two not reviewed."""
    log = tmp_path / "log.jsonl"
    session = session_of(release, log)
    edit = {"question": "New text?", "options": ["w", "x", "y", "z"], "answer": "D", "rationale": "D shows it."}
    work(session, "Ada", ["reject", edit, "accept", *["accept"] * 10])
    work(session, "Bo <b>|</b>", ["reject", edit, "reject", *["accept"] * 10])
    return release, log


def run(*arguments: object) -> Any:
    return CliRunner().invoke(review, [str(one) for one in arguments])


def test_the_summary_counts_and_escapes(reviewed: tuple[Path, Path]) -> None:
    release, log = reviewed
    done = run(release, "--log", log, "--summary", "json")
    figures = json.loads(done.stdout)
    assert figures["outcome"] == {"accept": 10, "edit": 1, "reject": 1, "undecided": 3}
    assert figures["status"]["disagreed"] == 1 and figures["status"]["not reviewed"] == 2
    (pair,) = figures["agreement"]
    assert pair["n"] == 13 and pair["observed"] == pytest.approx(12 / 13) and pair["patients"] == 3
    first = ["reject", "edit", "accept", *["accept"] * 10]
    second = ["reject", "edit", "reject", *["accept"] * 10]
    assert pair["kappa"] == pytest.approx(cohen_kappa_score(first, second))
    (open_one,) = figures["open_disagreements"]
    assert [one["verdict"] for one in open_one["reviews"]] == ["accept", "reject"]
    text = run(release, "--log", log, "--summary").stdout
    assert "Cohen's kappa" in text and "\\<b\\>\\|\\</b\\>" in text and "<b>" not in text
    assert run(release, "--log", log, "--summary").stdout == text


def test_only_accepted_items_go_into_the_release(reviewed: tuple[Path, Path], tmp_path: Path) -> None:
    release, log = reviewed
    out = tmp_path / "accepted"
    done = run(release, "--log", log, "--export", out)
    assert done.exit_code == 0, done.output
    before = load_dataset(str(release), "default", split="test", cache_dir=str(tmp_path / "cache"))
    after = load_dataset(str(out), "default", split="test", cache_dir=str(tmp_path / "cache"))
    assert after["id"] == [before["id"][place] for place in (1, *range(3, 13))]
    assert after[0]["question"] == "New text?" and after[0]["options"] == ["w", "x", "y", "z"]
    assert after.features["answer"].int2str(after[0]["answer"]) == "D" and after[0]["rationale"] == "D shows it."
    raw = [
        {row["id"]: row for row in pq.read_table(next((folder / "default").glob("*.parquet"))).to_pylist()}
        for folder in (release, out)
    ]
    assert all(row == raw[0][name] for name, row in raw[1].items() if name != after[0]["id"]), "the rest to the byte"
    assert load_dataset(str(out), "text", split="test", cache_dir=str(tmp_path / "cache"))["id"] == after["id"]
    report = json.loads((out / "default" / "review.json").read_text())
    assert report["left_out"] == {"rejected": 1, "disagreed": 1, "not reviewed": 2}
    card = (out / "README.md").read_text()
    assert "11 were accepted" in card and "kappa" in card and "made for a test" in card
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"Ada" not in everything and b"says so" not in everything, "no reviewer is named in what is published"
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(release, "--log", log, "--export", out).exit_code == 0
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == first


def test_a_group_goes_whole_or_not_at_all(tmp_path: Path) -> None:
    release = make_review_release(tmp_path / "scale-vqa", grouped=True)
    session = session_of(release, tmp_path / "log")
    verdicts: list[Any] = ["accept"] * 15
    verdicts[0] = "reject"  # of group g0
    verdicts[6] = {"options": ["v", "x", "y", "z"], "rationale": "None."}  # of group g1: texts differ now
    verdicts[7] = {"rationale": "Seen."}  # of group g2: no harm
    for name in ("Ada", "Bo"):
        work(session, name, verdicts)
    done = run(release, "--log", tmp_path / "log", "--export", tmp_path / "out")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "default" / "review.json").read_text())
    broken = [row["id"] for row in report["left_out_ids"] if "group" in row["why"]]
    assert report["kept"] == 9 and len(broken) == 5
    assert all(name.endswith(("type_A", "type_B")) for name in broken)


def test_an_export_never_replaces_what_it_did_not_make(reviewed: tuple[Path, Path], tmp_path: Path) -> None:
    release, log = reviewed
    other = make_review_release(tmp_path / "other")
    for out in (release, release / "inside", release.parent, other):
        done = run(release, "--log", log, "--export", out)
        assert isinstance(done.exception, InputError), out
    assert (other / "README.md").is_file() and (release / "README.md").is_file()


def test_bad_input_is_one_clear_error(reviewed: tuple[Path, Path], tmp_path: Path) -> None:
    release, log = reviewed
    blind = tmp_path / "blind"
    write_release(blind, {"text": {"test": rows()}}, {})
    (tmp_path / "empty").mkdir()
    flagged = make_review_release(tmp_path / "flagged", paths=1)
    (flagged / "curation_report.json").write_text('{"contradictions": [{"finding": "x"}]}')
    cases = {
        (tmp_path / "absent",): "nothing there",
        (tmp_path / "empty",): "no README.md",
        (log,): "found a file",
        (flagged,): "curation report",
        (blind,): "no image in any row",
        (release, "--config", "exchange"): "a config that it has",
        (release, "--split", "train"): "a split of default",
        (release, "--log", tmp_path / "new", "--export", tmp_path / "out"): "at least one accepted item",
    }
    for arguments, message in cases.items():
        done = run(*arguments, "--summary", "md")
        assert isinstance(done.exception, InputError) and message in str(done.exception), (arguments, done.output)
    other = make_review_release(tmp_path / "other", paths=2)
    done = run(other, "--log", log, "--summary", "md")
    assert isinstance(done.exception, InputError) and "data_hash" in str(done.exception)
    for token in ("short", "schl\u00fcssel-zum-haus-\u20ac", "a line\nand another one"):
        assert run(release, "--token", token).exit_code == 2, "a cookie could not carry it"


def test_hostile_texts_pass_through_unchanged(tmp_path: Path) -> None:
    release = make_review_release(tmp_path / "scale-vqa", hostile=True)
    session = session_of(release, tmp_path / "log")
    for name in HOSTILE[0], HOSTILE[1]:
        work(session, name, ["accept", {"question": HOSTILE[4]}])
    assert run(release, "--log", tmp_path / "log", "--export", tmp_path / "out").exit_code == 0
    table = pq.read_table(next((tmp_path / "out" / "default").glob("*.parquet")), columns=["question", "options"])
    assert table["question"].to_pylist()[1] == HOSTILE[4]
    assert HOSTILE[0] in table["question"].to_pylist()[0]
