"""The review page as it is used: a server of its own process, a real browser, keys; and what it keeps out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import chromium
from review_release import HOSTILE, PLACE, make_review_release, nested_views, rows

from dataset_script.review.log import ReviewLog
from dataset_script.review.session import ReviewerState, ReviewSession, read_review_data
from scale_vqa_eval.release_folder.write import write_release

SHOTS = Path(os.environ.get("SCALE_VQA_SHOTS", os.devnull))
pytestmark = pytest.mark.xdist_group("review_page")


class Server:
    """``scale-vqa review`` in a process of its own."""

    def __init__(self, release: Path, log: Path, *more: str) -> None:
        command = [sys.executable, "-m", "scale_vqa_eval.cli", "review", str(release), "--log", str(log), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stderr is not None
        # both are read to the end, so that no pipe fills up
        self.errors: list[str] = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()  # type: ignore
        self.entry = self.process.stdout.readline().strip()
        self.address = self.entry.partition("/?")[0]
        self.token = parse_qs(urlsplit(self.entry).query)["token"][0]

    def get(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_review_release(tmp_path_factory.mktemp("page") / "scale-vqa", hostile=True)


@pytest.fixture(scope="module")
def server(release: Path) -> Iterator[Server]:
    running = Server(release, release.with_name("log.jsonl"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Visit:
    """A browser window of one reviewer, and everything that it asked for or complained of."""

    def __init__(self, browser: Any, server: Server, name: str, stage: str | None = None) -> None:
        self.page = browser.new_context(viewport={"width": 1360, "height": 1000}).new_page()
        self.page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("console", lambda note: self.said.append(note.text) if note.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.entry)
        self.page.wait_for_selector("#reviewer textarea, #reviewer input")
        if stage:
            self.page.get_by_label(stage).check()
        self.enter(name)

    def enter(self, name: str) -> None:
        """Gives the name, again where a page that was still loading lost the key."""
        before = self.page.get_attribute("#message [data-turn]", "data-turn")
        answered = "before => document.querySelector('#message [data-turn]').dataset.turn !== before"
        for last in (False, False, False, True):
            self.page.fill("#reviewer textarea, #reviewer input", name)
            self.page.keyboard.press("Enter")
            try:
                self.page.wait_for_function(answered, arg=before, timeout=30_000)
                return
            except Exception:  # playwright's own timeout; it is imported only where it is installed
                if last:
                    raise

    def turn(self, key: str) -> str:
        """Presses a key and waits until the server has answered; returns what it said."""
        before = self.page.get_attribute("#message [data-turn]", "data-turn")
        self.page.keyboard.press(key)
        self.page.wait_for_function(
            "before => document.querySelector('#message [data-turn]').dataset.turn !== before", arg=before
        )
        return str(self.page.inner_text("#message"))

    def item(self) -> str:
        return str(self.page.get_attribute(".rv", "data-item"))

    def settled(self) -> None:
        self.page.wait_for_function(
            "[...document.querySelectorAll('.rv img')].every(i => i.complete && i.naturalWidth)"
        )
        self.page.wait_for_function("[...document.querySelectorAll('.rv .pane')].every(p => p.dataset.zoom)")

    def shot(self, name: str) -> None:
        if SHOTS.is_dir():
            self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def decisions(server: Server, release: Path) -> list[dict[str, Any]]:
    log = release.with_name("log.jsonl")
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines[1:]]


def test_nobody_comes_in_without_the_token(server: Server) -> None:
    assert server.address.startswith("http://127.0.0.1:") and len(server.token) >= 32
    wrong = server.token[:-1] + ("a" if server.token[-1] != "a" else "b")
    for path in (
        "/",
        "/config",
        "/gradio_api/info",
        "/image/0/low_mag",
        "/queue/join",
        f"/?token={wrong}",
        "/?token=",
    ):
        status, body, headers = server.get(path)
        assert status == 403 and b"<" not in body and "set-cookie" not in headers, path
    for headers in ({"Authorization": f"Bearer {wrong}"}, {"Cookie": f"scale-vqa-review={server.token}"}):
        assert server.get("/image/0/low_mag", **headers)[0] == 403
    assert server.get("/image/0/low_mag", Authorization=f"Bearer {server.token}")[0] == 200


def test_images_come_from_the_release_and_from_nowhere_else(server: Server, release: Path) -> None:
    bearer = {"Authorization": f"Bearer {server.token}"}
    status, body, headers = server.get("/image/0/low_mag", **bearer)
    assert status == 200 and body.startswith(b"\xff\xd8") and headers["content-type"] == "image/jpeg"
    assert headers["x-content-type-options"] == "nosniff"
    for path in ("/image/9999/low_mag", "/image/14/high_mag", "/image/0/rationale", "/image/-1/low_mag"):
        assert server.get(path, **bearer)[0] == 404, path
    secret = release / "README.md"
    for path in (
        f"/gradio_api/file={secret}",
        f"/file={secret}",
        "/gradio_api/file=/etc/passwd",
        f"/image/0/..%2f..%2f{secret}",
        "/image/0/low_mag/../../../etc/passwd",
        f"/static/{secret}",
        f"/assets/..%2f..%2f..%2f..%2f..%2f..%2f{secret}",
        "/gradio_api/proxy=http://127.0.0.1:1/",
    ):
        status, body, _ = server.get(path, **bearer)
        assert status in (403, 404, 405, 422) and b"root:" not in body and b"dataset_info" not in body, path


def test_two_reviewers_by_keyboard_and_a_third(server: Server, browser: Any, release: Path) -> None:
    ada = Visit(browser, server, "Ada <b>x</b>")
    ada.settled()
    assert urlsplit(ada.page.url).query == "", "the token does not stay in the address"
    hostile_text = ada.page.inner_text(".rv h2")
    assert HOSTILE[0] in hostile_text, "a text is shown whole, as it stands"
    ada.shot("review-first")
    boxes = ada.page.eval_on_selector_all(
        ".rv figure[data-number='1'] .box.mid_mag", "all => all.map(one => [one.style.left, one.style.top])"
    )
    assert [float(side.rstrip("%")) for side in boxes[0]] == pytest.approx(
        [100 * PLACE["mid"][0] / 2048, 100 * PLACE["mid"][1] / 2048], abs=0.4
    )
    assert "located by matching" in ada.page.inner_text(".rv figure[data-number='1'] figcaption")
    first = ada.item()
    assert "Saved: accept" in ada.turn("a") and ada.item() != first
    assert "a reason for reject" in ada.turn("r"), "a reject without a reason is not taken"
    ada.page.keyboard.type("a r e n p 1 2")
    second = ada.item()
    assert "Saved: reject" in ada.turn("Control+Enter")
    assert len(decisions(server, release)) == 2, "what is typed into a field is no key of the page"
    ada.page.keyboard.press("Escape")
    ada.turn("e")
    ada.page.fill("#edit-question textarea", HOSTILE[1])
    ada.page.fill("#edit-A textarea, #edit-A input", "")
    ada.page.fill("#reason textarea", "clearer")
    assert "option A to be a text" in ada.turn("Control+Enter")
    ada.shot("review-edit")
    ada.page.fill("#edit-A textarea, #edit-A input", HOSTILE[3])
    assert "Saved: edit" in ada.turn("Control+Enter")
    ada.page.keyboard.press("Escape")
    fourth = ada.item()
    ada.turn("n")
    assert ada.item() != fourth
    ada.turn("p")
    assert ada.item() == fourth

    bo = Visit(browser, server, "Bo")
    assert bo.item() == first, "the second reviewer starts where the first did"
    text = bo.page.inner_text("body")
    assert "Ada" not in text and "reject" not in text.split("Reason")[0], "no sign of the first one's verdict"
    bo.turn("a")
    assert bo.item() == second and "typed" not in bo.page.inner_text(".rv")
    bo.turn("a")
    bo.turn("a")

    cy = Visit(browser, server, "Cy", "Adjudicate open disagreements")
    cy.settled()
    assert cy.item() == second
    others = cy.page.inner_text(".rv .others")
    assert "Ada <b>x</b>" in others and "a r e n p 1 2" in others and "Bo" in others
    cy.shot("review-adjudicate")
    cy.turn("a")
    assert HOSTILE[1] in cy.page.inner_text(".rv .others"), "an edit is shown as text"
    cy.turn("e")
    assert cy.page.input_value("#edit-question textarea") == HOSTILE[1], "the editor starts from the edit"
    cy.shot("review-adjudicate-edit")
    cy.page.fill("#reason textarea", "as Ada has it")
    cy.turn("Control+Enter")
    assert "nothing waits for you" in cy.page.inner_text(".rv")
    kinds = [(one["kind"], one["verdict"]) for one in decisions(server, release)]
    assert kinds[-2:] == [("adjudication", "accept"), ("adjudication", "edit")] and len(kinds) == 8
    for visit in (ada, bo, cy):
        assert visit.page.evaluate("window.hacked") is None
        assert visit.page.locator(".rv script, .rv svg, .rv b b, .rv a").count() == 0
        asked = [url for url in visit.asked if not url.startswith(("data:", "blob:", server.address))]
        assert asked == [] and visit.said == []
        visit.page.context.close()


def test_views_zoom_move_and_come_back(server: Server, browser: Any) -> None:
    visit = Visit(browser, server, "Zoe")
    visit.settled()
    pane = visit.page.locator(".rv figure[data-number='1'] .pane")

    def zoom() -> float:
        return float(pane.get_attribute("data-zoom"))

    def plane() -> str:
        return str(pane.locator(".plane").evaluate("one => one.style.transform"))

    pane.hover()
    visit.page.mouse.wheel(0, -600)
    visit.page.wait_for_function("document.querySelector('.rv .pane').dataset.zoom > 2")
    zoomed, place = zoom(), plane()
    visit.page.keyboard.press("+")
    assert zoom() > zoomed
    visit.page.keyboard.press("ArrowLeft")
    assert plane() != place
    moved = plane()
    visit.page.mouse.down()
    visit.page.mouse.move(500, 400)
    visit.page.mouse.up()
    assert plane() != moved
    visit.page.keyboard.press("1")
    assert pane.bounding_box()["width"] > 500 and zoom() > zoomed, "a larger pane keeps the zoom"
    visit.shot("review-zoom")
    visit.page.keyboard.press("o")
    assert not visit.page.locator(".rv .box").first.is_visible()
    visit.page.keyboard.press("0")
    assert zoom() == 1
    visit.page.set_viewport_size({"width": 390, "height": 844})
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    visit.shot("review-narrow")
    visit.page.context.close()


def test_a_name_is_needed_and_a_key_held_down_decides_once(server: Server, browser: Any, release: Path) -> None:
    before = len(decisions(server, release))
    visit = Visit(browser, server, "   ")
    assert "an empty name" in visit.page.inner_text("#message") and visit.page.locator(".rv").count() == 0
    visit.page.fill("#reviewer textarea, #reviewer input", "Eve")
    visit.turn("Enter")
    visit.page.evaluate(
        "for (let i = 0; i < 5; i++) document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}))"
    )
    visit.page.wait_for_function("document.querySelector('#message').innerText.includes('Saved')")
    visit.page.wait_for_timeout(500)
    assert len(decisions(server, release)) == before + 1
    visit.page.context.close()


def test_an_open_editor_keeps_its_text_and_the_keyboard_suffices(server: Server, browser: Any, release: Path) -> None:
    before = len(decisions(server, release))
    visit = Visit(browser, server, "Fay")
    page = visit.page
    visit.turn("e")
    page.wait_for_function("document.activeElement.closest('#edit-question') !== null")
    page.keyboard.press("End")
    page.keyboard.type(" are there more?")
    page.evaluate("document.activeElement.blur()")
    for key in "arnp":
        page.keyboard.press(key)
    assert not page.locator("#accept").is_visible(), "Accept would take the old text"
    page.wait_for_timeout(500)
    assert page.input_value("#edit-question textarea").endswith("are there more?")
    assert len(decisions(server, release)) == before
    old = page.input_value("#edit-answer input:checked")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#edit-answer input:not(:checked)')"):
            break
    page.keyboard.press("Space")
    page.wait_for_function("old => document.querySelector('#edit-answer input:checked').value !== old", arg=old)
    page.focus("#edit-rationale textarea")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    assert "a reason for edit" in visit.turn("Control+Enter")
    page.wait_for_function("document.activeElement.closest('#reason') !== null")
    page.keyboard.type("the answer was another")
    assert "Saved: edit" in visit.turn("Control+Enter")
    made = decisions(server, release)[-1]
    assert made["edit"]["question"].endswith("are there more?") and made["edit"]["answer"] != old
    page.wait_for_selector("#accept:visible")
    page.context.close()


def test_a_second_window_says_what_it_replaced_and_nothing_looks_saved_before_it_is(
    release: Path, browser: Any, tmp_path: Path
) -> None:
    running = Server(release, tmp_path / "log.jsonl")
    try:
        one, two = (Visit(browser, running, name) for name in ("Ada", " ADA"))
        assert one.item() == two.item()
        assert "in place of" not in one.turn("a")
        assert "a reason for reject" in two.turn("r")
        two.page.keyboard.type("on a second look")
        assert "Saved: reject in place of your accept" in two.turn("Control+Enter")
        running.process.kill()
        running.process.wait()
        said = "getComputedStyle(document.querySelector('#message p'), '::after').content"
        assert "not saved" not in one.page.evaluate(said)
        one.page.keyboard.press("a")
        one.page.wait_for_function(f"{said}.includes('not saved yet')")
        one.shot("review-dead")
        for visit in (one, two):
            visit.page.context.close()
    finally:
        running.stop()


def test_a_double_click_decides_once(server: Server, browser: Any, release: Path) -> None:
    before = len(decisions(server, release))
    visit = Visit(browser, server, "Gus")
    first = visit.item()
    place = visit.page.locator("#accept").bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    visit.page.mouse.move(x, y)
    visit.page.mouse.down(click_count=1)
    visit.page.mouse.up(click_count=1)
    visit.page.wait_for_function("first => document.querySelector('.rv').dataset.item !== first", arg=first)
    visit.page.mouse.move(x, visit.page.locator("#accept").bounding_box()["y"] + 5)
    visit.page.mouse.down(click_count=2)
    visit.page.mouse.up(click_count=2)
    visit.page.wait_for_timeout(1000)
    assert len(decisions(server, release)) == before + 1
    visit.page.context.close()


def test_a_page_that_was_away_for_too_long_asks_for_the_name_again(release: Path, tmp_path: Path) -> None:
    from dataset_script.review.server import build_page

    data = read_review_data(release)
    log = ReviewLog(tmp_path / "log.jsonl", data.subject)
    page = build_page(ReviewSession(data, log))
    actions = [one for one in page.fns.values() if len(one.outputs) > 5]
    entered = 0
    for one in actions:
        updates = one.fn(*[None] * len(one.inputs))
        assert updates.keys() <= set(one.outputs)
        if "away for too long" in str(updates.values()):
            entrance, work = one.outputs[1:3]
            entered += updates[entrance]["visible"] and not updates[work]["visible"]
    assert entered == len(actions) - 1 == 8 and not log.path.exists(), "all but the entrance itself"


def test_other_machines_are_warned_of_and_told_which_address(release: Path, tmp_path: Path) -> None:
    running = Server(release, tmp_path / "log.jsonl", "--host", "0.0.0.0")
    try:
        assert running.get("/", Authorization="Bearer wrong")[0] == 403
        said = "".join(running.errors)
        assert "without encryption" in said and "this machine's name" in said and running.token not in said
    finally:
        running.stop()


def test_a_view_that_the_question_does_not_ask_about_is_not_missed(tmp_path: Path) -> None:
    from dataset_script.review.server import render_item

    made = [{**row, "mid_mag": None} for row in list(rows(paths=1))[:2]]
    made[0] |= {"dimension": "origin", "high_mag": nested_views(0)["high_mag"]}
    release = write_release(tmp_path / "scale-vqa", {"default": {"test": made}}, {})
    data = read_review_data(release)
    session = ReviewSession(data, ReviewLog(tmp_path / "log.jsonl", data.subject))
    origin, other = (render_item(session, ReviewerState("Ada", "review", key)) for key in data.chosen)
    assert "no image" not in origin and "mid view, 40x: no image" in other


def test_what_the_curation_flagged_is_shown_with_the_question(tmp_path: Path) -> None:
    from dataset_script.review.server import render_item

    release = make_review_release(tmp_path / "scale-vqa", paths=1)
    first, second, *_ = read_review_data(release).chosen
    why = "is wrong here, but a caption of the path says it"
    flag = {"id": first[1], "options": "BD", "finding": HOSTILE[0], "why": why}
    (release / "curation_report.json").write_text(json.dumps({"format": 1, "contradictions": [flag]}))
    data = read_review_data(release)
    session = ReviewSession(data, ReviewLog(tmp_path / "log.jsonl", data.subject))
    page = render_item(session, ReviewerState("Ada", "review", first))
    assert "Flagged in curation" in page and why in page and "&lt;script&gt;" in page and "<script>" not in page
    assert "Flagged" not in render_item(session, ReviewerState("Ada", "review", second))


def test_an_open_page_does_not_keep_the_server_from_stopping(release: Path, browser: Any, tmp_path: Path) -> None:
    running = Server(release, tmp_path / "log.jsonl")
    visit = Visit(browser, running, "Ada")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) in (0, 130, -signal.SIGINT)
    assert "Traceback" not in "".join(running.errors), "".join(running.errors)
    visit.page.context.close()


def test_the_log_goes_on_after_a_kill_and_the_token_stays_out_of_it(
    server: Server, browser: Any, release: Path
) -> None:
    other = Server(release, release.with_name("log.jsonl"), "--token", "t" * 20)
    try:
        assert other.token == "t" * 20
        visit = Visit(browser, other, "Ada <b>x</b>")
        assert "3 decided" in visit.page.inner_text(".rv header"), "what the other process took is known here"
        visit.turn("a")
        other.process.kill()
        other.process.wait()
        visit.page.context.close()
    finally:
        other.stop()
    assert decisions(server, release)[-1]["reviewer"] == "Ada <b>x</b>"
    assert server.token not in release.with_name("log.jsonl").read_text()
    assert not any(server.token in line for line in server.errors)
