"""Two designs of options on the same synthetic ("phantom") captions, audited: one feature changed, and crossed.

``python benchmarks/compare_designs.py --slides 60 --repeats 2 [--out compared]`` runs decomposition, generation and
screening against scripted language models (``tests/helpers/scripted_roles.py``), builds the options of the same
drafts by either design, audits all, and prints two tables: probes of one question at a time, and readers of the whole
file. With ``--out`` it also writes ``designs.md``, ``designs.json`` and a plot of the first table.

The paper's constraint: the right option states three findings of the path, and each wrong one changes exactly one of
them. The wrong findings are drawn in the same way in both designs.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from phantom_captions import caption_plans, caption_row
from scripted_roles import serving

from dataset_script.curate.candidates import UNCROSSED, Candidate, without_capital
from dataset_script.curate.captions import CaptionFeature
from dataset_script.curate.command import CurationRun, decompose, generate, plan, read_candidates, screen
from dataset_script.curate.distractors import distractor_pool
from dataset_script.curate.report import finished
from dataset_script.curate.work import CurationSettings, open_work, read_settings, write_lines
from scale_vqa_eval.audit.report import audit_questions
from scale_vqa_eval.files import write_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import QUESTION_TYPES

DESIGNS: Final = {
    "one feature changed": "the published constraint: each wrong option differs from the right one by one feature",
    "crossed": "2x2 product of two features, before screening",
    "crossed, screened": "the same after the rounds of the pipeline",
    "of these, outside of exchange groups": "without those whose blind accuracy is 25% by construction",
    "of these, in exchange groups": "each option of a group is right once",
}
SHOWN: Final = ("medoid", "geometry", "words", "characters", "ensemble")
JOINT: Final = tuple(
    f"joint {reader}{suffix}"
    for reader in ("by slide", "by path", "classifier")
    for suffix in ("", ", one letter each")
)


def one_change(
    drafts: Sequence[Candidate], features: Mapping[str, Sequence[CaptionFeature]], seed: int
) -> list[Question]:
    """Returns the questions of drafts with options by the published constraint; letters balanced by draw."""
    findings: dict[str, list[str]] = {}
    for some in features.values():
        for one in some:
            findings.setdefault(one.aspect, []).append(one.value)
    pools = {aspect: distractor_pool(found, f"{seed}:{aspect}") for aspect, found in sorted(findings.items())}
    questions = []
    for draft in drafts:
        rng = random.Random(f"{seed}:{draft.id}")
        taken = {draft.first.aspect, draft.second.aspect, UNCROSSED}
        rest = [one for one in features[draft.path.key] if one.aspect not in taken]
        if not rest:
            continue
        right = [draft.first, draft.second, rng.choice(rest)]
        wrong = [rng.choice(others) if (others := pools[one.aspect].others(one.value)) else None for one in right]
        if None in wrong:
            continue
        values = [one.value for one in right]
        texts = [values, *([*values[:at], str(wrong[at]), *values[at + 1 :]] for at in range(3))]
        order = rng.sample(range(4), 4)
        options = tuple("; ".join(without_capital(value) for value in texts[number]) for number in order)
        questions.append(
            Question(
                draft.id,
                draft.question,
                options,
                order.index(0),
                QUESTION_TYPES[draft.question_type],
                draft.path.slide,
                draft.path.patient,
                draft.path.path_id,
                split=draft.path.split,
            )
        )
    return questions


def compare(slides: int, seed: int, out: Path, repeats: int = 4) -> dict[str, Any]:
    """Runs the pipeline on captions of phantom slides and audits the sets of questions."""
    out.mkdir(parents=True, exist_ok=True)
    captions = out / "captions.jsonl"
    write_lines(captions, (caption_row(one) for one in caption_plans(slides, seed)))
    with serving() as url:
        settings = _settings(out / "curate.yaml", url, seed, repeats)
        run = CurationRun(settings, open_work(out / "work", captions, settings))
        decompose(run)
        generate(run)
        account = screen(run)
    paths = plan(run).paths
    features = {row["path"]: [CaptionFeature(**one) for one in row["features"]] for row in run.work.rows("features")}
    drafts = sorted((Candidate.from_row(row, paths) for row in run.work.rows("drafts")), key=lambda one: one.id)
    crossed, screened = (
        _questions(read_candidates(run.work.root / name, paths), settings)
        for name in ("items.jsonl", "screened.jsonl")
    )
    loose = [question for question in screened if question.group is None]
    grouped = [question for question in screened if question.group is not None]
    pools = (one_change(drafts, features, seed), crossed, screened, loose, grouped)
    designs = [_row(name, pool, seed) for name, pool in zip(DESIGNS, pools, strict=True)]
    return {"slides": slides, "seed": seed, "designs": designs, "rounds": len(account["rounds"])}


def _settings(file: Path, url: str, seed: int, repeats: int) -> CurationSettings:
    roles: dict[str, Any] = {name: {"base_url": url, "model": name} for name in ("decompose", "generate", "analyse")}
    roles["adversary"] = [
        {"name": name, "base_url": url, "model": name, "repeats": repeats} for name in ("medoid", "longest")
    ]
    file.write_text(json.dumps({"seed": seed, "source": "phantom captions", "roles": roles}), encoding="utf-8")
    return read_settings(file)


def _questions(candidates: Sequence[Candidate], settings: CurationSettings) -> list[Question]:
    return [one.to_question() for one in finished(candidates, {}, settings)[0]]


def _row(name: str, questions: Sequence[Question], seed: int) -> dict[str, Any]:
    audit = audit_questions(questions, seed, detailed=False)
    probes = {probe["name"]: probe for probe in audit["probes"]}
    keys = ("accuracy", "ci_low", "ci_high")
    return {
        "design": name,
        "what": DESIGNS[name],
        "questions": len(questions),
        "verdict": audit["verdict"],
        "strongest": audit["strongest"],
        "probes": {probe: {key: probes[probe][key] for key in keys} for probe in (*SHOWN, *JOINT) if probe in probes},
        "dimensions": {dimension: found["verdict"] for dimension, found in audit["dimensions"].items()},
    }


def as_table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the probes `names` as a Markdown table, accuracies in per cent with their 95% intervals."""
    lines = [
        "| options | questions | " + " | ".join(names) + " | verdict |",
        "|---|---|" + "---|" * len(names) + "---|",
    ]
    for row in found["designs"]:
        cells = [_interval(row["probes"][name]) if name in row["probes"] else "" for name in names]
        lines.append(f"| {row['design']} | {row['questions']} | " + " | ".join(cells) + f" | {row['verdict']} |")
    return "\n".join(lines) + "\n"


def _interval(one: Mapping[str, float]) -> str:
    return f"{100 * one['accuracy']:.1f} [{100 * one['ci_low']:.1f}, {100 * one['ci_high']:.1f}]"


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Draws accuracy and interval of each probe on each design, beside chance."""
    import matplotlib
    from matplotlib.figure import Figure

    from scale_vqa_eval.plots import STYLE

    colours = ("#b3403a", "#7d97b5", "#2f5d8a", "#4f7f52")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        names = list(SHOWN)
        for number, row in enumerate(found["designs"][: len(colours)]):
            at = [place + 0.18 * (number - 1.5) for place in range(len(names))]
            middle = [100 * row["probes"][name]["accuracy"] for name in names]
            low = [100 * (row["probes"][name]["accuracy"] - row["probes"][name]["ci_low"]) for name in names]
            high = [100 * (row["probes"][name]["ci_high"] - row["probes"][name]["accuracy"]) for name in names]
            label = f"{row['design']} ({row['questions']} questions)"
            axes.errorbar(at, middle, [low, high], fmt="o", capsize=3, color=colours[number], label=label)
        axes.axhline(25, color="#8a939e", linestyle="--", linewidth=1)
        axes.text(-0.42, 27, "chance", color="#5c6670", ha="left")
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 105)
        axes.set_ylabel("accuracy without images (%)")
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.34), ncols=1, fontsize=9)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


@click.command()
@click.option("--slides", type=click.IntRange(4), default=60, show_default=True, help="Slides of 4 paths each.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=4, show_default=True, help="Answers of each adversary.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for table, plot and work files.")
def main(slides: int, seed: int, repeats: int, out: Path | None) -> None:
    """Audit one-feature-changed and crossed options on the same synthetic captions; two tables and a plot."""
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(slides, seed, out or Path(temporary), repeats)
    table = as_table(found, SHOWN) + "\n" + as_table(found, JOINT)
    if out is not None:
        write_json(out / "designs.json", found)
        (out / "designs.md").write_text(table, encoding="utf-8")
        for suffix in ("svg", "png"):
            plot(found, out / f"designs.{suffix}")
    click.echo(table, nl=False)


if __name__ == "__main__":
    main()
