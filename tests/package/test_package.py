from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--skip-dependency-check",
        "-o",
        str(out),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return next(out.glob("*.whl"))


def test_wheel_has_the_rooms_and_every_file_they_read(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    packages = ("scale_vqa_eval/", "dataset_script/", "model_card/", "training_recipes/")
    missing = [name for name in tracked if name.startswith(packages) and name not in inside]
    assert not missing
    assert all(any(name.startswith(package) for name in inside) for package in packages)


def test_wheel_runs_where_nothing_else_of_the_project_is(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import scale_vqa_eval; print(scale_vqa_eval.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def _closure(name: str) -> set[str]:
    """Returns every distribution that an install of ``name`` without extras brings, by the metadata that is here."""
    seen: set[str] = set()
    queue = [name]
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        for line in requires(current) or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                queue.append(re.sub(r"[-_.]+", "-", need.name).lower())
    return seen


def test_core_installs_without_torch() -> None:
    brought = _closure("scale-vqa")
    assert {"datasets", "evaluate", "numpy"} <= brought
    assert not brought & {"torch", "torchvision", "transformers", "vllm", "scikit-learn", "matplotlib"}


def test_command_is_one_and_version_stands_in_one_place() -> None:
    scripts = [entry for entry in distribution("scale-vqa").entry_points if entry.group == "console_scripts"]
    assert [entry.name for entry in scripts] == ["scale-vqa"]
    version = distribution("scale-vqa").version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from scale_vqa_eval.cli import cli; cli.main(['--help'], standalone_mode=False);"
        "import json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "datasets", "evaluate", "numpy", "pyarrow", "sklearn", "matplotlib", "PIL"}
    assert "audit" in done.stdout


def test_every_command_of_the_table_answers_help() -> None:
    from scale_vqa_eval.cli import COMMANDS

    commands = [[name] for name in COMMANDS] + [["build", kind] for kind in ("release", "slides", "phantom")]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "scale_vqa_eval", *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert "Usage:" in done.stdout


def test_citation_is_valid_and_prefers_the_paper() -> None:
    validator = Path(sys.executable).with_name("cffconvert")
    done = subprocess.run([validator, "--validate"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    preferred = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert preferred["identifiers"][0]["value"] == "arXiv:2606.17412"


def test_docstring_examples_run() -> None:
    names = subprocess.run(
        ["git", "grep", "-l", ">>>", "--", "scale_vqa_eval/*.py", "dataset_script/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert names
    code = (
        "import doctest, importlib\n"
        "attempted = 0\n"
        f"for name in {names!r}:\n"
        "    module = importlib.import_module(name[:-3].replace('/', '.').removesuffix('.__init__'))\n"
        "    result = doctest.testmod(module)\n"
        "    attempted += result.attempted\n"
        "    assert not result.failed, name\n"
        "assert attempted > 5, attempted\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_upper_rooms_do_not_know_each_other() -> None:
    packages = {"scale_vqa_eval": set(), "dataset_script": {"scale_vqa_eval"}}
    packages |= {package: {"scale_vqa_eval"} for package in ("training_recipes", "model_card")}
    for package, allowed in packages.items():
        for file in (ROOT / package).rglob("*.py"):
            named = set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
            strangers = named & packages.keys() - allowed - {package}
            assert not strangers, f"{file} imports {strangers}"


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests are not spread over processes here")
@pytest.mark.xdist_group("held together")
def test_tests_of_a_group_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Modules that share a server or a log count on it; some versions of pytest drop the groups without a word."""
    assert request.node.nodeid.endswith("@held together")
