"""Weights as they are published: cut into shards as a stream, merged or not, complete, and still the same model."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_qwen import make_tiny_qwen

from model_card.tensors import read_tensors, tensor_digests
from model_card.weights import prepare_weights
from scale_vqa_eval.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs torchvision (tools/torchvision_hook.py)")
pytestmark = [pytest.mark.xdist_group("tiny_qwen_weights"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter whose B is not zero, so that merging changes the weights."""
    from peft import LoraConfig, get_peft_model

    from model_card.tensors import load_model

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    targets = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    model = get_peft_model(load_model(tiny), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return folder


def test_a_checkpoint_in_shards_is_the_same_model(tiny: Path, tmp_path: Path) -> None:
    from model_card.tensors import same_logits

    (tmp_path / "source").mkdir()
    for file in tiny.iterdir():
        shutil.copy(file, tmp_path / "source")
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json"):
        (tmp_path / "source" / name).write_bytes(b"stays")
    config = json.loads((tiny / "config.json").read_text()) | {"_name_or_path": "/home/somebody/model"}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    made = prepare_weights(tmp_path / "source", tmp_path / "out", max_shard_size="200KB")
    assert made.kind == "full" and len(made.shards) > 2
    assert max((tmp_path / "out" / name).stat().st_size for name in made.shards) < 2 * 200_000
    assert tensor_digests(tmp_path / "out") == tensor_digests(tiny)
    assert not {"optimizer.pt", "training_args.bin", "trainer_state.json"} & {p.name for p in made.folder.iterdir()}
    assert "/home/somebody" not in (tmp_path / "out/config.json").read_text()
    found = same_logits(tiny, tmp_path / "out")
    assert found.same and found.difference == 0.0 and found.tokens > 100


def test_another_weight_template_or_processor_is_told(tiny: Path, tmp_path: Path) -> None:
    from model_card.tensors import same_logits

    for name in ("weights", "template"):
        shutil.copytree(tiny, tmp_path / name)
    weights = {}
    with safe_open(tiny / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            weights[name] = file.get_tensor(name).copy()
    weights["lm_head.weight"][7, 3] += 0.01
    save_file(weights, tmp_path / "weights/model.safetensors", metadata={"format": "pt"})
    assert not same_logits(tiny, tmp_path / "weights").same
    assert tensor_digests(tiny) != tensor_digests(tmp_path / "weights")
    template = tmp_path / "template/chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>user"))
    found = same_logits(tiny, tmp_path / "template")
    assert not found.same and "input_ids" in found.inputs


def test_a_merged_adapter_answers_as_base_and_adapter_do(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from model_card.tensors import same_logits

    made = prepare_weights(adapter, tmp_path / "merged", max_shard_size="200KB")
    assert made.kind == "merged" and len(made.shards) > 1 and made.base == str(tiny)
    assert not (tmp_path / "merged/adapter_config.json").exists()
    assert str(tiny) not in "".join(file.read_text() for file in made.folder.glob("*.json"))
    shutil.copytree(adapter, tmp_path / "adapter")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, tmp_path / "adapter" / name)
    assert same_logits(tmp_path / "adapter", tmp_path / "merged", tolerance=None).same
    assert not same_logits(tiny, tmp_path / "merged", tolerance=None).same, "the adapter changes something"


def test_an_adapter_left_as_such_names_a_base_that_others_can_load(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from model_card.tensors import same_logits

    with pytest.raises(InputError, match="a base that others can load"):
        prepare_weights(adapter, tmp_path / "a", merge_lora=False)
    assert not list(tmp_path.iterdir())
    whole = tmp_path / "whole"
    shutil.copytree(adapter, whole)
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, whole / file.name)
    made = prepare_weights(whole, tmp_path / "a", merge_lora=False, base="org/base")
    assert made.kind == "adapter" and made.tensors == 12
    assert json.loads((made.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert same_logits(whole, made.folder, base=tiny).same


def test_the_command_prepares_and_compares(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from model_card.weights import weights

    for name, source, more in (("full", tiny, ()), ("merged", adapter, ("--base", str(tiny)))):
        given = [str(source), "--out", str(tmp_path / name), "--max-shard-size", "200KB", *more]
        done = CliRunner().invoke(weights, given, standalone_mode=False)
        assert done.return_value == 0, done.output or done.exception
        assert f": {name}, " in done.output and "the same; largest difference" in done.output
    wrong = CliRunner().invoke(weights, [str(tiny), "--out", str(tmp_path / "x"), "--max-shard-size", "many"])
    assert wrong.exit_code == 2 and not (tmp_path / "x").exists()


def test_all_that_is_missing_is_named_at_once_and_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    for name in ("generation_config.json", "chat_template.jinja", "processor_config.json", "tokenizer.json"):
        (source / name).unlink()
    with pytest.raises(InputError) as error:
        prepare_weights(source, tmp_path / "out")
    expected = "\n".join(problem.expected for problem in error.value.problems)
    assert all(kind in expected for kind in ("generation config", "chat template", "image processor"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert prepare_weights(source, tmp_path / "out", base=tiny).kind == "full", "the base has them"


def test_a_broken_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="a complete safetensors file"):
        prepare_weights(source, tmp_path / "out")
    weights.unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*save_pretrained"):
        (source / "pytorch_model.bin").write_bytes(b"")
        prepare_weights(source, tmp_path / "out")
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../x.safetensors", "b": "n"}})
    )
    with pytest.raises(InputError) as error:
        prepare_weights(source, tmp_path / "out")
    assert len(error.value.problems) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(InputError, match="a new folder"):
        prepare_weights(tiny, tmp_path / "full")


def test_mixed_types_stay_aligned_and_readable(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    tensors = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(5, dtype=np.float32), "c": np.ones((0, 2), np.int64)}
    save_file(tensors, source / "model.safetensors")
    prepare_weights(source, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as file:
        for name, value in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), value)
    assert read_tensors(tmp_path / "out")["b"].start % 4 == 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from Linux's /proc")
def test_two_gigabytes_stream_in_flat_memory(tiny: Path, tmp_path: Path) -> None:
    """What is measured is the process's peak, with everything that it imports."""
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    size = 250 * 2**20
    header = {
        f"layer.{place}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [place * size, (place + 1) * size]}
        for place in range(8)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(0).bytes(2**20)
    with (source / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for place in range(8 * 250):
            file.write(place.to_bytes(8, "little") + block[8:])
    code = (
        "import re, sys\n"
        "from model_card.weights import prepare_weights\n"
        "made = prepare_weights(*sys.argv[1:3], max_shard_size='600MB')\n"
        # not ru_maxrss: a process that is forked inherits the peak of the one that forks
        "peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) * 1024\n"
        "print(len(made.shards), made.size, peak)\n"
    )
    try:
        command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
        shards, total, peak = map(int, done.stdout.split())
        assert shards == 4 and total > 8 * size
        assert peak < 250 * 2**20, f"{peak / 2**20:.0f} MiB"
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
