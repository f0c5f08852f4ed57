"""Reads results files and accuracies that others reported, and formats a score or a comparison as a text table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_yaml
from scale_vqa_eval.predict import WITHOUT_IMAGES
from scale_vqa_eval.text import aligned, interval, one_line, p_value, percent, points

NO_BLIND: Final = (
    "No blind control: this score alone does not show that images were used. "
    "Answer the same questions without images (predict --ablate blind) and pass --blind FILE."
)
ONE_LETTER: Final = 0.9
"""Share of the most frequent answer of a blind run from which it is reported as uninformative."""
NO_CLUSTERS: Final = (
    "The data names no patient or slide: questions are taken as independent, which makes intervals too narrow "
    "where several belong to one patient."
)

SHIPPED: Final = {"scale-vqa-test": "scale_vqa_test_scores.yaml"}
"""Name -> file of the accuracies in this package."""


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a results file written by ``scale-vqa score --json``; raises InputError if it is not one."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), "a results file", preview(str(error)), "run `scale-vqa score`")) from error
    if not isinstance(content, dict) or not {"accuracy", "by_dimension", "provenance"} <= content.keys():
        expected = "a results file with accuracy, by_dimension and provenance"
        raise InputError(Problem(str(path), expected, preview(content), "run `scale-vqa score --json`"))
    return content


def score_table(results: Mapping[str, Any]) -> str:
    """Formats a score by dimension, in per cent, followed by notes on controls, parsing and clusters."""
    blind = results["blind"] is not None
    head = ["dimension", "n", "patients", "accuracy", "95% interval", "unparsed"]
    head += ["blind", "gain", "adjusted"] * blind
    rows = [[name, *_score_cells(part, blind)] for name, part in results["by_dimension"].items()]
    total = {**results, "blind_accuracy": results["blind"]["accuracy"]} if blind else results
    rows.append(["all", *_score_cells(total, blind)])
    partial = results.get("partial")
    notice = (
        f"PARTIAL: {partial['answered']} of {partial['of']} questions were answered and scored.\n" if partial else ""
    )
    return "\n".join([notice + aligned([head, *rows]), "", *_score_notes(results)])


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """Formats a paired comparison by dimension, in per cent."""
    head = ["dimension", "n", "patients", "A", "B", "A - B", "95% interval", "p", "p (Holm)"]
    rows = [
        [name, *_comparison_cells(part), p_value(part["p_holm"])] for name, part in comparison["by_dimension"].items()
    ]
    rows.append(["all", *_comparison_cells(comparison), ""])
    mcnemar, effect = comparison["mcnemar"], comparison["minimum_detectable_effect"]
    exact = mcnemar["p_value"]
    notes = [
        f"A = {comparison['a']['predictions']}",
        f"B = {comparison['b']['predictions']}",
        "p: two-sided, clustered by patient, t at (patients - 1) degrees of freedom; Holm over the dimensions.",
        f"Only A right: {mcnemar['only_a']}; only B right: {mcnemar['only_b']}; McNemar "
        + (
            f"(exact): p {p_value(exact)}."
            if exact is not None
            else "is not valid with several questions per patient."
        ),
        "Minimum detectable difference (80% power, two-sided 5%): "
        + ("undefined: the differences do not vary." if effect is None else f"{100 * effect:.1f} points."),
        *([] if comparison["clustered"] else [NO_CLUSTERS]),
    ]
    return "\n".join([aligned([head, *rows]), "", *notes])


def _score_cells(part: Mapping[str, Any], blind: bool) -> list[str]:
    cells = [str(part["n"]), str(part["clusters"]), percent(part["accuracy"]), interval(part["interval"])]
    cells.append(str(part["unparsed"]["n"]))
    if not blind:
        return cells
    adjusted = part["leakage_adjusted_accuracy"]
    shown = "undefined" if adjusted is None else percent(adjusted)
    return [*cells, percent(part["blind_accuracy"]), points(part["visual_gain"]), shown]


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
    macro = ""
    if results["macro"] is not None:
        macro = f"Mean over dimensions (macro): {_estimate(results['macro'], results['macro_interval'])}. "
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
        notes.append(f"Of these, {results['failed']} are failed calls.")
    if cut := results.get("truncated"):
        notes.append(f"Cut off at the token limit: {cut['n']} ({percent(cut['rate'])}%).")
    return [*notes, *_set_notes(results), *_blind_notes(results), *_evidence_notes(results)]


def _set_notes(results: Mapping[str, Any]) -> list[str]:
    """Returns notes on exchange groups and on rotations of the options."""
    notes = []
    groups, circular = results["groups"], results["circular"]
    if groups is not None:
        notes.append(
            f"Group accuracy (all items right): {_estimate(results['group_accuracy'], groups['interval'])}, "
            f"{groups['n']} groups; chance {percent(groups['chance'])}%, by giving each letter of a group once "
            f"{percent(groups['chance_by_assignment'])}%."
        )
        if groups.get("block_exchange"):
            notes.append("Block exchange: on average over relabellings, any reader of all the text is at chance.")
        else:
            notes.append(
                "Exchange groups are for items asked one by one: a text-only reader of the whole file may be above "
                "chance (scale-vqa audit measures it; block exchange excludes it)."
            )
    if circular is not None:
        notes.append(
            f"Right under every rotation of the options: {_estimate(circular['accuracy'], circular['interval'])}, "
            f"{circular['n']} questions."
        )
    return notes


def _blind_notes(results: Mapping[str, Any]) -> list[str]:
    blind, withheld, adjusted = results["blind"], results["blind_withheld"], results["leakage_adjusted_accuracy"]
    ablation = results.get("provenance", {}).get("ablation")
    notes = []
    if withheld is not None:
        notes.append("Not a valid blind control, so gain and adjusted accuracy are withheld:")
        notes += [f"- {one_line(reason)}" for reason in withheld["reasons"]]
    elif blind is None and ablation in WITHOUT_IMAGES:
        notes.append("This run saw no images: it is the blind control of a run with images.")
    elif blind is None:
        notes.append(NO_BLIND)
    else:
        low, high = (points(end) for end in blind["gain_interval"])
        notes.append(
            f"Visual gain: {points(results['visual_gain'])} points [{low} to {high}], "
            f"p {p_value(blind['gain_p_value'])}; blind accuracy {percent(blind['accuracy'])}%, "
            f"as a guess rate {percent(blind['guess_corrected'])}%."
        )
        shown = "undefined: the blind run is always right"
        if adjusted is not None:
            shown = _estimate(adjusted, results["leakage_adjusted_interval"])
        notes.append(f"Leakage-adjusted accuracy (acc - blind) / (1 - blind): {shown}.")
    runs = results.get("blind_runs") or []
    if any(one.get("one_letter", 0) >= ONE_LETTER for one in runs):
        notes.append("A blind run nearly always gives the same answer, so it does not show what the text reveals.")
    if len(runs) > 1:
        parts = (f"{one_line(str(one['ablation']))} {percent(one['guess_corrected'])}%" for one in runs)
        notes.append(f"Blind runs: {', '.join(parts)}; the largest valid one is the control.")
    return notes


def _evidence_notes(results: Mapping[str, Any]) -> list[str]:
    notes = []
    if ceiling := results.get("text_only_ceiling"):
        shown = _estimate(ceiling["accuracy"], ceiling["interval"])
        notes.append(f"Text-only ceiling of these questions (audit, {one_line(ceiling['probe'])}): {shown}.")
    if flips := results.get("flips"):
        shown = _estimate(flips["rate"], flips["interval"])
        notes.append(f"Answers that change with another patient's images: {shown}.")
    if weighted := results.get("weighted"):
        shown = _estimate(weighted["accuracy"], weighted["interval"])
        size = f"effective sample size {weighted['effective_size']:.0f} of {weighted['n']}"
        small = [name for name, part in weighted["by_dimension"].items() if part["too_small"]]
        small = ["all", *small] if weighted["too_small"] else small
        few = f" Too small an effective size: {', '.join(map(one_line, small))}." if small else ""
        notes.append(f"Leak-weighted accuracy: {shown}, {size}.{few}")
    return notes


def _estimate(share: float, ends: Sequence[float] | None) -> str:
    return f"{percent(share)}%" + (f" [{interval(ends)}]" if ends else "")


def read_reported_scores(source: str | Path) -> dict[str, Any]:
    """Reads reported accuracies.

    Args:
        source: a name in ``SHIPPED``, or a YAML or JSON file with ``models`` (model -> dimension or ``all`` ->
        accuracy
            in per cent) and optionally ``source``, ``data`` (name of the question set) and ``chance`` (in per cent). A
            file may also contain only the mapping of models.

    Returns:
        ``source``, ``data``, ``chance`` (or None) and ``models``: model -> dimension or ``all`` -> accuracy, 0 to 1.

    Raises:
        InputError: if the file has another format.
    """
    name = SHIPPED.get(str(source))
    path = files("scale_vqa_eval.audit") / "templates" / name if name else Path(source)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"), str(source))
        models = content.get("models", content)
        about = {
            key: str(content[key]) if "models" in content and key in content else None for key in ("source", "data")
        }
        chance = _share(content["chance"]) if "models" in content and "chance" in content else None
        return {
            **about,
            "chance": chance,
            "models": {
                str(model): {str(part): _share(value) for part, value in row.items()} for model, row in models.items()
            },
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        expected = "YAML or JSON with models: {NAME: {all: 58.5, Diagnosis: 65.2}}, accuracies in per cent"
        hint = f"fix the file, or name one of {', '.join(SHIPPED)}"
        raise InputError(Problem(str(source), expected, preview(" ".join(str(error).split()), 200), hint)) from error


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError(f"{preview(value)} is not an accuracy of 0 to 100 per cent")
    return value / 100
