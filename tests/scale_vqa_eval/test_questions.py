from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.write import write_release


def authors_row(**changes: Any) -> dict[str, Any]:
    row = {
        "question": "Which?",
        "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
        "answer": "C",
        "rationale": "Seen.",
        "image_path": {"low_mag": "S/l.jpg", "mid_mag": "S/m.jpg", "high_mag": None},
        "extra_info": {"wsi_name": "TCGA-AA-1234-01Z", "path_id": "p", "question_type": "type_C"},
        "No": 1,
    }
    return {**row, **changes}


def written(tmp_path: Path, rows: Any, name: str = "data.json") -> Path:
    file = tmp_path / name
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return file


def test_the_authors_format_is_read_whole(tmp_path: Path) -> None:
    (question,) = read_questions(written(tmp_path, [authors_row()]))
    assert question == Question(
        id="TCGA-AA-1234-01Z::p::type_C",
        question="Which?",
        options=("one", "two", "three", "four"),
        answer=2,
        dimension="Localization",
        slide="TCGA-AA-1234-01Z",
        patient="TCGA-AA-1234",
        path_id="p",
        rationale="Seen.",
        images=(("low_mag", "S/l.jpg"), ("mid_mag", "S/m.jpg")),
    )
    assert question.letter == "C" and question.cluster == "TCGA-AA-1234"


@pytest.mark.parametrize(
    "fields, gold",
    [
        ({"options": ["x", "y"], "answer": "B"}, 1),
        ({"options": ["x", "y", "z"], "answer": "(b)"}, 1),
        ({"choices": ["x", "y", "z"], "answer": 2}, 2),
        ({"choices": ["x", "y", "z"], "label": "2"}, 2),
        ({"options": "['x', 'y', \"z's\"]", "answer": "c"}, 2),
        ({"options": '["x", "y"]', "answer": "y"}, 1),
        ({"A": "x", "B": "y", "C": "z", "answer": "A"}, 0),
        ({"options": {"b": "y", "a": "x"}, "answer": "B"}, 1),
        ({"options": [f"o{i}" for i in range(26)], "answer": "Z"}, 25),
    ],
)
def test_ways_to_write_options_and_answers(fields: dict[str, Any], gold: int, tmp_path: Path) -> None:
    (question,) = read_questions(written(tmp_path, [{"question": "Q", **fields}]))
    assert question.answer == gold
    assert question.dimension is None and question.slide is None and question.id == "row 1"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"options": ["x"], "answer": "A"}, "1 options"),
        ({"options": [str(i) for i in range(27)], "answer": "A"}, "27 options"),
        ({"options": ["x", ""], "answer": "A"}, "an empty option B"),
        ({"options": {"A": "x", "C": "y"}, "answer": "A"}, "lettered A, C"),
        ({"options": "free text", "answer": "A"}, "2 to 26 option texts"),
        ({"options": ["x", "y"], "answer": "C"}, "a letter A-B"),
        ({"options": ["x", "y"], "answer": 2}, "an index 0-1"),
        ({"options": ["x", "y"], "answer": True}, "the answer True"),
        ({"options": ["x", "y"]}, "the answer None"),
        ({"options": ["B", "A"], "answer": "A"}, "more than one option"),
        ({"options": ["x", "x"], "answer": "x"}, "more than one option"),
        ({"options": ["x", "y"], "answer": "A", "question": " "}, "a question text"),
    ],
)
def test_bad_rows_are_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [{"question": "Q", "options": ["x", "y"], "answer": "A"}, {"question": "Q", **fields}]
    with pytest.raises(InputError, match="row 2") as caught:
        read_questions(written(tmp_path, rows))
    assert message in str(caught.value)


def test_every_bad_row_is_listed(tmp_path: Path) -> None:
    rows = [{"question": "Q", "options": ["x", "y"], "answer": answer} for answer in "ACBD"]
    with pytest.raises(InputError) as caught:
        read_questions(written(tmp_path, rows))
    assert [problem.location[-5:] for problem in caught.value.problems] == ["row 2", "row 4"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", '[\n{"question": }]', "line 2, column 14"),
        ("a.json", "{}", "a JSON list"),
        ("a.json", "[]", "at least one question"),
        ("a.jsonl", '{"question": "Q", "options": ["a", "b"], "answer": "A"}\n{"x"\n', "line 2, column 5"),
        ("a.jsonl", "3\n", "an object with fields"),
        ("a.csv", "question,A,B,answer\nQ,x,y,A,surplus\n", "4 cells"),
        ("a.csv", 'question,A,B,answer,rationale\nQ,x,y,A,"open\nQ,x,y,B,r\n', "row 1: expected CSV"),
        ("a.csv", "question;A;B;answer\nQ;x;y;A\n", "row 0: expected columns with commas"),
        ("a.csv", "Frage,A,B,answer\nQ,x,y,A\n", "only the fields 'Frage, A, B, answer'"),
        ("a.json", '[{"question": "Q", "options": ["x", NaN], "answer": "A"}]', "an empty option B"),
        ("a.json", '[{"options": {"A": "x", "B": "y", "B": "z"}}]', "repeats the key 'B'"),
        ("a.jsonl", '{"options": {"A": "x", "B": "y", "B": "z"}}', "repeats the key 'B'"),
        ("a.xlsx", "", "ends in"),
        ("a.parquet", "no parquet", "a Parquet file"),
    ],
)
def test_bad_files_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_questions(written(tmp_path, text, name))
    assert message in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_other_encodings_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("question,A,B,answer\nfür,x,y,A\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_questions(tmp_path / name)


def test_nothing_there() -> None:
    with pytest.raises(InputError, match="nothing there"):
        read_questions("/no/such/file.json")


def test_repeated_ids_are_problems(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a unique id"):
        read_questions(written(tmp_path, [authors_row(), authors_row()]))


def test_release_folder_reads_configs_and_splits(tmp_path: Path) -> None:
    def rows(name: str, count: int) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{name}::p{i}::type_A",
                "question": "Q",
                "options": list("wxyz"),
                "answer": "ABCD"[i % 4],
                "dimension": "Correspondence",
                "wsi_name": name,
                "patient_id": name,
                "path_id": f"p{i}",
                "source": "test",
                "group": f"g{i // 4}",
            }
            for i in range(count)
        ]

    folder = write_release(
        tmp_path / "scale-vqa",
        {"default": {"val": rows("v", 3), "test": rows("t", 130)}, "text": {"val": rows("v", 2)}},
        {},
    )
    assert len(read_questions(folder)) == 133
    assert {question.split for question in read_questions(folder, split="val")} == {"val"}
    assert len(read_questions(folder, config="text")) == 2
    last = read_questions(folder, split="test")[-1]
    assert (last.dimension, last.letter, last.group, last.patient) == ("Correspondence", "B", "g32", "t")
    with pytest.raises(InputError, match="a config that it has"):
        read_questions(folder, config="exchange")
    with pytest.raises(InputError, match=r"a split that it has \(val, test\)"):
        read_questions(folder, split="train")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@given(
    st.lists(
        st.tuples(texts, st.lists(texts, min_size=2, max_size=26), st.randoms(use_true_random=False)),
        min_size=1,
        max_size=5,
    )
)
def test_json_jsonl_and_csv_say_the_same(tmp_path_factory: pytest.TempPathFactory, items: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("formats")
    rows = [
        {"question": q, "options": o, "answer": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[r.randrange(len(o))]} for q, o, r in items
    ]
    rows = [row for row in rows if row["answer"] not in {text.strip() for text in row["options"]}]
    if not rows:
        return
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["question", "options", "answer"])
        writer.writerows([row["question"], json.dumps(row["options"]), row["answer"]] for row in rows)
    first = read_questions(folder / "a.json")
    assert [list(question.options) for question in first] == [row["options"] for row in rows]
    assert first == read_questions(folder / "a.jsonl") == read_questions(folder / "a.csv")


def test_other_benchmarks_are_read(shared: Path) -> None:
    questions = read_questions(shared / "other_benchmarks/multipathqa_expert.csv")
    assert len(questions) == 128
    assert all(question.patient and question.patient.startswith("TCGA-") for question in questions)


@pytest.mark.slow
def test_a_name_that_is_neither_here_nor_on_the_hub_is_one_error(fresh_python):
    code = "import sys; from scale_vqa_eval.cli import main; sys.argv[1:] = ['audit', 'data/mistyped']; main()"
    done = fresh_python(code)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "data/mistyped: expected a file or folder here, or a dataset on the Hub" in done.stderr
