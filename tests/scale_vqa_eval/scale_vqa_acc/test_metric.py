"""The metric as users load it: by path, by folder, from the module cache, in two processes; and what it reports."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from response_texts import anything

from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.scale_vqa_acc.scale_vqa_acc import ScaleVqaAcc
from scale_vqa_eval.scale_vqa_acc.summary import gold_codes
from scale_vqa_eval.schema import METRIC_FOLDER, METRIC_NAME

METRIC_SCRIPT = METRIC_FOLDER / f"{METRIC_NAME}.py"
LEAVES = [
    (path.stem, str(path))
    for path in sorted(METRIC_FOLDER.glob("*.py"))
    if path.stem not in ("__init__", "app", METRIC_NAME)
]
"""(module name, path) of each module that the script has to import."""
ODD = ["<think>x</think> <answer>B</answer>", "<answer>c</answer>", "It is A.", None, "\ud800<answer>D</answer>", 7]
GOLD = ["B", "C", "A", "D", "D", "A"]


@pytest.fixture
def metric(tmp_path):
    return lambda config="default", **more: ScaleVqaAcc(config, cache_dir=str(tmp_path), **more)


def test_figures_of_a_small_score(metric):
    score = metric().compute(
        predictions=[*ODD, "<think></think><answer>A</answer>", "<answer>A</answer>"],
        references=[*GOLD, "A", "B"],
        dimension=["x", "x", "x", "y", "y", "y", "y", "y"],
        cluster=["P", "P", "Q", "Q", "R", "R", "S", "S"],
        group=[None, None, "g", "g", "h", "h", "i", ""],
        blind=["<answer>A</answer>"] * 8,
    )
    assert score["accuracy"] == 0.5 and score["n"] == 8 and score["clusters"] == 4 and score["clustered"]
    assert score["by_dimension"]["x"]["accuracy"] == 2 / 3 and score["by_dimension"]["y"]["accuracy"] == 0.4
    assert score["macro"] == pytest.approx((2 / 3 + 0.4) / 2)
    assert score["unparsed"] == {"n": 3, "rate": 3 / 8, "reasons": {"not_text": 2, "no_answer": 1}}
    assert score["format_rate"] == 0.25 and score["reward"] == pytest.approx(0.8 * 0.5 + 0.2 * 0.25)
    assert score["group_accuracy"] == pytest.approx(1 / 3)
    assert score["groups"]["n"] == 3 and score["groups"]["items"] == 5
    assert score["groups"]["chance"] == pytest.approx((1 / 16 + 1 / 16 + 1 / 4) / 3)
    assert score["groups"]["chance_by_assignment"] == score["groups"]["chance"], "no complete group of four"
    assert score["macro_interval"][0] < score["macro"] < score["macro_interval"][1]
    blind = 3 / 8
    assert score["blind"]["accuracy"] == blind and score["visual_gain"] == pytest.approx(0.5 - blind)
    assert score["leakage_adjusted_accuracy"] == pytest.approx((0.5 - blind) / (1 - blind))
    low, high = score["blind"]["gain_interval"]
    assert low < score["visual_gain"] < high


def test_what_was_not_asked_for_is_none(metric):
    score = metric().compute(predictions=ODD, references=GOLD)
    assert score["by_dimension"] == {} and not score["clustered"] and score["clusters"] == 6
    undefined = ("macro", "macro_interval", "group_accuracy", "groups", "blind", "visual_gain", "blind_withheld")
    assert {score[key] for key in (*undefined, "leakage_adjusted_accuracy", "leakage_adjusted_interval")} == {None}


def test_a_blind_run_of_refusals_withholds_the_gain(metric):
    right = [f"<answer>{letter}</answer>" for letter in "ABCD" * 25]
    gold = list("ABCD" * 25)
    for refused, withheld in ((2, False), (3, True)):
        blind = ["<answer>A</answer>"] * (100 - refused) + ["I cannot see an image."] * refused
        score = metric().compute(predictions=right, references=gold, blind=blind)
        assert (score["visual_gain"] is None) == (score["blind"] is None) == withheld
        assert (score["blind_withheld"] is not None) == withheld
    assert score["blind_withheld"]["unparsed"]["n"] == 3 and "3.0%" in score["blind_withheld"]["reasons"][0]


def test_a_blind_run_that_is_always_right_leaves_nothing_to_adjust(metric):
    right = [f"<answer>{letter}</answer>" for letter in "AB"]
    score = metric().compute(predictions=right, references=["A", "B"], blind=right)
    assert score["visual_gain"] == 0.0 and score["leakage_adjusted_accuracy"] is None


def test_strict_mode_and_number_of_options(metric):
    responses = ["<answer>A</answer><answer>B</answer>", "<answer>E</answer>"]
    lenient = metric().compute(predictions=responses, references=["A", "E"], options=5)
    strict = metric().compute(predictions=responses, references=["A", "E"], options=[4, 5], mode="strict")
    assert lenient["accuracy"] == 1.0 and lenient["chance"] == pytest.approx(0.2)
    assert strict["accuracy"] == 0.5 and strict["unparsed"]["reasons"] == {"several_answers": 1}
    assert strict["chance"] == pytest.approx((0.25 + 0.2) / 2) and strict["mode"] == "strict"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(anything, st.sampled_from("ABCD")), min_size=1, max_size=20),
    st.sampled_from(["reference", "strict"]),
)
def test_nothing_crashes_it_and_nothing_is_guessed(tmp_path_factory, items, mode):
    metric = ScaleVqaAcc(cache_dir=str(tmp_path_factory.mktemp("cache")))
    score = metric.compute(predictions=[r for r, _ in items], references=[g for _, g in items], mode=mode)
    parsed = [parse_response(response, mode) for response, _ in items]
    assert score["accuracy"] == np.mean([p.letter == gold for p, (_, gold) in zip(parsed, items, strict=True)])
    assert score["unparsed"]["n"] == sum(p.letter is None for p in parsed)
    assert sum(score["unparsed"]["reasons"].values()) == score["unparsed"]["n"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(anything, st.integers(0, 3), st.sampled_from("PQR")), min_size=2, max_size=10),
    st.integers(1, 9),
)
def test_gathered_in_parts_is_the_same_as_in_one_call(tmp_path_factory, items, cut):
    metric = ScaleVqaAcc("cluster", cache_dir=str(tmp_path_factory.mktemp("cache")))
    responses, gold, clusters = ([item[place] for item in items] for place in range(3))
    whole = metric.compute(predictions=responses, references=gold, cluster=clusters)
    metric.add_batch(predictions=responses[:cut], references=gold[:cut], cluster=clusters[:cut])
    for response, answer, cluster in items[cut:]:
        metric.add(prediction=response, reference=answer, cluster=cluster)
    assert metric.compute() == whole


def test_columns_of_any_kind_are_taken(metric):
    import pandas
    import pyarrow

    texts, letters = ["<answer>A</answer>", "<answer>B</answer>"], ["A", "C"]
    expected = metric().compute(predictions=texts, references=letters)
    for kind in (tuple, np.array, pandas.Series, pyarrow.array, iter):
        assert metric().compute(predictions=kind(texts), references=kind(letters)) == expected
    assert metric().compute(predictions=texts, references=np.array([0, 2])) == expected


@pytest.mark.parametrize(
    "config, given, message",
    [
        ("default", {"references": ["A", "F"]}, "reference 1 must be one of the letters A-D or an index 0-3, got 'F'"),
        ("default", {"references": ["A", 4]}, "got 4"),
        ("default", {"references": ["A", None]}, "got None"),
        ("default", {"references": ["A"]}, "1 references but 2 values of predictions"),
        ("default", {"cluster": ["P"]}, "2 references but 1 values of cluster"),
        ("default", {"cluster": ["P", None]}, "item 1 has no cluster"),
        ("default", {"blind": [""]}, "2 references but 1 values of blind"),
        ("default", {"options": [4, 4, 4]}, "2 references but 3 values of options"),
        ("default", {"mode": "lenient"}, "mode must be one of reference, strict, got 'lenient'"),
        ("default", {"predictions": [], "references": []}, "at least one item"),
        ("dimension+cluster", {}, "config 'dimension\\+cluster' needs the inputs dimension, cluster"),
        ("dimension+organ", {}, "got 'dimension\\+organ'"),
    ],
)
def test_wrong_use_is_named(metric, config, given, message):
    inputs = {"predictions": ["<answer>A</answer>", "x"], "references": ["A", "B"], **given}
    with pytest.raises(ValueError, match=message):
        metric(config).compute(**inputs)


def test_gold_is_read_the_same_one_by_one():
    for references in (
        list("ABCD"),
        list("abcd"),
        [0, 1, 2, 3],
        np.arange(4),
        ["A", 1, "c", 3],
        [" A", "B ", "c", "d\n"],
    ):
        assert gold_codes(references, 4).tobytes() == b"ABCD"


def test_every_leaf_is_imported_by_the_script():
    """evaluate copies what the script itself imports and nothing else."""
    from evaluate.loading import get_imports

    internal = {name for kind, name, *_ in get_imports(str(METRIC_SCRIPT)) if kind == "internal"}
    assert internal == {name for name, _ in LEAVES}


def test_modules_need_the_standard_library_numpy_and_scipy_alone():
    for _, path in LEAVES:
        for node in ast.walk(ast.parse(Path(path).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [name for name, _ in LEAVES] if node.level else [node.module]
            outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert outside <= {"numpy", "scipy", *(name for name, _ in LEAVES)}


@pytest.mark.slow
def test_loads_by_path_without_this_package_and_its_docstring_runs(fresh_python, tmp_path):
    """From a copy elsewhere, the package out of reach; the example of the docstring as evaluate shows it."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    shutil.copytree(METRIC_FOLDER, place / "scale_vqa_acc")
    done = fresh_python(
        "import sys\n"
        "class Barred:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('scale_vqa_eval', 'dataset_script'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Barred())\n"
        "import doctest, os, evaluate\n"
        "for name in (os.path.abspath('scale_vqa_acc'), './scale_vqa_acc', 'scale_vqa_acc'):\n"
        "    metric = evaluate.load(name)\n"
        "    assert metric.compute(predictions=['<answer>a</answer>'], references=['A'])['accuracy'] == 1.0\n"
        "example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, 'metric', None, 0)\n"
        "assert len(example.examples) >= 5\n"
        "print(doctest.DocTestRunner().run(example).failed)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


@pytest.mark.slow
def test_loads_from_the_module_cache(fresh_python):
    """The script and its leaves, copied as the cache wants them, load by the bare name."""
    done = fresh_python(
        "import evaluate, evaluate.loading as loading\n"
        "from datasets import DownloadMode\n"
        f"script, leaves = {str(METRIC_SCRIPT)!r}, {LEAVES!r}\n"
        "loading._create_importable_file(script, leaves, [], loading.init_dynamic_modules(), 'metrics',\n"
        "    'evaluate-metric/scale_vqa_acc', DownloadMode.REUSE_DATASET_IF_EXISTS)\n"
        "metric = evaluate.load('scale_vqa_acc', 'cluster')\n"
        "print(metric.compute(predictions=[None], references=[0], cluster=['P'])['unparsed']['reasons'])\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'not_text': 1}"


@pytest.mark.slow
def test_two_processes_are_merged(tmp_path):
    code = (
        "import sys\n"
        "from scale_vqa_eval.scale_vqa_acc.scale_vqa_acc import ScaleVqaAcc\n"
        "own = int(sys.argv[1])\n"
        "metric = ScaleVqaAcc('cluster+blind', num_process=2, process_id=own, cache_dir=sys.argv[2])\n"
        "texts = ['<answer>A</answer>', None, '\\ud800', '<answer>B</answer>', '<answer>C</answer>'][own::2]\n"
        "print(metric.compute(predictions=texts, references=[0, 1, 2, 1, 3][own::2],\n"
        "    cluster=list('PQRPQ')[own::2], blind=['<answer>B</answer>'] * len(texts)))\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(own), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for own in (0, 1)
    ]
    first, second = (run.communicate(timeout=120)[0] for run in runs)
    assert second.strip() == "None"
    whole = ScaleVqaAcc("cluster+blind", cache_dir=str(tmp_path)).compute(
        predictions=["<answer>A</answer>", None, "\ud800", "<answer>B</answer>", "<answer>C</answer>"],
        references=[0, 1, 2, 1, 3],
        cluster=list("PQRPQ"),
        blind=["<answer>B</answer>"] * 5,
    )
    merged = ast.literal_eval(first)
    for figures, expected in ((merged, whole), (merged["blind"], whole["blind"])):
        for key in (
            "accuracy",
            "interval",
            "standard_error",
            "effective_n",
        ):  # the order of a sum moves the last digit
            assert figures.pop(key) == pytest.approx(expected.pop(key))
    for key in [key for key in merged["blind"] if key.startswith("gain")]:
        assert merged["blind"].pop(key) == pytest.approx(whole["blind"].pop(key))
    assert merged == whole


def test_combines_with_itself(metric):
    import evaluate

    merged = evaluate.combine([metric()]).compute(predictions=ODD, references=GOLD)
    assert merged["accuracy"] == metric().compute(predictions=ODD, references=GOLD)["accuracy"]
