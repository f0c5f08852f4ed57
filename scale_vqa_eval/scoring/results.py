"""Reads results files; renders a score or a comparison as a text table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.text import aligned, interval, p_value, percent, points

NO_BLIND: Final = (
    "No blind control: this score alone does not show that images were used. "
    "Answer the same questions without images (predict --ablate blind) and pass --blind FILE."
)
ITSELF_BLIND: Final = "This run saw no images: it is the blind control of a run with images."
NO_CLUSTERS: Final = (
    "The data names no patient or slide: questions are taken as independent, which makes intervals too narrow "
    "where several belong to one patient."
)


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a results file that ``scale-vqa score --json`` wrote.

    Raises:
        InputError: if it is not a results file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), "a results file", preview(str(error)), "run `scale-vqa score`")) from error
    if not isinstance(content, dict) or not {"accuracy", "by_dimension", "provenance"} <= content.keys():
        expected = "a results file with accuracy, by_dimension and provenance"
        raise InputError(Problem(str(path), expected, preview(content), "run `scale-vqa score --json`"))
    return content


def score_table(results: Mapping[str, Any]) -> str:
    """Renders a score by dimension, in per cent, followed by notes on its control, parsing and clusters."""
    blind = results["blind"] is not None
    head = ["dimension", "n", "patients", "accuracy", "95% interval", "unparsed"] + ["blind", "gain"] * blind
    rows = [[name, *_score_cells(part, blind)] for name, part in results["by_dimension"].items()]
    total = dict(results)
    if blind:
        total["blind_accuracy"] = results["blind"]["accuracy"]
    rows.append(["all", *_score_cells(total, blind)])
    return "\n".join([aligned([head, *rows]), "", *_score_notes(results)])


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Renders a paired comparison by dimension, in per cent."""
    head = ["dimension", "n", "patients", "A", "B", "A - B", "95% interval", "p", "p (Holm)"]
    rows = [
        [name, *_comparison_cells(part), p_value(part["p_holm"])] for name, part in comparison["by_dimension"].items()
    ]
    rows.append(["all", *_comparison_cells(comparison), ""])
    mcnemar, effect = comparison["mcnemar"], comparison["minimum_detectable_effect"]
    notes = [
        f"A = {comparison['a']['predictions']}",
        f"B = {comparison['b']['predictions']}",
        "p: two-sided, clustered by patient, t at (patients - 1) degrees of freedom; Holm over the dimensions.",
        f"McNemar, exact, questions taken as independent: A alone right {mcnemar['only_a']}, "
        f"B alone right {mcnemar['only_b']}, p {p_value(mcnemar['p_value'])}.",
        "Minimum detectable difference (80% power, two-sided 5%): "
        + ("undefined: the differences do not vary." if effect is None else f"{100 * effect:.1f} points."),
        *([] if comparison["clustered"] else [NO_CLUSTERS]),
    ]
    return "\n".join([aligned([head, *rows]), "", *notes])


def _score_cells(part: Mapping[str, Any], blind: bool) -> list[str]:
    cells = [str(part["n"]), str(part["clusters"]), percent(part["accuracy"]), interval(part["interval"])]
    cells.append(str(part["unparsed"]["n"]))
    return [*cells, percent(part["blind_accuracy"]), points(part["visual_gain"])] if blind else cells


def _comparison_cells(part: Mapping[str, Any]) -> list[str]:
    low, high = part["interval"]
    return [
        str(part["n"]),
        str(part["clusters"]),
        percent(part["a_accuracy"]),
        percent(part["b_accuracy"]),
        points(part["difference"]),
        f"{points(low)} to {points(high)}",
        p_value(part["p_value"]),
    ]


def _score_notes(results: Mapping[str, Any]) -> list[str]:
    macro = "" if results["macro"] is None else f"Mean over dimensions (macro): {percent(results['macro'])}%. "
    notes = [f"{macro}Chance: {percent(results['chance'])}%."]
    if results["clustered"]:
        weight = f"weigh as {results['effective_n']:.0f} independent ones"
        notes.append(f"{results['n']} questions of {results['clusters']} patients {weight}.")
    else:
        notes.append(NO_CLUSTERS)
    unparsed = results["unparsed"]
    reasons = "".join(f"; {reason} {count}" for reason, count in unparsed["reasons"].items())
    notes.append(f"Unparsed, counted as wrong: {unparsed['n']} ({percent(unparsed['rate'])}%){reasons}.")
    if results["failed"]:
        notes.append(f"Of these {results['failed']} are calls that the run marked as failed.")
    return [*notes, *_set_notes(results), *_blind_notes(results)]


def _set_notes(results: Mapping[str, Any]) -> list[str]:
    """Returns notes on items that have to be right together: exchange groups, rotations of the options."""
    notes = []
    groups, circular = results["groups"], results["circular"]
    if groups is not None:
        notes.append(
            f"Group accuracy (all items of a group right): {percent(results['group_accuracy'])}% "
            f"[{interval(groups['interval'])}], {groups['n']} groups; chance {percent(groups['chance'])}%."
        )
    if circular is not None:
        notes.append(
            f"Right under every rotation of the options: {percent(circular['accuracy'])}% "
            f"[{interval(circular['interval'])}], {circular['n']} questions."
        )
    return notes


def _blind_notes(results: Mapping[str, Any]) -> list[str]:
    blind, adjusted = results["blind"], results["leakage_adjusted_accuracy"]
    if blind is None:
        ablation = results.get("provenance", {}).get("ablation")
        return [ITSELF_BLIND if ablation == "blind" else NO_BLIND]
    low, high = (points(end) for end in blind["gain_interval"])
    return [
        f"Visual gain: {points(results['visual_gain'])} points [{low} to {high}], "
        f"p {p_value(blind['gain_p_value'])}; blind accuracy {percent(blind['accuracy'])}%.",
        "Leakage-adjusted accuracy (acc - blind) / (1 - blind): "
        + ("undefined: the blind run is always right." if adjusted is None else f"{percent(adjusted)}%."),
    ]
