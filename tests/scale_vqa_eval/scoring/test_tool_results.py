"""Logs and tables of other evaluation tools are predictions: the same letters, failures, controls and statements."""

from __future__ import annotations

import json
import zipfile

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from predict_release import make_release

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.command import score
from scale_vqa_eval.scoring.predictions import read_predictions
from scale_vqa_eval.scoring.runs import read_runs
from scale_vqa_eval.scoring.tool_results import vlmevalkit_response

NOTED = {
    "prompt_id": "published",
    "prompt_version": 1,
    "prompt_digest": "d",
    "data_hash": "h",
    "ablation": "blind",
    "split": "test",
    "config": None,
}


def header(**changes):
    run = {"task": "scale_vqa", "model": "m", "config": {"epochs": 1}, "packages": {"inspect_ai": "0.3"}}
    return {"eval": {**run, "metadata": NOTED, **changes}, "plan": {"config": {"temperature": 0.0, "seed": None}}}


def sample(identity, content, stop="stop", **more):
    choice = {"message": {"content": content}, "stop_reason": stop}
    return {"id": identity, "output": {"choices": [choice], "completion": "text"}, **more}


LONG = "f" * 32
THOUGHT = {"type": "reasoning", "reasoning": f"attachment://{LONG}"}
SAMPLES = [
    sample("b", [THOUGHT, {"type": "text", "text": "<answer>B</answer>"}], attachments={LONG: "Glands fuse."}),
    sample("a", "<answer>A</answer>", stop="max_tokens"),
    sample("c", "too long", stop="model_length"),
    sample("d", "", stop="content_filter"),
    {"id": "e", "output": {"choices": []}, "error": {"message": "x" * 500 + "the end"}},
]


def write_log(path, head, samples):
    """Writes an Inspect log; every other member is compressed by Zstandard, as newer versions write them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, content) in enumerate(
            [("header.json", head)] + [(f"samples/{one['id']}_epoch_1.json", one) for one in samples]
        ):
            data = json.dumps(content).encode()
            archive.writestr(name, data, zipfile.ZIP_STORED if number % 2 else zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_an_inspect_log_is_a_predictions_file(tmp_path, kind):
    path = tmp_path / f"log.{kind}"
    if kind == "eval":
        write_log(path, header(), SAMPLES)
    else:
        path.write_text(json.dumps({**header(), "samples": SAMPLES}))
    found = read_predictions(path)
    responses = {row.id: row.response for row in found.rows}
    assert responses["b"] == "<think>Glands fuse.</think>\n<answer>B</answer>"
    assert responses["a"] == "<answer>A</answer>" and [responses[name] for name in "cde"] == [None] * 3
    assert found.rows[-1].error.endswith("the end") and len(found.rows[-1].error) == 400
    assert (found.settings["model"], found.settings["ablation"]) == ("m", "blind")
    assert found.provenance["sampling"] == {"temperature": 0.0} and found.provenance["prompt_id"] == "published@1"


@pytest.mark.parametrize(
    "changes, message",
    [({"metadata": {}}, "a log of the task scale_vqa"), ({"config": {"epochs": 2}}, "one response per question")],
    ids=["other", "epochs"],
)
def test_another_log_is_one_error(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_predictions(write_log(tmp_path / "x.eval", header(**changes), SAMPLES))


@pytest.mark.parametrize("damage", ["cut", "empty", "shape"])
def test_a_damaged_log_is_one_error(tmp_path, damage):
    path = write_log(
        tmp_path / "x.eval", header(), SAMPLES if damage != "shape" else [{"id": "a", "output": {"choices": [{}]}}]
    )
    if damage != "shape":
        path.write_bytes(path.read_bytes()[:400] if damage == "cut" else b"")
    with pytest.raises(InputError, match=r"x\.eval"):
        read_predictions(path)


def test_members_compressed_by_zstandard_are_read(tmp_path):
    """The standard library cannot write them: the bytes and the method of a stored member are replaced."""
    path = tmp_path / "x.eval"
    data = pa.Codec("zstd").compress(json.dumps(SAMPLES[1]).encode(), asbytes=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header()))
        archive.writestr("samples/a_epoch_1.json", data)
    content = bytearray(path.read_bytes())
    local, central = content.rindex(b"PK\x03\x04"), content.rindex(b"PK\x01\x02")
    content[local + 8 : local + 10] = content[central + 10 : central + 12] = (93).to_bytes(2, "little")
    path.write_bytes(content)
    assert [row.response for row in read_predictions(path).rows] == ["<answer>A</answer>"]


def test_samples_of_lmms_eval_state_their_run(tmp_path):
    rows = [
        {"id": f"q{n}", "response": f"<answer>{'AB'[n]}</answer>", "ablation": "blind", "prompt_id": "published@1"}
        for n in range(2)
    ]
    path = tmp_path / "20260101_120000_samples_scale_vqa_blind.jsonl"
    path.write_text("".join(json.dumps({"doc_id": n, "scale_vqa_acc": row}) + "\n" for n, row in enumerate(rows)))
    task = {"test_split": "test", "generation_kwargs": {"temperature": 0, "max_new_tokens": 4096}}
    stated = {"config": {"model_args": "model=org/m,base_url=http://x/v1"}, "configs": {"scale_vqa_blind": task}}
    (tmp_path / "20260101_120000_results.json").write_text(json.dumps(stated))
    found = read_predictions(path)
    assert [(row.id, row.response) for row in found.rows] == [
        ("q0", "<answer>A</answer>"),
        ("q1", "<answer>B</answer>"),
    ]
    assert (found.settings["model"], found.settings["ablation"], found.provenance["split"]) == (
        "org/m",
        "blind",
        "test",
    )


def table_of(release, letters, **more):
    questions = read_questions(release, "test", "default")
    return pd.DataFrame(
        [
            {"index": n, "id": one.id, "question": one.question, **dict(zip("ABCD", one.options, strict=True)),
             "answer": one.letter, "split": "test", "prediction": letters(n, one), **more}
            for n, one in enumerate(questions)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["xlsx", "tsv"])
def test_a_table_of_vlmevalkit_joins_the_report(tmp_path, suffix):
    release = make_release(tmp_path / "scale-vqa", paths=2)
    folder = tmp_path / "GPT"
    folder.mkdir()
    texts = {0: "Failed to obtain answer via API.", 1: "no idea"}
    for part, letters in (
        ("", lambda n, one: texts.get(n, one.letter)),
        ("_blind", lambda n, one: "The answer is A."),
    ):
        table, path = table_of(release, letters), folder / f"GPT_ScaleVQA_default_test{part}.{suffix}"
        table.to_excel(path, index=False) if suffix == "xlsx" else table.to_csv(path, sep="\t", index=False)
    seen, blind = read_runs(sorted(folder.glob(f"*.{suffix}")), str(release), None, None)
    assert seen.system == blind.system and (seen.ablation, blind.ablation) == (None, "blind")
    assert seen.slice == blind.slice and seen.slice.split == "test" and seen.system.model == "GPT"
    assert seen.predictions.rows[0].error and seen.predictions.rows[1].response == "no idea"
    assert seen.predictions.rows[2].response.endswith("</answer>")


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("(b)", None),
        ("B. stroma", "B"),
        ("Option A or B", None),
        ("glands", "A"),
        ("glands and stroma", None),
        ("<think>x</think> <answer>C</answer>", "C"),
        ("A gland that is long and winding and old and wide", None),
    ],
    ids=["letter", "lower", "dot", "two", "text", "texts", "tags", "article"],
)
def test_letters_are_read_as_vlmevalkit_reads_them(text, letter):
    response = vlmevalkit_response(text, ["glands", "stroma", "nuclei", "necrosis"])["response"]
    assert response.endswith(f"<answer>{letter}</answer>") if letter else "<answer>" not in response


def test_a_table_without_our_ids_is_named(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("index\tprediction\n0\tA\n")
    with pytest.raises(InputError, match="the columns id"):
        read_predictions(path)


def test_score_writes_a_tidy_table_of_the_same_figures(tmp_path):
    release = make_release(tmp_path / "scale-vqa", paths=4)
    questions = read_questions(release, "test", "default")
    for name, ablation, letters in (("seen", None, "letter"), ("blind", "blind", "A")):
        lines = [
            {"id": one.id, "response": f"<answer>{one.letter if letters == 'letter' else 'A'}</answer>"}
            for one in questions
        ]
        lines[0]["provenance"] = {"model": "=m", "ablation": ablation, "sampling": None}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "score.csv"
    given = [tmp_path / "seen.jsonl", "--data", release, "--split", "test", "--blind", tmp_path / "blind.jsonl"]
    given += ["--csv", out, "--json", tmp_path / "score.json"]
    assert CliRunner().invoke(score, [str(one) for one in given], catch_exceptions=False).exit_code == 0
    table, figures = pd.read_csv(out, keep_default_na=False), json.loads((tmp_path / "score.json").read_text())
    total = table[table["dimension"] == ""].set_index("measure")
    assert float(total.loc["accuracy", "value"]) == 100 * figures["accuracy"] == 100
    assert float(total.loc["gain", "value"]) == pytest.approx(100 * figures["visual_gain"], abs=1e-4)
    assert set(table["model"]) == {"'=m"} and set(table["questions"]) == {20, 4}
    by_dimension = table[(table["measure"] == "blind") & (table["dimension"] != "")]
    assert len(by_dimension) == 5 and len(table[table["measure"] == "accuracy"]) == 6


def test_a_table_of_our_plug_in_is_read_by_the_published_rule_alone(tmp_path):
    release = make_release(tmp_path / "scale-vqa", paths=1)
    path = tmp_path / "M_ScaleVQA_default_test.tsv"
    table_of(release, lambda n, one: "B", prompt_id="published@1").to_csv(path, sep="\t", index=False)
    found = read_predictions(path)
    assert {row.response for row in found.rows} == {"B"} and found.settings["prompt_id"] == "published@1"
