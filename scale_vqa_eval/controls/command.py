"""``scale-vqa control``: makes splits on which a text-only reader is at chance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from tqdm import tqdm

from scale_vqa_eval.audit.battery import FAMILIES
from scale_vqa_eval.controls.block_exchange import block_exchange
from scale_vqa_eval.controls.exchange import PairRules, ValidityLimits, exchange
from scale_vqa_eval.controls.findings import read_vocabulary
from scale_vqa_eval.controls.output import (
    ControlSource,
    RowEdit,
    add_config,
    audited,
    authors_row,
    exchange_edits,
    exchange_report,
    figures,
    note,
    read_source,
    screened_part,
    screened_report,
    weights_summary,
    write_rows,
)
from scale_vqa_eval.controls.screened import (
    FRESH,
    Readers,
    both_ways,
    fresh_audit,
    held_out_figures,
    keep_weights,
    prune,
    too_few,
)
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, write_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.card import CONTROLS
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.write import check_out

ROW_FILES: Final = (".json", ".jsonl")
MAX_AMBIGUITY: Final = {"exchange": 0.4, "block-exchange": 0.5}
"""Default maximum of the estimated ambiguity; lower limits cost many groups and gain little (docs/controls.md)."""


def _out(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() in {".csv", ".tsv", ".parquet", ".ndjson"}:
        raise click.BadParameter(f"rows are written as {' or '.join(ROW_FILES)}, or into a release folder; got {path}")
    if path.suffix.lower() in ROW_FILES and path.is_dir():
        raise click.BadParameter(f"{path} is a folder; name a file, or a folder without that ending")
    return path


@click.command()
@click.argument("data")
@click.option("--method", type=click.Choice(["block-exchange", "exchange", "screened"]), required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=_out,
    required=True,
    help="Output: OUT.json (or .jsonl), or a release folder.",
)
@click.option("--split", help="Only this split.  [default: all splits, separately]")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=42, show_default=True)
@click.option("--json", "report_path", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON report.")
@click.option(
    "--max-jaccard",
    type=click.FloatRange(0, 1, min_open=True),
    help=f"exchanges: upper limit (exclusive) of the token Jaccard of two right answers in a group.  "
    f"[default: {ValidityLimits().max_jaccard}]",
)
@click.option(
    "--max-ambiguity",
    type=click.FloatRange(0, 1, min_open=True),
    help="exchanges: maximum estimated probability that a wrong option is also true.  "
    f"[default: {MAX_AMBIGUITY['exchange']}; block-exchange: {MAX_AMBIGUITY['block-exchange']}]",
)
@click.option(
    "--vocabulary",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="exchanges: YAML file of findings that extends the package's vocabulary.",
)
@click.option(
    "--require-contradiction",
    is_flag=True,
    help="exchanges: the item's sources must contradict a finding of each wrong option; gives fewer groups.",
)
@click.option(
    "--embedding",
    is_flag=True,
    help="exchanges: compare diagnoses by sentence embeddings (extra `embedding`).  [default: by words]",
)
@click.option(
    "--rationales",
    type=click.Choice(["drop", "keep"]),
    help="exchanges: drop all, or keep those that mention no letter and no option.  [default: drop]",
)
@click.option(
    "--allow-unknown-patients",
    is_flag=True,
    help="exchanges: treat each question without patient and slide as a separate patient.",
)
@click.option(
    "--allow-shared-images",
    is_flag=True,
    help="block-exchange: more groups, but no guarantee against readers that know which rows share an image file.",
)
@click.option("--no-audit", is_flag=True, help="exchanges: skip the audits before and after.")
@click.option(
    "--weights",
    "weights_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="screened: write the keep probabilities of all questions as weights for `score --weights`.",
)
@click.option("--no-hold-out", is_flag=True, help="screened: do not prune again without each family of probes.")
@click.option("--quiet", is_flag=True, help="Do not show progress.")
def control(data: str, method: str, out: Path, report_path: Path | None, **options: Any) -> None:
    """Make a split of DATA on which a text-only reader is at chance.

    DATA is a release folder, a Hub id, a Parquet file, or a JSON list, JSONL or CSV with question, options, answer.
    block-exchange (recommended): groups of four items with the same text, in which each option is right for exactly
    one item; even a reader of the whole file is at chance. exchange: more groups, for items asked one by one.
    screened: a subset on which no text-only probe differs from chance. If --out is a release folder, DATA must be a
    release folder too (it may be the same), and the new config has its images.
    """
    _check_options(method, options)
    config_name = method.replace("-", "_")
    to_folder = out.suffix.lower() not in ROW_FILES
    if to_folder:
        check_out(out)
        options["config"] = options["config"] or _source_config(data, out)
    source = read_source(data, options["split"], options["config"])
    settings = {
        "data": Path(data).name if Path(data).exists() else data,
        "config": options["config"] or "default",
        "split": options["split"],
        "seed": options["seed"],
    }
    settings["method"] = method
    make = _screened if method == "screened" else _exchange
    kept, report = make(data, source, settings, options, to_folder or report_path is not None)
    as_json = json.dumps(report, ensure_ascii=True, indent=2) + "\n"
    if report_path is not None:
        atomic_write(report_path, as_json)
    if not report.get("reached", True):
        raise InputError(_not_reached(data, report))
    if to_folder:
        images = add_config(
            Path(data), options["config"], out, config_name, _by_split(source, kept), note(report), as_json
        )
        if not images:
            click.echo(f"config {options['config']} has no images, so {config_name} has none", err=True)
    else:
        write_rows(out, [authors_row(source.questions[row], source.rows[row], kept[row]) for row in sorted(kept)])
    click.echo(f"{out}: {method}: {report['kept']} of {report['questions']} questions{_detail(report)}")


def _check_options(method: str, options: dict[str, Any]) -> None:
    foreign: tuple[str, ...] = ("no_hold_out", "weights_path")
    if method == "exchange":
        foreign = (*foreign, "allow_shared_images")
    if method == "screened":
        foreign = (
            "allow_shared_images",
            "max_jaccard",
            "max_ambiguity",
            "vocabulary",
            "require_contradiction",
            "embedding",
            "rationales",
            "allow_unknown_patients",
            "no_audit",
        )
    given = [f"--{name.replace('_', '-')}" for name in foreign if options[name]]
    if given:
        raise click.UsageError(f"{', '.join(given)} does not go with --method {method}")


def _source_config(data: str, out: Path) -> str:
    """Returns the default config of a release folder, or the first that is not a control."""
    if not Path(data).is_dir():
        raise click.UsageError(
            f"--out {out} is a release folder, but DATA ({data}) is not; name OUT.json, or run "
            f"`scale-vqa build release` and give that folder as DATA"
        )
    names = list(release_configs(Path(data)))
    return next((name for name in names if name not in CONTROLS), names[0])


def _exchange(
    data: str, source: ControlSource, settings: dict[str, Any], options: dict[str, Any], with_audit: bool
) -> tuple[dict[int, RowEdit], dict[str, Any]]:
    questions = source.questions
    unknown = sum(question.patient is None and question.slide is None for question in questions)
    if unknown and not options["allow_unknown_patients"]:
        hint = "add wsi_name or patient_id, or treat each as a separate patient with --allow-unknown-patients"
        found = f"neither in {unknown} of {len(questions)} rows"
        raise InputError(Problem(data, "a patient or slide for every question", found, hint))
    limits = ValidityLimits(
        options["max_jaccard"] or ValidityLimits().max_jaccard,
        require_contradiction=options["require_contradiction"],
        max_ambiguity=options["max_ambiguity"] or MAX_AMBIGUITY[settings["method"]],
    )
    embed = None
    if options["embedding"]:
        from scale_vqa_eval.audit.language_model import minilm

        embed, settings = minilm(), {**settings, "embedding": "MiniLM"}
    pairs = PairRules(questions, limits, read_vocabulary(options["vocabulary"]), embed)
    with tqdm(total=len(questions), desc="questions grouped", disable=options["quiet"] or None) as bar:
        if settings["method"] == "exchange":
            found_groups = exchange(pairs, options["seed"], bar.update)
        else:
            settings = {**settings, "allow_shared_images": options["allow_shared_images"]}
            found_groups = block_exchange(pairs, options["seed"], bar.update, options["allow_shared_images"])
    if not found_groups.groups:
        reasons: Counter[str] = Counter()
        for part in found_groups.parts.values():
            reasons.update(part.lost)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        hint = "a group needs four rows with the same question text, from four patients, with different right answers"
        raise InputError(Problem(data, "questions that can be grouped", listed, hint))
    edits = exchange_edits(questions, found_groups.groups, options["rationales"] == "keep")
    audit = None
    if with_audit and not options["no_audit"]:
        if not options["quiet"]:
            click.echo("auditing before and after", err=True)
        grouped = [_edited(questions[row], edits[row]) for row in sorted(edits)]
        audit = {name: audited(some, options["seed"]) for name, some in (("before", questions), ("after", grouped))}
    kept_if = "kept where they name no letter and no option" if options["rationales"] == "keep" else "dropped"
    settings = {**settings, "rationales": kept_if, "unknown_patients": unknown}
    return edits, exchange_report(
        settings.pop("method"), questions, found_groups, limits, settings, audit, any(pairs.views)
    )


def _screened(
    data: str, source: ControlSource, settings: dict[str, Any], options: dict[str, Any], with_audit: bool
) -> tuple[dict[int, RowEdit | None], dict[str, Any]]:
    questions = source.questions
    splits = {
        split: np.array([row for row, question in enumerate(questions) if question.split == split], dtype=np.int64)
        for split in dict.fromkeys(question.split for question in questions)
    }
    parts: dict[str | None, dict[str, Any]] = {}
    kept: dict[int, RowEdit | None] = {}
    weighted: dict[str | None, tuple[Any, str]] = {}
    runs = len(splits) * (1 if options["no_hold_out"] else 1 + len(FAMILIES))
    with tqdm(total=runs, desc="prunings", disable=options["quiet"] or None) as bar:
        readers = Readers(questions, options["seed"], bar.set_postfix_str)
        for split, rows in splits.items():
            pruned = prune(readers, rows)
            bar.update()
            left = [questions[row] for row in pruned.rows]
            before = figures(both_ways(readers.whole(FRESH, rows, FAMILIES), [questions[row] for row in rows]))
            after = None if too_few(left) else figures(fresh_audit(readers, pruned.rows))
            held_out = None
            if not options["no_hold_out"] and after is not None:
                held_out = held_out_figures(readers, rows, bar.update)
            if options["weights_path"] is not None:
                weighted[split] = keep_weights(readers, rows)
            parts[split] = screened_part([questions[row] for row in rows], left, pruned, before, after, held_out)
            kept |= dict.fromkeys(pruned.rows.tolist())
    _warn_of_held_out(parts)
    report = screened_report(parts, settings)
    if options["weights_path"] is not None:
        report["weights"] = _write_weights(options["weights_path"], data, readers, splits, weighted)
    return kept, report


def _write_weights(
    path: Path,
    data: str,
    readers: Readers,
    splits: Mapping[str | None, Any],
    weighted: Mapping[str | None, tuple[Any, str]],
) -> dict[str, Any]:
    """Writes the weights of all splits; returns their summary by split."""
    values: dict[str, float] = {}
    summary = {}
    for split, rows in splits.items():
        weights, _ = weighted[split]
        questions = [readers.questions[row] for row in rows]
        ids = [question.id for question in questions]
        if twice := sorted(set(ids) & set(values)):
            hint = "weight one split at a time with --split"
            found = f"{len(twice)} ids in two splits, such as {preview(twice[0])}"
            raise InputError(Problem(data, "ids that occur in one split only", found, hint))
        values |= dict(zip(ids, weights.tolist(), strict=True))
        summary[split or "all"] = weights_summary(questions, weights, readers.whole(FRESH, rows, FAMILIES))
    reader = next(iter(weighted.values()))[1]
    content = {"method": "min_j p_j / p_gold", "seed": readers.seed, "reader": reader, "weights": values}
    write_json(path, content)
    return summary


def _warn_of_held_out(parts: dict[str | None, dict[str, Any]]) -> None:
    """Warns of families that are above chance if they are left out of the pruning, as unknown probes may be."""
    for split, part in parts.items():
        for family, found in (part["held_out"] or {}).items():
            if found.get("above_chance"):
                best = found["strongest"]
                click.echo(
                    f"{split + ': ' if split else ''}left out of the pruning, {family} would still reach "
                    f"{100 * best['accuracy']:.0f}% [{100 * best['ci_low']:.0f}, {100 * best['ci_high']:.0f}]",
                    err=True,
                )


def _edited(question: Question, edit: RowEdit) -> Question:
    return replace(question, question=edit.question, options=edit.options, answer=edit.answer, group=edit.group)


def _by_split(source: ControlSource, kept: Mapping[int, RowEdit | None]) -> dict[str, dict[int, RowEdit | None]]:
    """Returns the kept rows by split, numbered within the split."""
    found: dict[str, dict[int, RowEdit | None]] = {}
    counts: Counter[str] = Counter()
    for row, question in enumerate(source.questions):
        split = question.split or ""
        if row in kept:
            found.setdefault(split, {})[counts[split]] = kept[row]
        counts[split] += 1
    return found


def _not_reached(data: str, report: dict[str, Any]) -> list[Problem]:
    hint = "screen more questions, or use --method exchange, which needs no adversary"
    return [
        Problem(
            f"{data}{', split ' + part['split'] if part['split'] else ''}",
            "a subset on which no text-only probe differs from chance",
            f"not reached: {part['reason']}",
            hint,
        )
        for part in report["splits"]
        if not part["reached"]
    ]


def _detail(report: dict[str, Any]) -> str:
    if report["method"] != "screened":
        return f" in {report['groups']} groups of four (at most {report['bound']} are possible)"
    ceiling = max(part["audit"]["after"]["ceiling"] for part in report["splits"])
    return f"; no text-only probe differs from chance, none exceeds {100 * ceiling:.0f}% (95% upper ends)"
