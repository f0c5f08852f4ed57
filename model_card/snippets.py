"""The two snippets of a model's card: one question asked by the contract, with transformers and with vLLM."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, PackageLoader

from scale_vqa_eval.predict.prompts import Prompt, filled
from scale_vqa_eval.schema import MAGNIFICATION, VIEWS

_IMAGE_PARTS: Final = {
    "transformers": '{"type": "image", "image": image}',
    "vllm": '{"type": "image_pil", "image_pil": image}',
}


def snippets(repo: str, prompt: Prompt, sampling: Mapping[str, Any]) -> dict[str, str]:
    """Returns ``transformers`` and ``vllm`` -> Python that runs where the model and three images are.

    Args:
        repo: Hub id of the model.
        prompt: the words of the contract.
        sampling: as the runs noted it: ``max_tokens``, ``temperature``, ``top_p``.
    """
    environment = Environment(loader=PackageLoader("model_card", "templates"), keep_trailing_newline=False)
    environment.filters |= {"py": lambda text: json.dumps(text, ensure_ascii=False), "wrapped": _wrapped}
    labels = [filled(prompt.view_label or "", view=view, magnification=MAGNIFICATION[view]) for view in VIEWS]
    contract = environment.get_template("snippet_contract.py.j2")
    tokens, temperature = sampling["max_tokens"], sampling["temperature"]
    if temperature > 0:
        drawn = f"temperature={temperature}, top_p={sampling['top_p']}"
        generation = f"max_new_tokens={tokens}, do_sample=True, {drawn}, top_k=0"
    else:
        drawn, generation = "temperature=0", f"max_new_tokens={tokens}, do_sample=False"
    values = {
        "prompt": prompt,
        "generation": generation,
        "sampling": f"{drawn}, max_tokens={tokens}",
    }
    return {
        name: environment.get_template(f"snippet_{name}.py.j2")
        .render(values, contract=contract.render(repo=repo, prompt=prompt, labels=labels, image_part=image).rstrip())
        .strip()
        for name, image in _IMAGE_PARTS.items()
    }


def _wrapped(text: str) -> list[str]:
    """Cuts a text into pieces that joined are the text again."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        lines += textwrap.wrap(line, 100, drop_whitespace=False, replace_whitespace=False) or [line]
    if "".join(lines) != text:
        return [text]
    return lines
