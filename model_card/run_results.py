"""Scores for a model's card: results files named by their config, with their blind control or marked as bare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.scoring.results import read_results


@dataclass(frozen=True)
class Score:
    """One results file.

    Attributes:
        name: config of the data, or the name of another benchmark.
        content: what ``scale-vqa score --json`` wrote.
    """

    name: str
    content: Mapping[str, Any]

    @property
    def split(self) -> str:
        """Split that was scored; ``all`` where none was named."""
        return self.content["provenance"].get("split") or "all"

    @property
    def blind(self) -> Mapping[str, Any] | None:
        """Figures of the blind control; None where there is none."""
        return self.content.get("blind")

    @property
    def asked(self) -> Mapping[str, Any]:
        """How the model was asked: prompt, sampling, backend, weights."""
        provenance = self.content["provenance"]
        return {**provenance, **(provenance.get("predicted_with") or {})}


def read_scores(named: Sequence[tuple[str | None, Path]], problems: list[Problem]) -> list[Score]:
    """Reads results files; one of a blind or ablated run, of no known config, or beside a false control is a fault.

    Args:
        named: name (None: the config that the file notes) and file.
        problems: added to.
    """
    scores: list[Score] = []
    for name, path in named:
        try:
            content = read_results(path)
        except InputError as error:
            problems.extend(error.problems)
            continue
        provenance = content["provenance"]
        problems += control_problems(str(path), provenance)
        name = name or provenance.get("config")
        if provenance.get("ablation"):
            hint = "give the run with images, scored with --blind"
            problems.append(Problem(str(path), "a run with all images", f"ablation {provenance['ablation']}", hint))
        elif not name:
            hint = "score with --config, or write NAME=FILE"
            problems.append(Problem(str(path), "the config of the questions", "none noted", hint))
        elif any((score.name, score.split) == (name, provenance.get("split") or "all") for score in scores):
            problems.append(Problem(str(path), "one result a config and split", f"a second one of {name}", "give one"))
        else:
            scores.append(Score(name, content))
    return scores


def control_problems(location: str, provenance: Mapping[str, Any]) -> list[Problem]:
    """Returns why a blind control is none: by its own account it had images, or was asked otherwise than the run.

    A control that notes nothing of itself is taken at the word of who scored it.
    """
    blind = provenance.get("blind") or {}
    alike = ("model", "prompt_id", "sampling")
    problems = []
    if any(blind.get(field) is not None for field in (*alike, "backend", "ablation")):
        if blind.get("ablation") != "blind":
            found = f"one that notes the ablation {preview(blind.get('ablation'))}"
            hint = "predict it with --ablate blind (another program notes that in its first line), score again"
            problems.append(Problem(location, "a blind control that saw no image", found, hint))
        for field in alike:
            ours, theirs = provenance.get(field), blind.get(field)
            if None not in (ours, theirs) and ours != theirs:
                found = f"{preview(theirs)} instead of {preview(ours)}"
                hint = "run the control as the run itself, but for the images"
                problems.append(Problem(location, f"a blind control with the same {field}", found, hint))
    return problems


def one_system(scores: Sequence[Score], problems: list[Problem], prompt_file: Path | None = None) -> Prompt | None:
    """Returns the prompt of all scores; notes a fault where they are not of one model, asked in one way.

    The prompt's words are taken from ``prompt_file``, else from this package by the id that the runs noted; another
    hash is a fault, because the card prints the words.
    """
    for field, expected in (
        ("prompt_id", "one prompt"),
        ("prompt_hash", "one prompt"),
        ("model_sha256", "the same weights"),
        ("sampling", "one way of sampling"),
    ):
        values = {repr(score.asked.get(field)) for score in scores}
        if len(values) > 1:
            found = preview(", ".join(sorted(values)), 160)
            problems.append(Problem("the results", f"{expected} in all runs ({field})", found, "run those again"))
            return None
    asked = scores[0].asked
    id_, digest = asked.get("prompt_id"), asked.get("prompt_hash")
    if not id_ or not asked.get("sampling"):
        missing = [field for field in ("prompt_id", "sampling") if not asked.get(field)]
        hint = "score predictions that `scale-vqa predict` wrote"
        problems.append(Problem("the results", "prompt and sampling of the run", f"no {', no '.join(missing)}", hint))
        return None
    try:
        prompt = load_prompt(str(prompt_file or str(id_).split("@")[0]))
    except InputError as error:
        problems.extend(error.problems)
        return None
    if digest is not None and digest != prompt.digest:
        hint = "use the version of scale-vqa that made the runs, or run them again"
        problems.append(Problem("the results", f"prompt {id_} as it is here ({prompt.digest})", str(digest), hint))
        return None
    return prompt
