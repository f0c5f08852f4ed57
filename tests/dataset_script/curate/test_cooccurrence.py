"""Findings that go together: found in the features, and in no question outside of exchange sets."""

from __future__ import annotations

import random
from typing import Any

from dataset_script.curate.candidates import Candidate
from dataset_script.curate.captions import CaptionedPath, CaptionFeature
from dataset_script.curate.distractors import build_options, find_implications

GROWTH = ("solid nests", "fused glands", "single files", "papillary fronds")
TYPE = dict(zip(GROWTH, ("medullary", "tubular", "lobular", "papillary"), strict=True))
STROMA = ("loose oedema", "dense collagen", "myxoid pools")


def feature(number: int, scale: str, aspect: str, value: str) -> dict[str, str]:
    return {"id": f"{scale}-{number}", "scale": scale, "aspect": aspect, "value": value}


def lines(paths: int, seed: int, patients: int | None = None, noise: float = 0.0) -> tuple[list[Any], dict[str, str]]:
    """Features in which the type follows from the growth pattern, but for a share of noise, and the stroma is free."""
    rng = random.Random(seed)
    rows, patient_of = [], {}
    for number in range(paths):
        growth = rng.choice(GROWTH)
        kind = rng.choice(list(TYPE.values())) if rng.random() < noise else TYPE[growth]
        found = [
            feature(1, "low_mag", "growth pattern", growth),
            feature(2, "low_mag", "stroma", rng.choice(STROMA)),
            feature(1, "path", "tumour type", kind),
        ]
        rows.append({"path": f"p{number}", "features": found})
        patient_of[f"p{number}"] = f"P{number if patients is None else number % patients}"
    return rows, patient_of


def test_what_follows_from_another_finding_is_found_and_nothing_else() -> None:
    found = find_implications(*lines(80, 1))
    assert found == {(("growth pattern", _words(value)), "tumour type") for value in GROWTH} | {
        (("tumour type", _words(value)), "growth pattern") for value in TYPE.values()
    }
    assert find_implications(*lines(80, 1, noise=1.0)) == frozenset()


def test_chance_is_not_taken_for_a_rule() -> None:
    false = sum(bool(find_implications(*lines(60, seed, noise=1.0))) for seed in range(40))
    assert false <= 4, "one per cent a pair of aspects, three pairs"


def test_many_regions_of_two_patients_are_no_evidence() -> None:
    assert find_implications(*lines(80, 2, patients=2)) == frozenset()
    assert find_implications([], {}) == frozenset()
    assert find_implications([{"path": "p", "features": []}], {"p": "P"}) == frozenset()


def test_they_are_crossed_neither_as_the_right_nor_as_the_wrong_finding() -> None:
    rows, patient_of = lines(120, 3)
    # one finding more that is free of the type, so that aspects are crossed where neither implies the other
    rng = random.Random(5)
    for number, row in enumerate(rows):
        if number % 3 == 0:
            row["features"][0]["value"] = "mixed sheets" if number % 2 else "cribriform plates"
            row["features"][2]["value"] = rng.choice(["apocrine", "mucinous"])
    apart = find_implications(rows, patient_of)
    drafts = []
    for row in rows:
        key = row["path"]
        growth, stroma, kind = (CaptionFeature(**one) for one in row["features"])
        other = kind if int(key[1:]) % 4 else stroma
        texts = tuple((f.scale, f.value) for f in (growth, stroma, kind))
        path = CaptionedPath(key, patient_of[key], key, texts, (), "train")
        drafts.append(
            Candidate(f"{key}::type_E", path, "type_E", "free", f"{key}?", growth, other, ("", ""), "A holds.")
        )
    found = build_options(drafts, 1, implied=apart)
    implied = {value for (aspect, value), _ in apart if aspect == "growth pattern"}
    assert implied == {_words(value) for value in GROWTH}
    crossed = [item for item in found.candidates if item.second.aspect == "tumour type"]
    assert len(crossed) >= 10
    for item in crossed:
        assert not {_words(value) for value in item.values[0]} & implied
    with_stroma = [item for item in found.candidates if item.second.aspect == "stroma"]
    assert {_words(value) for item in with_stroma for value in item.values[0]} & implied, "elsewhere it may be asked"
    refused = {row for row, why in found.refused.items() if why == "go-together"}
    assert refused == {
        draft.id for draft in drafts if draft.second.aspect == "tumour type" and _words(draft.first.value) in implied
    }


def _words(value: str) -> tuple[str, ...]:
    from dataset_script.curate.captions import stems

    return stems(value)
