"""Small zoom questions on drawn slides, and scripted policies behind an OpenAI-compatible server."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chat_server import MODEL, Server, Trouble, chat_server
from drawn_slides import tissue_slide

from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.schema import MAGNIFICATION
from scale_vqa_eval.wsi import OpenSlideSource
from scale_vqa_eval.zoom.environment import Budget, ZoomEnvironment, first_messages
from scale_vqa_eval.zoom.questions import ZoomQuestion, read_zoom_questions, slide_files

PLACES = ((400.0, 400.0), (1200.0, 400.0), (400.0, 1000.0), (1200.0, 1000.0))
Policy = Callable[[ZoomQuestion, int, bool], tuple[str, dict[str, Any]]]
"""Question, looks so far, whether the evidence was in view -> name and arguments of the next call."""


def make_exam(folder: Path, slides: int = 4) -> Path:
    """Writes slides of 1.6 x 1.4 mm and, for each, a group of four questions whose evidence is one of four places."""
    (folder / "slides").mkdir(parents=True)
    (folder / "queries").mkdir()
    rows = []
    for number in range(slides):
        name = f"slide-{number}"
        tissue_slide(folder / "slides" / f"{name}.tif", seed=number)
        source = OpenSlideSource(folder / "slides" / f"{name}.tif")
        for index, (x, y) in enumerate(PLACES):
            query = f"queries/{name}-{index}.jpg"
            source.read_region(x, y, 0.5, 256).save(folder / query, quality=90)
            box = [x - 100, y - 100, x + 100, y + 100]
            rows.append(
                {
                    "id": f"{name}::p{index}::where",
                    "question": "At which place does the tissue look so?",
                    "options": [f"x {one[0]:.0f}, y {one[1]:.0f} um" for one in PLACES],
                    "answer": "ABCD"[index],
                    "dimension": "where",
                    "wsi_name": name,
                    "patient_id": name,
                    "path_id": f"p{index}",
                    "group": name,
                    "split": "test",
                    "zoom": {
                        "slide": f"{name}.tif",
                        "evidence": [{"view": "high_mag", "boxes": [box]}],
                        "query": query,
                    },
                }
            )
        source.close()
    path = folder / "zoom.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(name: str, arguments: Any) -> dict[str, Any]:
    """A message with one call of a tool."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": name, "arguments": text}}],
    }


def pictures(messages: list[dict[str, Any]]) -> list[bytes]:
    """Returns the images of a conversation, in order."""
    return [
        base64.b64decode(part["image_url"]["url"].partition(",")[2])
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def guess(question: ZoomQuestion) -> tuple[str, dict[str, Any]]:
    """Answers by the text alone: one letter for all four questions of an exchange group."""
    text = question.question.question + "".join(question.question.options)
    index = int(hashlib.sha256(text.encode()).hexdigest(), 16) % len(question.question.options)
    return "answer", {"letter": "ABCD"[index]}


def oracle(question: ZoomQuestion, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
    """Looks at each box of evidence in turn, then gives the right letter if it was shown pictures."""
    if turn < len(question.evidence):
        one = question.evidence[turn]
        left, top, right, bottom = one.boxes[0]
        return "look", {"x_um": (left + right) / 2, "y_um": (top + bottom) / 2, "view": MAGNIFICATION[one.view]}
    return ("answer", {"letter": question.question.letter}) if seen else guess(question)


def random_walk(extent: tuple[float, float], looks: int, view: str) -> Policy:
    """Looks at random places; gives the right letter if the evidence was in view, else guesses by the text."""

    def policy(question: ZoomQuestion, turn: int, seen: bool) -> tuple[str, dict[str, Any]]:
        rng = random.Random(f"{question.question.id} {turn}")
        if turn < looks:
            return "look", {"x_um": rng.uniform(0, extent[0]), "y_um": rng.uniform(0, extent[1]), "view": view}
        return ("answer", {"letter": question.question.letter}) if seen else guess(question)

    return policy


class Examiner:
    """What a scripted policy knows: which question it is asked, and whether true pictures showed it the evidence."""

    def __init__(
        self, data: Path, slides: Path | None = None, control: str | None = None, budget: Budget | None = None
    ):
        questions, root = read_zoom_questions(str(data), None, slides)
        self.by_id = {item.question.id: item for item in questions}
        self.control, self.budget, self.store = control, budget, slide_files(root)
        environment = ZoomEnvironment(self.store, self.by_id, budget, control)
        self.prompt = load_prompt("zoom")
        self.names: dict[tuple[str, ...], str] = {}
        for name, item in self.by_id.items():
            environment.reset(name)
            text = first_messages(self.prompt, item.question)[-1]["content"][0]["text"]
            self.names[self._key(environment.images, text)] = name

    def _key(self, images: list[bytes], text: str) -> tuple[str, ...]:
        return (text, *(hashlib.sha256(image).hexdigest() for image in images))

    def question(self, messages: list[dict[str, Any]]) -> ZoomQuestion:
        first = next(message for message in messages if message["role"] == "user")
        return self.by_id[self.names[self._key(pictures([first]), first["content"][0]["text"])]]

    def seen(self, question: ZoomQuestion, messages: list[dict[str, Any]]) -> bool:
        """Whether the pictures of the conversation are those of the right slide and show all evidence."""
        control = None if self.control in ("blind", "wrong-slide") else self.control
        environment = ZoomEnvironment(self.store, self.by_id, self.budget, control)
        environment.reset(question.question.id)
        for arguments in looks(messages):
            environment.look(**arguments)
        sent = set(pictures(messages))
        return bool(environment.record["hit"]) and sent >= set(environment.images)


def looks(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the arguments of the looks in a conversation, however they were called."""
    found = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        called = [json.loads(one["function"]["arguments"]) for one in message.get("tool_calls") or []]
        texts = re.findall(r"<tool_call>(.*?)</tool_call>", message["content"] or "", re.DOTALL)
        called += [json.loads(text)["arguments"] for text in texts]
        found += [arguments for arguments in called if "view" in arguments]
    return found


@contextmanager
def policy_server(
    examiner: Examiner, policy: Policy, refuse: Callable[[dict[str, Any]], str | None] = lambda body: None
) -> Iterator[Server]:
    """Serves a policy; ``refuse`` gives the message of status 400 for a request that the server does not take."""

    def script(body: dict[str, Any], path: str) -> tuple[int, Any] | None:
        if not body:
            return None
        if problem := refuse(body):
            return 400, {"error": {"message": problem}}
        messages = body["messages"]
        question = examiner.question(messages)
        turn = len(looks(messages))
        asked = policy(question, turn, False)
        if asked[0] == "answer":  # only then it matters what was seen, which takes the examiner an episode
            asked = policy(question, turn, examiner.seen(question, messages))
        if "tools" in body:
            message = call(*asked)
        else:
            written = json.dumps({"name": asked[0], "arguments": asked[1]})
            message = {"role": "assistant", "content": f"I see.\n<tool_call>\n{written}\n</tool_call>"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tools" in body else "stop"}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
        return 200, {**head, "choices": [choice], "usage": usage}

    with chat_server(Trouble(script=script)) as server:
        yield server
