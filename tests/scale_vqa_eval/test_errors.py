"""Settings that came from a file are checked against a pydantic model; every fault is named by its key."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scale_vqa_eval.errors import InputError, Problem, validated


class Server(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    address: str
    calls: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _reachable(self) -> Server:
        if self.address.startswith("ftp"):
            raise InputError(Problem("address", "an http address", self.address, "correct it"))
        return self


class Servers(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    servers: list[Server]
    seed: int | None = None


def test_a_value_that_keeps_to_the_model_is_read() -> None:
    assert validated(Servers, {"servers": [{"address": "http://x"}]}, "c.yaml").servers[0].calls == 8


def test_every_fault_is_named_with_its_place() -> None:
    raw = {
        "servers": [{"address": "http://x", "call": 3}, {"calls": 0}, {"address": "ftp://x"}, {"address": 1}],
        "sed": 1,
    }
    with pytest.raises(InputError) as refused:
        validated(Servers, raw, "c.yaml")
    assert [(one.location, one.expected, one.found) for one in refused.value.problems] == [
        ("c.yaml, servers[0].call", "one of address, calls", "'call'"),
        ("c.yaml, servers[1].address", "a value for address", "none"),
        ("c.yaml, servers[1].calls", "greater than or equal to 1", "0"),
        ("c.yaml, servers[2], address", "an http address", "ftp://x"),
        ("c.yaml, servers[3].address", "a valid string", "1"),
        ("c.yaml, sed", "one of servers, seed", "'sed'"),
    ]
    with pytest.raises(InputError, match="expected a mapping"):
        validated(Servers, 3, "c.yaml")
