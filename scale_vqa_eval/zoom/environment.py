"""A slide, a question, and two tools: the environment in which a model chooses where to look.

``look`` shows a field of the slide at one of its magnifications, ``answer`` ends the episode. A call that cannot be
carried out (a place outside of the slide, an unknown view, malformed arguments, no look left) returns a text that says
so; it is counted, and never an exception. The same calls give the same observations, byte for byte.

``ZoomEnvironment`` has the form that TRL's ``environment_factory`` takes: its public methods are the tools.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from PIL import Image

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict import ZOOM_CONTROLS
from scale_vqa_eval.predict.prompts import Prompt, build_messages
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP
from scale_vqa_eval.wsi import MAGNIFY_LIMIT
from scale_vqa_eval.zoom.questions import BoxUm, SlideStore, ZoomQuestion

NOTHING_SEEN: Final = ("blind", "wrong-slide")
OVERVIEW_PX: Final = 1024
MIN_LOOK_PX: Final = 32
_SAID: Final = 2000
"""Characters kept in a step of what a call or a model's turn says."""
_VIEWS: Final = {name: view for view, name in MAGNIFICATION.items()}


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be looked at.

    Attributes:
        looks: number of looks; the overview is not one.
        px: pixels along the side of a field.
        pixels: pixels of all looks together, None for no further limit.
        overview_px: pixels along the longer side of the overview.
    """

    looks: int = 8
    px: int = 512
    pixels: int | None = None
    overview_px: int = OVERVIEW_PX


class ZoomEnvironment:
    """One episode at a time: ``reset``, then ``look`` and ``answer``.

    Args:
        slides: where fields are read.
        questions: id -> question.
        budget: how much may be looked at.
        control: one of ``predict.ZOOM_CONTROLS``, or None.
        seed: of ``random-walk`` and of the other slide of ``wrong-slide``.

    Attributes:
        steps: everything that was shown or asked in this episode, in order: what was asked, the box in um, its scale,
            the SHA-256 of the JPEG that was shown, the text, and whether the call was refused.
        images: the JPEG files that were shown in this episode, in order.
        letter: the answer, or None.
    """

    def __init__(
        self,
        slides: SlideStore,
        questions: Mapping[str, ZoomQuestion],
        budget: Budget | None = None,
        control: str | None = None,
        seed: int = 42,
    ) -> None:
        if control not in (None, *ZOOM_CONTROLS):
            raise InputError(
                Problem("control", f"one of {', '.join(ZOOM_CONTROLS)}", preview(control), "name one of those")
            )
        self._slides, self._questions, self._control, self._seed = slides, questions, control, seed
        self._given = budget or Budget()
        self._donors = _other_slides(list(questions.values()), seed) if control == "wrong-slide" else {}
        self.steps: list[dict[str, Any]] = []
        self.images: list[bytes] = []
        self.letter: str | None = None

    def reset(self, id: str, **_: Any) -> list[dict[str, Any]]:
        """Starts an episode; returns the first observation: overview, the question's own image, texts."""
        item = self._questions[id]
        self._item = self._donors.get(item.slide, item)
        self._asked, self._budget = item, self._given
        self.steps, self.images, self.letter = [], [], None
        self._seen = [False] * len(item.evidence)
        self._level0, self._extent = self._slides.facts(self._item.slide, self._item.mpp)
        looks = self._path() if self._control in ("random-walk", "oracle-path") else []
        if looks or self._control == "overview-only":
            self._budget = replace(self._given, looks=0, pixels=None)
        parts = self._overview()
        if item.query is not None:
            parts += self._shown(item.query.read_bytes())
        parts.append({"type": "text", "text": self._instructions(bool(looks))})
        self._budget = replace(self._budget, looks=len(looks)) if looks else self._budget
        for look in looks:
            parts += self.look(*look)
        return parts

    def look(self, x_um: float, y_um: float, view: str) -> list[dict[str, Any]]:
        """Shows a square field of the slide.

        Args:
            x_um: Centre of the field in um from the left edge of the slide.
            y_um: Centre of the field in um from the top edge of the slide.
            view: Magnification of the field. (choices: ["10x", "40x", "200x"])
        """
        asked = {"x_um": x_um, "y_um": y_um, "view": view}
        x, y = _number(x_um), _number(y_um)
        width, height = self._extent
        views = _views(self._level0, self._extent)
        name = _VIEWS.get(view) if isinstance(view, str) else None
        if x is None or y is None:
            return self._refused("look", asked, "x_um and y_um must be finite numbers, in um")
        if name not in views:
            return self._refused("look", asked, f"view must be one of {_listed(views)}")
        if not (0 <= x <= width and 0 <= y <= height):
            place = f"0 <= x_um <= {width:.0f} and 0 <= y_um <= {height:.0f}"
            return self._refused("look", asked, f"the place lies outside of the slide; it needs {place}")
        if self.letter is not None:
            return self._refused("look", asked, "the question is answered already")
        mpp = MPP[name]
        px = min(self._budget.px, math.floor(min(self._extent) / mpp))
        used = self.record
        if used["looks"] >= self._budget.looks:
            return self._refused("look", asked, "no look is left; call answer")
        if self._budget.pixels is not None and used["pixels"] + px**2 > self._budget.pixels:
            return self._refused("look", asked, "the pixels that are left do not suffice; call answer")
        half = px * mpp / 2
        x, y = min(max(x, half), width - half), min(max(y, half), height - half)
        box = (x - half, y - half, x + half, y + half)
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2  # as who reads the box again will have it
        try:
            content = self._slides.region(self._item.slide, self._item.mpp, x, y, mpp, px)
        except InputError as error:  # a damaged part of the file
            return self._refused("look", asked, f"this part of the slide cannot be read ({error.problems[0].found})")
        left = self._budget.looks - used["looks"] - 1
        text = f"{view} field of {2 * half:.0f} x {2 * half:.0f} um around ({x:.0f}, {y:.0f}) um. Looks left: {left}."
        return self._showed("look", asked, content, box, mpp, px, text)

    def answer(self, letter: str) -> list[dict[str, Any]]:
        """Answers the question and ends the episode.

        Args:
            letter: Letter of the single best option.
        """
        last = LETTERS[len(self._asked.question.options) - 1]
        given = letter.strip().strip("().").upper() if isinstance(letter, str) else ""
        if self.letter is not None:
            return self._refused("answer", {"letter": letter}, "the question is answered already")
        if len(given) != 1 or not "A" <= given <= last:
            return self._refused("answer", {"letter": letter}, f"letter must be one of A to {last}")
        self.letter = given
        return self._recorded({"call": "answer", "arguments": {"letter": given}}, f"The answer {given} is recorded.")

    def get_reward(self) -> float:
        """Returns 0.8 for the right letter and 0.2 for evidence that was in view."""
        return 0.8 * (self.letter == self._asked.question.letter) + 0.2 * bool(self.record["hit"])

    @property
    def turns(self) -> int:
        """Turns after which an episode without an answer ends: each look may fail once, and the answer thrice."""
        return 2 * self._given.looks + 4

    @property
    def record(self) -> dict[str, Any]:
        """What the episode used and saw: for the predictions file.

        ``hit`` is whether all evidence was in view, None if nothing of the slide can be; ``hit_at`` the number of
        looks after which it was, None if it was not.
        """
        looks = [step for step in self.steps if step["call"] == "look" and "sha256" in step]
        hits = [step["looks"] for step in self.steps if step.get("hit")]
        return {
            "slide": self._item.slide,
            "looks": len(looks),
            "pixels": sum(step["px"] ** 2 for step in looks),
            "refused": sum("refused" in step for step in self.steps),
            "hit": None if self._control in NOTHING_SEEN else bool(hits),
            "hit_at": hits[0] if hits else None,
        }

    def _overview(self) -> list[dict[str, Any]]:
        item, (width, height) = self._item, self._extent
        content = self._slides.overview(item.slide, item.mpp, self._budget.overview_px)
        mpp = max(self._extent) / max(Image.open(io.BytesIO(content)).size)
        return self._showed("overview", {}, content, (0.0, 0.0, width, height), mpp, self._budget.overview_px, "")

    def _instructions(self, looked: bool) -> str:
        (width, height), budget = self._extent, self._budget
        mpp = self.steps[0]["mpp"]
        text = f"The slide is {width:.0f} um wide and {height:.0f} um high. The first image shows all of it at "
        text += f"{mpp:.3g} um per pixel. "
        if self._asked.query is not None:
            text += "The second image belongs to the question. "
        if looked:
            return f"{text}The images that follow show fields of it."
        sides = {view: min(budget.px * MPP[view], width, height) for view in _views(self._level0, self._extent)}
        scales = [
            f"{MAGNIFICATION[view]} ({MPP[view]:g} um per pixel, {side:.0f} um wide)" for view, side in sides.items()
        ]
        text += f"Views: {', '.join(scales)}. Looks left: {budget.looks}."
        return text + ("" if budget.pixels is None else f" Pixels left: {budget.pixels}.")

    def _path(self) -> list[tuple[float, float, str]]:
        """Returns the looks of the controls that look before the model is asked."""
        if self._control == "oracle-path":
            return [
                ((one.boxes[0][0] + one.boxes[0][2]) / 2, (one.boxes[0][1] + one.boxes[0][3]) / 2,
                 MAGNIFICATION[one.view])
                for one in self._asked.evidence
            ]  # fmt: skip
        rng = random.Random(f"{self._seed} {self._asked.question.id}")
        views = _views(self._level0, self._extent)
        return [
            (rng.uniform(0, self._extent[0]), rng.uniform(0, self._extent[1]), MAGNIFICATION[rng.choice(views)])
            for _ in range(self._given.looks)
        ]

    def _shown(self, content: bytes) -> list[dict[str, Any]]:
        """Returns an image as a part of an observation; nothing for a blind model."""
        if self._control == "blind":
            return []
        self.images.append(content)
        return [{"type": "image", "image": Image.open(io.BytesIO(content))}]

    def _showed(
        self, call: str, asked: dict[str, Any], content: bytes, box: BoxUm, mpp: float, px: int, text: str
    ) -> list[dict[str, Any]]:
        """Records a field, and whether it completes the evidence."""
        step = {"call": call, "arguments": asked, "box": box, "mpp": mpp, "px": px}
        step["sha256"] = hashlib.sha256(content).hexdigest()
        self.steps.append(step)
        step["looks"] = self.record["looks"]
        if self._control not in NOTHING_SEEN and not all(self._seen):
            evidence = self._asked.evidence
            self._seen = [seen or one.in_view(box, mpp) for seen, one in zip(self._seen, evidence, strict=True)]
            if all(self._seen):
                step["hit"] = True
        image = self._shown(content)
        return [*image, {"type": "text", "text": text}] if text else image

    def _refused(self, call: str, asked: Mapping[str, Any], reason: str) -> list[dict[str, Any]]:
        asked = {name: preview(value, _SAID) for name, value in asked.items()}
        return self._recorded({"call": call, "arguments": asked, "refused": reason}, f"Refused: {reason}.")

    def _recorded(self, step: dict[str, Any], text: str) -> list[dict[str, Any]]:
        self.steps.append(step)
        return [{"type": "text", "text": text}]


for _tool in (ZoomEnvironment.look, ZoomEnvironment.answer):
    del _tool.__annotations__["return"]  # TRL makes schemas of the methods: without results they are those of TOOLS
TOOLS: Final[list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("tools.yaml").read_text(encoding="utf-8"))
"""The tools as chat servers and templates read them."""


def call_tool(environment: ZoomEnvironment, name: Any, arguments: Any) -> list[dict[str, Any]]:
    """Calls a tool as a model asked for it; whatever it asked, the result is an observation.

    Args:
        environment: an environment with an episode.
        name: name of the tool.
        arguments: an object, or its JSON text.
    """
    if isinstance(arguments, str | bytes):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return environment._refused(preview(name), {"text": arguments}, "the arguments are not JSON")
    tool = next((one["function"] for one in TOOLS if one["function"]["name"] == name), None)
    if tool is None:
        return environment._refused(preview(name), {"arguments": arguments}, "the tools are look and answer")
    wanted = tool["parameters"]["required"]
    if not isinstance(arguments, Mapping) or set(arguments) != set(wanted):
        return environment._refused(name, {"arguments": arguments}, f"{name} takes {', '.join(wanted)}")
    return environment.look(**arguments) if name == "look" else environment.answer(**arguments)


def with_files(
    environment: ZoomEnvironment, parts: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], bytes | None]]:
    """Yields the parts of the last observation, each with the JPEG file of its image; None for a text."""
    images = iter(environment.images[len(environment.images) - sum("image" in part for part in parts) :])
    return ((part, next(images) if "image" in part else None) for part in parts)


def first_messages(prompt: Prompt, question: Question) -> list[dict[str, Any]]:
    """Returns the system message, if any, and the user turn with the question; the first observation goes after it."""
    return build_messages(prompt, [f"{prompt.text(question.question, question.options)}\n"], lambda image: image)


def _other_slides(questions: Sequence[ZoomQuestion], seed: int) -> dict[str, ZoomQuestion]:
    """Returns slide -> a question of another patient's slide; each slide serves once where the patients allow it."""
    first = {item.slide: item for item in reversed(questions)}
    names = sorted(first)
    random.Random(seed).shuffle(names)
    names.sort(key=lambda name: first[name].question.cluster)
    if len({item.question.cluster for item in first.values()}) < 2:
        hint = "name data of several patients"
        raise InputError(Problem("wrong-slide", "slides of at least two patients", "one", hint))
    donors, shift = {}, max(1, len(names) // 2)
    for index, name in enumerate(names):
        turn = [names[(index + shift + more) % len(names)] for more in range(len(names))]
        donors[name] = first[next(one for one in turn if first[one].question.cluster != first[name].question.cluster)]
    return donors


def _views(level0: float, extent: tuple[float, float]) -> list[str]:
    """Returns the views that a slide has: fine enough, and not larger than the slide."""
    return [view for view, mpp in MPP.items() if level0 <= mpp * MAGNIFY_LIMIT and min(extent) >= MIN_LOOK_PX * mpp]


def _listed(views: Sequence[str]) -> str:
    return ", ".join(MAGNIFICATION[view] for view in views)


def _number(value: Any) -> float | None:
    """Returns a finite number, given as such or as text; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
