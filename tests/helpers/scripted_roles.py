"""A scripted chat server on loopback that stands in for the language models of ``curate``, for synthetic captions.

It is not a language model: it knows the sentences that synthetic ("phantom") captions are made of, and nothing else.
With it the pipeline runs in tests, and everybody can reproduce the figures of the docs. The name of the model in a
request selects the role: ``decompose``, ``generate``, ``analyse``, or one of two adversaries, ``medoid`` (the option
most like the others) and ``longest``.

``python tests/helpers/scripted_roles.py`` prints its address and serves until Ctrl-C.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, Final

import click

from dataset_script.curate.candidates import pair_problem
from dataset_script.curate.captions import CaptionFeature
from dataset_script.phantom.plan import SIGNS
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scoring.baselines import longest, medoid

_NAMED: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = MappingProxyType(
    {
        "growth": (
            "growth pattern",
            {"glandular": "glands of one lumen", "sheetlike": "solid nests", "sievelike": "nests with round holes"},
        ),
        "focus": (
            "lesion",
            {
                "necrosis": "necrotic debris",
                "adipose": "adipose lobules",
                "fibrosis": "fibrous bundles",
                "haematoma": "fresh haematoma",
            },
        ),
        "infiltrate": (
            "inflammation",
            {
                "nodular": "inflammatory cells in rounded nodules",
                "diffuse": "inflammatory cells fill the stroma",
                "minimal": "few inflammatory cells",
            },
        ),
        "site": ("location", {"touching": "part of the focus", "avoiding": "keeps clear"}),
        "depth": ("margin", {"margin": "margin of the tissue", "centre": "within the tissue"}),
        "stroma": ("stroma", {"compact": "compact stroma", "swollen": "swollen stroma"}),
        "vessels": ("vessels", {"congested": "congested vessels", "collapsed": "collapsed vessels"}),
        "cells": (
            "inflammatory cells",
            {"lymphocytes": "lymphocytes", "neutrophils": "neutrophils", "eosinophils": "eosinophils"},
        ),
        "nuclei": ("nuclei", {"uniform": "small nuclei", "bizarre": "large nuclei"}),
        "mitoses": ("mitoses", {"many": "many mitoses", "zero": "no mitosis"}),
    }
)
"""CaptionFeature of a phantom -> the aspect, and value -> the phrase in its caption's own words."""

_SUMMARY: Final = re.compile(r"of (\w+) type, grade (\w+)\.")
_FREE: Final = (
    "Looking at all fields of this region, which statement is true?",
    "What can be confirmed in the images of this region?",
    "Which of these descriptions agrees with what the fields show?",
    "A colleague asks what is seen here at the scales named in the options. What do you answer?",
    "Which description would you sign for this region?",
)


def decomposed(captions: Mapping[str, str]) -> dict[str, Any]:
    """Returns the features of phantom captions, those alone that their sentences state."""
    found = []
    for feature, (aspect, phrases) in _NAMED.items():
        for value, phrase in phrases.items():
            sign = SIGNS[feature][value]
            for scale, text in captions.items():
                if scale != "path" and sign.casefold() in text.casefold():
                    found.append({"scale": scale, "aspect": aspect, "value": phrase})
    summary = _SUMMARY.search(captions.get("path", ""))
    if summary is not None:
        found.append({"scale": "path", "aspect": "tumour type", "value": f"{summary.group(1)} type"})
        found.append({"scale": "path", "aspect": "grade", "value": f"grade {summary.group(2)}"})
    return {"features": found}


def drafted(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a draft: two features drawn among those that go together, and a question that names neither."""
    rng = _rng(data)
    kind = data["question_type"].split(":")[0]
    features = [
        CaptionFeature(one["id"], one["id"].rpartition("-")[0], one["aspect"], one["value"])
        for one in data["features"]
    ]
    pairs = [
        (first, second)
        for place, first in enumerate(features)
        for second in features[place + 1 :]
        if pair_problem(first, second, kind, features) is None
    ]
    first, second = rng.choice(pairs)
    free = data["question"].startswith("write one")
    return {
        "question": rng.choice(_FREE) if free else data["question"],
        "first": {"feature": first.id, "contrast": ""},
        "second": {"feature": second.id, "contrast": ""},
        "rationale": f"Option A holds: {first.value} and {second.value} are both seen; B and C have one of them.",
    }


def analysed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a cause by what the question looks like: no reading, a rule."""
    sizes = [len(text) for text in data["options"].values()]
    right = len(data["options"][data["right"]])
    cause = "length" if right in (min(sizes), max(sizes)) and min(sizes) < max(sizes) else "base-rate"
    return {"cause": cause, "explanation": "said by rule, not by a reader", "constraint": ""}


def _rng(data: Mapping[str, Any]) -> random.Random:
    return random.Random(hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest())


ROLES: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = MappingProxyType(
    {"decompose": lambda data: decomposed(data["captions"]), "generate": drafted, "analyse": analysed}
)
_OPTION: Final = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


def read_blind(reader: str, asked: str) -> str:
    """Returns the answer of a reader of the text alone."""
    options = _OPTION.findall(asked)
    question = Question("q", asked.split("\n", 1)[0], tuple(text for _, text in options), 0)
    pick = {"medoid": medoid, "longest": longest}[reader](question)
    return f"<think>{reader}</think> <answer>{options[pick][0]}</answer>"


def answer(body: Mapping[str, Any]) -> str:
    """Returns the reply to a request, by the name of the model: a role, or a reader."""
    asked = body["messages"][1]["content"]
    role = ROLES.get(body["model"])
    return json.dumps(role(json.loads(asked))) if role is not None else read_blind(body["model"], asked)


@contextmanager
def serving(reply: Callable[[Mapping[str, Any]], str] = answer, port: int = 0) -> Iterator[str]:
    """Serves an OpenAI-compatible chat API on loopback while the block runs; yields its base address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = reply(body)
            words = sum(len(message["content"].split()) for message in body["messages"])
            said = len(text.split())
            content = json.dumps(
                {
                    "id": "scripted",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                    ],
                    "usage": {"prompt_tokens": words, "completion_tokens": said, "total_tokens": words + said},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
def main(port: int) -> None:
    """Serve the scripted double on 127.0.0.1 until Ctrl-C."""
    with serving(port=port) as url:
        click.echo(url)
        threading.Event().wait()


if __name__ == "__main__":
    main()
