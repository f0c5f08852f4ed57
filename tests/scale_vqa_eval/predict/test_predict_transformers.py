"""The transformers backend on a real, tiny, randomly initialised Qwen2.5-VL."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs torchvision (tools/torchvision_hook.py)")

from safetensors.torch import load_file, save_file
from tiny_llava import make_tiny_llava
from tiny_qwen import make_tiny_qwen
from transformers import AutoModelForImageTextToText

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.backend import InferenceConfig, ModelAnswer, Sampling
from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.local_backends import TransformersBackend
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import read_visual_questions, requests_by_path
from scale_vqa_eval.scoring.predictions import read_predictions

pytestmark = pytest.mark.usefixtures("one_thread")


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.answers: dict[Any, ModelAnswer] = {}
        self.failed: dict[Any, str] = {}

    def keep(self, ask: Any, answer: ModelAnswer) -> None:
        assert ask.key not in self.answers
        self.answers[ask.key] = answer

    def fail(self, ask: Any, reason: str) -> None:
        self.failed[ask.key] = reason


def answers(
    backend: TransformersBackend, release: Path, model: Path, config: str, sampling: Sampling, every: int = 1
) -> dict[Any, ModelAnswer]:
    items, store = read_visual_questions(str(release), "test", config, None, blind=False)
    job = InferenceConfig(str(model), load_prompt("letter-only"), sampling, Bounds(), store)
    sink = Kept()
    backend.run(job, requests_by_path(items[::every], circular=False), sink)
    assert not sink.failed
    return sink.answers


def call(release: Path, model: Path | str, out: Path, *more: str) -> Result:
    named = {"--data": str(release), "--split": "test", "--backend": "transformers", "--model": str(model)}
    named |= {"--out": str(out), "--prompt": "letter-only", "--max-tokens": "6"}
    return CliRunner().invoke(predict, [*(p for pair in named.items() for p in pair), *more], standalone_mode=False)


@pytest.mark.parametrize("config", ["default", "grounding"])
def test_a_batch_answers_as_one_by_one_does(release: Path, model: Path, config: str) -> None:
    """Questions of one batch have two or three images (grounding: five) and texts of several lengths."""
    greedy, every = Sampling(max_tokens=8), 2 if config == "default" else 1
    single = answers(TransformersBackend(1), release, model, config, greedy, every)
    for size in (3, 16):
        assert answers(TransformersBackend(size), release, model, config, greedy, every) == single
    assert len({answer.responses for answer in single.values()}) > len(single) // 2, (
        "images and text change the answer"
    )


def test_another_architecture_answers_in_batches_too(release: Path, tmp_path: Path) -> None:
    model = make_tiny_llava(tmp_path / "llava")
    single = answers(TransformersBackend(1), release, model, "default", Sampling(max_tokens=5), 3)
    assert answers(TransformersBackend(8), release, model, "default", Sampling(max_tokens=5), 3) == single
    assert len({answer.responses for answer in single.values()}) > len(single) // 2


def test_a_batch_too_large_for_the_memory_is_halved(
    release: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

    whole = answers(TransformersBackend(8), release, model, "default", Sampling(max_tokens=3), 2)
    generate, sizes = Qwen.generate, []

    def small(self: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(self, **inputs)

    monkeypatch.setattr(Qwen, "generate", small)
    assert answers(TransformersBackend(8), release, model, "default", Sampling(max_tokens=3), 2) == whole
    assert max(sizes) == 8 and sizes.count(2) >= 4


def test_an_image_that_the_processor_refuses_fails_alone(release: Path, model: Path) -> None:
    items, store = read_visual_questions(str(release), "test", "default", None, blind=False)
    read, strip = store.read, io.BytesIO()
    Image.new("RGB", (2500, 5)).save(strip, "PNG")
    broken = items[5].views[0]
    store.read = lambda picture: strip.getvalue() if picture == broken else read(picture)  # type: ignore[method-assign]
    job = InferenceConfig(str(model), load_prompt("letter-only"), Sampling(max_tokens=3), Bounds(), store)
    sink = Kept()
    TransformersBackend(8).run(job, requests_by_path(items, circular=False), sink)
    assert list(sink.failed) == [(items[5].question.id, None)]
    assert "aspect ratio" in sink.failed[items[5].question.id, None]
    whole = answers(TransformersBackend(8), release, model, "default", Sampling(max_tokens=3))
    assert sink.answers == {key: answer for key, answer in whole.items() if key not in sink.failed}


def test_samples_differ_by_their_seed_and_are_repeatable(release: Path, model: Path) -> None:
    backend = TransformersBackend(8)
    drawn = Sampling(max_tokens=6, temperature=1.0, n=3, seed=1)
    first = answers(backend, release, model, "grounding", drawn)
    assert answers(backend, release, model, "grounding", drawn) == first
    assert all(len(set(answer.responses)) > 1 for answer in first.values())


def test_a_run_is_resumed_and_blind_is_another_run(release: Path, model: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert call(release, model, whole, "--batch-size", "16").return_value == 0
    assert call(release, model, parts, "--limit", "11", "--batch-size", "4").return_value == 0
    assert len(read_predictions(parts).rows) == 11
    assert call(release, model, parts).return_value == 0
    assert whole.read_bytes() == parts.read_bytes()
    refused = call(release, model, parts, "--ablate", "blind")
    assert isinstance(refused.exception, InputError) and "another --out" in str(refused.exception)
    assert call(release, model, tmp_path / "blind.jsonl", "--ablate", "blind").return_value == 0
    blind = {row.id: row.response for row in read_predictions(tmp_path / "blind.jsonl").rows}
    assert sum(blind[row.id] != row.response for row in read_predictions(whole).rows) > 7


def test_other_weights_under_the_same_name_are_another_run(release: Path, model: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "p.jsonl", tmp_path / "model"
    make_tiny_qwen(own, seed=1)
    assert call(release, own, out, "--limit", "2").return_value == 0
    make_tiny_qwen(own, seed=2)
    refused = call(release, own, out)
    assert isinstance(refused.exception, InputError) and "model_sha256" in str(refused.exception)


def test_a_model_with_code_of_its_own_is_run_where_it_is_trusted(release: Path, model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own)
    weights = AutoModelForImageTextToText.from_pretrained(model).state_dict()  # under the names of the module itself
    save_file({name: one.clone() for name, one in weights.items()}, own / "model.safetensors", {"format": "pt"})
    names = {"AutoConfig": "own_config.OwnConfig", "AutoModelForImageTextToText": "own_model.OwnModel"}
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (own / "own_config.py").write_text(
        "from transformers import Qwen2_5_VLConfig\nclass OwnConfig(Qwen2_5_VLConfig):\n    model_type = 'own'\n"
    )
    (own / "own_model.py").write_text(
        "from transformers import Qwen2_5_VLForConditionalGeneration\nfrom .own_config import OwnConfig\n"
        "class OwnModel(Qwen2_5_VLForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    refused = call(release, own, tmp_path / "p.jsonl", "--limit", "4")
    assert isinstance(refused.exception, InputError) and "trust_remote_code=true" in str(refused.exception)
    trusted = call(release, own, tmp_path / "p.jsonl", "--limit", "4", "--option", "trust_remote_code=true")
    assert trusted.return_value == 0, trusted.exception
    call(release, model, tmp_path / "plain.jsonl", "--limit", "4")
    texts = [[row.response for row in read_predictions(tmp_path / name).rows] for name in ("p.jsonl", "plain.jsonl")]
    assert texts[0] == texts[1] and len(texts[0]) == 4


def test_weights_that_the_files_lack_are_refused_and_not_made_up(release: Path, model: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(model, half)
    weights = load_file(half / "model.safetensors")
    kept = {name: one for name, one in weights.items() if "layers.1." not in name}
    assert len(kept) < len(weights)
    save_file(kept, half / "model.safetensors", {"format": "pt"})
    result = call(release, half, tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"missing or of another shape, the first .*layers\.1\..*would be random"):
        raise result.exception or AssertionError("no error")
    assert not (tmp_path / "p.jsonl").exists()


def text_model(folder: Path) -> Path:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("gone", (), "a model that can be loaded"),
        ("text", (), "accepts images and generates text, found 'llama'|found llama, which does not"),
        ("bare", (), "weights and a processor"),
        ("tiny", ("--max-tokens", "4000"), "at most 4096 tokens"),
        ("tiny", ("--structured",), "constrains decoding"),
        ("tiny", ("--split", "val"), "a split that it has"),
    ],
)
def test_what_cannot_work_is_one_error_before_any_work(
    release: Path, model: Path, tmp_path: Path, kind: str, more: tuple[str, ...], message: str
) -> None:
    name = {"gone": tmp_path / "gone", "text": tmp_path / "text", "bare": tmp_path / "bare", "tiny": model}[kind]
    if kind == "text":
        text_model(name)
    if kind == "bare":
        name.mkdir()
        (name / "config.json").write_text((model / "config.json").read_text())
    result = call(release, name, tmp_path / "p.jsonl", *more)
    with pytest.raises(InputError, match=message):
        raise result.exception or AssertionError("no error")
    assert len(result.exception.problems) == 1
    assert not list(tmp_path.glob("*.jsonl"))


def test_provenance_names_everything(release: Path, model: Path, tmp_path: Path) -> None:
    call(release, model, tmp_path / "p.jsonl", "--limit", "1", "--max-pixels", "3000", "--ablate", "no-low")
    head = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    found = head["provenance"]
    assert (found["ablation"], found["pixels"], found["backend"]) == (
        "no-low",
        {"least": None, "most": 3000},
        "transformers",
    )
    assert set(head["versions"]) == {"python", "scale-vqa", "torch", "transformers"} and head["images"] == 2
    assert len(found["data_hash"]) == len(found["images_hash"]) == len(found["model_sha256"]) == 64
