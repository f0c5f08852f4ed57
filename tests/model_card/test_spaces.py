"""The two Spaces as they are used: copied as folders, run alone, opened in a real browser, read back from the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import chromium
from click.testing import CliRunner
from paths import ROOT
from predict_release import make_release, rows

from scale_vqa_eval.scoring.command import score

METRIC = ROOT / "scale_vqa_eval" / "scale_vqa_acc"
LEADERBOARD = ROOT / "model_card" / "leaderboard"
SHOTS = Path(os.environ.get("SCALE_VQA_SHOTS", os.devnull))
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>**b**[x](javascript:window.hacked=1)'
AS_ON_A_SPACE = """
import runpy, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.util import find_spec

class Bare(PathFinder):
    # what requirements.txt does not bring is not there
    absent = {"PACKAGE", "dataset_script", "model_card", "torch", "torchvision", "transformers", "tensorflow"}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.absent else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Bare]
sys.path.insert(0, ".")
assert find_spec("model_card") is None and find_spec("torch") is None
runpy.run_path("app.py", run_name="__main__")
"""
pytestmark = pytest.mark.xdist_group("spaces")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a copy of a Space's folder with what its requirements.txt brings; returns its address."""
    running: list[subprocess.Popen[str]] = []

    def start(folder: Path, **env: str) -> str:
        copy = tmp_path_factory.mktemp("space") / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        package = "scale-vqa" in (folder / "requirements.txt").read_text()
        if package:  # as if installed: an editable installation has a finder of its own
            clean["PYTHONPATH"] = str(ROOT)
        process = subprocess.Popen(
            [sys.executable, "-c", AS_ON_A_SPACE.replace("PACKAGE", "" if package else "scale_vqa_eval")],
            cwd=copy,
            env={**clean, **settings, "HF_HOME": str(copy.parent / "hf"), **env},
            stdout=subprocess.DEVNULL,
            stderr=(copy.parent / "errors").open("w"),
            text=True,
        )
        running.append(process)
        address = f"http://127.0.0.1:{port}/"
        for _ in range(1000):
            assert process.poll() is None, (copy.parent / "errors").read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                return address
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the Space did not start")

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=20)


def opened(browser: Any, address: str) -> Any:
    page = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
    page.goto(address)
    return page


def shot(page: Any, name: str) -> None:
    if SHOTS.is_dir():
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def table(page: Any, selector: str) -> list[list[str]]:
    """Reads a table back, cell by cell, what stands in small print left out."""
    return page.eval_on_selector_all(
        f"{selector} tr",
        "all => all.map(row => [...row.children].map(cell => [...cell.childNodes]"
        ".filter(one => one.tagName !== 'SMALL').map(one => one.textContent).join(' ').trim()))",
    )


# --- the metric's Space


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder, a run that is right on two of three, its blind run, another model's, and gold rows."""
    folder = tmp_path_factory.mktemp("data")
    make_release(folder / "scale-vqa")
    made = list(rows())
    for name, every, ablation in (("run", 3, None), ("blind", 2, "blind"), ("other", 2, "blind")):
        model = "m" if name == "other" else HOSTILE
        account = {"provenance": {"model": model, "prompt_id": "p1", "ablation": ablation}}
        lines = []
        for place, row in enumerate(made):
            letter = "ABCD"[("ABCD".index(row["answer"]) + (place % every == 0)) % 4]
            text = f"<think>x</think> <answer>{letter}</answer>" if place != 7 or name != "run" else "I cannot say."
            lines.append({"id": row["id"], "response": text, **(account if place == 0 else {})})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    authors = [
        {
            "question": row["question"],
            "options": dict(zip("ABCD", row["options"], strict=True)),
            "answer": row["answer"],
            "extra_info": {
                "wsi_name": row["wsi_name"],
                "path_id": row["path_id"],
                "question_type": row["id"].split("::")[-1],
            },
        }
        for row in made
    ]
    (folder / "gold.json").write_text(json.dumps(authors))
    return folder


@pytest.fixture(scope="module")
def metric_space(space: Callable[..., str]) -> str:
    return space(METRIC)


def fill(page: Any, **files: Path) -> None:
    for name, path in files.items():
        page.set_input_files(f"#{name} input[type=file]", path)
        # the line that stays, not the name shown while it uploads
        page.wait_for_selector(f'#{name} .file-preview [aria-label="{path.name}"]')


def go(page: Any) -> str:
    """Asks for the score and returns what the page then shows; what it showed before must be gone."""
    page.wait_for_selector("#go")
    page.evaluate("document.querySelectorAll('#score .bad, #score pre').forEach(one => one.dataset.old = 1)")
    page.click("#go")
    page.wait_for_selector("#score .bad:not([data-old]), #score pre:not([data-old])")
    page.wait_for_function("!document.querySelector('#score').innerText.includes('processing |')")
    return str(page.inner_text("#score"))


def test_the_space_scores_as_the_command_does(metric_space: str, browser: Any, data: Path, tmp_path: Path) -> None:
    page = opened(browser, metric_space)
    fill(page, run=data / "run.jsonl", gold=next((data / "scale-vqa" / "default").glob("*.parquet")))
    assert "No blind control" in go(page)
    shot(page, "space-metric-no-blind")
    fill(page, blind=data / "other.jsonl")
    text = go(page)
    assert "withheld" in text and HOSTILE[:40] in text, "texts of a file are shown as text"
    page.click('#blind [aria-label="Clear"], #blind [aria-label="Remove this file"]')
    fill(page, blind=data / "blind.jsonl")
    text = go(page)
    assert "No blind control" not in text and "Visual gain" in text
    shot(page, "space-metric")
    named = {"--data": data / "scale-vqa", "--blind": data / "blind.jsonl", "--json": tmp_path / "results.json"}
    options = [str(one) for pair in named.items() for one in pair]
    done = CliRunner().invoke(
        score, [str(data / "run.jsonl"), "--config", "default", *options], catch_exceptions=False
    )
    assert page.inner_text("#score pre").strip() == done.stdout.strip()
    expected = json.loads((tmp_path / "results.json").read_text())
    with page.expect_download() as waiting:
        page.click("#download")
    downloaded = json.loads(Path(waiting.value.path()).read_text())
    about, blind = downloaded.pop("provenance"), expected.pop("provenance")
    for run in expected["blind_runs"]:
        run["predictions"] = Path(run["predictions"]).name
    assert downloaded == expected
    for key in ("data_hash", "model", "prompt_id", "ablation", "predictions_hash"):
        assert about[key] == blind[key], key
    assert about["predictions"] == "run.jsonl", "the server's paths stay on the server"
    assert page.evaluate("window.hacked") is None and page.complaints == []
    page.context.close()


def test_the_authors_format_gives_the_same_score(metric_space: str, browser: Any, data: Path, tmp_path: Path) -> None:
    page = opened(browser, metric_space)
    fill(page, run=data / "run.jsonl", gold=data / "gold.json")
    total = next(line.split() for line in go(page).splitlines() if line.startswith("all "))
    assert total[:3] == ["all", "30", "3"], "patients are read from TCGA barcodes"
    page.context.close()


@pytest.mark.parametrize(
    ("name", "content", "location", "message"),
    [
        ("run.jsonl", "", "run.jsonl", "expected at least one response"),
        ("run.jsonl", "{", "run.jsonl, line 1", "expected one JSON object"),
        ("run.jsonl", json.dumps({"id": HOSTILE, "response": "x"}), "run.jsonl", "no response to"),
        ("run.jsonl", '{"id": "a", "response": 5}', "run.jsonl, line 1", "expected text"),
        ("run.jsonl", '{"id": "a", "response": "x"}\n{"id": "a", "response": "x"}', "line 2", "the id of line 1"),
        ("run.jsonl", b"\xff\xfe\x00", "run.jsonl", "UTF-8"),
        ("gold.json", "[1]", "gold.json, row 1", "expected an object"),
        ("gold.json", "{}", "gold.json", "expected a JSON list"),
        ("gold.json", '[{"id": "a", "question": "?", "options": ["x", "y"], "answer": "C"}]', "row 1", "a letter A-B"),
        ("gold.parquet", "no parquet", "gold.parquet", "expected a Parquet file"),
    ],
)
def test_a_bad_file_is_one_clear_message(
    metric_space: str, browser: Any, data: Path, tmp_path: Path, name: str, content: str | bytes, location: str,
    message: str,
) -> None:  # fmt: skip
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    page = opened(browser, metric_space)
    given = {"run": data / "run.jsonl", "gold": data / "gold.json"} | {name.partition(".")[0]: file}
    fill(page, **given)
    text = go(page)
    assert location in text and message in text and "Traceback" not in text and "/gradio/" not in text
    assert page.evaluate("window.hacked") is None and page.locator("#score img").count() == 0
    assert page.locator("#download").is_disabled()
    page.context.close()


def test_what_is_missing_or_no_hub_id_is_named(metric_space: str, browser: Any, data: Path) -> None:
    page = opened(browser, metric_space)
    assert "Predictions: expected a file, found none" in go(page)
    fill(page, run=data / "run.jsonl")
    assert "a file or a dataset on the Hub" in go(page)
    for name in ("/etc/passwd", "../../secret/x", "file:///etc/passwd", "a/b/c"):
        page.fill("#hub textarea, #hub input", name)
        assert "expected a Hub id org/name" in go(page)
    page.context.close()


# --- the leaderboard


def results(model: str, accuracy: float, blind: float | None, /, **more: Any) -> dict[str, Any]:
    """Returns a results file as ``score --json`` writes it, as far as a leaderboard reads it."""
    part = {"accuracy": accuracy, "interval": [accuracy - 0.05, min(1.0, accuracy + 0.05)]}
    beside, control = None, {}
    if blind is not None:
        ends = [round(accuracy - blind + by, 4) for by in (-0.06, 0.06)]
        beside = {"accuracy": blind, "interval": [blind - 0.05, blind + 0.05], "gain_interval": ends}
        beside = {key: one if key == "accuracy" else [min(end, 1.0) for end in one] for key, one in beside.items()}
        control = {"blind": {"model": model, "ablation": "blind"}}
    about = {"model": model, "config": "default", "split": "test", "data_hash": "ab" * 32}
    return {
        **part,
        "by_dimension": {"Diagnosis": part},
        "n": 100,
        "clusters": 20,
        "clustered": True,
        "unparsed": {"n": 1, "rate": 0.01, "reasons": {}},
        "blind": beside,
        "visual_gain": None if blind is None else accuracy - blind,
        "leakage_adjusted_accuracy": None if blind in (None, 1.0) else (accuracy - blind) / (1 - blind),
        "provenance": {**about, **control, **more},
    }


@pytest.fixture(scope="module")
def board_page(space: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("results")
    files = {
        "leaky.json": results("leaky", 0.80, 0.75),
        "seeing.json": results("seeing", 0.60, 0.30),
        "unknown.json": results("no control", 0.90, None),
        "hostile/x.json": results(HOSTILE, 0.50, 0.50),
        "always.json": results("always right blind", 1.0, 1.0),
        "blind.json": results("leaky", 0.75, None, ablation="blind"),
        "images.json": results("seen twice", 0.9, 0.1, blind={"backend": "vllm", "ablation": None}),
        "another.json": results("x", 0.9, 0.1, blind={"model": "y", "ablation": "blind"}),
        "broken.json": {"accuracy": "<b>high</b>", "by_dimension": {}, "provenance": {}},
        "other.json": [1, 2],
        "beyond.json": results("beyond", 7.0, None),
        "silent.json": results("silent", 0.9, 0.1, blind={}),
        "mislabelled.json": results("phantom", 0.9, 0.1) | {"by_dimension": {"zoom-in": {"accuracy": 0.9}}},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "cut.json").write_text('{"accuracy": 0.5')
    (folder / "digits.json").write_text(json.dumps(results("digits", 0.5, 0.3) | {"accuracy": 10**400}))
    (folder / "surrogate.json").write_text(json.dumps(results("lone \ud800", 0.4, 0.4)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "link.json").symlink_to(data / "gold.json")
    return space(LEADERBOARD, RESULTS_DIR=str(folder)), folder


def test_the_leaderboard_ranks_with_the_blind_column(board_page: tuple[str, Path], browser: Any) -> None:
    page = opened(browser, board_page[0])
    page.wait_for_selector("#board table >> nth=1")
    mine = "#board table:has(caption:text('default, test'))"
    head, *lines = table(page, mine)
    assert head[:6] == ["#", "model", "accuracy", "blind", "visual gain", "leakage-adjusted"]
    names = [line[1] for line in lines]
    assert names[0] == "seeing" and names[1].startswith("leaky no visual gain"), "by leakage-adjusted accuracy"
    assert lines[0][2:6] == ["60.0", "30.0", "+30.0", "42.9"] and lines[1][2:6] == ["80.0", "75.0", "+5.0", "20.0"]
    control = next(line for line in lines if "no control" in line[1])
    assert control[3:6] == ["no blind control", "not run", "not run"] and "no blind control" in control[1]
    assert next(line for line in lines if "always" in line[1])[5] == "undefined"
    assert any(HOSTILE in name for name in names), "a name is shown as text"
    assert any("lone \\u{D800}" in name for name in names), "a lone surrogate is shown as its code"
    assert [line[0] for line in lines] == ["1", *["\u2013"] * (len(lines) - 1)], "one model is shown to use images"
    for order, first in (("accuracy", "seeing"), ("visual gain", "seeing")):
        page.get_by_label(order, exact=True).check()
        page.wait_for_function(
            "first => document.querySelector('#board tbody tr td:nth-child(2)').innerText.startsWith(first) || "
            "[...document.querySelectorAll('#board table')].some(one => one.innerText.includes('ab') && "
            "one.querySelector('tbody tr td:nth-child(2)').innerText.startsWith(first))",
            arg=first,
        )
    out = page.inner_text("#board .out")
    for name, why in {
        "blind.json": "ablation (blind)",
        "images.json": "expected a run of the ablation blind",
        "another.json": "expected a blind control with the same model",
        "silent.json": "has no provenance",
        "mislabelled.json": "labelled default, which has no questions of zoom-in",
        "broken.json": "expected a share of 0 to 1",
        "other.json": "expected a results file",
        "beyond.json": "found 7",
        "digits.json": "expected a share of 0 to 1",
        "deep.json": "",
        "cut.json": "Expecting",
        "link.json": "a link out of the folder",
    }.items():
        assert re.search(f"{re.escape(name)}: .*{re.escape(why)}", out), out
    assert page.evaluate("window.hacked") is None and page.complaints == []
    assert page.locator("#board img, #board script, #board b").count() == 0
    page.context.close()


def test_plain_runs_are_ranked_and_make_the_figure_of_the_docs(
    space: Callable[..., str], browser: Any, tmp_path: Path
) -> None:
    runs = (("model A", 0.61, 0.31), ("model B", 0.55, 0.33), ("model C", 0.58, 0.55), ("model D", 0.52, None))
    for name, accuracy, blind in runs:
        (tmp_path / f"{name[-1].lower()}.json").write_text(json.dumps(results(name, accuracy, blind)))
    page = opened(browser, space(LEADERBOARD, RESULTS_DIR=str(tmp_path)))
    page.wait_for_selector("#board table >> nth=1")
    _, *lines = table(page, "#board table:has(caption:text('default, test'))")
    assert [line[0] for line in lines] == ["1", "2", "\u2013", "\u2013"]
    assert "no visual gain shown" in lines[2][1] and "no blind control" in lines[3][1]
    shot(page, "space_leaderboard")
    page.context.close()


def test_published_figures_are_marked_and_those_of_the_audit(board_page: tuple[str, Path], browser: Any) -> None:
    source = ROOT / "scale_vqa_eval" / "audit" / "templates" / "scale_vqa_test_scores.yaml"
    page = opened(browser, board_page[0])
    page.wait_for_selector("#board caption:text('published')")
    page.get_by_label("Dimensions").check()
    page.wait_for_selector("#board table:has(caption:text('published')) th:text('Diagnosis')")
    _, *lines = table(page, "#board table:has(caption:text('published'))")
    models = yaml.safe_load(source.read_text())["models"]
    assert len(lines) == len(models)
    for line in lines:
        name = next(name for name in models if line[1].startswith(name))
        assert float(line[2]) == pytest.approx(models[name]["all"], abs=0.0501)
        assert "published" in line[1] and "no blind control" in line[1] and line[3:6] == ["not published"] * 3
    page.context.close()


def test_an_own_file_is_shown_beside_the_others_and_not_kept(
    board_page: tuple[str, Path], browser: Any, tmp_path: Path
) -> None:
    page = opened(browser, board_page[0])
    page.wait_for_selector("#board table >> nth=1")
    (tmp_path / "mine.json").write_text(json.dumps(results("my model", 0.7, 0.26)))
    page.set_input_files("#uploads input[type=file]", tmp_path / "mine.json")
    page.wait_for_selector("#board td:has-text('my model')")
    line = page.inner_text("#board tr:has-text('my model')")
    assert "uploaded" in line and "59.5" in line and "+44.0" in line
    shot(page, "space-leaderboard-upload")
    page.context.close()
    again = opened(browser, board_page[0])
    again.wait_for_selector("#board table >> nth=1")
    assert again.locator("#board td:has-text('my model')").count() == 0
    again.context.close()


@pytest.mark.parametrize("folder", [METRIC, LEADERBOARD])
def test_a_space_says_how_it_runs(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "@inproceedings{phan2026scalevqa" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["sdk"] == "gradio" and (folder / head["app_file"]).is_file() and head["license"] == "apache-2.0"
    needed = {re.split(r"[<>=]", line)[0] for line in (folder / "requirements.txt").read_text().split()}
    files = {path.stem for path in folder.glob("*.py")}
    imported = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    }
    outside = imported - files - set(sys.stdlib_module_names)
    assert {{"yaml": "pyyaml", "scale_vqa_eval": "scale-vqa"}.get(name, name) for name in outside} <= needed
