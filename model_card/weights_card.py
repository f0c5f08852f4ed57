"""The card of ScaleReasoner-R1 or of a model trained alike: every number from a file, beside its blind control."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import yaml
from huggingface_hub import ModelCard, ModelCardData

from model_card.checked_fields import Kinds, check_fields
from model_card.eval_results import entries_yaml, model_index
from model_card.footprint import footprint
from model_card.licence import stated_licence
from model_card.run_results import Score, one_system, read_scores
from model_card.sections import merged_card, render
from model_card.snippets import snippets
from model_card.training_metadata import read_training, recipe_rows
from scale_vqa_eval import __version__
from scale_vqa_eval.audit.reported_scores import read_reported_scores
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.prompts import Prompt
from scale_vqa_eval.release_folder.card import marked_sections
from scale_vqa_eval.schema import DIMENSIONS

FACTS: Final[Kinds] = {
    "repo": str,
    "dataset": str,
    "developers": str,
    "contact": str,
    "power_w": float,
    "power_source": str,
    "pue": float,
    "carbon_g_per_kwh": float,
    "carbon_source": str,
}
"""What only people know: Hub ids of model and data, who made it, power of one device (W) and where that figure is
from, overhead of the building (PUE), carbon intensity of its electricity and its source."""
OPTIONAL_FACTS: Final[Kinds] = {
    "name": str,
    "license": str,
    "license_name": str,
    "license_link": str,
    "base_model": str,
    "region": str,
    "limits": list,
    "prompt": str,
}
"""``prompt`` is the YAML file of a prompt of one's own, beside the facts."""
_HUB_ID: Final = re.compile(r"[\w][\w.-]*/[\w.-]+")
_COLUMNS: Final = (*DIMENSIONS, "all")


@dataclass(frozen=True)
class Card:
    """A rendered card with the evaluation entries that lie beside it."""

    text: str
    entries: str


def weights_card(
    facts_file: Path,
    training_file: Path,
    results: Sequence[tuple[str | None, Path]],
    transfer: Sequence[tuple[str | None, Path]] = (),
    published: bool = False,
    old: str | None = None,
    adapter: bool = False,
) -> Card:
    """Returns the card of a trained model.

    Args:
        facts_file: YAML with the fields of ``FACTS`` and a licence.
        training_file: ``training_metadata.json``.
        results: (config or None, results file) on Scale-VQA.
        transfer: (benchmark, results file) on other data.
        published: add what the authors reported, marked as theirs.
        old: an earlier card, whose hand-written text stays.
        adapter: the weights are a LoRA adapter that stands on its base.

    Raises:
        InputError: naming every fact that is missing at once.
    """
    problems: list[Problem] = []
    facts = _facts(facts_file, problems)
    licence = stated_licence(facts, {}, str(facts_file), problems)
    training = read_training(training_file, problems)
    scores = read_scores(results, problems)
    others = read_scores(transfer, problems)
    if not results:
        problems.append(
            Problem("results", "at least one results file", "none", "scale-vqa score --json, then --results")
        )
    own = facts_file.parent / facts["prompt"] if isinstance(facts.get("prompt"), str) else None
    prompt = one_system([*scores, *others], problems, own) if scores else None
    if prompt is not None and _other_prompt(training, prompt):
        found = f"trained with {training['prompt_id']}, evaluated with {prompt.id}@{prompt.version}"
        problems.append(
            Problem("the prompt", "one prompt in training and evaluation", found, "evaluate with the other")
        )
    base = facts.get("base_model") or training.get("base_model")
    if base and not _HUB_ID.fullmatch(str(base)):
        hint = "name the base model's Hub id as base_model in the facts"
        problems.append(Problem(str(training_file), "a Hub id as base_model", preview(base), hint))
    if old is not None and not marked_sections(old):
        hint = "move it away"
        problems.append(Problem("the card that is there", "one that this command wrote", "another one", hint))
    if problems or licence is None or prompt is None:
        raise InputError(problems)
    cost = footprint(training, facts)
    data = _head(facts, training, licence.yaml(), str(base), scores, cost.co2_kg)
    data.library_name = "peft" if adapter else "transformers"
    text = render(
        ModelCard,
        data,
        "model_card.md.j2",
        facts=facts,
        licence=licence,
        training=training,
        recipe=recipe_rows(training),
        base=base,
        scores=scores,
        transfer=others,
        published=_published() if published else None,
        prompt=prompt,
        asked=scores[0].asked,
        snippets=snippets(facts["repo"], prompt, scores[0].asked["sampling"]),
        cost=cost,
        columns=_COLUMNS,
        weak=_not_shown_to_see(scores),
        version=__version__,
        pc=_percent,
        reported=lambda share: f"{100 * share:.2f}",
        points=_points,
        local=lambda name: not _HUB_ID.fullmatch(str(name)),
        conversations=lambda name: str(name).endswith((".json", ".jsonl")),
    )
    card = text if old is None else merged_card(old, text)
    return Card(card, entries_yaml(scores, facts["dataset"]))


def _head(
    facts: Mapping[str, Any],
    training: Mapping[str, Any],
    licence: Mapping[str, str],
    base: str,
    scores: Sequence[Score],
    co2_kg: float,
) -> ModelCardData:
    emissions = {
        "emissions": round(1000 * co2_kg, 3),
        "source": facts["carbon_source"],
        "training_type": "fine-tuning",
        "hardware_used": f"{training['device']} ({training['world_size']} processes)",
    }
    if facts.get("region"):
        emissions["geographical_location"] = facts["region"]
    return ModelCardData(
        **licence,
        language="en",
        pipeline_tag="image-text-to-text",
        base_model=base,
        datasets=[facts["dataset"]],
        metrics=["accuracy"],
        tags=["pathology", "medical", "multi-image", "research-only"],
        co2_eq_emissions=emissions,
        model_name=facts.get("name") or facts["repo"].split("/")[-1],
        eval_results=model_index(scores, facts["dataset"]),
    )


def _facts(path: Path, problems: list[Problem]) -> dict[str, Any]:
    hint = "complete the facts (docs/cards.md has an example)"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(Problem(str(path), "facts as YAML", preview(" ".join(str(error).split()), 160), hint))
        return {}
    if not isinstance(content, dict):
        problems.append(Problem(str(path), "a YAML mapping of facts", preview(content), hint))
        return {}
    check_fields(path, content, FACTS, OPTIONAL_FACTS, hint, problems)
    for field in ("repo", "dataset"):
        if isinstance(content.get(field), str) and not _HUB_ID.fullmatch(content[field]):
            problems.append(Problem(str(path), f"{field}: a Hub id ORG/NAME", preview(content[field]), hint))
    strange = sorted(set(content) - FACTS.keys() - OPTIONAL_FACTS.keys())
    if strange:
        expected = f"the facts {', '.join([*FACTS, *OPTIONAL_FACTS])}"
        problems.append(Problem(str(path), expected, preview(", ".join(map(str, strange))), "correct the name"))
    return content


def _other_prompt(training: Mapping[str, Any], prompt: Prompt) -> bool:
    """Whether a run was trained with other words than ``prompt``; unknown where it notes no prompt."""
    names = (None, prompt.id, f"{prompt.id}@{prompt.version}")
    return training.get("prompt_id") not in names or training.get("prompt_digest") not in (None, prompt.digest)


def _published() -> dict[str, Any]:
    """What the authors reported: by dimension on the test split, and on other benchmarks."""
    with as_file(files("model_card") / "published_transfer.yaml") as path:
        return {"scores": read_reported_scores("scale-vqa-test"), "transfer": read_reported_scores(path)}


def _not_shown_to_see(scores: Sequence[Score]) -> list[str]:
    """Names the runs whose gain over the blind control is not shown to be above zero."""
    return [
        f"{score.name}, {score.split}"
        for score in scores
        if score.blind is not None and score.blind["gain_interval"][0] <= 0
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
