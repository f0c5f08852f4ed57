"""``scale-vqa score`` and ``compare`` as a user runs them: output, files, exit codes."""

from __future__ import annotations

import json

import pytest
from command_line import run_in_process

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.scoring.baselines import as_response
from scale_vqa_eval.scoring.results import read_results

ROWS = [
    {
        "question": f"Which finding is seen at 40x ({number})?",
        "options": {"A": "dense stroma", "B": "nests", "C": "fat", "D": "necrosis"},
        "answer": "ABCD"[number % 4],
        "extra_info": {
            "wsi_name": f"TCGA-AA-{1000 + number % 5}-01Z-00-DX1",
            "path_id": f"p{number}",
            "question_type": "type_" + "ABCDE"[number % 5],
        },
    }
    for number in range(40)
]


def scale_vqa(*arguments):
    """Runs the command; returns exit code, stdout, stderr."""
    done = run_in_process(*arguments)
    return done.returncode, done.stdout, done.stderr


def identity(row):
    return "::".join(row["extra_info"].values())


@pytest.fixture
def files(tmp_path):
    """Gold questions, a run that is right on 3 of 4, and its blind run that always says A."""
    data, run, blind = tmp_path / "data.json", tmp_path / "run.jsonl", tmp_path / "blind.jsonl"
    data.write_text(json.dumps(ROWS))
    account = {"provenance": {"model": "m", "prompt_id": "published@1", "ablation": None}, "versions": {"torch": "2"}}
    lines = [
        {"id": identity(row), "response": as_response("ABCD".index(row["answer"]) if n % 4 else 0)}
        for n, row in enumerate(ROWS)
    ]
    run.write_text("".join(json.dumps(line | (account if n == 0 else {})) + "\n" for n, line in enumerate(lines)))
    control = {"provenance": account["provenance"] | {"ablation": "blind"}}
    answered = [line | {"response": as_response(0)} | (control if n == 0 else {}) for n, line in enumerate(lines)]
    blind.write_text("".join(json.dumps(line) + "\n" for line in answered))
    return data, run, blind


def test_score_prints_a_table_and_writes_the_results(files, tmp_path):
    data, run, _ = files
    code, table, warnings = scale_vqa("score", run, "--data", data, "--json", tmp_path / "results.json")
    assert code == 0 and warnings == ""
    assert "Correspondence" in table and "No blind control" in table
    results = read_results(tmp_path / "results.json")
    assert results["accuracy"] == 1.0 and results["n"] == 40 and results["clusters"] == 5
    assert set(results) >= {
        "accuracy",
        "by_dimension",
        "macro",
        "interval",
        "unparsed",
        "group_accuracy",
        "provenance",
    }
    made_from = results["provenance"]
    assert made_from["model"] == "m" and made_from["prompt_id"] == "published@1" and made_from["sampling"] is None
    assert len(made_from["data_hash"]) == 64 and made_from["predicted_with"]["versions"] == {"torch": "2"}
    before = (tmp_path / "results.json").read_bytes()
    assert scale_vqa("score", run, "--data", data, "--json", tmp_path / "results.json")[1] == table
    assert (tmp_path / "results.json").read_bytes() == before


def test_score_beside_a_blind_run(files, tmp_path):
    data, run, blind = files
    code, table, _ = scale_vqa("score", run, "--data", data, "--blind", blind, "--json", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and "Visual gain: +75.0 points" in table and "No blind control" not in table
    assert results["visual_gain"] == 0.75 and results["leakage_adjusted_accuracy"] == 1.0
    assert results["provenance"]["blind"]["predictions"] == str(blind)


def test_a_run_with_images_given_as_blind_is_no_control(files):
    data, run, blind = files
    code, table, _ = scale_vqa("score", blind, "--data", data, "--blind", run)
    assert code == 0 and "the ablation None" in table and "Visual gain" not in table


def test_compare(files, tmp_path):
    data, run, blind = files
    code, table, _ = scale_vqa("compare", run, blind, "--data", data, "--json", tmp_path / "compared.json")
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert code == 0 and "McNemar" in table and "Minimum detectable" in table and "p (Holm)" in table
    assert compared["difference"] == 0.75 and compared["mcnemar"]["only_b"] == 0
    assert set(compared["by_dimension"]["Diagnosis"]) >= {"difference", "interval", "p_value", "p_holm"}
    assert compared["a"]["model"] == "m" and compared["b"]["ablation"] == "blind"


def test_mismatched_ids_are_named_and_fail(files, tmp_path):
    data, run, _ = files
    lines = run.read_text().splitlines()
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join([*lines[2:], lines[3], '{"id": "who", "response": "x"}']))
    code, table, errors = scale_vqa("score", short, "--data", data, "--json", tmp_path / "results.json")
    assert code == 1 and table == "" and "expected a unique id" in errors
    short.write_text("\n".join([*lines[2:], '{"id": "who", "response": "x"}']))
    code, table, errors = scale_vqa("score", short, "--data", data, "--json", tmp_path / "results.json")
    assert code == 1 and table == "" and "3 problems" in errors
    assert all(repr(name) in errors for name in (identity(ROWS[0]), identity(ROWS[1]), "who"))
    assert not (tmp_path / "results.json").exists()
    assert scale_vqa("compare", short, run, "--data", data)[0] == 1


def test_splits_of_one_file(files, tmp_path):
    data, run, _ = files
    rows = [row | {"split": "test" if number < 20 else "val"} for number, row in enumerate(ROWS)]
    data.write_text(json.dumps(rows))
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join(run.read_text().splitlines()[:20]))
    assert "name it with --split" in scale_vqa("score", half, "--data", data)[2]
    code, table, _ = scale_vqa("score", half, "--data", data, "--split", "test")
    assert code == 0 and " 20 " in table


@pytest.mark.parametrize(
    "arguments, code",
    [
        (("score",), 2),
        (("score", "nowhere.jsonl", "--data", "x"), 2),
        (("score", "RUN"), 2),
        (("score", "RUN", "--data", "DATA", "--mode", "lenient"), 2),
        (("score", "RUN", "--data", "nowhere.json"), 1),
        (("score", "RUN", "--data", "DATA", "--json", "/dev/null/results.json"), 1),
        (("score", "DATA", "--data", "DATA"), 1),
        (("compare", "RUN", "--data", "DATA"), 2),
        (("score", "--help"), 0),
    ],
)
def test_exit_codes(files, arguments, code):
    data, run, _ = files
    names = {"RUN": run, "DATA": data}
    found, out, errors = scale_vqa(*(names.get(argument, argument) for argument in arguments))
    assert found == code
    assert "Traceback" not in errors and (code == 0) == bool(out)


def test_results_that_are_none_are_refused(tmp_path):
    path = tmp_path / "results.json"
    for text in ("{", "[]", '{"accuracy": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match="a results file"):
            read_results(path)
