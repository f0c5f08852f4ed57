"""The work folder of a build of slides: the plan of each slide, and archives of its field images with their measures.

Each slide has a sub-folder whose name stands for the slide file, the settings and the software that its bytes depend
on. A file with its final name is complete and current, because it is moved into place, so that a build resumes, and
grows by the new slides. The folder may lie on storage that several machines share. An archive is a ZIP of JPEG files
and their measures.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset_script.slides.plan import FieldPlan, GroundingSettings, plan_slide
from dataset_script.slides.sampling import Field, FieldGroup
from dataset_script.slides.thumbnail import OTSU_BOUNDS
from scale_vqa_eval.errors import InputError, Problem, first_line
from scale_vqa_eval.files import atomic_path, atomic_write, sha256_json
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION
from scale_vqa_eval.wsi import PYRAMID_HINT, OpenSlideSource, SlideSource, simd

FORMAT: Final = 9
"""Raised when the bytes of plans or archives change for the same settings."""
BATCH: Final = 2
"""Groups in one archive."""

JPEG_QUALITY: Final = 90
MEASURES_FILE: Final = "measures.json"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
MEASURES: Final = ("red", "green", "blue", "saturation", "sharpness", "tissue", "bytes")
"""What ``measure_image`` returns, in order."""
GLASS: Final = 245.0
"""Light of empty glass, assumed for a single image."""
LINE_PX: Final = 2
CLEAR_PX: Final = 1
"""Pixels left free around the field, so that no line covers the tissue in question."""
TAG_PX: Final = 14
AGREEMENT_CELLS: Final = 8
MIN_AGREEMENT: Final = 0.4
"""Minimum mean correlation of lightness between fields of a group and the same places in the fields around them.

On real slides it is above 0.95, with an offset of 20 um (a pixel or two of coarse levels) 0.55 to 0.72, with one of
60 um 0.3 at most.
"""
_DISK_HINT: Final = "free disk space or name another --work, and run the same command again: finished work is kept"

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class SlideWork:
    """The work on one slide.

    Attributes:
        slide: the slide file.
        folder: its sub-folder.
    """

    slide: Path
    folder: Path

    @property
    def plan_file(self) -> Path:
        """Path of the plan."""
        return self.folder / "plan.json"

    def plan(self) -> FieldPlan:
        """Returns the plan, which must exist."""
        return _read_plan(self.plan_file)

    def archive(self, layout: str, group: int) -> Path:
        """Returns the archive with the regions of a group (by number in its layout)."""
        return self.folder / f"{layout}-{group // BATCH:06d}.zip"

    def batches(self) -> Iterator[tuple[str, int]]:
        """Yields (layout, first group) of every archive that the plan asks for."""
        for layout, groups in self.plan().groups.items():
            yield from ((layout, start) for start in range(0, len(groups), BATCH))

    def read(self, layout: str, group: int, name: str) -> bytes:
        """Returns one file of an archive."""
        return _read_image(self.archive(layout, group), name)

    def measures(self, layout: str, group: int) -> dict[str, list[float]]:
        """Returns name -> measures of the archive that holds a group."""
        return _read_measures(self.archive(layout, group))


def work_root(out: Path) -> Path:
    """Returns the hidden work folder that belongs to a release folder."""
    out = out.absolute()
    return out.with_name(f".{out.name}.slides")


def slide_work(root: Path, slide: Path, settings: GroundingSettings) -> SlideWork:
    """Returns the work on a slide, in a folder named after everything that it depends on.

    A slide file is identified by its name, size and time of change.
    """
    state = slide.stat()
    inputs = [FORMAT, slide.stem, state.st_size, state.st_mtime_ns, asdict(settings), _packages()]
    return SlideWork(slide, root / sha256_json(inputs)[:32])


@cache
def _packages() -> dict[str, str]:
    names = ("openslide-python", "openslide-bin", "pillow", "numpy", "scipy", "scikit-image", "simplejpeg")
    return {name: version(name) for name in (*names, *(["cykooz-resizer"] if simd else []))}


def make_plan(task: tuple[SlideWork, GroundingSettings]) -> tuple[Problem, ...]:
    """Plans one slide unless that is done; returns the problems of the slide."""
    work, settings = task
    if work.plan_file.exists():
        return ()
    try:
        _check_machine(work, settings)
        with OpenSlideSource(work.slide, settings.mpp) as source:
            plan = plan_slide(source, settings)
            plan = replace(plan, notes=(*source.notes, *plan.notes))
            atomic_write(work.plan_file, plan.to_json(), _DISK_HINT)
    except InputError as error:
        return error.problems
    return ()


def make_regions(task: tuple[SlideWork, GroundingSettings, tuple[tuple[str, int], ...]]) -> tuple[Problem, ...]:
    """Reads the regions of some batches of groups of a slide, unless that is done; returns the problems of the slide.

    Args:
        task: the work, the settings, and the (layout, first group) of each batch.
    """
    work, settings, batches = task
    left = [batch for batch in batches if not work.archive(*batch).exists()]
    if not left:
        return ()
    try:
        _check_machine(work, settings)
        with OpenSlideSource(work.slide, settings.mpp) as source:
            for layout, start in left:
                kinds = settings.kinds_of(layout)
                write_regions(
                    work.archive(layout, start),
                    source,
                    work.plan().groups[layout][start : start + BATCH],
                    show_context="bridge" in kinds,
                    show_parents=bool({"zoom-in", "zoom-out", "bridge"} & set(kinds)),
                    mark="origin" in kinds,
                )
    except InputError as error:
        return error.problems
    return ()


def _check_machine(work: SlideWork, settings: GroundingSettings) -> None:
    """Raises InputError unless this machine has the slide, unchanged, and the software of the build."""
    location = f"{work.slide} on {platform.node()}"
    if not work.slide.exists():
        hint = "put the slides on storage that every machine mounts under the same path"
        raise InputError(Problem(location, "the slide", "no such file", hint))
    if slide_work(work.folder.parent, work.slide, settings) != work:
        expected = "the slide and the package versions that the build began with"
        hint = "install the same versions on every machine, leave slides unchanged, and run the command again"
        raise InputError(Problem(location, expected, "others", hint))


@lru_cache(maxsize=4)
def _read_plan(path: Path) -> FieldPlan:
    try:
        return FieldPlan.from_json(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, error) from error


@lru_cache(maxsize=64)
def _read_measures(path: Path) -> dict[str, list[float]]:
    measures: dict[str, list[float]] = json.loads(_read_image(path, MEASURES_FILE))
    return measures


@lru_cache(maxsize=128)
def _read_image(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    hint = "delete it, and run the same command again: it is made anew"
    return InputError(Problem(str(path), "finished work of this build", f"a damaged file ({first_line(error)})", hint))


def encode_jpeg(image: Image.Image) -> bytes:
    """Returns an RGB image as JPEG, quality 90 with full colour resolution; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def read_field(source: SlideSource, field: Field) -> Image.Image:
    """Returns a field's pixels.

    Raises:
        InputError: where it cannot be read, or is one colour throughout: a level of the file then lacks what the
            thumbnail, read from another level, shows there.
    """
    image = source.read_region(field.x, field.y, field.mpp, field.size_px)
    sample = image.resize((16, 16), Image.Resampling.NEAREST)  # most fields need no look at every pixel
    if all(low == high for low, high in sample.getextrema()) and all(low == high for low, high in image.getextrema()):
        location = f"{source.name}, {field.name(source.name)}"
        found = f"one colour, {image.getpixel((0, 0))}"
        hint = "the file lacks this part at this scale: scan it again, or leave it out"
        raise InputError(Problem(location, "the tissue that the thumbnail shows there", found, hint))
    return image


def marked_name(slide: str, group: FieldGroup) -> str:
    """Returns the file name of a group's 10x view with its boxes."""
    assert group.context is not None
    first = group.targets[0]
    return group.context.name(slide).replace(".jpg", f"_boxes_x{first.x:.1f}_y{first.y:.1f}.jpg")


def box_name(slide: str, group: FieldGroup, index: int) -> str:
    """Returns the name of the measures of one marked box."""
    return f"{marked_name(slide, group)}#{index}"


def write_regions(
    path: Path, source: SlideSource, groups: Sequence[FieldGroup], show_context: bool, show_parents: bool, mark: bool
) -> None:
    """Reads, measures and encodes the fields of some groups and writes them as one archive.

    Args:
        path: the archive to write.
        source: the open slide.
        groups: what to read.
        show_context: whether any kind shows the 10x field that holds a group.
        show_parents: whether any kind shows the parents.
        mark: whether the 10x view with marked boxes is needed.

    Raises:
        InputError: where a field cannot be read; nothing is written then.
    """
    measures: dict[str, list[float]] = {}
    files: dict[str, bytes] = {}

    def keep(name: str, image: Image.Image) -> None:
        files[name] = encode_jpeg(image)
        measures[name] = measure_image(image, len(files[name]))

    for group in groups:
        fields = dict.fromkeys((*(group.parents if show_parents else ()), *group.targets))
        images = {field: read_field(source, field) for field in fields}
        for field, image in images.items():
            keep(field.name(source.name), image)
        if show_parents:
            _check_levels_agree(source, list(zip(group.parents, group.targets, strict=True)), images)
        if group.context is None or not (show_context or mark):
            continue
        images[group.context] = view = read_field(source, group.context)
        _check_levels_agree(source, [(group.context, target) for target in group.targets], images)
        if show_context:
            keep(group.context.name(source.name), view)
        if mark:
            keep(marked_name(source.name, group), mark_boxes(view, group.context, group.targets))
            for index, field in enumerate(group.targets):
                crop = view.crop(tuple(int(edge) for edge in box_in(group.context, field)))
                measures[box_name(source.name, group, index)] = measure_image(crop, 0)
    with atomic_path(path, _DISK_HINT) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
        text = json.dumps(measures, sort_keys=True, separators=(",", ":"))
        archive.writestr(zipfile.ZipInfo(MEASURES_FILE, _EPOCH), text)


def _check_levels_agree(
    source: SlideSource, pairs: Sequence[tuple[Field, Field]], images: Mapping[Field, Image.Image]
) -> None:
    """Raises InputError unless the pixels of inner fields are found where geometry puts them in the outer fields.

    The levels of a file may have different contents, or an offset, and then geometry tells nothing about the images.
    """
    alike = []
    side = min(AGREEMENT_CELLS, int(pairs[0][1].side / pairs[0][0].mpp / 2))
    if side < 3:  # fewer cells of two pixels are too few to tell
        return
    for outer, inner in pairs:
        cells = [
            np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX, box=box), np.float32).ravel()
            for image, box in ((images[outer], _edges(outer, inner)), (images[inner], None))
        ]
        uniform = any(one.std() < 1e-3 for one in cells)
        alike.append(0.0 if uniform else np.corrcoef(*cells)[0, 1])
    if (agreement := float(np.mean(alike))) < MIN_AGREEMENT:
        outer, inner = pairs[0]
        location = f"{source.name}, {inner.name(source.name)}"
        expected_text = f"the same tissue in the {MAGNIFICATION[outer.view]} field around it"
        found = f"other tissue (correlation {agreement:.2f}): the levels of the file do not agree"
        raise InputError(Problem(location, expected_text, found, f"{PYRAMID_HINT}; or leave the slide out"))


def measure_image(image: Image.Image, encoded_bytes: int) -> list[float]:
    """Returns the measures of an RGB image: mean colour, saturation, sharpness, share of tissue, size of its file.

    Colour is taken from means over 8 x 8 pixels; sharpness is the log of the mean squared second difference of green
    along every eighth row, at full resolution.

    Args:
        image: RGB pixels.
        encoded_bytes: length of the encoded file; 0 where it has no file of its own.
    """
    # three planes: NumPy reduces a last axis of three values many times slower
    red, green, blue = (np.asarray(plane, dtype=np.float32) for plane in image.reduce(min(8, *image.size)).split())
    lightest, darkest = (pick(pick(red, green), blue) for pick in (np.maximum, np.minimum))
    saturation = float(np.mean((lightest - darkest) / np.maximum(lightest, 1)))
    # the mean density of three channels is the density of their geometric mean
    density = np.log10(GLASS) - np.log10(np.maximum(red, 1) * np.maximum(green, 1) * np.maximum(blue, 1)) / 3
    rows = np.asarray(image.getchannel("G"))[::8].astype(np.int16)
    bend = (rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]).astype(np.float32)
    sharpness = float(np.log(np.mean(bend * bend) + 1e-6)) if bend.size else 0.0
    tissue = float(np.mean(density > OTSU_BOUNDS[1]))
    values = (red.mean(), green.mean(), blue.mean(), saturation, sharpness, tissue, encoded_bytes)
    return [round(float(value), 6) for value in values]


def mark_boxes(view: Image.Image, context: Field, targets: Sequence[Field]) -> Image.Image:
    """Returns a copy of a 10x view with a lettered box around each of some fields, all drawn alike.

    Args:
        view: pixels of ``context``.
        context: the 10x field.
        targets: fields that lie in it; the first is lettered A.
    """
    marked = view.copy()
    draw = ImageDraw.Draw(marked)
    boxes = [box_in(context, field) for field in targets]
    rims = [_grown(box, CLEAR_PX + LINE_PX + 1) for box in boxes]
    taken = list(rims)
    font = ImageFont.load_default(TAG_PX)
    for letter, box, rim in zip(LETTERS, boxes, rims, strict=False):
        # a dark line in a light one is visible on pale stroma and on dense nuclei
        draw.rectangle(rim, outline="white", width=LINE_PX + 2)
        draw.rectangle(_grown(box, CLEAR_PX + LINE_PX), outline="black", width=LINE_PX)
        tag = _tag_place(rim, taken, view.size)
        taken.append(tag)
        draw.rectangle(tag, fill="black", outline="white")
        centre = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(centre, letter, fill="white", font=font, anchor="mm")
    return marked


def box_in(context: Field, field: Field) -> Rectangle:
    """Returns the (left, top, right, bottom) pixels of a field in the view of the field that holds it."""
    left, top, right, bottom = map(round, _edges(context, field))
    return left, top, right, bottom


def _edges(context: Field, field: Field) -> Rectangle:
    left = (field.x - field.side / 2 - context.x + context.side / 2) / context.mpp
    top = (field.y - field.side / 2 - context.y + context.side / 2) / context.mpp
    return left, top, left + field.side / context.mpp, top + field.side / context.mpp


def _tag_place(rim: Rectangle, taken: Sequence[Rectangle], size: tuple[int, int]) -> Rectangle:
    """Returns the place of a box's letter: the first of its corners that is in the view and covers no other box."""
    left, top, right, bottom = rim
    places = [
        (x, y, x + TAG_PX, y + TAG_PX + 1) for y in (top - TAG_PX - 1, bottom) for x in (left, right - TAG_PX)
    ] + [(x, y, x + TAG_PX, y + TAG_PX + 1) for x in (left - TAG_PX, right) for y in (top, bottom - TAG_PX - 1)]
    inside = [place for place in places if min(place) >= 0 and place[2] < size[0] and place[3] < size[1]]
    free = [place for place in inside if not any(_meet(place, other) for other in taken if other != rim)]
    return (free or inside or [(left, top, left + TAG_PX, top + TAG_PX + 1)])[0]


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _grown(box: Rectangle, by: float) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by - 1, box[3] + by - 1
