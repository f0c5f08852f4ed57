"""Reads the regions of some fours of a slide into one file: the unit of work that a build can resume at.

The file is a ZIP archive of JPEG files and their measures. It is moved into place whole, so one that is there is
complete; its folder's name stands for everything that its bytes depend on.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from dataset_script.slides.fields import Field
from dataset_script.slides.fours import Four
from dataset_script.slides.image_measures import measure_image
from dataset_script.slides.marks import box_in, mark_boxes
from dataset_script.slides.regions import SlideSource
from scale_vqa_eval.errors import InputError, Problem

JPEG_QUALITY: Final = 90
MEASURES_FILE: Final = "measures.json"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def encode_jpeg(image: Image.Image) -> bytes:
    """Returns an RGB image as JPEG, quality 90 with full colour resolution; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def read_field(source: SlideSource, field: Field) -> Image.Image:
    """Returns a field's pixels.

    Raises:
        InputError: where it cannot be read, or is one colour throughout: a level of the file then lacks what the
            survey, read from another level, has seen there.
    """
    image = source.read_region(field.x, field.y, field.mpp, field.size_px)
    if all(low == high for low, high in image.getextrema()):
        location = f"{source.name}, {field.name(source.name)}"
        found = f"one colour, {image.getpixel((0, 0))}"
        hint = "the file lacks this part at this scale: scan it again, or leave it out"
        raise InputError(Problem(location, "the tissue that the thumbnail shows there", found, hint))
    return image


def marked_name(slide: str, four: Four) -> str:
    """Returns the file name of a four's 10x view with its boxes."""
    assert four.frame is not None
    first = four.inner[0]
    return four.frame.name(slide).replace(".jpg", f"_boxes_x{first.x:.1f}_y{first.y:.1f}.jpg")


def box_name(slide: str, four: Four, index: int) -> str:
    """Returns the name under which the measures of one marked box stand."""
    return f"{marked_name(slide, four)}#{index}"


def write_regions(
    path: Path, source: SlideSource, fours: Sequence[Four], show_frame: bool, show_outer: bool, mark: bool
) -> None:
    """Reads, measures and encodes the fields of some fours and writes them as one archive, in one move.

    Args:
        path: the archive to write.
        source: the open slide.
        fours: what to read.
        show_frame: whether any kind shows the 10x field that holds a four.
        show_outer: whether any kind shows the fields between.
        mark: whether the 10x view is wanted with its boxes too.

    Raises:
        InputError: where a field cannot be read; nothing is written then.
    """
    measures: dict[str, list[float]] = {}
    files: dict[str, bytes] = {}

    def keep(name: str, image: Image.Image) -> None:
        files[name] = encode_jpeg(image)
        measures[name] = measure_image(image, len(files[name]))

    for four in fours:
        for field in dict.fromkeys((*(four.outer if show_outer else ()), *four.inner)):
            keep(field.name(source.name), read_field(source, field))
        if four.frame is None or not (show_frame or mark):
            continue
        view = read_field(source, four.frame)
        if show_frame:
            keep(four.frame.name(source.name), view)
        if mark:
            keep(marked_name(source.name, four), mark_boxes(view, four.frame, four.inner))
            for index, field in enumerate(four.inner):
                crop = view.crop(tuple(int(edge) for edge in box_in(four.frame, field)))
                measures[box_name(source.name, four, index)] = measure_image(crop, 0)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
        text = json.dumps(measures, sort_keys=True, separators=(",", ":"))
        archive.writestr(zipfile.ZipInfo(MEASURES_FILE, _EPOCH), text)
    partial.replace(path)


def read_measures(path: Path) -> dict[str, list[float]]:
    """Returns name -> measures of an archive."""
    with zipfile.ZipFile(path) as archive:
        measures: dict[str, list[float]] = json.loads(archive.read(MEASURES_FILE))
    return measures
