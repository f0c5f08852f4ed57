"""Scale Anticipation: groups whose descriptions are unlike, from captions and from synthetic truth."""

from __future__ import annotations

import io
import itertools
import json
import random
import zipfile
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_script.anticipation import DescribedPath, anticipation, anticipation_config, unlike_groups, word_weights
from dataset_script.phantom.build import described_questions
from dataset_script.phantom.plan import captions, plan_slides
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions

WORDS = ("glands", "mitoses", "necrosis", "mucin", "keratin", "oedema", "lymphocytes", "neutrophils", "fat", "vessels")


def described(slides=8, paths=6):
    rng = random.Random(3)
    return [
        DescribedPath(f"s{slide}", f"p{slide // 2}", f"{path}", " ".join(rng.sample(WORDS, 3)))
        for slide, path in itertools.product(range(slides), range(paths))
    ]


@pytest.mark.parametrize("cross", [False, True], ids=["same-slide", "cross-slide"])
def test_descriptions_of_a_group_are_unlike_and_each_path_is_used_once(cross):
    paths = described()
    weights = word_weights([path.text for path in paths])
    similar = dict(zip(paths, (weights @ weights.T).toarray(), strict=True))
    pools = [paths] if cross else [[path for path in paths if path.slide == f"s{n}"] for n in range(8)]
    groups = [group for pool in pools for group in unlike_groups(pool, pool[0].slide, cross, 0.5, 1)]
    used = Counter(member for group in groups for member in group.members)
    assert len(groups) >= 6 and set(used.values()) == {1}
    for group in groups:
        assert len({member.patient if cross else member.path_id for member in group.members}) == 4
        assert cross or len({member.slide for member in group.members}) == 1
        for one, other in itertools.combinations(group.members, 2):
            assert similar[one][paths.index(other)] <= 0.5
    assert groups == [group for pool in pools for group in unlike_groups(pool, pool[0].slide, cross, 0.5, 1)]
    letters = Counter(group.members.index(min(group.members, key=paths.index)) for group in groups)
    assert len(letters) > 1  # a letter does not follow the order of paths


def test_equal_descriptions_are_never_in_one_group():
    same = [DescribedPath("s", "p", f"{number}", "\u7ec6\u80de") for number in range(8)]
    assert not list(unlike_groups(same, "s", False, 0.999, 1))
    with pytest.raises(InputError, match=r"four paths of one slide whose descriptions have at most 0\.5 similarity"):
        anticipation_config(same, {"p": "test"}, lambda *_: {})
    assert word_weights([]).shape == (0, 0)


def picture(colour, side=64):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), colour, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_captions(folder, slides=6, paths=4, high=True):
    rng, lines = random.Random(5), []
    for slide in range(slides):
        rows = []
        for path in range(paths):
            views = {}
            for view in ("low_mag", "mid_mag", "high_mag") if high or path else ("low_mag", "mid_mag"):
                name = f"s{slide}-{path}-{view}.png"
                (folder / name).write_bytes(picture([rng.randrange(256) for _ in range(3)]))
                views[view] = {"caption": " ".join(rng.sample(WORDS, 3)), "image_path": name}
            rows.append({"path_id": str(path), **views})
        lines.append(json.dumps({"wsi_name": f"s{slide}", "paths": rows}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return ["--images", str(folder)]


def test_captions_become_exchange_groups_of_a_release_folder(tmp_path):
    options = write_captions(tmp_path)
    out = tmp_path / "scale-vqa"
    again = ["--out", str(out), "--distractors", "cross-slide", "--max-similarity", "0.9"]
    result = CliRunner().invoke(anticipation, [str(tmp_path / "captions.jsonl"), *options, *again])
    assert result.exit_code == 0, result.output
    assert "nearest to the shown view in mean colour is right in" in result.output
    from datasets import load_dataset

    rows = load_dataset(str(out), "anticipation", split="train")
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    told = {(line["wsi_name"], path["path_id"]): path["high_mag"] for line in lines for path in line["paths"]}
    groups = {}
    for row in rows:
        caption = told[row["wsi_name"], row["path_id"]]
        assert caption["caption"] in row["question"] and row["low_mag"] is not None and row["high_mag"] is None
        right = np.asarray(Image.open(tmp_path / caption["image_path"]))
        assert (np.asarray(row["option_images"][row["answer"]]) == right).all()
        groups.setdefault(row["group"], []).append(row)
    assert groups and all(sorted(row["answer"] for row in group) == [0, 1, 2, 3] for group in groups.values())
    assert all(len({row["patient_id"] for row in group}) == 4 for group in groups.values())
    assert {question.dimension for question in read_questions(str(out), "train", "anticipation")} == {"anticipation"}


def test_what_gives_no_question_is_said_and_nothing_is_written(tmp_path):
    options = write_captions(tmp_path, slides=2, high=False)
    out = ["--out", str(tmp_path / "scale-vqa")]
    result = CliRunner().invoke(anticipation, [str(tmp_path / "captions.jsonl"), *options, *out])
    assert isinstance(result.exception, InputError) and "6 paths with both views" in str(result.exception)
    assert "2 paths are left out: one of" in result.output and not (tmp_path / "scale-vqa").exists()
    wrong = ["--shown", "mid_mag", "--described", "mid_mag"]
    assert CliRunner().invoke(anticipation, [str(tmp_path / "captions.jsonl"), *options, *out, *wrong]).exit_code == 2


@pytest.mark.parametrize("slides", [4, 12])
def test_phantoms_are_described_by_their_scene(tmp_path, slides):
    plans = plan_slides(slides)
    texts = {}
    for plan in plans:
        with zipfile.ZipFile(tmp_path / f"{plan.name}.zip", "w") as archive:  # drawing takes ten seconds a slide
            for path in plan.paths:
                texts[plan.name, path.path_id] = captions(path)["high_mag"]
                for view in ("low_mag", "high_mag"):
                    archive.writestr(f"{path.path_id}/{view}.jpg", picture([90, 60, 90], 8))
    tables, note = described_questions(plans, tmp_path, 42)
    groups = {}
    for row in (row for rows in tables.values() for row in rows):
        assert texts[row["wsi_name"], row["path_id"]] in row["question"]
        groups.setdefault(row["group"], []).append(row)
    for group in groups.values():
        assert len({texts[row["wsi_name"], row["path_id"]] for row in group}) == 4
        assert len({row["wsi_name"] for row in group}) == (4 if slides == 12 else 1)
    assert groups and note.startswith("**A phantom, not tissue**")
