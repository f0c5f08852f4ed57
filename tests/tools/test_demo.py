from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from scale_vqa_eval.questions import read_questions

HOSTILE = "<script>alert(1)</script> \" onload='x'"


def demo(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/demo.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


class Tags(html.parser.HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_release_without_images_is_scored_blind_and_text_is_escaped(tmp_path: Path) -> None:
    rows = [
        {
            "question": f"{HOSTILE} {number}?",
            "options": {"A": HOSTILE, "B": "two", "C": "three", "D": f"four {number}"},
            "answer": "ABCD"[number % 4],
            "rationale": None,
            "image_path": {"low_mag": None, "mid_mag": None, "high_mag": None},
            "extra_info": {"wsi_name": f"S{number % 5}", "path_id": f"p{number}", "question_type": "type_B"},
        }
        for number in range(20)
    ]
    source = tmp_path / "release"
    source.mkdir()
    (source / "val.json").write_text(json.dumps(rows))
    done = demo("--release", source, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "none of these sees an image" in done.stdout
    assert re.search(r"always-A\s+\|\s+25\.0", done.stdout)
    page = Tags((tmp_path / "demo/index.html").read_text())
    assert "script" not in page.tags and "onload" not in page.attributes
    assert all(source.startswith("data:") for source in page.sources)
    assert len((tmp_path / "demo/medoid.jsonl").read_text().splitlines()) == 20


def test_phantom_is_answered_by_the_one_that_looks(tmp_path: Path) -> None:
    done = demo("--phantoms", "6", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    questions = {question.id: question for question in read_questions(tmp_path / "demo/scale-vqa")}
    accuracy = {}
    for name in ("always-A", "longest", "medoid", "pixels"):
        lines = map(json.loads, (tmp_path / f"demo/{name}.jsonl").read_text().splitlines())
        right = [f"<answer>{questions[line['id']].letter}</answer>" in line["response"] for line in lines]
        assert len(right) == len(questions)
        accuracy[name] = sum(right) / len(right)
    assert accuracy["pixels"] > max(accuracy["always-A"], accuracy["longest"], accuracy["medoid"]) + 0.05
    page = (tmp_path / "demo/index.html").read_text()
    assert "no claim about pathology" in page


@pytest.mark.parametrize("args", [["--slides", ".", "--release", "."], ["--release", "tests"], ["--slides", "absent"]])
def test_wrong_use_exits_2(args: list[str], tmp_path: Path) -> None:
    assert demo(*args, "--out", tmp_path / "o").returncode == 2
