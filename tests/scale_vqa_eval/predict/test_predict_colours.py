"""Transparency lies over white, colour profiles are converted to sRGB, and a run says so."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import MODEL, chat_server
from click.testing import CliRunner
from PIL import Image, ImageCms
from predict_release import picture

from scale_vqa_eval.predict.command import predict
from scale_vqa_eval.predict.images import Bounds, colour_changes, data_uri, decode_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def other_profile() -> bytes:
    """An RGB profile whose red and blue primaries are exchanged: a red pixel means blue."""
    profile = bytearray(SRGB)
    tags = {
        bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    }
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


OTHER = other_profile()


def saved(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def half_transparent(mode: str) -> bytes:
    """Left half opaque grey, right half transparent with black below it."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    if mode == "P":
        grey = Image.new("P", (8, 8), 1)
        grey.putpalette([200, 200, 200, 0, 0, 0])
        grey.paste(0, (0, 0, 4, 8))
        return saved(grey, transparency=1)
    if mode in ("L", "RGB"):
        return saved(image.convert(mode), transparency=0 if mode == "L" else (0, 0, 0))
    return saved(
        image.convert(mode), "WEBP" if mode == "RGBA" else "PNG", **({"lossless": True} if mode == "RGBA" else {})
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_parts_are_white_in_every_mode_and_as_sent(mode: str) -> None:
    content = half_transparent(mode)
    shown = decode_image(content, "x", Bounds())
    assert shown.getpixel((6, 4)) == (255, 255, 255)
    assert max(abs(level - 200) for level in shown.getpixel((1, 4))) <= 2  # type: ignore[union-attr]
    sent = Image.open(io.BytesIO(base64.b64decode(data_uri(content, "x", Bounds()).split(",")[1])))
    assert sent.mode == "RGB" and (np.asarray(sent) == np.asarray(shown)).all()
    assert colour_changes(content) == ["transparency over white"]


def test_half_of_a_colour_over_white() -> None:
    assert decode_image(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), "x", Bounds()).getpixel((0, 0)) == (127,) * 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_converted(mode: str) -> None:
    content = saved(Image.new("RGB", (4, 4), (230, 10, 10)).convert(mode), icc_profile=OTHER)
    red, _, blue = decode_image(content, "x", Bounds()).getpixel((1, 1))  # type: ignore[misc]
    assert blue > 200 > red
    assert colour_changes(content)[0] == "profile converted to sRGB"
    sent = Image.open(io.BytesIO(base64.b64decode(data_uri(content, "x", Bounds()).split(",")[1])))
    assert "icc_profile" not in sent.info and sent.getpixel((1, 1))[2] > 200  # type: ignore[index]


def test_srgb_under_its_own_name_is_sent_as_it_is() -> None:
    image = Image.open(io.BytesIO(picture(3)))
    content = saved(image, "JPEG", icc_profile=SRGB)
    assert colour_changes(content) == []
    assert base64.b64decode(data_uri(content, "x", Bounds()).split(",")[1]) == content


@pytest.mark.parametrize("profile", [b"not a profile", OTHER[:200], b""], ids=["text", "cut off", "empty"])
def test_a_profile_that_cannot_be_used_leaves_the_pixels_as_they_are(profile: bytes) -> None:
    content = saved(Image.new("RGB", (4, 4), (230, 10, 10)), icc_profile=profile)
    assert decode_image(content, "x", Bounds()).getpixel((1, 1)) == (230, 10, 10)
    assert colour_changes(content) == (["unusable profile left aside"] if profile else [])


def test_a_profile_of_another_kind_of_image_is_left_aside() -> None:
    content = saved(Image.new("L", (4, 4), 77), icc_profile=OTHER)
    assert decode_image(content, "x", Bounds()).getpixel((1, 1)) == (77, 77, 77)
    assert colour_changes(content) == ["unusable profile left aside"]


def test_a_run_says_what_it_changed_and_keeps_it_in_its_provenance(tmp_path: Path) -> None:
    contents = {
        "a.png": saved(Image.new("RGB", (9, 9)), icc_profile=OTHER),
        "b.png": half_transparent("LA"),
        "c.jpg": picture(1),
    }
    rows = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        rows.append(
            {"id": name, "question": "?", "options": ["x", "y"], "answer": "A", "image_path": {"low_mag": name}}
        )
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with chat_server() as server:
        named = {"--data": str(tmp_path / "q.json"), "--backend": "openai", "--model": MODEL, "--base-url": server.url}
        command = [*(part for pair in named.items() for part in pair), "--out", str(tmp_path / "p.jsonl")]
        result = CliRunner().invoke(predict, command, standalone_mode=False)
        assert result.return_value == 0, result.output
    assert "1 of 3 images: profile converted to sRGB" in result.stderr
    assert "1 of 3 images: transparency over white" in result.stderr
    head = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert head["provenance"]["colours"] == {"profile converted to sRGB": 1, "transparency over white": 1}
