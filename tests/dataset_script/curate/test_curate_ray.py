"""The steps as tasks of Ray Data: the same files, and answers that count on either engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import ChatEndpoint, serving
from curate_inputs import STEPS, account_of, leaky, rows_of, run, screened, write_config, write_input
from scripted_roles import answer

from dataset_script.curate import pipeline
from dataset_script.curate.engine import run_shards
from dataset_script.curate.screening import readers
from scale_vqa_eval.errors import InputError

pytestmark = pytest.mark.xdist_group("curate")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of four paths."""
    return write_input(tmp_path_factory.mktemp("few"), 3, missing_high=0.0)


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def test_ray_gives_the_same_bytes(few: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str, int]] = []

    def counted(engine: str, function: Any, tasks: Any) -> list[dict[str, Any]]:
        ran.append((engine, function.__name__, len(tasks)))
        return run_shards(engine, function, tasks)

    monkeypatch.setattr(pipeline, "run_shards", counted)
    monkeypatch.setattr(readers, "run_shards", counted)
    with serving(ChatEndpoint(leaky)) as server:
        config = write_config(tmp_path / "c.yaml", server.url, probes=False, rounds=2, paths_per_shard=5)
        screened(few, tmp_path / "local", config)
        asked = len(server.keys)
        server.keys.clear()
        account = screened(few, tmp_path / "ray", config, "--engine", "ray", "--workers", "2")
        assert account["rounds"][0]["leaking"] > 0, "nothing was made again"
        assert ran[:4] == [("ray", f"{name}_shard", 3) for name in ("decompose", "draft", "listen", "listen")]
        assert [name for _, name, _ in ran[4:]] == ["listen_shard"] * 2, "the second round as well"
        assert len(server.keys) == asked and set(server.keys.values()) == {1}
        screened(few, tmp_path / "ray", config)
        assert set(server.keys.values()) == {1}, "answers paid for on Ray count here"
    for step in ("features", "drafts", "items", "screened"):
        assert account_of(tmp_path / "ray", step) == account_of(tmp_path / "local", step)
    for name in ("items", "screened"):
        assert rows_of(tmp_path / "ray", name) == rows_of(tmp_path / "local", name)
    for folder in ("features", "answers/adversary-1", "answers/adversary-2", "answers/generate"):
        ray, local = (tmp_path / f"{engine}.curation" / folder for engine in ("ray", "local"))
        assert sorted(file.name for file in ray.glob("*.jsonl")) == [f"{n:05d}.jsonl" for n in range(3)]
        for file in ray.glob("*.jsonl"):
            assert sorted(file.open()) == sorted((local / file.name).open())


def test_an_adversarys_limit_on_ray_stops_cleanly_and_the_next_run_goes_on(
    few: Path, tmp_path: Path, local_ray: None
) -> None:
    with serving(ChatEndpoint(answer)) as server:
        limited = write_config(
            tmp_path / "l.yaml", server.url, {"adversary": {"max_calls": 30}}, probes=False, paths_per_shard=5
        )
        steps = [part for step in STEPS[:3] for part in ("--step", step)]
        stopped = run(few, tmp_path / "out", limited, "--engine", "ray", "--workers", "2", *steps)
        assert isinstance(stopped.exception, InputError) and "to go on" in str(stopped.exception)
        assert sum(body["model"] == "medoid" for body in server.bodies) <= 30
        screened(few, tmp_path / "out", write_config(tmp_path / "c.yaml", server.url, probes=False), "--engine", "ray")
    assert set(server.keys.values()) == {1}
