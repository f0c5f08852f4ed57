"""The documentation: no placeholder, no broken link, and every command of it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

from scale_vqa_eval.cli import cli

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PLACEHOLDER = re.compile(
    r"^\s*(?:[A-Z]+_[A-Z_]+|BENCH|TODO|TBD|FIXME|XXX)\s*$|\b(?:TODO|TBD|FIXME|XXX)\b", re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
SCRIPT = re.compile(r"\bpython ((?:benchmarks|tools|training_recipes)/[\w/]+\.py)")
BLOCK = re.compile(r"```.*?```", re.DOTALL)
COMMAND = re.compile(r"^\s*scale-vqa ([a-z]+)\b", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_complete(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not PLACEHOLDER.findall(text)
    broken = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert not broken, f"{page.name}: links to {broken}"
    missing = [script for script in SCRIPT.findall(text) if not (ROOT / script).is_file()]
    assert not missing, f"{page.name}: names {missing}"
    context = cli.make_context("scale-vqa", [], resilient_parsing=True)
    unknown = set(COMMAND.findall("\n".join(BLOCK.findall(text)))) - set(cli.list_commands(context))
    assert not unknown, f"{page.name}: commands {unknown}"


def test_every_page_is_in_the_map() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in PAGES if page.parent.name == "docs"]
    assert not [name for name in pages if f"(docs/{name})" not in readme]


def test_the_reading_order_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Reading order")[1].split("\n## ")[0]
    packages = ("scale_vqa_eval", "dataset_script", "training_recipes")
    files = [file.with_suffix("").as_posix() for name in packages for file in (ROOT / name).rglob("*.py")]
    named = re.findall(r"`([\w/]*\w)`", table)
    assert named and not [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
