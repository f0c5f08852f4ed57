"""Exchange sets are found in the features before questions are written, and stand once they were ordered."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from curate_inputs import write_config
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom_captions import caption_plans, caption_row
from scripted_roles import decomposed

from dataset_script.curate.candidates import Candidate, QuestionSpec
from dataset_script.curate.captions import CaptionedPath, CaptionFeature
from dataset_script.curate.command import CurationRun, plan
from dataset_script.curate.distractors import build_options
from dataset_script.curate.exchange_planning import (
    OpenQuestion,
    PlannedGroup,
    crossable,
    find_groups,
    is_product,
    plan_groups,
)
from dataset_script.curate.generate import read_candidate, template_text
from dataset_script.curate.roles import BadReply
from dataset_script.curate.work import CurationSettings, open_work, read_settings, write_lines
from dataset_script.phantom.plan import PhantomPlan
from scale_vqa_eval.audit.clusters import is_block_exchange
from scale_vqa_eval.audit.joint_reader import joint_probes
from scale_vqa_eval.audit.probe import evaluate_probe
from scale_vqa_eval.controls.block_exchange import block_exchange
from scale_vqa_eval.controls.exchange import PairRules
from scale_vqa_eval.controls.output import exchange_edits
from scale_vqa_eval.files import write_json
from scale_vqa_eval.schema import row_id

ASPECTS = (("low_mag", "growth pattern"), ("mid_mag", "stroma"), ("high_mag", "nuclei"))


def preview(values: tuple[int, ...]) -> tuple[CaptionFeature, ...]:
    """One feature an aspect; the value's number is its word."""
    return tuple(
        CaptionFeature(f"{scale}-1", scale, aspect, f"{aspect} v{number}x")
        for (scale, aspect), number in zip(ASPECTS, values, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))), max_size=40
    ),
    st.integers(0, 5),
)
def test_a_set_is_a_product_of_two_values_each_of_four_patients(
    paths: list[tuple[int, tuple[int, ...]]], seed: int
) -> None:
    candidates = [
        OpenQuestion(f"row-{number:02d}", f"p{patient}", (), crossable(preview(values), "type_A"))
        for number, (patient, values) in enumerate(paths)
    ]
    found = list(find_groups(candidates, random.Random(seed)))
    patient = {one.id: one.patient for one in candidates}
    joined = {one.id: one.pairs for one in candidates}
    rows = [row for one in found for row, _ in one.members]
    assert len(rows) == len(set(rows)) == 4 * len(found)
    for one in found:
        assert is_product(one)
        assert len({patient[row] for row, _ in one.members}) == 4
        assert all(pair in joined[row] for row, pair in one.members)


def test_nearly_every_question_finds_a_set_where_values_recur() -> None:
    rng = random.Random(4)
    candidates = [
        OpenQuestion(
            f"{n:03d}",
            f"p{n}",
            (),
            crossable(preview((rng.randrange(3), rng.randrange(2), rng.randrange(2))), "type_A"),
        )
        for n in range(120)
    ]
    assert 4 * len(list(find_groups(candidates, random.Random(1)))) >= 100


def test_no_set_where_a_finding_never_goes_without_the_other() -> None:
    """What the patients never show apart is no pair of independent findings: one would give the other away."""
    candidates = [
        OpenQuestion(f"{n:03d}", f"p{n}", (), crossable(preview((n % 2, n % 2, n % 2)), "type_A")) for n in range(40)
    ]
    assert list(find_groups(candidates, random.Random(1))) == []


def test_a_patient_whose_caption_bears_a_wrong_option_out_is_in_no_set() -> None:
    values = [(0, 0), (0, 1), (1, 0), (1, 1)]
    pairs = [crossable(preview((first, 0, second)), "type_A") for first, second in values]
    crossing = [
        tuple(pair for pair in found if pair[1].aspect == "nuclei" and pair[0].aspect != "stroma") for found in pairs
    ]

    def candidates(text: str) -> list[OpenQuestion]:
        texts = [(text,), ("",), ("",), ("",)]
        return [OpenQuestion(str(n), f"p{n}", texts[n], crossing[n]) for n in range(4)]

    assert len(list(find_groups(candidates("Growth pattern v0x."), random.Random(0)))) == 1
    assert list(find_groups(candidates("In places a growth pattern v1x."), random.Random(0))) == []


@pytest.fixture
def features(tmp_path: Path) -> tuple[CurationRun, Any]:
    return run_of(tmp_path, caption_plans(40, 3))


def run_of(tmp_path: Path, slides: Sequence[PhantomPlan]) -> tuple[CurationRun, Any]:
    """A run of phantom slides whose features are made; and a function that makes those of some paths alone."""
    captions = tmp_path / "captions.jsonl"
    write_lines(captions, (caption_row(one) for one in slides))
    config: CurationSettings = read_settings(write_config(tmp_path / "c.yaml", "http://127.0.0.1:9/v1"))
    work = open_work(tmp_path / "work", captions, config)

    def decompose(lost: frozenset[str] = frozenset()) -> None:
        for shard in range(work.shards):
            write_lines(work.part("features", shard), (_row(path, path.key in lost) for path in work.paths(shard)))
        write_json(work.report_file("features"), {})

    return CurationRun(config, work), decompose


def _row(path: Any, lost: bool) -> dict[str, Any]:
    found = [] if lost else decomposed(dict(path.texts))["features"]
    numbered = [{"id": f"{one['scale']}-{number}", **one} for number, one in enumerate(found)]
    return {"path": path.key, "features": numbered, "rejected": {}, "failed": [], "lost": lost}


def planned(run: CurationRun, linked: dict[str, str] | None = None) -> list[PlannedGroup]:
    return plan_groups(run.work, replace(plan(run), linked=linked or {}), run.settings.seed)


def test_a_plan_stands_and_paths_that_come_later_add_to_it(features: tuple[CurationRun, Any]) -> None:
    run, decompose = features
    keys = sorted(path.key for shard in range(run.work.shards) for path in run.work.paths(shard))
    late = frozenset(keys[::3])
    decompose(late)
    first = planned(run)
    kept = (run.work.root / "sets.jsonl").read_bytes()
    assert len(first) > 20
    assert planned(run) == first
    assert (run.work.root / "sets.jsonl").read_bytes() == kept
    decompose()
    second = planned(run)
    assert second[: len(first)] == first and len(second) > len(first)
    added = {row.rpartition("::")[0] for one in second[len(first) :] for row, _ in one.members}
    assert added <= late, "what had been ordered alone was ordered anew"


def test_a_set_whose_captions_changed_is_taken_apart(features: tuple[CurationRun, Any]) -> None:
    run, decompose = features
    decompose()
    first = planned(run)
    row, _ = first[0].members[0]
    other = first[0].members[3][1][0].value
    key = row.rpartition("::")[0]
    for shard in range(run.work.shards):
        lines = [json.loads(line) for line in run.work.part("paths", shard).read_text().splitlines()]
        for line in lines:
            if f"{line['slide']}::{line['path_id']}" == key:
                line["texts"].append(["low_mag", f"There are also {other}."])
        write_lines(run.work.part("paths", shard), lines)
    again = planned(run)
    assert first[0] not in again
    assert {one for one in first if all(key not in row for row, _ in one.members)} <= set(again)


def test_patients_who_share_an_image_are_in_no_set_together(features: tuple[CurationRun, Any]) -> None:
    run, decompose = features
    decompose()
    paths = plan(run).paths
    patients = sorted({path.patient for path in paths.values()})
    linked = {patient: patients[number // 10 * 10] for number, patient in enumerate(patients)}
    sets = planned(run, linked)
    assert sets
    for one in sets:
        assert len({linked[paths[row.rpartition("::")[0]].patient] for row, _ in one.members}) == 4


def test_a_draft_joins_the_pair_of_its_set_and_no_other() -> None:
    growth, stroma, nuclei = preview((0, 1, 2))
    path = CaptionedPath("S", "S", "p", (), ())
    spec = QuestionSpec("row", path, (growth, stroma, nuclei), "type_A", "A1", pair=(growth, nuclei))

    def reply(first: str, second: str) -> dict[str, Any]:
        halves = {"first": {"feature": first, "contrast": ""}, "second": {"feature": second, "contrast": ""}}
        return {"question": "", "rationale": "Both are seen.", **halves}

    assert read_candidate(reply("low_mag-1", "high_mag-1"), spec).second == nuclei
    with pytest.raises(BadReply) as swapped:
        read_candidate(reply("high_mag-1", "low_mag-1"), spec)
    assert swapped.value.outcome == "wrong-pair"
    with pytest.raises(BadReply):
        read_candidate(reply("low_mag-1", "mid_mag-1"), spec)
    again = spec.rewritten("base-rate", (), None)
    assert {one.id for one in again.usable()} == {"low_mag-1", "mid_mag-1", "high_mag-1"}


def test_what_stands_against_a_finding_is_balanced_among_the_questions_outside_of_sets() -> None:
    """In sets both findings are right as often; counted in, they would hide that one is common in the rest."""
    drafts = []
    for number in range(1200):
        form = "A1" if number < 800 else "free"
        one = number % 2 if form == "A1" else int(number % 5 == 0)
        growth, _, nuclei = preview((one, 0, number // 2 % 2))
        key = f"s{number}::p"
        texts = (("low_mag", growth.value), ("high_mag", nuclei.value))
        path = CaptionedPath(f"s{number}", f"s{number}", "p", texts, (), "train")
        asked = "Which?" if form == "A1" else f"Which, {number}?"
        drafts.append(Candidate(f"{key}::type_A", path, "type_A", form, asked, growth, nuclei, ("", ""), "Seen."))
    found = build_options(drafts, 1)
    singles = [item for item in found.candidates if item.group is None]
    assert len(found.candidates) - len(singles) == 800
    right = Counter(item.values[0][0] for item in singles)
    assert len(singles) > 100 and max(right.values()) / len(singles) < 0.6


@pytest.mark.slow
def test_a_reader_of_the_whole_file_wins_where_findings_of_a_slide_go_together_and_block_exchange_excludes_it(
    tmp_path: Path,
) -> None:
    run, decompose = run_of(tmp_path, caption_plans(24, 3, alike=0.9))
    decompose()
    groups, about = planned(run), plan(run)
    pair = {row: features for group in groups for row, features in group.members}
    features = {row["path"]: [CaptionFeature(**one) for one in row["features"]] for row in run.work.rows("features")}
    rng, drafts = random.Random(3), []
    for key, forms in sorted(about.forms.items()):
        for kind, form in forms.items():
            row = row_id(about.paths[key].slide, about.paths[key].path_id, kind)
            open_pairs = crossable(features[key], kind)
            if row in pair or open_pairs:
                joined = pair[row] if row in pair else rng.choice(open_pairs)
                asked = template_text(kind, form) or f"What holds in {row}?"
                drafts.append(Candidate(row, about.paths[key], kind, form, asked, *joined, ("", ""), "Seen."))
    questions = [one.to_question() for one in build_options(drafts, 3, planned=groups).candidates]
    by_slide = evaluate_probe(joint_probes(questions, 0, 1)[0], questions)
    assert by_slide.name == "joint by slide" and by_slide.accuracy > 0.33 and by_slide.p_value < 0.01
    found = block_exchange(PairRules([replace(question, split=None) for question in questions]))
    edits = exchange_edits(questions, found.groups)
    rows = [
        replace(questions[row], question=one.question, options=one.options, answer=one.answer, group=one.group)
        for row, one in sorted(edits.items())
    ]
    assert len(found.groups) >= 4 and is_block_exchange(rows)
