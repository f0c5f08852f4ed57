"""What stands between a working tree and a release: one version, a dated changelog, folders that hold on their own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from carded_runs import make_folder
from packaging.requirements import Requirement
from paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import release
import release_checks

FIRST = "0.1.0"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with the files that name the version, at 0.1.0, with changes that are not released."""
    for name in [*release.PLACES, release.CHANGELOG]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for place, pattern in release.PLACES.items():
        release.rewrite(tmp_path / place, pattern, FIRST)
    (tmp_path / release.CHANGELOG).write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n")
    commit(tmp_path, "init", "--quiet")
    return tmp_path


def commit(tree: Path, *first: str) -> None:
    if first:
        subprocess.run(["git", *first], cwd=tree, check=True)
    named = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "add", "."], cwd=tree, check=True)
    subprocess.run(["git", *named, "commit", "--quiet", "-m", "x"], cwd=tree, check=True)


def test_the_version_is_one_in_every_place() -> None:
    assert release.check(ROOT) == []
    found, _ = release.versions(ROOT)
    assert len(set(found.values())) == 1
    changes = (ROOT / release.CHANGELOG).read_text()
    assert changes.startswith("# Changelog\n") and changes.count("## [Unreleased]") == 1


def test_a_release_bumps_every_place_and_dates_the_changes(tree: Path) -> None:
    assert release.release(tree, "0.2.0", "2027-01-02") == []
    assert set(release.versions(tree)[0].values()) == {"0.2.0"}
    assert "version: 0.2.0\ndate-released: 2027-01-02\n" in (tree / "CITATION.cff").read_text()
    changes = (tree / release.CHANGELOG).read_text()
    assert "## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n\n### Added\n\n- A thing.\n" in changes
    log = subprocess.run(["git", "log", "--oneline"], cwd=tree, capture_output=True, text=True, check=True).stdout
    assert len(log.splitlines()) == 1, "nothing is committed"
    validated = subprocess.run([Path(sys.executable).with_name("cffconvert"), "--validate"], cwd=tree)
    assert validated.returncode == 0
    commit(tree)
    assert "expected changes under [Unreleased]" in release.release(tree, "0.3.0", "2027-01-03")[0]


@pytest.mark.parametrize(("version", "works"), [("0.1.0", True), ("0.1.1rc1", True), ("0.0.9", False), ("0.1", False)])
def test_versions_only_rise(tree: Path, version: str, works: bool) -> None:
    assert bool(release.release(tree, version, "2027-01-02")) is not works


def test_a_dirty_tree_is_refused_and_nothing_is_written(tree: Path) -> None:
    (tree / "more.txt").write_text("x")
    before = {place: (tree / place).read_text() for place in release.PLACES}
    assert "found changes in more.txt" in release.release(tree, "0.2.0", "2027-01-02")[0]
    assert before == {place: (tree / place).read_text() for place in release.PLACES}
    (tree / "CITATION.cff").write_text(before["CITATION.cff"].replace(FIRST, "9.9.9"))
    assert "expected version 0.1.0 of pyproject.toml, found 9.9.9" in release.check(tree)[0]


def test_the_viewer_check_finds_what_the_viewer_cannot_show(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "scale-vqa")
    assert release_checks.viewer_problems(folder) == []
    assert release_checks.loading_problems(folder, tmp_path / "home") == []
    shard = next((folder / "default").glob("*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table.replace_schema_metadata(None).slice(0, 5), shard)
    (folder / "scale-vqa.py").write_text("")
    found = "\n".join(release_checks.viewer_problems(folder))
    for part in ("no code beside the data", "the features in its schema", "expected 30 rows of dataset_info, found 5"):
        assert part in found
    pq.write_table(pa.table({"id": [1]}), next((folder / "text").glob("*.parquet")))
    assert release_checks.loading_problems(folder, tmp_path / "home2")


def linked_environment(folder: Path, requirements: Path) -> Path:
    """An interpreter that sees what ``requirements`` bring and nothing else, linked from what is installed here."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    queue = [Requirement(line).name for line in release_checks.metric_requirements(requirements)]
    seen: set[str] = set()
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if ".." not in file.parts}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
        for need in map(Requirement, found.requires or []):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                queue.append(need.name)
    return folder / "bin/python"


def test_the_metric_needs_its_requirements_alone(tmp_path: Path) -> None:
    source = ROOT / "scale_vqa_eval/scale_vqa_acc"
    folder = tmp_path / "scale_vqa_acc"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    python = linked_environment(tmp_path / "bare", folder / "requirements.txt")
    assert find_spec("sklearn") is not None
    code = (
        "import importlib.util as u; print([u.find_spec(n) is None for n in ('sklearn', 'torch', 'scale_vqa_eval')])"
    )
    done = release_checks.isolated([str(python), "-c", code], tmp_path / "home")
    assert done.stdout.strip() == "[True, True, True]", "the environment is bare"
    assert release_checks.metric_problems(folder, python, tmp_path / "home") == []
    script = folder / "scale_vqa_acc.py"
    script.write_text(script.read_text().replace("import numpy as np\n", "import numpy as np\nimport sklearn\n", 1))
    found = release_checks.metric_problems(folder, python, tmp_path / "home3")
    assert len(found) == 1 and "sklearn" in found[0]


def test_the_scan_of_publishing_is_part_of_the_check(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "scale-vqa")
    assert release_checks.publish_problems(folder, "dataset") == []
    (folder / "notes.txt").write_text(f"see {tmp_path}/secret-place and /home/somebody/notes\n")
    (folder / "run.py").write_text("")
    assert len(release_checks.publish_problems(folder, "dataset")) >= 2


def test_docstring_examples_of_the_package_run() -> None:
    import doctest
    import importlib

    results = []
    for file in sorted((ROOT / "model_card").rglob("*.py")):
        if ">>>" in file.read_text():
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            results.append(doctest.testmod(importlib.import_module(name)))
    assert sum(result.attempted for result in results) > 5 and not any(result.failed for result in results)
