"""Reads square fields of a whole-slide image at a physical scale.

``SlideSource`` is the protocol that the package uses; ``OpenSlideSource`` implements it for slide files, and synthetic
slides implement it as well.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from PIL import Image, ImageChops, ImageCms, ImageStat

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.tiff_tiles import CACHE_BYTES, PLAIN_GRIDS, TiffTiles

simd: Any = importlib.import_module("cykooz_resizer") if importlib.util.find_spec("cykooz_resizer") else None

MIN_MPP: Final = 0.05
MAX_MPP: Final = 20.0
"""Plausible range of um per pixel at level 0; other values are placeholders of converters, or mistakes."""
UM_AT_1X: Final = 10.0
"""By convention an objective of power P scans at 10/P um per pixel: 40x at 0.25, 20x at 0.5."""
UM_IN: Final = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
"""Units of OME's physical sizes in um; um is OME's default."""
_OME_SIZE: Final = r'<(?:\w+:)?Pixels\b[^>]*\bSize{}="(\d+)"'
ANISOTROPY_LIMIT: Final = 1.01
"""Maximum ratio of the scales in x and y; their mean is used, with an error of at most half a per cent."""
MAGNIFY_LIMIT: Final = 1.15
"""Maximum enlargement of level 0 for a view ("20x" scans have 0.46 to 0.55 um/px); a coarser slide is refused."""
BLOCK_PIXELS: Final = 16_000_000
"""Maximum number of pixels of a level in a single read; a larger box is read in strips, so that memory is bounded."""
LEVEL_SHAPE: Final = 0.05
"""Maximum difference of the shape of a level from level 0, in addition to rounding; scanners pad levels."""
LEVEL_SLACK: Final = 1.01
"""A level may be this much coarser than the view: 0.504 um/px is used for a view at 0.5 um/px."""

UNKNOWN_FORMAT: Final = "no format that it knows"
PYRAMID_HINT: Final = (
    'convert it: pip install pyvips-binary pyvips, then python -c "import pyvips; '
    "pyvips.Image.new_from_file('IN.tif').tiffsave('OUT.tif', tile=True, pyramid=True, compression='jpeg', Q=90, "
    'bigtiff=True)"'
)
DECODE_HINT: Final = (
    "convert it: python -c \"import tifffile; tifffile.imwrite('OUT.tif', tifffile.imread('IN.tif', key=0), "
    "tile=(256, 256), photometric='rgb', compression='jpeg', bigtiff=True)\", and give the scale with --mpp"
)
NOT_BY_LIBVIPS: Final = frozenset({33003, 33004, 33005, 34712, 50002, 52546})
"""TIFF compressions (JPEG 2000, JPEG XL) that the wheels of libvips turn into black pixels without an error."""
MIN_CONTRAST: Final = 4.0
"""Standard deviation that a tile must have for a comparison of two readers, which always agree on empty glass."""


@runtime_checkable
class SlideSource(Protocol):
    """A whole slide from which fields can be read.

    Attributes:
        name: slide name as in the rows (the file's stem).
        mpp: um per pixel of level 0.
        size: (width, height) of level 0 in pixels; the slide's extent in um is ``size * mpp``.
    """

    @property
    def name(self) -> str: ...

    @property
    def mpp(self) -> float: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def read_region(self, center_x_um: float, center_y_um: float, mpp: float, size_px: int) -> Image.Image:
        """Returns the square field around a point as an RGB image of ``size_px`` x ``size_px``.

        Args:
            center_x_um: centre in um from the left edge of level 0.
            center_y_um: centre in um from the top edge of level 0.
            mpp: um per pixel of the result; the field's side is ``size_px * mpp`` um.
            size_px: side of the result in pixels.

        Raises:
            InputError: if the field is not completely on the slide, or cannot be read; nothing is padded.
        """
        ...

    def thumbnail(self, max_px: int) -> Image.Image:
        """Returns the slide as an RGB image whose longer side is at most ``max_px``; it is never enlarged."""
        ...


@dataclass(frozen=True)
class Box:
    """A rectangle on the slide in um from the top left corner of level 0."""

    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"box ({self.left:.1f}, {self.top:.1f}) to ({self.right:.1f}, {self.bottom:.1f}) um"


class OpenSlideSource:
    """A slide file of any format that OpenSlide opens; use it as a context manager or call ``close``.

    Open it in the process that reads it.

    Args:
        path: the slide file.
        mpp: um per pixel of level 0, overriding what the file states; see ``slide_mpp``.
        cache_bytes: size of the tile caches of OpenSlide and of ``TiffTiles`` (each), or None for their defaults.

    Raises:
        InputError: if OpenSlide cannot open the file, or its scale is unknown.
    """

    def __init__(self, path: str | Path, mpp: float | None = None, cache_bytes: int | None = None) -> None:
        import openslide

        self.path = Path(path)
        self.name = self.path.stem
        try:
            self._slide: Any = openslide.OpenSlide(str(self.path))
        except (openslide.OpenSlideError, OSError) as error:
            raise InputError(not_opened(self.path, preview(str(error), 160))) from error
        try:
            _check_channels(self._slide.properties.get("tiff.ImageDescription", ""), self.path)
            _check_levels(self._slide.level_dimensions, self.path)
            self.mpp = slide_mpp(self._slide.properties, self.path, mpp)
        except InputError:
            self._slide.close()
            raise
        self.size: tuple[int, int] = self._slide.dimensions
        # kept: after a failed read OpenSlide answers nothing but the error
        self._downsamples: tuple[float, ...] = self._slide.level_downsamples
        self._level_sizes: tuple[tuple[int, int], ...] = self._slide.level_dimensions
        self._to_srgb = _srgb_transform(self._slide.color_profile)
        self._background = "#" + self._slide.properties.get("openslide.background-color", "FFFFFF")
        if cache_bytes is not None:
            self._slide.set_cache(openslide.OpenSlideCache(cache_bytes))
        self._tiles = self._open_tiles(CACHE_BYTES if cache_bytes is None else cache_bytes)
        self._agreed: dict[int, bool] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on a scale, colours or planes that differ from what the file states."""
        notes: tuple[str, ...] = ()
        properties = {**self._slide.properties}
        try:
            stated = slide_mpp(properties, self.path)
        except InputError:
            text = ", ".join(properties[key] for key in ("openslide.mpp-x", "openslide.mpp-y") if key in properties)
            notes = (f"scale of {self.mpp:g} um/px as given with --mpp, not {text} um/px as stated",) if text else ()
        else:
            if abs(stated / self.mpp - 1) > ANISOTROPY_LIMIT - 1:
                notes = (f"scale of {self.mpp:g} um/px as given with --mpp, not {stated:g} um/px as stated",)
        if self._to_srgb is not None:
            notes += ("colours converted from the slide's ICC profile to sRGB",)
        sizes = (re.search(_OME_SIZE.format(axis), properties.get("tiff.ImageDescription", "")) for axis in "ZT")
        if (planes := math.prod(int(size[1]) for size in sizes if size)) > 1:
            notes += (f"the first of {planes} focus planes or time points is used",)
        return notes

    def __enter__(self) -> OpenSlideSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._slide.close()
        if self._tiles is not None:
            self._tiles.close()

    def read_region(self, center_x_um: float, center_y_um: float, mpp: float, size_px: int) -> Image.Image:
        """See ``SlideSource.read_region``."""
        if self.mpp > mpp * MAGNIFY_LIMIT:
            expected = f"level 0 at {mpp * MAGNIFY_LIMIT:.3g} um/px or finer for a view at {mpp:g} um/px"
            hint = "scan at a higher power, or leave the slide out"
            raise InputError(Problem(str(self.path), expected, f"{self.mpp:.4g} um/px", hint))
        half = size_px * mpp / 2
        box = Box(center_x_um - half, center_y_um - half, center_x_um + half, center_y_um + half)
        return self._read(box, (size_px, size_px))

    def thumbnail(self, max_px: int) -> Image.Image:
        """See ``SlideSource.thumbnail``."""
        width, height = self.size
        scale = min(1.0, max_px / max(width, height))
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        return self._read(Box(0.0, 0.0, width * self.mpp, height * self.mpp), shape, in_parts=True)

    def _read(self, box: Box, shape: tuple[int, int], in_parts: bool = False) -> Image.Image:
        """Reads a box and resamples it to ``shape`` (width, height) pixels.

        Parts give the pixels of the whole, because Pillow resamples them: the rounding of ``resampled`` may depend on
        the other rows of a box.
        """
        self._check_inside(box)
        wanted = (box.right - box.left) / self.mpp / shape[0]
        level = best_level(self._downsamples, wanted)
        down = self._downsamples[level]
        rows = max(1, int(BLOCK_PIXELS / shape[0] / (wanted / down) ** 2))
        if shape[1] > rows:
            whole, row = Image.new("RGB", shape), (box.bottom - box.top) / shape[1]
            for start in range(0, shape[1], rows):
                end = min(start + rows, shape[1])
                strip = Box(box.left, box.top + start * row, box.right, box.top + end * row)
                whole.paste(self._read(strip, (shape[0], end - start), in_parts=True), (0, start))
            return whole
        limit_x, limit_y = self._level_sizes[level]
        scale = 1 / (self.mpp * down)
        left, top = max(0.0, box.left * scale), max(0.0, box.top * scale)
        right, bottom = min(float(limit_x), box.right * scale), min(float(limit_y), box.bottom * scale)
        # Lanczos needs three target pixels beyond the box
        margin = math.ceil(3 * max(1.0, wanted / down)) + 1
        reduce = 1
        while wanted / down / reduce >= 6:
            reduce *= 2
        x, y = (max(0, math.floor(edge) - margin) // reduce * reduce for edge in (left, top))
        end_x = min(limit_x, -(-(math.ceil(right) + margin) // reduce) * reduce)
        end_y = min(limit_y, -(-(math.ceil(bottom) + margin) // reduce) * reduce)
        size = (end_x - x, end_y - y)
        raw, shift_x, shift_y = self._read_tiles(level, (x, y), size, reduce, box), float(x), float(y)
        if raw is None:
            # OpenSlide takes the corner in integer level-0 pixels; the crop box corrects the rounding
            corner = (round(x * down), round(y * down))
            shift_x, shift_y = corner[0] / down, corner[1] / down
            raw = self._read_level(corner, level, size, box)
            raw = raw.reduce(reduce) if reduce > 1 else raw
        crop = (
            _within((left - shift_x) / reduce, raw.width),
            _within((top - shift_y) / reduce, raw.height),
            _within((right - shift_x) / reduce, raw.width),
            _within((bottom - shift_y) / reduce, raw.height),
        )
        # enlarging cannot alias, so a kernel with four taps is enough
        kernel = Image.Resampling.LANCZOS if wanted > down else Image.Resampling.BICUBIC
        plain = in_parts or reduce > 1
        image = raw.resize(shape, kernel, box=crop) if plain else resampled(raw, shape, crop, kernel)
        return image if self._to_srgb is None else ImageCms.applyTransform(image, self._to_srgb) or image

    def _open_tiles(self, cache_bytes: int) -> TiffTiles | None:
        if self._slide.properties.get("openslide.vendor") not in PLAIN_GRIDS:
            return None
        try:
            return TiffTiles(self.path, self._level_sizes, cache_bytes)
        except Exception:  # OpenSlide can read the file, so it is used for all levels
            return None

    def _read_tiles(
        self, level: int, corner: tuple[int, int], size: tuple[int, int], reduce: int, box: Box
    ) -> Image.Image | None:
        """Returns pixels of one level from its tiles, or None if OpenSlide has to read them.

        The middle tile of the first box that has any contrast is compared with OpenSlide's pixels.
        """
        if self._tiles is None or not self._agreed.get(level, True):
            return None
        middle = self._tiles.tile_box(level, corner[0] + size[0] // 2, corner[1] + size[1] // 2)
        if middle is not None and level not in self._agreed:
            tile = self._tiles.read(level, middle[:2], middle[2:], 1)
            if tile is None:
                return None
            down = self._downsamples[level]
            expected = self._read_level((round(middle[0] * down), round(middle[1] * down)), level, middle[2:], box)
            # means over 4 x 4 pixels, because OpenSlide interpolates if downsamples are not integers
            difference = ImageChops.difference(tile.reduce(4), expected.reduce(4))
            agrees = max(ImageStat.Stat(difference).mean) <= 1
            if not agrees or max(ImageStat.Stat(tile).stddev) > MIN_CONTRAST:
                self._agreed[level] = agrees
            if not agrees:
                return None
        return self._tiles.read(level, corner, size, reduce)

    def _read_level(self, corner: tuple[int, int], level: int, size: tuple[int, int], box: Box) -> Image.Image:
        import openslide

        try:
            pixels = self._slide.read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            location = f"{self.path}, level {level}, {box}"
            hint = "the file is damaged or of a kind that OpenSlide does not read: get it again, or leave it out"
            raise InputError(Problem(location, "pixels", preview(str(error), 160), hint)) from error
        return flattened(pixels, self._background)

    def _check_inside(self, box: Box) -> None:
        width, height = self.size[0] * self.mpp, self.size[1] * self.mpp
        slack = self.mpp / 2
        if min(box.left, box.top) < -slack or box.right > width + slack or box.bottom > height + slack:
            expected = f"a field on the slide ({width:.0f} x {height:.0f} um)"
            hint = "move the field or make it smaller; nothing is padded"
            raise InputError(Problem(str(self.path), expected, str(box), hint))


def not_opened(path: Path, found: str = UNKNOWN_FORMAT) -> Problem:
    """Returns why OpenSlide does not open a file, and how to convert it if that is known.

    Args:
        path: the file.
        found: OpenSlide's message, if it knows the format.
    """
    import tifffile

    tifffile.logger().disabled = True  # what it would warn of is in the error
    hint, expected = "get it again, or leave it out", "a slide that OpenSlide opens"
    try:
        size = path.stat().st_size
        with path.open("rb") as start:
            is_tiff = start.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError:
        return Problem(str(path), expected, found, hint)
    if not is_tiff:
        return Problem(str(path), expected, found if size else "an empty file", hint)
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages.first
            ends = [max(map(sum, zip(one.dataoffsets, one.databytecounts, strict=True))) for one in file.pages]
            if max(ends) > size:
                found = "a TIFF that ends early"
            else:
                found = found if page.is_tiled else f"a TIFF in strips ({page.compression.name}), not in tiles"
                hint = DECODE_HINT if page.compression in NOT_BY_LIBVIPS else PYRAMID_HINT
    except Exception:
        found = "a damaged TIFF, or one that ends early"
    return Problem(str(path), expected, found, hint)


def best_level(downsamples: Sequence[float], wanted: float) -> int:
    """Returns the index of the largest downsample that does not exceed ``wanted`` (with ``LEVEL_SLACK``), else 0.

    >>> best_level((1.0, 4.0, 16.0), 5.0), best_level((1.0, 4.0, 16.0), 0.99), best_level((1.0, 4.0), 3.99)
    (1, 0, 1)
    """
    fine = [index for index, downsample in enumerate(downsamples) if downsample <= wanted * LEVEL_SLACK]
    return max(fine, key=lambda index: downsamples[index], default=0)


def _srgb_transform(profile: Any) -> Any:
    """Returns the transform from a slide's ICC profile to sRGB, or None if there is no profile or it is sRGB."""
    if profile is None or "sRGB" in (ImageCms.getProfileDescription(profile) or ""):
        return None
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(profile, srgb, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)


def flattened(pixels: Image.Image, background: str) -> Image.Image:
    """Returns an image as RGB, transparent (unscanned) parts over a background colour (``#RRGGBB``)."""
    if pixels.mode != "RGBA" or pixels.getchannel(3).getextrema() == (255, 255):
        return pixels.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, background), pixels).convert("RGB")


def resampled(
    image: Image.Image,
    shape: tuple[int, int],
    box: tuple[float, float, float, float],
    kernel: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Returns a box of an RGB image at another size: Pillow's ``resize`` in about half of its time.

    ``cykooz_resizer`` has Pillow's kernels with SIMD instructions. 99% of the values are equal; the others differ by
    1, rarely by 2. Pillow is used if it is not installed: it has no wheels for Linux on ARM.

    Args:
        image: RGB pixels.
        shape: (width, height) of the result in pixels.
        box: (left, top, right, bottom) in pixels of ``image``, with fractions.
        kernel: Lanczos or bicubic.
    """
    if simd is None:
        return image.resize(shape, kernel, box=box)
    lanczos = kernel == Image.Resampling.LANCZOS
    method = simd.ResizeAlg.convolution(simd.FilterType.lanczos3 if lanczos else simd.FilterType.catmull_rom)
    left, top, right, bottom = box
    # in Pillow's order: values are rounded after each direction
    across = (shape[0], image.height), (left, 0.0, _span(left, right), float(image.height))
    down = shape, (0.0, top, float(shape[0]), _span(top, bottom))
    for size, crop in (across, down):
        target = Image.new("RGB", size)
        options = simd.ResizeOptions(resize_alg=method, crop_box=simd.CropBox(*crop))
        simd.Resizer().resize_pil(image, target, options)
        image = target
    return image


def _span(start: float, end: float) -> float:
    """Returns ``end - start``, less one bit where the sum would otherwise exceed ``end``."""
    span = end - start
    return span if start + span <= end else math.nextafter(span, 0.0)


def _within(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))


def slide_mpp(properties: Mapping[str, str], path: Path, given: float | None = None) -> float:
    """Returns um per pixel of level 0: as given, else as stated in the file, else from the objective power.

    Args:
        properties: OpenSlide's properties of the slide.
        path: the slide, for messages.
        given: the scale given by the user, which overrides the stated one (it may be a placeholder), or None.

    Raises:
        InputError: if the scale is unknown or implausible, or pixels are not square.
    """
    if given is not None:
        return _plausible(given, path, "--mpp")
    ome = ome_mpp(properties.get("tiff.ImageDescription", ""))
    stated_x, stated_y = (_positive(properties.get(f"openslide.mpp-{axis}")) or ome.get(axis) for axis in "xy")
    if stated_x and stated_y:
        for stated in (stated_x, stated_y):
            _plausible(stated, path, "the stated scale")
        if max(stated_x, stated_y) <= min(stated_x, stated_y) * ANISOTROPY_LIMIT:
            return (stated_x + stated_y) / 2
        found = f"{stated_x:g} across and {stated_y:g} down"
        raise InputError(Problem(str(path), "square pixels", f"{found} um/px", "resample the slide, or give --mpp"))
    if stated_x or stated_y:
        return _plausible(stated_x or stated_y or math.nan, path, "the stated scale")
    power = _positive(properties.get("openslide.objective-power"))
    if power:
        return _plausible(UM_AT_1X / power, path, "the objective's power")
    scales = {key: properties[key] for key in sorted(properties) if key.startswith(("openslide.mpp", "openslide.obj"))}
    expected = "a scale: openslide.mpp-x and -y, or openslide.objective-power"
    raise InputError(Problem(str(path), expected, preview(scales or "neither"), "give it with --mpp UM_PER_PIXEL"))


def _check_channels(description: str, path: Path) -> None:
    """Raises InputError for an OME-TIFF with separate channels, of which OpenSlide would read only the first."""
    channels = re.search(_OME_SIZE.format("C"), description)
    if channels and int(channels[1]) > 1 and re.search(r'<(?:\w+:)?Channel\b[^>]*SamplesPerPixel="1"', description):
        hint = "export it as RGB, or leave it out"
        raise InputError(Problem(str(path), "RGB pixels", f"{channels[1]} channels in separate images", hint))


def _check_levels(sizes: Sequence[tuple[int, int]], path: Path) -> None:
    """Raises InputError where a level has another shape: an overview or a label that a converter put beside them."""
    for width, height in sizes:
        across, down = sizes[0][0] / width, sizes[0][1] / height
        if abs(across - down) > max(across, down) * (LEVEL_SHAPE + 2 / min(width, height)):
            expected = f"levels of one shape, that of {sizes[0][0]} x {sizes[0][1]} px"
            hint = "it may be an overview or a label, whose scale would count as the slide's: remove it from the file"
            raise InputError(Problem(str(path), expected, f"one of {width} x {height} px", hint))


def ome_mpp(description: str) -> dict[str, float]:
    """Returns um per pixel by axis (``x``, ``y``) of the first image described by an OME-TIFF's XML.

    >>> ome_mpp('<OME><Image><Pixels PhysicalSizeX="500" PhysicalSizeXUnit="nm" SizeX="9"/></Image></OME>')
    {'x': 0.5}
    """
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", description)
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0])) if pixels else {}
    found = {}
    for axis in "xy":
        size = _positive(attributes.get(f"PhysicalSize{axis.upper()}"))
        unit = UM_IN.get(attributes.get(f"PhysicalSize{axis.upper()}Unit", "um"))
        if size and unit:
            found[axis] = size * unit
    return found


def _plausible(mpp: float, path: Path, source: str) -> float:
    if MIN_MPP <= mpp <= MAX_MPP:
        return mpp
    expected = f"{MIN_MPP:g} to {MAX_MPP:g} um/px at level 0"
    found = f"{mpp:g} um/px by {source}"
    hint = "correct it" if source == "--mpp" else "it may be a converter's placeholder: give the scale with --mpp"
    raise InputError(Problem(str(path), expected, found, hint))


def _positive(text: str | None) -> float | None:
    """Returns a stated number, or None if it is absent, not a number, or not positive and finite."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
