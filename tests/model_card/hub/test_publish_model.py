"""Publishing weights: a tiny model of the real architecture goes to the double of the Hub, and comes back the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import TOKEN, hub_server
from publish_runs import Publisher
from tiny_qwen import make_tiny_qwen

from model_card.hub.verify import NotVerified, load_weights
from scale_vqa_eval.schema import METRIC_FOLDER

pytestmark = pytest.mark.xdist_group("publish_model")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_qwen(tmp_path_factory.mktemp("weights") / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Tiny\n")
    return folder


def test_weights_come_back_with_the_same_logits(weights: Path, tmp_path: Path) -> None:
    with hub_server(tmp_path / "hub") as server:
        publisher = Publisher(server, tmp_path / "home", weights)
        server.hub.create("models", "org/tiny", private=True).change(
            files={"model-00001-of-00002.safetensors": b"old"}
        )
        refused = publisher.run("--yes", "--private", "--incomplete-card", kind="model", repo="org/tiny")
        assert refused.returncode == 1 and "model-00001-of-00002.safetensors" in refused.stderr
        given = ("--yes", "--private", "--delete", "*-of-*", "--json")
        silent = publisher.run(*given, kind="model", repo="org/tiny")
        assert silent.returncode == 1 and "the section results" in silent.stderr, "a card by hand that says nothing"
        assert publisher.repository("models", "org/tiny").files().keys() == {
            ".gitattributes",
            "model-00001-of-00002.safetensors",
        }
        done = publisher.run(*given, "--incomplete-card", kind="model", repo="org/tiny")
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert outcome["published"] and outcome["verified"]
        assert "logits of" in outcome["verification"]["loaded"] and "by id" in outcome["verification"]["loaded"]
        assert outcome["verification"]["scored"]["n"] == 2
        assert publisher.is_published("models", "org/tiny")
        assert TOKEN not in publisher.said


def test_paths_that_training_left_are_refused(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = json.loads((weights / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "/scratch/u1/run/checkpoint-500"}))
    (folder / "training_args.bin").write_bytes(b"\x80")
    with hub_server(tmp_path / "hub") as server:
        refused = Publisher(server, tmp_path / "home", folder).run("--yes", kind="model", repo="org/tiny")
        assert not server.requests, "nothing was even asked"
    assert refused.returncode == 1
    for said in ("/scratch/u1/run/checkpoint-500", "config.json, _name_or_path", "training_args.bin", "link"):
        assert said in refused.stderr


def test_weights_that_are_not_whole_are_not_sent(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    shutil.copytree(weights, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with hub_server(tmp_path / "hub") as server:
        publisher = Publisher(server, tmp_path / "home", folder)
        given = {"kind": "model", "repo": "org/tiny"}
        cut = publisher.run("--yes", "--incomplete-card", **given)
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        named = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(named))
        missing = publisher.run("--yes", "--incomplete-card", **given)
        assert not server.requests, "nothing was even asked"
    assert cut.returncode == 1 and "a complete safetensors file" in cut.stderr
    assert missing.returncode == 1 and "the shard model-00002-of-00002.safetensors" in missing.stderr


def test_other_weights_are_not_the_same(weights: Path, tmp_path: Path) -> None:
    other = make_tiny_qwen(tmp_path / "other", seed=1)
    request = {"folder": str(weights), "repo": "org/tiny", "pull_request": True, "metric": str(METRIC_FOLDER)}
    with pytest.raises(NotVerified, match="logits differ"):
        load_weights(request, other)
