"""The card of trained weights: every score comes from a results file and appears beside its blind control."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Final

import click
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from model_card.cards.results import entries_yaml, model_index, one_system, read_scores
from model_card.cards.text import FILE, merged_card, read_object, render, stated_doi, stated_licence
from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import atomic_write, parse_yaml
from scale_vqa_eval.predict.prompts import Prompt, filled
from scale_vqa_eval.release_folder.card import marked_sections
from scale_vqa_eval.schema import DIMENSIONS, MAGNIFICATION, VIEWS
from scale_vqa_eval.scoring.results import read_reported_scores
from scale_vqa_eval.text import percent

_HUB_ID: Final = r"[\w][\w.-]*/[\w.-]+"
_IMAGE_PARTS: Final = {
    "transformers": '{"type": "image", "image": image}',
    "vllm": '{"type": "image_pil", "image_pil": image}',
}

Text = Annotated[str, StringConstraints(min_length=1)]
HubId = Annotated[str, StringConstraints(pattern=rf"^{_HUB_ID}$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ModelFacts(BaseModel):
    """Facts about a model that its publisher states (``facts.yaml``).

    Attributes:
        repo, dataset: Hub ids of model and dataset.
        power_w, power_source: power of one device in watts, and the source of this figure.
        pue: power usage effectiveness of the data centre.
        carbon_g_per_kwh, carbon_source: carbon intensity of the electricity, and the source of this figure.
        prompt: file name of a custom prompt, relative to the facts file.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    repo: HubId
    dataset: HubId
    developers: Text
    contact: Text
    power_w: Amount
    power_source: Text
    pue: Amount
    carbon_g_per_kwh: Amount
    carbon_source: Text
    name: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    region: str | None = None
    limits: list[str] | None = None
    prompt: str | None = None
    doi: str | None = None


class TrainingRecord(BaseModel):
    """The fields of ``training_metadata.json`` that the card uses.

    Attributes:
        seconds: wall time.
        world_size: number of devices.
        config: settings of the trainer.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    method: Text
    base_model: Text
    data: Text
    train_split: Text
    train_rows: Count
    prompt_id: Text
    steps: Count
    seconds: Amount
    seed: Count
    learning_rate: Amount
    per_device_batch: Count
    gradient_accumulation: Count
    world_size: Count
    device: Text
    versions: Annotated[dict[str, Any], Field(min_length=1)]
    prompt_digest: str | None = None
    data_config: str | None = None
    data_hash: str | None = None
    base_model_revision: str | None = None
    lora: bool | None = None
    trained_parameters: Count | None = None
    views: list[str] | None = None
    blind_training: bool | None = None
    epochs: Amount | None = None
    config: dict[str, Any] | None = None


def footprint(devices: int, seconds: float, power_w: float, pue: float, carbon_g_per_kwh: float) -> dict[str, float]:
    """Returns device hours, energy and emissions of a training run.

    energy = devices x hours x power per device x PUE; emissions = energy x carbon intensity (Lacoste et al. 2019,
    arXiv:1910.09700). If the power is the board's limit and not measured, the result is an upper bound.

    >>> footprint(8, 36_000.0, power_w=700.0, pue=1.1, carbon_g_per_kwh=400.0)
    {'device_hours': 80.0, 'kwh': 61.6, 'co2_kg': 24.64}
    """
    hours = devices * seconds / 3600
    kwh = hours * power_w / 1000 * pue
    return {
        "device_hours": hours,
        "kwh": round(kwh, 6),
        "co2_kg": round(kwh * carbon_g_per_kwh / 1000, 6),
    }


@click.command()
@click.option("--facts", required=True, type=FILE, help="YAML file: repository, licence, power, ... (docs/cards.md)")
@click.option("--training", required=True, type=FILE, metavar="FILE", help="training_metadata.json of the run.")
@click.option(
    "--results",
    multiple=True,
    metavar="[CONFIG=]FILE",
    help="`score --json` on Scale-VQA, best with --blind; repeatable. CONFIG if the file does not have it.",
)
@click.option("--transfer", multiple=True, metavar="NAME=FILE", help="`score --json` on another benchmark.")
@click.option("--published", is_flag=True, help="Add the figures that the authors reported, marked as theirs.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder with the weights."
)
def model(
    facts: Path, training: Path, results: tuple[str, ...], transfer: tuple[str, ...], published: bool, out: Path
) -> None:
    """Write the card of trained weights: README.md with model-index, and .eval_results/scale-vqa.yaml.

    A score without a blind control is marked as such everywhere.
    """
    path = out / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    named, others = _named(results, "--results"), _named(transfer, "--transfer")
    adapter = (out / "adapter_config.json").is_file()
    text, entries = model_card(facts, training, named, others, published, old, adapter)
    atomic_write(path, text, "name another --out")
    atomic_write(out / ".eval_results" / "scale-vqa.yaml", entries, "name another --out")
    click.echo(str(path))


def model_card(
    facts_file: Path,
    training_file: Path,
    results: Sequence[tuple[str | None, Path]],
    transfer: Sequence[tuple[str | None, Path]] = (),
    published: bool = False,
    old: str | None = None,
    adapter: bool = False,
) -> tuple[str, str]:
    """Returns the card of a trained model, and the content of ``.eval_results/scale-vqa.yaml``.

    Args:
        facts_file: YAML with the fields of ``ModelFacts``.
        training_file: ``training_metadata.json``.
        results: (config or None, results file) on Scale-VQA.
        transfer: (benchmark, results file) on other data.
        published: add the figures that the authors reported, marked as theirs.
        old: the existing card, whose hand-written text is kept.
        adapter: whether the weights are a LoRA adapter.

    Raises:
        InputError: listing all missing facts.
    """
    problems: list[Problem] = []
    raw_facts = _read_facts(facts_file, problems)
    raw_training = _read_training(training_file, problems)
    licence = stated_licence(raw_facts, {}, str(facts_file), problems)
    doi = stated_doi(raw_facts.get("doi"), str(facts_file), problems)
    scores, others = read_scores(results, problems), read_scores(transfer, problems)
    if not results:
        hint = "scale-vqa score --json, then --results"
        problems.append(Problem("results", "at least one results file", "none", hint))
    own = facts_file.parent / raw_facts["prompt"] if isinstance(raw_facts.get("prompt"), str) else None
    prompt = one_system([*scores, *others], problems, own) if scores else None
    if prompt is not None:
        names = (None, prompt.id, f"{prompt.id}@{prompt.version}")
        trained_with = raw_training.get("prompt_id")
        if trained_with not in names or raw_training.get("prompt_digest") not in (None, prompt.digest):
            found = f"trained with {trained_with}, evaluated with {prompt.id}@{prompt.version}"
            hint = "evaluate with the prompt of the training"
            problems.append(Problem("the prompt", "the same prompt in training and evaluation", found, hint))
    base = str(raw_facts.get("base_model") or raw_training.get("base_model") or "")
    if base and not re.fullmatch(_HUB_ID, base):
        hint = "set base_model in the facts to the Hub id of the base model"
        problems.append(Problem(str(training_file), "a Hub id as base_model", preview(base), hint))
    if old is not None and not marked_sections(old):
        hint = "move it away"
        problems.append(Problem("the existing card", "a card that this command wrote", "another card", hint))
    if problems or licence is None or prompt is None:
        raise InputError(problems)
    facts, training = ModelFacts(**raw_facts), TrainingRecord(**raw_training)
    cost = footprint(training.world_size, training.seconds, facts.power_w, facts.pue, facts.carbon_g_per_kwh)
    emissions = {
        "emissions": round(1000 * cost["co2_kg"], 3),
        "source": facts.carbon_source,
        "training_type": "fine-tuning",
        "hardware_used": f"{training.device} ({training.world_size} processes)",
        **({"geographical_location": facts.region} if facts.region else {}),
    }
    data = ModelCardData(
        **licence.yaml(),
        language="en",
        pipeline_tag="image-text-to-text",
        library_name="peft" if adapter else "transformers",
        base_model=base,
        datasets=[facts.dataset],
        metrics=["accuracy"],
        tags=["pathology", "medical", "multi-image", "research-only"],
        co2_eq_emissions=emissions,
        model_name=facts.name or facts.repo.split("/")[-1],
        eval_results=model_index(scores, facts.dataset),
    )
    unproven = [
        f"{score.name}, {score.split}"
        for score in scores
        if score.blind is not None and score.blind["gain_interval"][0] <= 0
    ]
    text = render(
        ModelCard,
        data,
        "model_card.md.j2",
        facts=facts,
        licence=licence,
        doi=doi,
        training=training,
        base=base,
        scores=scores,
        transfer=others,
        published=_published() if published else None,
        prompt=prompt,
        snippets=snippets(facts.repo, prompt, scores[0].asked["sampling"]),
        cost=cost,
        columns=(*DIMENSIONS, "all"),
        no_gain_shown=unproven,
        version=__version__,
        reported=lambda share: percent(share, 2),
        number=lambda value: f"{value:.6g}" if isinstance(value, float) else str(value),
        local=lambda name: not re.fullmatch(_HUB_ID, str(name)),
    )
    return text if old is None else merged_card(old, text), entries_yaml(scores, facts.dataset)


def snippets(repo: str, prompt: Prompt, sampling: Mapping[str, Any]) -> dict[str, str]:
    """Returns example code for ``transformers`` and ``vllm`` that asks one question in the way the model was scored.

    Args:
        repo: Hub id of the model.
        prompt: prompt of the runs.
        sampling: ``max_tokens``, ``temperature`` and ``top_p`` of the runs.
    """
    environment = Environment(loader=PackageLoader("model_card", "templates"), keep_trailing_newline=False)
    environment.filters |= {"py": lambda text: json.dumps(text, ensure_ascii=False), "wrapped": _wrapped}
    labels = [filled(prompt.view_label or "", view=view, magnification=MAGNIFICATION[view]) for view in VIEWS]
    contract = environment.get_template("snippet_contract.py.j2")
    tokens, temperature = sampling["max_tokens"], sampling["temperature"]
    drawn, generation = "temperature=0", f"max_new_tokens={tokens}, do_sample=False"
    if temperature > 0:
        drawn = f"temperature={temperature}, top_p={sampling['top_p']}"
        generation = f"max_new_tokens={tokens}, do_sample=True, {drawn}, top_k=0"
    values = {"prompt": prompt, "generation": generation, "sampling": f"{drawn}, max_tokens={tokens}"}
    return {
        name: environment.get_template(f"snippet_{name}.py.j2")
        .render(values, contract=contract.render(repo=repo, prompt=prompt, labels=labels, image_part=image).rstrip())
        .strip()
        for name, image in _IMAGE_PARTS.items()
    }


def _wrapped(text: str) -> list[str]:
    """Splits a text into pieces of at most 100 characters that can be joined again without loss."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        lines += textwrap.wrap(line, 100, drop_whitespace=False, replace_whitespace=False) or [line]
    return lines if "".join(lines) == text else [text]


def _read_facts(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Returns the unvalidated facts; adds a problem for each that is missing or wrong."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        _check(ModelFacts, content, str(path), "complete the facts (docs/cards.md has an example)", problems)
    except (OSError, ValueError) as error:
        problems += getattr(error, "problems", [Problem(str(path), "YAML", preview(str(error), 160), "save as UTF-8")])
        return {}
    return content if isinstance(content, dict) else {}


def _read_training(path: Path, problems: list[Problem]) -> dict[str, Any]:
    hint = "take the file that the recipe wrote beside its weights, or complete it"
    try:
        content = read_object(path, "the metadata of a training run", hint)
    except InputError as error:
        problems += error.problems
        return {}
    _check(TrainingRecord, content, str(path), hint, problems)
    return content


def _check(model: type[BaseModel], content: Any, location: str, hint: str, problems: list[Problem]) -> None:
    try:
        validated(model, content, location)
    except InputError as error:
        problems += [Problem(one.location, one.expected, one.found, hint) for one in error.problems]


def _published() -> dict[str, Any]:
    """Returns the figures that the authors reported: by dimension on the test split, and on other benchmarks."""
    with as_file(files("model_card") / "published_transfer.yaml") as path:
        return {"scores": read_reported_scores("scale-vqa-test"), "transfer": read_reported_scores(path)}


def _named(values: tuple[str, ...], option: str) -> list[tuple[str | None, Path]]:
    """Parses ``[NAME=]FILE``; an existing file whose name contains an equals sign is one without a NAME."""
    found: list[tuple[str | None, Path]] = []
    for value in values:
        name, equals, path = value.partition("=")
        named = bool(equals) and not Path(value).is_file()
        file = Path(path if named else value)
        if not file.is_file():
            raise click.BadParameter(f"{file} is not a file", param_hint=option)
        found.append((name if named else None, file))
    return found
