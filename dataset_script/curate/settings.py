"""``curate.yaml``: the model endpoint of each role, and the limits of the curation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.llm import ChatSettings, endpoint_name

_MAX_TOKENS: Final = {"decompose": 4096, "generate": 2048, "analyse": 1024}
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RoleSettings(_Section):
    """One endpoint in its role; docs/curation.md explains the fields.

    Attributes:
        name: ``decompose``, ``generate``, ``analyse``, or the name of an adversary.
        structured: what is sent as ``response_format``.
        repeats: how often an adversary answers each question, the options rotated.
    """

    name: _Text
    base_url: str
    model: _Text
    api_key_env: _Text = "OPENAI_API_KEY"
    price: list[float] | None = Field(None, min_length=2, max_length=2)
    concurrency: int = 8
    per_minute: float | None = None
    budget: float | None = None
    max_calls: int | None = None
    timeout: float = 120.0
    retries: int = Field(5, ge=0)
    sampling: dict[str, Any]
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    repeats: int = Field(4, ge=1)

    @property
    def chat(self) -> ChatSettings:
        """How the endpoint is asked."""
        return ChatSettings(
            sampling=self.sampling,
            concurrency=self.concurrency,
            per_minute=self.per_minute,
            retries=self.retries,
            timeout=self.timeout,
            prices=(self.price[0], self.price[1]) if self.price else None,
            budget=self.budget,
            max_calls=self.max_calls,
            api_key_env=self.api_key_env,
        )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        endpoint_name(self.base_url)
        _ = self.chat  # raises InputError for a budget without prices and the like
        return self


class Roles(_Section):
    """The endpoints: one for each step that writes, one or more adversaries."""

    decompose: RoleSettings
    generate: RoleSettings
    analyse: RoleSettings
    adversary: list[RoleSettings] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        filled = {name: _filled(role, str(name)) for name, role in raw.items()}
        if isinstance(raw.get("adversary"), list):
            filled["adversary"] = [_filled(one, f"adversary-{n}") for n, one in enumerate(raw["adversary"], 1)]
        return filled

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [one.name for one in self.adversary]
        if len(set(names)) < len(names):
            raise InputError(Problem("adversary", "a name for each", preview(names), "rename one"))
        return self


def _filled(raw: Any, name: str) -> Any:
    """Returns a role with its default name and sampling."""
    if not isinstance(raw, Mapping):
        return raw
    sampling = raw.get("sampling", {})
    if isinstance(sampling, Mapping):
        sampling = {"temperature": 0.0, "max_tokens": _MAX_TOKENS.get(name, 512), **sampling}
    return {"name": name, **raw, "sampling": sampling}


class CurationSettings(_Section):
    """The content of ``curate.yaml``; docs/curation.md explains each field."""

    roles: Roles
    seed: int = Field(42, ge=0, lt=2**31)
    tries: int = Field(3, ge=1, le=20)
    rounds: int = Field(3, ge=1, le=20)
    alpha: float = Field(0.05, ge=1e-6, le=0.5)
    probes: bool = True
    exchange_sets: bool = True
    near_duplicate: float = Field(0.9, ge=0.5, le=1.0)
    paths_per_shard: int = Field(1000, ge=1, le=10**6)
    source: _Text = "curated"


def read_settings(file: Path) -> CurationSettings:
    """Reads ``curate.yaml``.

    Raises:
        InputError: with every key that is unknown, missing or of another kind.
    """
    try:
        raw = parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(file), "a YAML file", preview(str(error), 200), "correct it")) from error
    return validated(CurationSettings, raw, str(file))
