"""The card of a release folder: completed from files, nothing typed in, nothing of anybody's overwritten."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from carded_runs import make_audit, make_folder
from click.testing import CliRunner, Result
from loading_data import write_folder
from PIL import Image
from predict_release import rows

from model_card.cards import card
from model_card.cards.dataset import check_croissant, croissant_metadata
from model_card.cards.text import Licence
from model_card.hub.local import check_card
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.card import head, marked_sections
from scale_vqa_eval.release_folder.write import write_release

pytestmark = pytest.mark.xdist_group("cards")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``scale-vqa`` and ``audit.json``; tests copy it."""
    root = tmp_path_factory.mktemp("carded")
    make_audit(make_folder(root / "scale-vqa"), root / "audit.json")
    return root


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def run(*given: object) -> Result:
    return CliRunner().invoke(card, [*map(str, given)], standalone_mode=False)


def complete(work: Path, *more: object) -> str:
    done = run("dataset", work / "scale-vqa", "--license", "cc-by-4.0", "--audit", work / "audit.json", *more)
    if done.exception:
        raise done.exception
    return (work / "scale-vqa/README.md").read_text()


def test_facts_come_from_the_files(work: Path) -> None:
    before = head((work / "scale-vqa/README.md").read_text())
    text = complete(work)
    after, report = head(text), json.loads((work / "audit.json").read_text())
    assert after["license"] == "cc-by-4.0" and "license_name" not in after
    for key in ("configs", "dataset_info", "task_categories"):
        assert after[key] == before[key]
    parts = marked_sections(text)
    best = report["strongest"]
    assert f"{100 * best['accuracy']:.1f} [{100 * best['ci_low']:.1f}, {100 * best['ci_high']:.1f}]" in parts["audit"]
    assert "| default and text | 30 |" in parts["audit"], "one audit covers the configs that have the same texts"
    assert "| `default` | `test` | 30 | 3 | 3 |" in parts["splits"]
    for kind in {defect["kind"] for defect in report["defects"]}:
        number = sum(defect["kind"] == kind for defect in report["defects"])
        assert f"| {number} |" in parts["defects"]
    assert "Not for: diagnosis" in parts["uses"] and "the configs `default` contain their text" in parts["licence"]
    assert "- `default`, source of the rows: Scale-VQA release" in parts["splits"]
    assert "- `text`, source of the rows: not named" in parts["splits"]
    assert check_card(work / "scale-vqa", "dataset") == []
    assert "not complete" not in text and "Not stated yet" not in text


def test_the_folder_still_loads_and_twice_is_the_same(work: Path, fresh_python: object) -> None:
    assert complete(work) == complete(work)
    code = "import datasets; print(datasets.load_dataset('scale-vqa', 'default', split='test').num_rows)"
    done = fresh_python(code, cwd=work)  # type: ignore[operator]
    assert done.stdout.strip() == "30", done.stderr


def test_datasheet_and_doi_stay_and_a_wrong_doi_is_refused(work: Path) -> None:
    text = complete(work, "--doi", "https://doi.org/10.57967/hf/1234", "--repo", "org/scale-vqa", "--croissant")
    sheet = marked_sections(text)["datasheet"]
    for part in ("Motivation", "Composition", "Collection and processing", "People", "Distribution", "Maintenance"):
        assert f"**{part}.**" in sheet
    assert "DOI [10.57967/hf/1234](https://doi.org/10.57967/hf/1234)" in sheet and "The authors made" in sheet
    assert "doi     = {10.57967/hf/1234}" in text and "datasets/org/scale-vqa}" in marked_sections(text)["package"]
    cited = json.loads((work / "scale-vqa/croissant.json").read_text())["citeAs"]
    assert cited.endswith("https://doi.org/10.57967/hf/1234")
    assert head(complete(work))["doi"] == "10.57967/hf/1234"
    with pytest.raises(InputError, match="a DOI such as"):
        complete(work, "--doi", "doi.org/x")
    assert check_card(work / "scale-vqa", "dataset") == []


def test_words_of_others_stay(work: Path) -> None:
    complete(work)
    path = work / "scale-vqa/README.md"
    text = path.read_text().replace("## Citation", "## Thanks\n\nTo the lab.\n\n## Citation")
    text = text.replace("Not for: diagnosis", "somebody typed in between the marks, not for: diagnosis", 1)
    path.write_text(text.replace("pretty_name: Scale-VQA", "pretty_name: Ours\nextra_gated_prompt: Be kind"))
    text = complete(work)
    assert "To the lab." in text and "somebody typed" not in text
    assert head(text)["pretty_name"] == "Ours" and head(text)["extra_gated_prompt"] == "Be kind"


def test_another_config_keeps_words_and_licence_and_drops_figures(work: Path) -> None:
    path = work / "scale-vqa/README.md"
    path.write_text(complete(work) + "\n## Thanks\n\n```\n## no heading\n```\nTo the lab.\n")
    write_release(work / "scale-vqa", {"screened": {"test": list(rows(2))}}, {"screened": "Cut for a test."})
    text = path.read_text()
    assert "## Thanks\n\n```\n## no heading\n```\nTo the lab." in text and "Made for a test." in text
    assert head(text)["license"] == "cc-by-4.0" and marked_sections(text).keys() == {"incomplete"}
    assert text.count("## Columns") == 1
    found = [problem.expected for problem in check_card(work / "scale-vqa", "dataset")]
    assert "the section audit" in found, "figures of other rows do not stay, and publishing would stop"


def test_everything_that_is_missing_is_named_at_once(work: Path) -> None:
    path = work / "scale-vqa/README.md"
    path.write_text(path.read_text().replace("Made for a test.", ""))
    before = path.read_text()
    other = json.loads((work / "audit.json").read_text())
    other["provenance"]["data_hash"] = "0" * 64
    (work / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError) as error:
        raise run("dataset", work / "scale-vqa", "--audit", work / "other.json").exception or AssertionError
    expected = "\n".join(str(problem) for problem in error.value.problems)
    for part in ("a licence", "config default: expected an audit", "config text, expected"):
        assert part in expected or part.replace(", ", ": ") in expected
    assert "the data hash of other rows" in expected and "a note on where its rows come from" in expected
    assert path.read_text() == before


def test_a_curation_report_is_told_and_whether_the_rows_are_its_own(work: Path) -> None:
    audit = json.loads((work / "audit.json").read_text())
    figure = {"name": "ensemble", "accuracy": 0.25, "ci_low": 0.2, "ci_high": 0.3}
    report = {
        "format": 1,
        "input": {"paths": 6, "slides": 3, "patients": 3},
        "questions": {"n": 30, "by_split": {"test": 30}, "by_dimension": {"Diagnosis": 30}},
        "rounds": [{"round": 1, "judged": 40, "passed": 30, "dropped": 10}],
        "costs": {"total": {"calls": 7, "prompt_tokens": 100, "completion_tokens": 20, "cost": 0.5}},
        "outcomes": {"dropped": {"no-contrast": 10}},
        "models": {"generate": {"model": "a|b"}, "adversary": [{"model": "x"}, {"model": "y"}]},
        "blind": {"verdict": "clean", "ensemble": figure},
        "contradictions": [],
        "provenance": {"data_hash": audit["provenance"]["data_hash"]},
    }
    (work / "curation.json").write_text(json.dumps(report))
    part = marked_sections(complete(work, "--curation", work / "curation.json"))["curation"]
    assert "judged 40, passed 30, dropped 10" in part and "| model, adversary | x, y |" in part
    assert "a\\|b" in part and "25.0% (20.0 to 30.0), verdict clean" in part and "were changed" not in part
    report["provenance"]["data_hash"] = "0"
    (work / "curation.json").write_text(json.dumps(report))
    assert "were changed after it" in complete(work, "--curation", work / "curation.json")
    (work / "curation.json").write_text(json.dumps(report | {"format": 2}))
    with pytest.raises(InputError, match="of format 1"):
        complete(work, "--curation", work / "curation.json")


@pytest.mark.parametrize("given", [("--license", "other"), ("--license", "My Licence!")])
def test_a_licence_is_an_id_or_has_name_and_link(work: Path, given: tuple[str, str]) -> None:
    done = run("dataset", work / "scale-vqa", "--audit", work / "audit.json", *given)
    assert isinstance(done.exception, InputError)
    link = ("--license", "other", "--license-name", "x", "--license-link", "javascript:alert(1)")
    assert isinstance(run("dataset", work / "scale-vqa", "--audit", work / "audit.json", *link).exception, InputError)
    more = ("--license-name", "lab-licence", "--license-link", "https://example.org")
    assert "lab-licence" in complete(work, "--license", "other", *more)


def test_croissant_reads_options_that_are_images(tmp_path: Path) -> None:
    import mlcroissant

    folder = tmp_path / "scale-vqa"
    write_folder(folder, 1, {"default": {"test": 3}, "grounding": {"test": 3}})
    path = folder / "croissant.json"
    path.write_text(croissant_metadata(folder, "org/x", Licence("mit")))
    data = mlcroissant.Dataset(jsonld=str(path))
    stored = pq.read_table(folder / "grounding")["option_images"].to_pylist()
    for row, images in zip(data.records("grounding/test"), stored, strict=True):
        found = [image.tobytes() for image in row["grounding/test/option_images"]]
        assert found == [Image.open(io.BytesIO(image["bytes"])).tobytes() for image in images] and len(found) == 4
    assert [row["default/test/option_images"] for row in data.records("default/test")] == [[]] * 3


def test_croissant_names_a_repository_of_the_hub(work: Path) -> None:
    folder = work / "scale-vqa"
    given = ["dataset", str(folder), "--audit", str(work / "audit.json"), "--license", "mit", "--croissant", "--repo"]
    done = CliRunner().invoke(card, [*given, 'org/a/b"c'])
    assert done.exit_code == 2 and "ORG/NAME" in done.output and not (folder / "croissant.json").exists()


def test_croissant_reads_the_rows_and_tells_changed_files(work: Path) -> None:
    import mlcroissant

    complete(work, "--croissant", "--repo", "org/scale-vqa")
    path = work / "scale-vqa/croissant.json"
    assert check_croissant(path) == []
    found = list(mlcroissant.Dataset(jsonld=str(path)).records("default/test"))
    wanted = list(rows())
    assert [row["default/test/id"].decode() for row in found] == [row["id"] for row in wanted]
    assert [row["default/test/answer"] for row in found] == ["ABCD".index(row["answer"]) for row in wanted]
    assert found[0]["default/test/low_mag"].size == (112, 112)
    views = [row.get("high_mag") is None for row in wanted]
    assert [row["default/test/high_mag"] is None for row in found] == views and any(views)
    shard = next((work / "scale-vqa/default").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes() + b" ")
    assert "the SHA-256 of the folder's Parquet files" in str(check_croissant(path)[0])
    assert shard.name in str(check_croissant(path)[0])


def test_hostile_names_are_text(work: Path) -> None:
    report = json.loads((work / "audit.json").read_text())
    report["defects"].append({"id": "<script>alert(1)</script> | x", "kind": "null-view", "detail": ""})
    report["strongest"]["name"] = "[click](javascript:x) | `"
    (work / "audit.json").write_text(json.dumps(report))
    text = complete(work)
    assert "<script>" not in text and "[click](" not in text


def test_a_card_with_blanks_or_paths_is_not_published(work: Path) -> None:
    complete(work)
    path = work / "scale-vqa/README.md"
    path.write_text(path.read_text() + "\nMore Information Needed, see /home/somebody/notes\n")
    found = {problem.expected for problem in check_card(work / "scale-vqa", "dataset")}
    assert found == {"no local path", "no blank to fill in"}
    path.write_text("---\n: [\n---\n")
    assert check_card(work / "scale-vqa", "dataset")


def test_metric_card_computes_its_example(tmp_path: Path) -> None:
    from importlib.resources import files

    source = Path(str(files("scale_vqa_eval.scale_vqa_acc")))
    folder = Path(shutil.copytree(source, tmp_path / "scale_vqa_acc", ignore=shutil.ignore_patterns("__pycache__")))
    own = "## Thanks\n\nTo all.\n\n## A computed example"
    (folder / "README.md").write_text((source / "README.md").read_text().replace("## A computed example", own))
    script = folder / "scale_vqa_acc.py"
    script.write_text(
        script.read_text().replace('**figures, "mode": mode', '**figures, "accuracy": 0.123, "mode": mode')
    )
    assert run("metric", "--folder", folder, "--out", folder / "README.md").exception is None
    text = (folder / "README.md").read_text()
    assert "accuracy: 0.123\n" in text and own in text and check_card(folder, "metric") == []


def test_the_metric_in_the_package_has_its_card(tmp_path: Path) -> None:
    from importlib.resources import files

    source = Path(str(files("scale_vqa_eval.scale_vqa_acc")))
    assert run("metric", "--out", tmp_path / "README.md").exception is None
    assert (tmp_path / "README.md").read_text() == (source / "README.md").read_text(), "run scale-vqa card metric"
    assert check_card(source, "metric") == []
