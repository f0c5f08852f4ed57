"""Reading a predictions file: what it may say, and every way in which it can be wrong."""

from __future__ import annotations

import hashlib
import json

import pytest

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.scoring.predictions import read_predictions


@pytest.fixture
def written(tmp_path):
    def write(*lines, raw=None):
        path = tmp_path / "predictions.jsonl"
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_bytes(raw if raw is not None else text.encode())
        return path

    return write


def test_rows_are_read_in_order(written):
    path = written({"id": "a", "response": "x"}, "", {"id": 7, "response": None, "error": "timeout"})
    run = read_predictions(path)
    assert [(row.id, row.response, row.line, row.error) for row in run.rows] == [
        ("a", "x", 1, None),
        ("7", None, 3, "timeout"),
    ]
    assert run.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(run.settings.values()) == {None} and run.provenance == {}


@pytest.mark.parametrize(
    "lines",
    [
        [{"model": "m", "prompt_id": "published@1", "sampling": {"n": 1}}, {"id": "a", "response": ""}],
        [{"id": "a", "response": "", "provenance": {"model": "m", "prompt_id": "published@1", "sampling": {"n": 1}}}],
        [{"id": name, "response": "", "model": "m", "prompt": "published@1", "sampling": {"n": 1}} for name in "ab"],
    ],
    ids=["a line of its own", "in the first row", "in every row"],
)
def test_what_a_run_notes_of_itself(written, lines):
    noted = read_predictions(written(*lines)).settings
    assert noted["model"] == "m" and noted["prompt_id"] == "published@1" and noted["sampling"] == {"n": 1}
    assert noted["backend"] is None and noted["ablation"] is None


def test_what_rows_disagree_on_is_unknown(written):
    run = read_predictions(written(*({"id": name, "response": "", "model": name} for name in "aba"[:2])))
    assert run.settings["model"] is None and run.mixed == {"model": ["a", "b"]}
    stated = {"id": "a", "response": "", "provenance": {"model": "m"}}
    assert read_predictions(written(stated, {"id": "b", "response": "", "model": "n"})).mixed == {"model": ["n", "m"]}


def test_versions_of_the_run_are_kept(written):
    run = read_predictions(
        written({"id": "a", "response": "", "provenance": {"model": "m"}, "versions": {"torch": "2"}})
    )
    assert run.provenance == {"model": "m", "versions": {"torch": "2"}}


def test_any_text_is_read(written):
    texts = ["\ud800 lone", "\u2028 line separator", "😀", "tab\t and\nline", "x" * 1_000_000, ""]
    run = read_predictions(written(*({"id": str(n), "response": text} for n, text in enumerate(texts))))
    assert [row.response for row in run.rows] == texts
    raw = '{"id": "a", "response": "\ud800"}\n'.encode("utf-8", "surrogatepass")
    assert read_predictions(written(raw=b"\xef\xbb\xbf" + raw)).rows[0].response == "\ud800"


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"id": "a", "response": "x"', "line 2, column 28: expected one JSON object per line"),
        ("[1]", "line 2: expected a JSON object, found [1]"),
        ({"response": "x"}, "line 2: expected an id in the field 'id', found no such field"),
        ({"id": None, "response": "x"}, "line 2: expected an id in the field 'id', found None"),
        ({"id": "", "response": "x"}, "line 2: expected an id in the field 'id', found ''"),
        ({"id": True, "response": "x"}, "line 2: expected an id in the field 'id', found True"),
        (
            {"id": "b", "text": "x"},
            "line 2: expected the model's text in the field 'response', found 'the fields id, text'",
        ),
        ({"id": "b", "response": ["x"]}, "line 2: expected text, or null for a failed call"),
        ({"id": "b", "response": "x", "rotation": "1"}, "line 2: expected a number of places or null"),
        ({"id": "a", "response": "x"}, "line 2: expected a unique id, found the id of line 1: 'a'"),
    ],
)
def test_each_problem_names_its_line(written, line, problem):
    with pytest.raises(InputError) as caught:
        read_predictions(written({"id": "a", "response": "x"}, line))
    assert problem in str(caught.value)


def test_all_problems_are_listed_in_one_run(written):
    with pytest.raises(InputError) as caught:
        read_predictions(written({"id": "a", "response": 1}, {"id": 1.5}, "{", "3"))
    assert len(caught.value.problems) == 5


def test_a_line_cut_off_by_a_kill_is_told_apart(written):
    with pytest.raises(InputError, match="the file ends within a line"):
        read_predictions(written(raw=b'{"id": "a", "response": "x"}\n{"id": "b", "resp'))


@pytest.mark.parametrize("raw, found", [(b"", "at least one response"), (b'{"id": "\xff"}', "UTF-8")])
def test_no_responses_or_no_text(written, raw, found):
    with pytest.raises(InputError, match=found):
        read_predictions(written(raw=raw))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing.jsonl: expected a predictions file, found No such file"):
        read_predictions(tmp_path / "nothing.jsonl")


def test_the_same_id_under_other_turns_is_no_repeat(written):
    run = read_predictions(written(*({"id": "a", "response": "x", "rotation": turn} for turn in range(4))))
    assert [row.rotation for row in run.rows] == [0, 1, 2, 3]
