"""The audit page: one file that makes no request, says the verdict first, and lets no text out of its place."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import chromium

from scale_vqa_eval.audit.overlap import find_overlap
from scale_vqa_eval.audit.report import _marked, audit_questions, render_page, write_page
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.scoring.results import read_reported_scores
from scale_vqa_eval.text import escape_invisible

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "' onmouseover='window.hacked=1",
    "</style></title><svg onload=window.hacked=1>",
    "{{ 7 * 7 }}{% raw %}",
    "gland \u202eredro\u202c \u200b\u2066x",
    "nul \x00 bell \x07 escape \x1b[31m",
    "$\\frac{1}{$ ]]> --> &amp; &#60;b&#62;",
    "javascript:window.hacked=1",
    "\u05d0\u05d1\u05d2 \u0639\u0631\u0628 \u75c5\u7406 \U0001f52c",
]


def rows(hostile: bool) -> list[dict[str, Any]]:
    """Questions whose gold option holds the word ``stroma``, with or without hostile texts in every field."""
    out = []
    for number in range(48):
        texts = [f"gland {number}", f"vessel {number}", f"nerve {number + 1}", f"fold {number + 2}"]
        texts[number % 4] += " in stroma"
        bad = HOSTILE[number % len(HOSTILE)] if hostile else ""
        out.append(
            {
                "id": f"q{number}{bad}",
                "question": f"What lies in field {number}? {bad}",
                "options": [f"{text} {bad}" for text in texts],
                "answer": "ABCD"[number % 4],
                "question_type": f"part {number % 2} {HOSTILE[number % 2] if hostile else ''}",
                "wsi_name": f"s{number // 4} {bad}",
                "patient_id": f"p{number // 4} {bad}",
                "split": f"test{bad}" if number % 5 else "val",
                "rationale": f"B shows it. {bad}",
            }
        )
    return out


def report_of(folder: Path, hostile: bool) -> dict[str, Any]:
    file = folder / "questions.json"
    file.write_text(json.dumps(rows(hostile)))
    report = audit_questions(read_questions(file), overlap=find_overlap(file))
    return report | {"provenance": report["provenance"] | {"data": HOSTILE[0], "split": None, "config": HOSTILE[1]}}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    report = report_of(tmp_path_factory.mktemp("hostile"), hostile=True)
    name = next(iter(report["dimensions"]))
    report["published"] = {"source": HOSTILE[1], "data": HOSTILE[3], "models": {HOSTILE[0]: {name: 0.5, "all": 0.6}}}
    chat = {
        "model": HOSTILE[0],
        "prompt": "blind-chat-1",
        "repeats": 1,
        "asked": 48,
        "accuracy_by_repeat": [0.5],
        "unparsed": {"no_answer": 2},
        "failed": {HOSTILE[1]: 1},
        "spending": {"prompt_tokens": 1000, "completion_tokens": 10, "cost": 0.25},
        "stopped": HOSTILE[3],
    }
    return report | {"chat": [chat]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(tmp_path_factory.mktemp("plain"), hostile=False)


class Elements(HTMLParser):
    """Collects the elements, the text and the marked text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.marked: list[str] = []
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.inside:
            self.text.append(data)
        if "mark" in self.inside:
            self.marked.append(data)


def test_hostile_texts_stay_text(hostile: dict[str, Any]) -> None:
    html = render_page(hostile)
    found = Elements(html)
    tags = {tag for tag, _ in found.elements}
    assert tags.isdisjoint({"script", "iframe", "object", "embed", "form", "base", "svg"})
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), f"<{tag}> has a handler"
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:image/svg+xml;base64,", "#")) or value == "data:,"
    text = "".join(found.text)
    for item in hostile["leakiest"]:
        assert escape_invisible(item["question"]) in text, "a text is shown whole, as it stands"
    assert escape_invisible(HOSTILE[1]) in text and escape_invisible(HOSTILE[3]) in text
    assert found.inside == []


def test_characters_that_hide_or_reorder_text_are_shown_as_codes(hostile: dict[str, Any]) -> None:
    html = render_page(hostile)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", html)
    assert "\\u{202E}" in html
    assert escape_invisible("a\u202eb\u2028c\x00") == "a\\u{202E}b\\u{2028}c\\u{0}"
    assert escape_invisible("gl\u00e4nd \u75c5\u7406 \u05d0\n\t") == "gl\u00e4nd \u75c5\u7406 \u05d0\n\t"


def test_every_plot_is_well_formed_and_asks_for_nothing(hostile: dict[str, Any]) -> None:
    images = [dict(attributes)["src"] for tag, attributes in Elements(render_page(hostile)).elements if tag == "img"]
    assert len(images) == 4
    for source in images:
        svg = base64.b64decode((source or "").partition(",")[2]).decode()
        ElementTree.fromstring(svg)
        assert not re.search(r'(?:href|src)="(?!#)|<script|<image', svg)


@pytest.mark.slow
def test_the_verdict_stands_first_and_in_words(plain: dict[str, Any]) -> None:
    text = " ".join("".join(Elements(render_page(plain)).text).split())
    best = plain["strongest"]
    said = f"the probe {best['name']} is right on {100 * best['accuracy']:.1f}% of 48 questions"
    assert plain["verdict"] == "leaks"
    assert 0 < text.index("Leaks.") < text.index(said) < text.index("What each probe reaches")
    clean = plain | {
        "verdict": "clean",
        "unresolved": [],
        "whole": plain["whole"] | {"verdict": "clean"},
        "dimensions": {name: part | {"verdict": "clean"} for name, part in plain["dimensions"].items()},
    }
    assert "The text does not give answers away" in render_page(clean)
    assert "No leak was detected, and none is excluded" in render_page(clean | {"verdict": "inconclusive"})
    name = next(iter(plain["dimensions"]))
    part = clean | {
        "verdict": "leaks",
        "dimensions": clean["dimensions"] | {name: clean["dimensions"][name] | {"verdict": "leaks"}},
    }
    assert "Leaks in part." in render_page(part)


def test_the_figures_of_the_report_stand_in_the_page(plain: dict[str, Any]) -> None:
    text = "".join(Elements(render_page(plain)).text)
    for probe in plain["probes"]:
        assert probe["name"] in text
        assert f"{100 * probe['ci_low']:.1f} to {100 * probe['ci_high']:.1f}" in text
    for item in plain["leakiest"]:
        assert item["id"] in text and f"blind score {100 * item['blind_score']:.1f}%" in text
    for row in plain["overlap"]["leaks"] + plain["overlap"]["notes"] + plain["notes"]:
        assert row in text
    assert {defect["kind"] for defect in plain["defects"]} <= set(re.findall(r"[a-z-]+", text))
    assert plain["provenance"]["data_hash"] in text


@pytest.mark.slow
def test_the_words_that_give_an_item_away_are_marked(plain: dict[str, Any]) -> None:
    assert "stroma" in {word.lower() for word in Elements(render_page(plain)).marked}


@pytest.mark.parametrize(
    ("text", "letter", "terms", "expected"),
    [
        ("The Rim, not-the rim", "A", [("rim", "A")], ["Rim", "rim"]),
        ("the rim", "B", [("rim", "A")], []),
        (
            "not -- the rim of it",
            "A",
            [("not the", "A"), ("rim of it", "A"), ("not", "A")],
            ["not -- the", "rim of it"],
        ),
        ("a.b (c) [d", "A", [("b c", "A"), ("d", "A")], ["b (c", "d"]),
        ("notation knot not", "A", [("not", "A")], ["not"]),
    ],
)
def test_evidence_is_marked_as_whole_words_in_the_options_that_it_names(
    text: str, letter: str, terms: list[tuple[str, str]], expected: list[str]
) -> None:
    evidence = [{"kind": "wording", "text": term, "letters": letters} for term, letters in terms]
    parts = _marked(text, letter, [*evidence, {"kind": "geometry", "text": "the", "letters": "AB"}])
    assert "".join(part for part, _ in parts) == text
    assert [part for part, hit in parts if hit] == expected


@pytest.mark.slow
def test_published_scores_stand_beside_the_probes(plain: dict[str, Any]) -> None:
    published = {"source": "a paper", "data": None, "models": {"Model X": {"all": 0.301}, "Model Y": {"all": 0.999}}}
    whole = plain["whole"] | {"ci_low": 0.3, "accuracy": 0.4, "ci_high": 0.5}
    found = Elements(render_page(plain | {"published": published, "whole": whole}))
    text = "".join(found.text)
    assert "Model X" in text and "30.1" in text and "a paper" in text
    assert sum((attributes.get("class") or "") == "n within" for _, attributes in found.elements) == 1
    assert "Model X" not in render_page(plain)


def test_the_shipped_figures_are_those_of_the_paper() -> None:
    published = read_reported_scores("scale-vqa-test")
    assert "2606.17412" in published["source"]
    assert published["models"]["ScaleReasoner-R1"]["all"] == pytest.approx(0.8289)
    for row in published["models"].values():
        parts = [value for name, value in row.items() if name != "all"]
        assert len(parts) == 5
        assert sum(parts) / 5 == pytest.approx(row["all"], abs=2e-4)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "models: {X: {all: 158}}", "models: {X: {all: high}}", "{", "models: {X: 5}", "", "\x00"]
)
def test_a_published_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"p\.yaml"):
        read_reported_scores(file)


def test_a_published_file_may_be_json_with_the_models_alone(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"GPT-5.2": {"all": 58.5}}')
    assert read_reported_scores(file) == {
        "source": None,
        "data": None,
        "chance": None,
        "models": {"GPT-5.2": {"all": pytest.approx(0.585)}},
    }
    with pytest.raises(InputError, match="scale-vqa-test"):
        read_reported_scores(tmp_path / "absent.yaml")


def test_a_report_without_details_and_without_overlap_has_a_page(plain: dict[str, Any]) -> None:
    short = {key: value for key, value in plain.items() if key not in ("items", "leakiest", "learning_curve")}
    html = render_page(short | {"overlap": {}, "defects": [], "dimensions": {}, "notes": []})
    assert "The splits were not compared" in html
    assert "The leakiest items" not in html


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes_and_a_failure_leaves_the_old_page(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    file = tmp_path / "audit.html"
    write_page(file, plain)
    first = file.read_bytes()
    write_page(file, json.loads(json.dumps(plain)))
    assert file.read_bytes() == first
    with pytest.raises(KeyError):
        write_page(file, {})
    assert file.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["audit.html"]
    with pytest.raises(InputError, match="--html"):
        write_page(file / "no" / "such" / "audit.html", plain)


@pytest.mark.slow
def test_a_real_browser_shows_it_without_a_word_of_complaint(tmp_path: Path, hostile: dict[str, Any]) -> None:
    file = tmp_path / "audit.html"
    write_page(file, hostile)
    with chromium() as browser:
        view = browser.new_page(viewport={"width": 1100, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("dialog", lambda dialog: said.append(dialog.message))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(file.as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        assert view.evaluate("window.hacked") is None
        assert view.title() == "Leakage audit: leaks"
        assert view.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 300)")
        assert view.evaluate("[...document.images].every(image => image.alt.length > 20)")
        for width in (1100, 390):
            view.set_viewport_size({"width": width, "height": 900})
            assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"overflows at {width}"
