"""``scale-vqa report`` on runs with known answers: the same figures in every format, gaps shown as gaps."""

from __future__ import annotations

import csv
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run_in_process
from PIL import Image
from predict_release import rows
from scipy import special, stats

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import DIMENSIONS
from scale_vqa_eval.scoring.baselines import as_response
from scale_vqa_eval.scoring.command import report
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.text import csv_text, latex, markdown

PATHS = 6
HOSTILE = "evil|*x*<img src=x onerror=1>_$\\input{/etc/passwd}%&#~^ [a](http://b) `c`\n=2+2\u202e"
# paths of six that are right, by dimension: 21 of 30 with images, 10 without, 18 without the high view
FULL, BLIND, NO_HIGH = (6, 5, 4, 3, 3), (3, 3, 2, 1, 1), (5, 4, 3, 3, 3)


def exchange_rows():
    """Two groups of four."""
    for number, row in enumerate(list(rows(PATHS))[:8]):
        options = [f"finding {number // 4} {letter}" for letter in "wxyz"]
        group = {"group": f"g{number // 4}", "answer": "ABCD"[number % 4], "options": options}
        yield row | group | {"question": "What is seen?", "dimension": DIMENSIONS[0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tables = {
        "default": {"test": rows(PATHS)},
        "screened": {"test": [row for row in rows(PATHS) if int(row["path_id"][1:]) < 4]},
        "exchange": {"test": exchange_rows()},
    }
    return write_release(tmp_path_factory.mktemp("data") / "scale-vqa", tables, dict.fromkeys(tables, "for a test"))


def write_run(path, asked, right, turns=(None,), **account):
    """Writes a predictions file that is right where ``right(place, row)`` says so."""
    account = {"model": "m/M-1", "config": "default", "split": "test", "ablation": None, "prompt_id": "p@1"} | account
    lines = []
    for place, row in enumerate(asked):
        for turn in turns:
            gold = ("ABCD".index(row["answer"]) - (turn or 0)) % 4
            line = {"id": row["id"], "response": as_response(gold if right(place, turn) else (gold + 1) % 4)}
            lines.append(line if turn is None else line | {"rotation": turn})
    lines[0] = lines[0] | {"provenance": account, "versions": {}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def first(counts):
    """Right on the first ``counts[dimension]`` paths."""
    return lambda place, _: place // 5 < counts[place % 5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    whole, swapped = list(rows(PATHS)), list(exchange_rows())
    return [
        write_run(place / "full.jsonl", whole, first(FULL)),
        write_run(place / "blind.jsonl", whole, first(BLIND), ablation="blind"),
        write_run(place / "no_high.jsonl", whole, first(NO_HIGH), ablation="no-high"),
        write_run(place / "turned.jsonl", whole, lambda n, turn: n < 15 or turn, range(4), ablation="circular"),
        write_run(place / "exchange.jsonl", swapped, lambda n, _: n < 5, config="exchange"),
        write_run(place / "evil.jsonl", whole, first((3, 3, 3, 3, 3)), model=HOSTILE),
    ]


@pytest.fixture(scope="module")
def made(folder, runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    code, _, warnings = scale_vqa("report", *runs, "--data", folder, "--out", out, "--published")
    assert code == 0, warnings
    return out, warnings


def scale_vqa(*arguments):
    done = run_in_process(*arguments)
    return done.returncode, done.stdout, done.stderr


def interval(values):
    """The 95% interval of (30,) values of 3 patients of 10 questions, in per cent: Miller 2024, t at 2 degrees."""
    sums = (np.array(values, float) - np.mean(values)).reshape(3, 10).sum(axis=1)
    half = 4.302652729911275 * np.sqrt(3 / 2 * (sums**2).sum()) / 30
    return 100 * (np.mean(values) - half), 100 * (np.mean(values) + half)


def logit_interval(values):
    """The 95% interval of the accuracy of (30,) values of 3 patients of 10 questions, in per cent."""
    mean = np.mean(values)
    terms = 3 / 2 * ((np.array(values, float) - mean).reshape(3, 10).sum(axis=1) / 30) ** 2
    df = min(2.0, 2 * terms.sum() ** 2 / (3 / 2 * ((terms - terms.mean()) ** 2).sum()))
    half = stats.t.ppf(0.975, df) * np.sqrt(terms.sum()) / (mean * (1 - mean))
    exact = stats.beta.ppf([0.025, 0.975], [3 * mean, 3 * mean + 1], [3 - 3 * mean + 1, 3 - 3 * mean])
    ends = special.expit(special.logit(mean) + np.array([-half, half]))
    return 100 * max(ends[0], exact[0]), 100 * min(ends[1], exact[1])


def right(counts):
    return [first(counts)(place, None) for place in range(30)]


def csv_rows(out):
    lines = list(csv.DictReader(io.StringIO((out / "report.csv").read_text())))
    table = {}
    for line in lines:
        row = table.setdefault((line["config"], line["model"]), {})
        key = line["measure"] + f"/{line['dimension']}" * bool(line["dimension"])
        assert key not in row, "one row a measurement"
        row |= {key: line["value"], f"{key} low": line["low"], f"{key} high": line["high"]}
        row |= {name: line[name] for name in ("questions", "patients", "origin", "control")}
    return table


def markdown_rows(out):
    """Heading -> table number -> model -> cells, as plain text."""
    found, place = {}, None
    for line in (out / "report.md").read_text().splitlines():
        if line.startswith("## "):
            place, table = found.setdefault(re.sub(r"\\(.)", r"\1", line[3:]), []), None
        elif line.startswith("|"):
            cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if table is None:
                table = {}
                place.append((cells, table))
            elif not cells[0].startswith("---"):
                table[cells[0]] = dict(zip(place[-1][0], cells, strict=True))
        else:
            table = None
    return found


@pytest.mark.slow
def test_the_csv_holds_the_known_figures(made):
    mine = csv_rows(made[0])["default", "m/M-1"]
    assert [float(mine[f"accuracy/{name}"]) for name in DIMENSIONS] == pytest.approx([100, 83.3333, 66.6667, 50, 50])
    expected = {"accuracy": 70, "blind": 33.3333, "gain": 36.6667, "adjusted": 55, "no-high": 10, "circular": 50}
    assert {key: float(mine[key]) for key in expected} == pytest.approx(expected)
    assert (float(mine["accuracy low"]), float(mine["accuracy high"])) == pytest.approx(
        logit_interval(right(FULL)), abs=1e-3
    )
    change = np.array(right(FULL), float) - np.array(right(BLIND), float)
    assert (float(mine["gain low"]), float(mine["gain high"])) == pytest.approx(interval(change), abs=1e-3)
    assert float(mine["no-high/Correspondence"]) == pytest.approx(100 / 6, abs=1e-3)
    assert (mine["questions"], mine["patients"], mine["control"]) == ("30", "3", "blind control")


@pytest.mark.slow
def test_what_was_not_run_is_absent_from_the_csv_and_never_zero(made):
    table = csv_rows(made[0])
    assert not {"no-low", "no-mid", "shuffled"} & table["default", "m/M-1"].keys()
    other = table["default", csv_text(HOSTILE)]
    assert not {"blind", "gain", "adjusted", "circular", "no-high"} & other.keys()
    assert (other["accuracy"], other["control"]) == ("50.0000", "no blind control")


def test_markdown_shows_the_same_figures_and_names_what_is_missing(made):
    tables = markdown_rows(made[0])["default, split test"]
    dimensions, controls, scales = (table for _, table in tables)
    assert [dimensions["m/M-1"][name].split()[0] for name in (*DIMENSIONS, "All")] == [
        "100.0",
        "83.3",
        "66.7",
        "50.0",
        "50.0",
        "70.0",
    ]
    low, high = logit_interval(right(FULL))
    assert dimensions["m/M-1"]["All"] == f"70.0 [{low:.1f}, {high:.1f}]"
    cells = controls["m/M-1"]
    assert [cells[name].split()[0] for name in ("Blind", "Visual gain", "Leakage-adjusted", "Circular")] == [
        "33.3", "+36.7", "55.0", "50.0",
    ]  # fmt: skip
    assert scales["m/M-1"]["High (200x)"].startswith("+10.0 [")
    assert scales["m/M-1"]["Low (10x)"] == scales["m/M-1"]["Own images"] == "not run"
    hostile = next(name for name in controls if name.startswith("evil"))
    assert hostile.endswith("(no blind control)") and controls[hostile]["Blind"] == "not run"


def test_published_figures_stand_beside_the_runs_on_default_alone(made):
    tables = markdown_rows(made[0])
    reported = "ScaleReasoner-R1 (published, no blind control)"
    assert tables["default, split test"][0][1][reported]["All"] == "82.9"
    assert tables["default, split test"][0][1][reported]["Confirmation"] == "89.1"  # 89.05
    assert all(reported not in table for _, table in tables["default, split test"][1:])
    assert not any("published" in name for _, table in tables["exchange, split test"] for name in table)
    assert csv_rows(made[0])["default", "GPT-5.2"]["accuracy/Diagnosis"] == "65.1700"


def test_latex_shows_the_same_figures(made):
    text = (made[0] / "report.tex").read_text()
    mine = [line for line in text.splitlines() if line.startswith("m/M-1 &")]
    low, high = logit_interval(right(FULL))
    assert mine[0].endswith(rf"\scalevqainterval{{$70.0$}}{{${low:.1f}$}}{{${high:.1f}$}} \\")
    values = [re.findall(r"\\scalevqainterval\{\$([^$]*)\$\}|\\textit\{([^}]*)\}|^ \$([^$]*)\$", " " + cell.strip())[0]
              for cell in mine[0].removesuffix(r" \\").split(" & ")[1:]]  # fmt: skip
    assert ["".join(value) for value in values] == ["100.0", "83.3", "66.7", "50.0", "50.0", "70.0"]
    assert (
        r"\scalevqainterval{$+36.7$}" in text and r"\scalevqainterval{$55.0$}" in text and r"\textit{not run}" in text
    )
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 3
    widths = [int(count) for count in re.findall(r"\\multicolumn\{(\d+)\}", text)]
    assert set(widths) == {7, 8, 5}
    assert "(no blind control)" in text


def test_screened_takes_the_answers_of_the_whole_and_says_so(made):
    mine = csv_rows(made[0])["screened", "m/M-1"]
    # the first four paths of six: 4 + 4 + 4 + 3 + 3 of 20, blind 3 + 3 + 2 + 1 + 1
    assert (float(mine["accuracy"]), float(mine["blind"]), float(mine["circular"])) == pytest.approx((90, 50, 75))
    assert (
        "which has these questions: m/M-1: with images, blind, no-high, circular;"
        in (made[0] / "report.md").read_text()
    )


def test_a_run_of_its_own_on_screened_is_preferred(folder, runs, tmp_path):
    kept = [row for row in rows(PATHS) if int(row["path_id"][1:]) < 4]
    own = write_run(tmp_path / "own.jsonl", kept, lambda n, _: n < 5, config="screened")
    run_report([*runs[:2], own], folder, tmp_path / "out")
    mine = csv_rows(tmp_path / "out")["screened", "m/M-1"]
    assert (mine["accuracy"], mine["blind"]) == ("25.0000", "50.0000")


def test_exchange_has_its_group_accuracy_and_no_blind_control(made):
    mine = csv_rows(made[0])["exchange", "m/M-1"]
    assert (float(mine["accuracy"]), float(mine["group"])) == pytest.approx((62.5, 50))
    tables = markdown_rows(made[0])["exchange, split test"]
    assert tables[1][1]["m/M-1 (no blind control)"]["Group"].startswith("50.0 [")
    assert "exchange, split test: m/M-1: no blind control" in made[1]


def test_plots_are_whole_and_their_bars_are_the_figures(made):
    out = made[0]
    names = {path.name for path in out.iterdir()}
    assert {f"{plot}-default-test.{kind}" for plot in ("bars", "radar", "scales") for kind in ("png", "svg")} <= names
    assert "bars-exchange-test.svg" in names and "radar-exchange-test.svg" not in names
    assert not [name for name in names if name.startswith(".")]
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 1500 and len(image.convert("L").getcolors()) > 20
    tree = ElementTree.fromstring((out / "bars-default-test.svg").read_bytes())
    heights = {}
    for group in tree.iter("{http://www.w3.org/2000/svg}g"):
        if (group.get("id") or "").startswith("bar-"):
            numbers = list(map(float, re.findall(r"-?\d+\.?\d*", group[0].get("d"))))
            heights[group.get("id")] = max(numbers[1::2]) - min(numbers[1::2])
    unit = heights["bar-0-5"] / 70
    assert [heights[f"bar-0-{place}"] / unit for place in range(6)] == pytest.approx(
        [100, 83.333, 66.667, 50, 50, 70], abs=0.01
    )
    assert [heights[f"bar-1-{place}"] / unit for place in range(6)] == pytest.approx([50] * 6, abs=0.01)


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(made, folder, runs, tmp_path):
    run_report(runs, folder, tmp_path / "again", "--published")
    files = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert files == {path.name: path.read_bytes() for path in made[0].iterdir()}


def test_a_hostile_name_stays_text_in_markdown(made):
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like" if has_linkify() else "default", {"html": True})
    if not has_linkify():
        parser.enable("table")
    tokens = parser.parse((made[0] / "report.md").read_text())
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or []}
    assert not kinds & {"html_inline", "html_block", "em_open", "strong_open", "link_open", "code_inline"}
    plain = "".join(
        child.content for token in tokens for child in token.children or [] if child.type.startswith("text")
    )
    assert "evil|*x*<img src=x onerror=1>_$\\input{/etc/passwd}%&#~^ [a](http://b) `c` =2+2\\u{202E}" in plain


def has_linkify():
    try:
        import linkify_it  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_hostile_name_stays_text_in_latex_and_csv(made):
    text = (made[0] / "report.tex").read_text()
    line = next(line for line in text.splitlines() if line.startswith("evil"))
    name = line.partition(" & ")[0]
    assert r"\textbackslash{}input\{/etc/passwd\}\%\&\#" in name and "\\input" not in name
    commands = set(re.findall(r"\\([A-Za-z]+)", name))
    assert commands <= {
        "textbar",
        "textless",
        "textgreater",
        "textbackslash",
        "textasciitilde",
        "textasciicircum",
        "textasciigrave",
    }
    assert latex("a--b é 漢") == "a-{}-b é [U+6F22]"
    assert csv_text("=cmd()") == "'=cmd()" and csv_text("@x") == "'@x"
    assert markdown("www.a.b a@b") == r"www\.a.b a\@b"


def run_report(runs, folder, out, *more):
    given = [*map(str, runs), "--data", str(folder), "--out", str(out), *more]
    return CliRunner().invoke(report, given, catch_exceptions=False)


def test_ids_that_do_not_match_are_named_and_nothing_is_written(folder, runs, tmp_path):
    lines = runs[0].read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:-1], lines[-1].replace('"id": "', '"id": "other-')]) + "\n")
    with pytest.raises(InputError) as caught:
        run_report([broken], folder, tmp_path / "out")
    text = str(caught.value)
    assert "broken.jsonl" in text and "no response to 'TCGA-AA-0002" in text and "a response to 'other-TCGA" in text
    assert not (tmp_path / "out").exists()


def test_two_runs_of_the_same_thing_are_refused(folder, runs, tmp_path):
    twin = tmp_path / "twin.jsonl"
    twin.write_bytes(runs[0].read_bytes())
    with pytest.raises(InputError, match=r"twin.jsonl: expected a different run, found that of .*full.jsonl"):
        run_report([runs[0], twin], folder, tmp_path / "out")


def test_an_unknown_ablation_is_refused(folder, tmp_path):
    odd = write_run(tmp_path / "odd.jsonl", list(rows(PATHS)), first(FULL), ablation="no-colour")
    with pytest.raises(InputError, match="no-colour"):
        run_report([odd], folder, tmp_path / "out")


def test_one_model_under_two_prompts_is_two_rows_and_each_has_its_own_blind_run(folder, runs, tmp_path):
    other = write_run(tmp_path / "other.jsonl", list(rows(PATHS)), first(NO_HIGH), prompt_id="letter-only@1")
    run_report([*runs[:2], other], folder, tmp_path / "out")
    table = csv_rows(tmp_path / "out")
    assert table["default", "m/M-1 (prompt_id p@1)"]["blind"] == "33.3333"
    assert table["default", "m/M-1 (prompt_id letter-only@1)"]["control"] == "no blind control"


def test_an_ablation_without_its_run_is_shown_alone(folder, runs, tmp_path):
    done = run_report([runs[1], "--name", "m/M-1=Mine"], folder, tmp_path / "out")
    assert "default, split test: Mine: no run with all images" in done.stderr
    mine = csv_rows(tmp_path / "out")["default", "Mine"]
    assert mine["blind"] == "33.3333" and not {"accuracy", "gain"} & mine.keys()
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_bare_file_is_listed_under_its_name_with_a_warning(folder, runs, tmp_path):
    bare = tmp_path / "bare.jsonl"
    lines = [json.loads(line) for line in runs[0].read_text().splitlines()]
    bare.write_text("".join(json.dumps({key: line[key] for key in ("id", "response")}) + "\n" for line in lines))
    done = run_report([bare], folder, tmp_path / "out")
    assert "does not state whether it saw the images" in done.stderr and "does not state its model" in done.stderr
    assert csv_rows(tmp_path / "out")["default", "bare"]["accuracy"] == "70.0000"


def test_a_wrong_name_is_wrong_use(folder, runs, tmp_path):
    given = [str(runs[0]), "--data", str(folder), "--out", str(tmp_path / "o"), "--name", "nobody=X"]
    assert CliRunner().invoke(report, given).exit_code == 2


def test_published_figures_of_a_file_have_a_block_of_their_own_without_runs_on_default(folder, runs, tmp_path):
    scores = tmp_path / "scores.yaml"
    scores.write_text("source: a paper\nmodels: {X: {all: 64.8}}\n")
    run_report([runs[4]], folder, tmp_path / "out", "--published-file", str(scores))
    assert csv_rows(tmp_path / "out")["published", "X"]["accuracy"] == "64.8000"
    assert "a paper" in (tmp_path / "out" / "report.md").read_text()


def test_guess_flips_truncation_and_the_ceiling_stand_beside_the_score(folder, runs, tmp_path):
    whole = list(rows(PATHS))
    guess = write_run(tmp_path / "guess.jsonl", whole, first((3, 3, 3, 3, 3)), ablation="guess", prompt_id="p-guess@1")
    shuffled = write_run(tmp_path / "shuffled.jsonl", whole, first(NO_HIGH), ablation="shuffled")
    cut = tmp_path / "cut.jsonl"
    lines = [json.loads(line) | {"finish": "length" if n < 3 else "stop"} for n, line in
             enumerate(runs[0].read_text().splitlines())]  # fmt: skip
    cut.write_text("".join(json.dumps(line) + "\n" for line in lines))
    audit = tmp_path / "audit.json"
    best = {"name": "forest", "accuracy": 0.712, "ci_low": 0.6, "ci_high": 0.8}
    digest = questions_digest(read_questions(folder, "test", "default"))
    audit.write_text(json.dumps({"strongest": best, "verdict": "leaks", "provenance": {"data_hash": digest}}))
    run_report([cut, runs[1], guess, shuffled], folder, tmp_path / "out", "--audit", str(audit))
    mine = csv_rows(tmp_path / "out")["default", "m/M-1"]
    expected = {"blind": 100 / 3, "guess": 50, "gain": 20, "adjusted": 40, "flips": 10, "truncated": 10}
    assert {key: float(mine[key]) for key in expected} == pytest.approx(expected, abs=1e-3)
    assert float(mine["adjusted low"]) < 40 < float(mine["adjusted high"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Text-only ceiling of these questions: 71.2%" in text and "forest" in text
    table = markdown_rows(tmp_path / "out")["default, split test"][1][1]["m/M-1"]
    assert table["Guess"].startswith("50.0") and table["Flips"].startswith("10.0") and table["Cut off"] == "10.0"
    audit.write_text(json.dumps({"strongest": best, "provenance": {"data_hash": "0" * 64}}))
    with pytest.raises(InputError, match="an audit of these questions"):
        run_report([cut], folder, tmp_path / "again", "--audit", str(audit))


def test_a_blind_run_of_refusals_is_no_control(folder, runs, tmp_path):
    lines = [json.loads(line) | {"response": "I cannot see an image."} for line in runs[1].read_text().splitlines()]
    refused = tmp_path / "refused.jsonl"
    refused.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_report([runs[0], refused], folder, tmp_path / "out")
    assert "the blind run is not a valid control" in done.stderr and "found 100.0%" in done.stderr
    mine = csv_rows(tmp_path / "out")["default", "m/M-1"]
    assert mine["control"] == "no blind control" and not {"blind", "gain", "adjusted"} & mine.keys()
