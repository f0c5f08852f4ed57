"""A release folder where it lies: ``datasets`` alone loads it, by the bare name and by its path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from loading_data import HEAD, SIZES, check_uses, result, write_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("release") / "scale-vqa"
    return place, write_folder(place)


@pytest.mark.slow
def test_bare_name_beside_the_folder(fresh_python: Any, written: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = written
    code = f"""{HEAD}
print(json.dumps({{
    "plain": plain("scale-vqa", {[*SIZES, None]}),
    "streamed": plain("scale-vqa", {[*SIZES]}, streaming=True),
    "parallel": plain({str(folder)!r}, ["default", "text"], num_proc=2, cache_dir="parallel"),
    "uses": uses("scale-vqa"), "ours": ours()}}))"""
    found = result(fresh_python(code, cwd=folder.parent))
    assert found["plain"] == {**expected, "None": expected["default"]}
    assert found["streamed"] == expected
    assert found["parallel"] == {name: expected[name] for name in ("default", "text")}
    assert found["ours"] == []
    check_uses(found["uses"], expected["default"]["test"])


@pytest.mark.slow
def test_rows_that_change_while_no_size_does_are_read_anew(fresh_python: Any, tmp_path: Path) -> None:
    """``datasets`` keys its cache of a local folder by the card; the card must tell the two folders apart."""
    digests = []
    for number, letters in enumerate(("0000", "1111")):
        place = tmp_path / str(number) / "scale-vqa"
        expected = write_folder(place, seed=int(letters), sizes={"text": {"test": 10}})
        digests.append(expected["text"]["test"])
    cards = [(tmp_path / str(number) / "scale-vqa" / "README.md").read_text() for number in (0, 1)]
    assert len(cards[0]) == len(cards[1])
    code = f"{HEAD}print(json.dumps(plain('scale-vqa', [None])))"
    for number in (0, 1):
        assert result(fresh_python(code, cwd=tmp_path / str(number))) == {"None": {"test": digests[number]}}
    shutil.rmtree(tmp_path / "0")
