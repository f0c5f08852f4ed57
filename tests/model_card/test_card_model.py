"""The card of trained weights: numbers from files, beside their blind control, and snippets that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from carded_runs import FACTS, TRAINING, make_folder, make_results, write_facts
from click.testing import CliRunner, Result
from predict_release import picture
from tiny_qwen import make_tiny_qwen

from model_card.cards import card
from model_card.hub.local import check_card
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.release_folder.card import head, marked_sections

pytest.importorskip("torch")
pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs torchvision (tools/torchvision_hook.py)")
pytestmark = pytest.mark.xdist_group("cards")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model at ``org/tiny`` below the folder that is returned: from_pretrained takes it for the Hub id."""
    root = tmp_path_factory.mktemp("hub")
    make_tiny_qwen(root / "org/tiny")
    for place, name in enumerate(("low", "mid", "high")):
        (root / f"{name}.jpg").write_bytes(picture(70 + place))
    return root


@pytest.fixture(scope="session")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("results")
    return make_results(make_folder(out / "scale-vqa"), model / "org/tiny", out)


def run(work: Path, *given: object, facts: Any = None, training: Any = None) -> Result:
    options = write_facts(work, facts, training)
    command = ["model", *options, "--out", str(work / "out"), *map(str, given)]
    return CliRunner().invoke(card, command, standalone_mode=False)


def made(work: Path, *given: object, **changed: Any) -> str:
    done = run(work, *given, **changed)
    if done.exception:
        raise done.exception
    return (work / "out/README.md").read_text()


def problems(work: Path, *given: object, **changed: Any) -> str:
    with pytest.raises(InputError) as error:
        made(work, *given, **changed)
    assert not (work / "out").exists()
    return "\n".join(map(str, error.value.problems))


def test_scores_stand_beside_their_blind_control(results: dict[str, Path], tmp_path: Path) -> None:
    text = made(tmp_path, "--results", results["control"])
    content = json.loads(results["control"].read_text())
    table = marked_sections(text)["results"]
    for name, part in content["by_dimension"].items():
        low, high = (f"{100 * end:.1f}" for end in part["interval"])
        cells = f"| {100 * part['accuracy']:.1f} [{low}, {high}] | {100 * part['blind_accuracy']:.1f} |"
        assert f"| {name} | {part['n']} | {part['clusters']} {cells}" in table
    assert "no blind control" not in table
    index = head(text)["model-index"][0]["results"][0]
    assert index["dataset"]["type"] == "org/scale-vqa" and index["dataset"]["config"] == "default"
    kinds = [metric["type"] for metric in index["metrics"]]
    assert kinds.count("accuracy") == kinds.count("blind_accuracy") == 6
    entry, control = yaml.safe_load((tmp_path / "out/.eval_results/scale-vqa.yaml").read_text())
    assert (entry["dataset"]["task_id"], control["dataset"]["task_id"]) == ("default_test", "default_test_blind")
    assert control["value"] == round(100 * content["blind"]["accuracy"], 2)
    assert entry["value"] == round(100 * content["accuracy"], 2) and "blind control (no images)" in entry["notes"]
    assert check_card(tmp_path / "out", "model") == []


def test_a_number_without_its_blind_control_is_marked_everywhere(results: dict[str, Path], tmp_path: Path) -> None:
    text = made(tmp_path, "--results", results["bare"], "--transfer", f"PathMMU={results['bare']}", "--published")
    parts = marked_sections(text)
    rows = [line for line in parts["results"].splitlines() if re.match(r"\| (?!dimension|model|-)", line)]
    assert len(rows) == 6 + 8 and all("**no blind control**" in row or "**none reported**" in row for row in rows)
    assert "| ScaleReasoner-R1 | 80.60 | 89.05 |" in parts["results"], "as reported, not rounded again"
    assert "| PathMMU | test |" in parts["transfer"] and "66.20 | **none reported**" in parts["transfer"]
    names = [metric["name"] for metric in head(text)["model-index"][0]["results"][0]["metrics"]]
    assert len(names) == 6 and all("no blind control" in name for name in names)
    assert "no blind control" in (tmp_path / "out/.eval_results/scale-vqa.yaml").read_text()


def test_cost_and_recipe_are_computed_from_the_run(results: dict[str, Path], tmp_path: Path) -> None:
    text = made(tmp_path, "--results", results["control"])
    parts = marked_sections(text)
    assert "16 device hours x 65 W" in parts["cost"] and "= 1.04 kWh" in parts["cost"]
    assert head(text)["co2_eq_emissions"]["emissions"] == 416.0
    assert "| batch | 64 (4 per device x 2 accumulated x 8 processes) |" in parts["training"]
    assert "| beta | 0.01 |" in parts["training"] and "not_shown" not in parts["training"]
    assert "of *ours*" not in parts["cost"], "what others wrote is escaped"
    assert "huggingface.co/org/base), no revision stated." in parts["training"], "what is not known is said, not blank"
    hostile = TRAINING | {"train_split": "a`<script>", "base_model_revision": "v1`<b>"}
    training = marked_sections(made(tmp_path, "--results", results["control"], training=hostile))["training"]
    assert "<script>" not in training and "<b>" not in training and "revision v1" in training
    talks = TRAINING | {"data": "private/sft.json", "train_split": "all"}
    training = marked_sections(made(tmp_path, "--results", results["control"], training=talks))["training"]
    assert "Data: a file of conversations, 40 questions" in training and "private" not in training


def test_what_the_recipes_write_is_what_the_card_reads(results: dict[str, Path], tmp_path: Path) -> None:
    from types import SimpleNamespace

    from training_recipes.arguments import RecipeArguments
    from training_recipes.rows import PromptFormat
    from training_recipes.run import metadata
    from training_recipes.selection import ChosenRows

    args = SimpleNamespace(seed=42, learning_rate=1e-6, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    args.to_dict = lambda: {"beta": 0.01, "optim": "adamw_torch", "hub_token": "secret"}
    state = SimpleNamespace(global_step=3, epoch=0.5, best_metric=None, best_model_checkpoint=None, log_history=[])
    accelerator = SimpleNamespace(num_processes=1, distributed_type=SimpleNamespace(value="NO"))
    trainer = SimpleNamespace(args=args, state=state, accelerator=accelerator, opened=False)
    trained = {"trained_parameters": 1234}
    model = SimpleNamespace(model_name_or_path="org/base", model_revision="main", use_peft=True)
    rows = ChosenRows([1, 2, 3], "train", [], (10, 20), "0" * 64)
    shape = PromptFormat(load_prompt("think-answer"))
    record = metadata(trainer, RecipeArguments(), model, shape, rows, trained) | {"seconds": 12.5}
    text = made(tmp_path, "--results", results["control"], training=json.loads(json.dumps(record, default=str)))
    for part in ("| LoRA | yes |", "| parameters trained | 1234 |", "split train, 3 questions", "| optim |"):
        assert part in text
    assert "secret" not in text


def test_all_that_is_missing_is_named_at_once(results: dict[str, Path], tmp_path: Path) -> None:
    facts = {key: value for key, value in FACTS.items() if key not in ("license", "power_w")} | {"typo": 1}
    training = {key: value for key, value in TRAINING.items() if key != "seed"} | {"base_model": "/home/x/base"}
    facts.pop("base_model")
    found = problems(tmp_path, facts=facts, training=training)
    for part in (
        "a licence",
        "power_w: expected a value",
        "'typo'",
        "seed: expected a value",
        "a Hub id as base_model",
    ):
        assert part in found
    assert "at least one results file" in found
    found = problems(tmp_path, "--results", results["control"], training=TRAINING | {"prompt_id": "letter-only"})
    assert "trained with letter-only, evaluated with think-answer@1" in found


def test_results_of_other_runs_are_refused(results: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads(results["control"].read_text())
    for name, change in {
        "ablated": {"ablation": "blind"},
        "nameless": {"config": None},
        "reworded": {"predicted_with": content["provenance"]["predicted_with"] | {"prompt_hash": "0" * 16}},
    }.items():
        (tmp_path / name).write_text(json.dumps(content | {"provenance": content["provenance"] | change}))
    noted = content["provenance"]["blind"]
    for name, change in {"images": {"ablation": None}, "another": {"model": "org/other"}}.items():
        about = content["provenance"] | {"blind": noted | change}
        (tmp_path / name).write_text(json.dumps(content | {"provenance": about}))
    assert "a run of the ablation blind" in problems(tmp_path, "--results", tmp_path / "images")
    assert "a blind control with the same model" in problems(tmp_path, "--transfer", f"X={tmp_path / 'another'}")
    assert "ablation blind" in problems(tmp_path, "--results", tmp_path / "ablated")
    assert "the config of the questions" in problems(tmp_path, "--results", tmp_path / "nameless")
    assert "the wording of prompt think-answer@1 here" in problems(tmp_path, "--results", tmp_path / "reworded")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(load_prompt("letter-only").model_dump()))
    found = problems(tmp_path, "--results", results["control"], facts=FACTS | {"prompt": "mine.yaml"})
    assert "the wording of prompt think-answer@1 here" in found, "other words than the runs noted"
    twice = ("--results", results["control"], "--results", f"other={tmp_path / 'reworded'}")
    assert "one prompt in all runs" in problems(tmp_path, *twice)


def test_a_card_of_others_is_not_overwritten_and_own_words_stay(results: dict[str, Path], tmp_path: Path) -> None:
    given = ("--results", results["control"])
    text = made(tmp_path, *given)
    path = tmp_path / "out/README.md"
    path.write_text(text.replace("## Limits and bias", "## Limits", 1) + "\n## Thanks\n\nTo all.\n")
    assert made(tmp_path, *given) == text + "\n## Thanks\n\nTo all.\n"
    path.write_text("---\nlicence: license\n---\n# Model Card for a trainer's default\n")
    assert isinstance(run(tmp_path, *given).exception, InputError)
    assert "default" in path.read_text()


def snippet(text: str, package: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", marked_sections(text)["use"], re.DOTALL)
    return next(block for block in blocks if f"from {package} import" in block)


def test_the_transformers_snippet_runs_and_says_what_predict_says(
    results: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    code = snippet(made(tmp_path, "--results", results["control"]), "transformers")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=model, capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == predicted(model, tmp_path) + "\n"


def test_the_vllm_snippet_runs_and_says_the_same(results: dict[str, Path], model: Path, tmp_path: Path) -> None:
    from vllm_server import ABSENT, ENGINE, ENVIRONMENT, PYTHON

    if not PYTHON.is_file():
        pytest.skip(ABSENT)
    (tmp_path / "snippet.py").write_text(snippet(made(tmp_path, "--results", results["control"]), "vllm"))
    # the engine's settings for a small machine without a GPU; the snippet itself is run as it stands
    start = (
        f"import functools, runpy, vllm\nvllm.LLM = functools.partial(vllm.LLM, **{ENGINE!r})\n"
        f"runpy.run_path({str(tmp_path / 'snippet.py')!r}, run_name='__main__')\n"
    )
    (tmp_path / "start.py").write_text(f"if __name__ == '__main__':\n    {start.replace(chr(10), chr(10) + '    ')}")
    command = [str(PYTHON), str(tmp_path / "start.py")]
    environment = os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=model, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()[-1]
    assert said.rstrip("\ufffd") == predicted(model, tmp_path).strip().splitlines()[-1].rstrip("\ufffd")


def predicted(model: Path, out: Path) -> str:
    """Returns what ``scale-vqa predict`` gets for the snippet's question."""
    from scale_vqa_eval.predict.command import predict

    row = {
        "question": "Which finding holds at more than one magnification?",
        "options": ["glands with stroma", "necrosis", "lymphoid follicles", "normal fat"],
        "answer": "A",
        "image_path": {f"{name}_mag": f"{name}.jpg" for name in ("low", "mid", "high")},
    }
    (out / "one.json").write_text(json.dumps([row]))
    given = ["--data", str(out / "one.json"), "--images", str(model), "--split", "test", "--backend", "transformers"]
    given += ["--model", str(model / "org/tiny"), "--out", str(out / "one.jsonl"), "--max-tokens", "8"]
    done = CliRunner().invoke(predict, given, standalone_mode=False)
    assert done.return_value == 0, done.output
    return str(json.loads((out / "one.jsonl").read_text().splitlines()[0])["response"])


def test_every_prompt_makes_a_snippet_that_asks_its_words(model: Path) -> None:
    from PIL import Image

    from model_card.cards.model import snippets

    odd = Prompt(
        id="odd",
        version=1,
        provenance="",
        user='{question} "x" [y]\n{options}',
        option="({letter}) {text}",
        answer="<answer>{letter}</answer>",
        view_label="{view}, {magnification}:",
    )
    sampling = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9}
    for prompt in (odd, load_prompt("letter-only"), load_prompt("published")):
        code = snippets("org/tiny", prompt, sampling)["transformers"].split("processor =")[0]
        found: dict[str, Any] = {"Image": Image}
        here = Path.cwd()
        os.chdir(model)
        try:
            exec(code, found)
        finally:
            os.chdir(here)
        *system, user = found["messages"]
        assert user["content"][-1]["text"] == prompt.text(found["QUESTION"], found["OPTIONS"])
        assert [message["content"][0]["text"] for message in system] == ([prompt.system] if prompt.system else [])
        texts = [part["text"] for part in user["content"][:-1] if part["type"] == "text"]
        assert texts == (["low_mag, 10x:", "mid_mag, 40x:", "high_mag, 200x:"] if prompt.view_label else [])
    assert "do_sample=True, temperature=0.7, top_p=0.9" in snippets("org/tiny", odd, sampling)["transformers"]
