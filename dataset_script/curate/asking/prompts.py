"""The prompts of the curation: versioned YAML with an id, and what code of ours reads from them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml


@functools.cache
def load_prompt(name: str) -> Mapping[str, Any]:
    """Returns a prompt file (``decompose``, ``generate``, ``analyse``) as it is."""
    text = (files("dataset_script.curate") / f"prompts/{name}.yaml").read_text("utf-8")
    found = yaml.safe_load(text)
    assert isinstance(found, Mapping)
    return found


def prompt_accounts() -> dict[str, dict[str, str]]:
    """Returns name -> id and hash of each prompt, for the report: a text that changed under its id is seen."""
    accounts = {}
    for name in ("decompose", "generate", "analyse"):
        prompt = load_prompt(name)
        digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
        accounts[name] = {"id": prompt["id"], "sha256": digest}
    return accounts


def messages(system: str, data: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Returns system text and data as chat messages; the data is JSON, so that no text of it can end it early."""
    return (
        {"role": "system", "content": system},
        {"role": "user", "content": json.dumps(data, ensure_ascii=False, indent=1)},
    )
