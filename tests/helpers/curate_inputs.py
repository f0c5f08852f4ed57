"""What tests of the curation share: captions of phantom paths with small images, and a configuration for a server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from click.testing import CliRunner, Result
from phantom_captions import caption_plans, caption_row
from PIL import Image
from scripted_roles import answer

from dataset_script.curate.command import curate

Answer = Callable[[Mapping[str, Any]], str]


def write_input(folder: Path, slides: int, seed: int = 5, missing_high: float = 0.1) -> Path:
    """Writes a captions file of phantom slides beside images of noise, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = [caption_row(plan) for plan in caption_plans(slides, seed, missing_high)]
    for row in rows:
        for path in row["paths"]:
            for view in ("low_mag", "mid_mag", "high_mag"):
                if path[view] is not None:
                    file = folder / path[view]["image_path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(file, "PNG")
                    file.rename(file.with_suffix(".png"))
                    path[view]["image_path"] = str(Path(path[view]["image_path"]).with_suffix(".png"))
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_config(file: Path, url: str, roles: Mapping[str, Mapping[str, Any]] | None = None, **top: Any) -> Path:
    """Writes a curate.yaml whose roles are played by one server; ``roles`` adds to single ones."""
    more = roles or {}
    quick = {"base_url": url, "retries": 1, "timeout": 20, "concurrency": 4}
    named: dict[str, Any] = {
        name: {**quick, "model": name, **more.get(name, {})} for name in ("decompose", "generate", "analyse")
    }
    named["adversary"] = [
        {**quick, "name": name, "model": name, "repeats": 2, **more.get("adversary", {})}
        for name in ("medoid", "longest")
    ]
    file.write_text(yaml.safe_dump({"seed": 3, "rounds": 2, "source": "test captions", **top, "roles": named}))
    return file


def data_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The data that a role was given."""
    found: dict[str, Any] = json.loads(body["messages"][1]["content"])
    return found


def instead(model: str, when: Callable[[Mapping[str, Any]], bool], text: str | Answer) -> Answer:
    """The scripted double, which in one role answers something else to some requests."""

    def reply(body: Mapping[str, Any]) -> str:
        if body["model"] == model and when(body):
            return text if isinstance(text, str) else text(body)
        return answer(body)

    return reply


def first_try(body: Mapping[str, Any]) -> bool:
    """Says whether a request is the first of its task: later ones show the model its reply."""
    return len(body["messages"]) == 2


STEPS = ("decompose", "generate", "screen", "construct")


def run(file: Path, out: Path, config: Path, *more: str) -> Result:
    return CliRunner().invoke(curate, [str(file), "--out", str(out), "--config", str(config), *more])


def screened(file: Path, out: Path, config: Path, *more: str) -> dict[str, Any]:
    """Runs the steps before construction, whose audit takes its time, and returns the account of the screening."""
    done = run(file, out, config, *more, *(part for step in STEPS[:3] for part in ("--step", step)))
    assert done.exit_code == 0, done.output
    return account_of(out, "screened")


def account_of(out: Path, step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out.with_name(f"{out.name}.curation") / f"{step}.json").read_text())
    return found


def rows_of(out: Path, name: str = "screened") -> list[dict[str, Any]]:
    work = out.with_name(f"{out.name}.curation")
    return [json.loads(line) for line in (work / f"{name}.jsonl").read_text().splitlines()]


def leaky(body: Mapping[str, Any]) -> str:
    """A generator that hints at the truth in first versions of free questions, and adversaries who take the hint."""
    if body["model"] in ("medoid", "longest"):
        asked = body["messages"][1]["content"]
        hint = re.search(r"\(hint: (\w+) (\w+)\)", asked)
        options = re.findall(r"^([A-D])\. (.*)$", asked, re.MULTILINE)
        right = [letter for letter, text in options if hint and all(_code(hint.group(n), text) for n in (1, 2))]
        return f"<think>hint</think> <answer>{right[0] if right else 'A'}</answer>"
    if body["model"] == "analyse":
        return json.dumps({"cause": "question-overlap", "explanation": "a hint", "constraint": "Give no hint."})
    text = answer(body)
    if body["model"] == "generate" and "attempt" not in data_of(body):
        draft, data = json.loads(text), data_of(body)
        if data["question"].startswith("write"):
            values = {one["id"]: one["value"] for one in data["features"]}
            codes = [_coded(values[draft[half]["feature"]]) for half in ("first", "second")]
            draft["question"] += f" (hint: {codes[0]} {codes[1]})"
        return json.dumps(draft)
    return text


def _coded(value: str) -> str:
    return "z" + value.encode().hex()


def _code(code: str, option: str) -> bool:
    return bytes.fromhex(code[1:]).decode() in option
