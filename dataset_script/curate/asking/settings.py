"""``curate.yaml``: which endpoint plays which role, and how far the curation goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import yaml

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.llm import ChatSettings, endpoint_name

STRUCTURED: Final = ("json_schema", "json_object", "none")
SINGLE_ROLES: Final = ("decompose", "generate", "analyse")


@dataclass(frozen=True)
class RoleSettings:
    """One endpoint.

    Attributes:
        name: ``decompose``, ``generate``, ``analyse``, or an adversary's own name.
        base_url: base address of the OpenAI-compatible API.
        model: name of the model there.
        chat: sampling, pace, prices and limits; ``api_key_env`` names the environment variable with the API key.
        structured: what is sent as ``response_format``.
        repeats: how often an adversary answers each question, the options rotated.
    """

    name: str
    base_url: str
    model: str
    chat: ChatSettings
    structured: str = "json_schema"
    repeats: int = 4


@dataclass(frozen=True)
class Settings:
    """The whole of ``curate.yaml``; each field's meaning stands in ``docs/curation.md``."""

    decompose: RoleSettings
    generate: RoleSettings
    analyse: RoleSettings
    adversaries: tuple[RoleSettings, ...]
    seed: int = 42
    tries: int = 3
    rounds: int = 3
    alpha: float = 0.05
    probes: bool = True
    exchange_sets: bool = True
    near_duplicate: float = 0.9
    paths_per_shard: int = 1000
    source: str = "curated"
    raw: Mapping[str, Any] = field(default_factory=dict)


_ROLE_KEYS: Final = {
    "name": str,
    "base_url": str,
    "model": str,
    "api_key_env": str,
    "price": list,
    "concurrency": int,
    "per_minute": (int, float),
    "budget": (int, float),
    "max_calls": int,
    "timeout": (int, float),
    "retries": int,
    "sampling": dict,
    "structured": str,
    "repeats": int,
}
_TOP_KEYS: Final = {
    "seed": (int, 0, 2**31 - 1),
    "tries": (int, 1, 20),
    "rounds": (int, 1, 20),
    "alpha": (float, 1e-6, 0.5),
    "probes": (bool, 0, 1),
    "exchange_sets": (bool, 0, 1),
    "near_duplicate": (float, 0.5, 1.0),
    "paths_per_shard": (int, 1, 10**6),
}
_MAX_TOKENS: Final = {"decompose": 4096, "generate": 2048, "analyse": 1024}


def read_settings(file: Path) -> Settings:
    """Reads ``curate.yaml``.

    Raises:
        InputError: with every key that is unknown, missing or of another kind.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), "a YAML file", preview(str(error), 200), "correct it")) from error
    problems: list[Problem] = []
    if not isinstance(raw, Mapping) or not isinstance(raw.get("roles"), Mapping):
        raise InputError(Problem(str(file), "a mapping with roles", preview(raw), "see docs/curation.md"))
    top = _top(file, raw, problems)
    roles = raw["roles"]
    for name in sorted(set(map(str, roles)) - {*SINGLE_ROLES, "adversary"}):
        known = ", ".join((*SINGLE_ROLES, "adversary"))
        problems.append(Problem(f"{file}, roles", f"one of {known}", preview(name), "correct the name"))
    singles = {name: _role(f"{file}, roles.{name}", name, roles.get(name), problems) for name in SINGLE_ROLES}
    several = roles.get("adversary")
    if not isinstance(several, list) or not several:
        problems.append(
            Problem(f"{file}, roles.adversary", "a list of endpoints", preview(several), "give one or more")
        )
        several = []
    adversaries = [
        _role(f"{file}, roles.adversary[{number}]", f"adversary-{number}", one, problems)
        for number, one in enumerate(several, 1)
    ]
    names = [one.name for one in adversaries if one is not None]
    if len(set(names)) < len(names):
        problems.append(Problem(f"{file}, roles.adversary", "a name for each", preview(names), "rename one"))
    if problems:
        raise InputError(problems)
    return Settings(
        **{name: role for name, role in singles.items() if role is not None},  # type: ignore[arg-type]
        adversaries=tuple(one for one in adversaries if one is not None),
        **top,
        raw=raw,
    )


def _top(file: Path, raw: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "roles":
            continue
        if name == "source" and isinstance(value, str) and value.strip():
            found[name] = value.strip()
            continue
        if name not in _TOP_KEYS:
            known = ", ".join(["roles", "source", *_TOP_KEYS])
            problems.append(Problem(str(file), f"one of {known}", preview(name), "correct the key"))
            continue
        kind, low, high = _TOP_KEYS[name]
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) != (kind is bool)) or not low <= value <= high:
            expected = "true or false" if kind is bool else f"a number {low:g} to {high:g}"
            problems.append(Problem(f"{file}, {name}", expected, preview(value), "correct it"))
            continue
        found[name] = value
    return found


def _role(location: str, name: str, raw: Any, problems: list[Problem]) -> RoleSettings | None:
    before = len(problems)
    if not isinstance(raw, Mapping):
        problems.append(Problem(location, "an endpoint with base_url and model", preview(raw), "add it"))
        return None
    for key, value in raw.items():
        kind = _ROLE_KEYS.get(str(key))
        if kind is None:
            problems.append(Problem(location, f"one of {', '.join(_ROLE_KEYS)}", preview(key), "correct the key"))
        elif not isinstance(value, kind) or isinstance(value, bool):
            problems.append(
                Problem(f"{location}.{key}", f"a value of the kind of {kind}", preview(value), "correct it")
            )
    for key in ("base_url", "model"):
        if key not in raw:
            problems.append(Problem(location, key, "none", "add it"))
    if raw.get("structured", "json_schema") not in STRUCTURED:
        problems.append(
            Problem(f"{location}.structured", " or ".join(STRUCTURED), preview(raw["structured"]), "correct it")
        )
    price = raw.get("price")
    if isinstance(price, list) and not (len(price) == 2 and all(isinstance(one, int | float) for one in price)):
        problems.append(Problem(f"{location}.price", "[for a million tokens in, out]", preview(price), "correct it"))
    if len(problems) > before:
        return None
    try:
        endpoint_name(raw["base_url"])
        chat = _chat(name, raw)
    except InputError as error:
        problems += [
            Problem(f"{location}, {one.location}", one.expected, one.found, one.hint) for one in error.problems
        ]
        return None
    return RoleSettings(
        str(raw.get("name", name)),
        raw["base_url"],
        raw["model"],
        chat,
        raw.get("structured", "json_schema"),
        raw.get("repeats", 4),
    )


def _chat(name: str, raw: Mapping[str, Any]) -> ChatSettings:
    sampling = {"temperature": 0.0, "max_tokens": _MAX_TOKENS.get(name, 512), **raw.get("sampling", {})}
    own = {one.name for one in fields(ChatSettings)}
    given = {key: value for key, value in raw.items() if key in own - {"sampling"}}
    if "price" in raw:
        given["prices"] = tuple(float(one) for one in raw["price"])
    if "api_key_env" in raw:
        given["api_key_env"] = raw["api_key_env"]
    return ChatSettings(sampling=sampling, **given)
