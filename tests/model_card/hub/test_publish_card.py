"""Merging a generated card with the one on the Hub: what a person wrote stays, what was generated is renewed."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model_card.cards.text import merge_cards
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.card import head as card_metadata

FIRST = """---
license: other
tags:
- pathology
configs:
- config_name: default
  data_files:
  - split: test
    path: default/test-*.parquet
  default: true
dataset_info:
- config_name: default
  splits:
  - name: test
    num_examples: 5
---

# Scale-VQA

Generated.

## Results

55.1

## Limits

Research only.
"""


def digests(card: str) -> dict[str, str]:
    return merge_cards(card, None, {}).generated


def test_without_a_remote_the_card_is_published_as_it_is() -> None:
    assert merge_cards(FIRST, None, {}).text == FIRST
    assert merge_cards(FIRST, FIRST, {}).text == FIRST


def test_what_was_generated_is_renewed() -> None:
    second = FIRST.replace("55.1", "56.2").replace("num_examples: 5", "num_examples: 6")
    merged = merge_cards(second, FIRST, digests(FIRST))
    assert (merged.text, merged.kept, merged.added) == (second, (), ())


def test_what_a_person_changed_stays_and_the_rest_is_renewed() -> None:
    remote = FIRST.replace("Research only.", "Research only. By hand.").replace("license: other", "license: mit")
    remote = remote.replace("## Limits", "## Thanks\n\nTo all.\n\n## Limits")
    second = FIRST.replace("55.1", "56.2").replace("Research only.", "Research only!")
    merged = merge_cards(second, remote, digests(FIRST))
    assert set(merged.kept) == {"license", "## Limits"} and merged.added == ("## Thanks",)
    assert "56.2" in merged.text and "By hand." in merged.text and "55.1" not in merged.text
    assert card_metadata(merged.text)["license"] == "mit"
    body = merged.text
    assert body.index("## Results") < body.index("## Thanks") < body.index("## Limits")


def test_without_a_manifest_everything_that_differs_is_by_hand() -> None:
    second = FIRST.replace("55.1", "56.2").replace("num_examples: 5", "num_examples: 6")
    merged = merge_cards(second, FIRST, {})
    assert set(merged.kept) == {"## Results", "dataset_info:default"} and merged.text == FIRST
    assert merge_cards(second, FIRST, {}, frozenset({"card"})).text == second
    taken = merge_cards(second, FIRST, {}, frozenset({"## Results"}))
    assert "56.2" in taken.text and "num_examples: 5" in taken.text
    with pytest.raises(InputError, match="--replace"):
        merge_cards(second, FIRST, {}, frozenset({"## No such"}))


def test_configs_of_others_stay_and_one_is_the_default() -> None:
    entry = yaml.safe_load("{config_name: theirs, data_files: theirs/*.parquet, default: true}")
    front = card_metadata(FIRST)
    front["configs"] = [entry]
    front["dataset_info"] = {"config_name": "theirs", "download_size": 1}
    remote = f"---\n{yaml.safe_dump(front)}---\n# Theirs\n"
    merged = card_metadata(merge_cards(FIRST, remote, {}).text)
    assert [config["config_name"] for config in merged["configs"]] == ["default", "theirs"]
    assert [config.get("default") for config in merged["configs"]] == [True, None]
    assert [info["config_name"] for info in merged["dataset_info"]] == ["default", "theirs"]


def test_a_heading_inside_of_code_is_no_section() -> None:
    remote = FIRST + "\n## Use\n\n```bash\n## not a heading\nmake\n```\n\nBy hand.\n"
    merged = merge_cards(FIRST, remote, digests(FIRST))
    assert merged.added == ("## Use",)
    assert merged.text.endswith("```bash\n## not a heading\nmake\n```\n\nBy hand.\n")


def test_code_that_is_left_open_swallows_nothing() -> None:
    merged = merge_cards("## Use\n\n```bash\nmake\n", "## Thanks\n\nTo all.\n", {})
    assert merged.text == "## Use\n\n```bash\nmake\n```\n\n## Thanks\n\nTo all.\n"


def test_broken_yaml_is_named() -> None:
    with pytest.raises(InputError, match="the card on the Hub"):
        merge_cards(FIRST, "---\nlicense: [\n---\n", {})


words = st.text(alphabet="abc #`-\n", min_size=0, max_size=30)
sections = st.dictionaries(st.sampled_from(["Results", "Limits", "Use", "Thanks"]), words, max_size=4)
fronts = st.dictionaries(st.sampled_from(["license", "tags", "language"]), st.integers(0, 3), max_size=3)


def card_of(front: dict, parts: dict) -> str:
    front_text = f"---\n{yaml.safe_dump(front)}---\n\n" if front else ""
    return front_text + "".join(f"## {name}\n\n{text}\n\n" for name, text in parts.items())


@settings(deadline=None)
@given(fronts, sections, fronts, sections, st.booleans())
def test_merging_again_changes_nothing(front_a: dict, a: dict, front_b: dict, b: dict, known: bool) -> None:
    local, remote = card_of(front_a, a), card_of(front_b, b)
    generated = digests(remote) if known else {}
    once = merge_cards(local, remote, generated)
    assert merge_cards(local, once.text, generated).text.strip() == once.text.strip()
    assert merge_cards(local, once.text, once.generated).text.strip() == once.text.strip()
    if not known:
        assert set(digests(remote)) <= set(digests(once.text)), "no part of the remote is lost"
        assert all(digests(once.text)[name] == digest for name, digest in digests(remote).items())
