"""Regions by physical scale: right place, right scale, no aliasing, no made-up pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from drawn_slides import halves, tissue_pixels, write_slide
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dataset_script.slides.thumbnail import map_slide
from scale_vqa_eval import wsi
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.tiff_tiles import TiffTiles
from scale_vqa_eval.wsi import OpenSlideSource, SlideSource, best_level, flattened, slide_mpp

MPP_X, MPP_Y, POWER = "openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power"


@pytest.mark.parametrize(
    ("properties", "given_mpp", "expected"),
    [
        ({MPP_X: "0.25", MPP_Y: "0.25", POWER: "20"}, None, 0.25),
        ({MPP_X: "0.25", MPP_Y: "0.25"}, 0.5, 0.5),  # what the user gives wins
        ({MPP_X: "1000", MPP_Y: "1000"}, 0.25, 0.25),  # over a converter's placeholder, too
        ({MPP_X: "0.250", MPP_Y: "0.252"}, None, 0.251),
        ({MPP_X: "0,2325", MPP_Y: "0,2325"}, None, 0.2325),
        ({POWER: "40"}, None, 0.25),
        ({POWER: "20"}, 0.1, 0.1),
        ({}, 0.3, 0.3),
        ({MPP_X: "0", MPP_Y: "nan"}, 0.3, 0.3),
        ({MPP_X: "0.2", MPP_Y: "0.4"}, 0.3, 0.3),
    ],
)
def test_scale_of_a_slide(properties: dict[str, str], given_mpp: float | None, expected: float) -> None:
    assert slide_mpp(properties, Path("a.svs"), given_mpp) == pytest.approx(expected)


@pytest.mark.parametrize("properties", [{}, {MPP_X: "x"}, {MPP_X: "0.2", MPP_Y: "0.4"}, {POWER: "-1"}])
def test_no_scale_names_the_option(properties: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"a\.svs.*--mpp"):
        slide_mpp(properties, Path("a.svs"))


@pytest.mark.parametrize(
    ("properties", "given_mpp", "source"),
    [
        ({MPP_X: "1000", MPP_Y: "1000"}, None, "stated"),
        ({MPP_X: "352.8", MPP_Y: "352.8", POWER: "20"}, None, "stated"),  # 72 dpi
        ({MPP_X: "0.00025", MPP_Y: "0.00025"}, None, "stated"),
        ({POWER: "0.1"}, None, "power"),
        ({MPP_X: "0.25", MPP_Y: "0.25"}, 250.0, "--mpp"),
    ],
)
def test_a_scale_that_no_slide_has_is_refused(
    properties: dict[str, str], given_mpp: float | None, source: str
) -> None:
    with pytest.raises(InputError) as refused:
        slide_mpp(properties, Path("a.svs"), given_mpp)
    (problem,) = refused.value.problems
    assert (problem.location, problem.expected) == ("a.svs", "0.05 to 20 um/px at level 0") and source in problem.found


def test_a_scale_given_against_the_stated_one_is_noted(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", [tissue_pixels(300, 300, seed=0)], mpp=0.5)
    with OpenSlideSource(path, 0.25) as slide:
        assert slide.mpp == 0.25 and slide.notes == (
            "scale of 0.25 um/px as given with --mpp, not 0.5 um/px as stated",
        )
    for given_mpp in (None, 0.5):
        with OpenSlideSource(path, given_mpp) as slide:
            assert slide.notes == ()
    path = write_slide(tmp_path / "b.tif", [tissue_pixels(300, 300, seed=0)], mpp=1000)
    with OpenSlideSource(path, 0.25) as slide:
        assert "not 1000, 1000 um/px as stated" in slide.notes[0]


def test_colours_are_converted_from_the_icc_profile(tmp_path: Path) -> None:
    pixels = tissue_pixels(600, 600, seed=0, margin=0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = {"none": None, "srgb": srgb, "swapped": red_and_blue_swapped(srgb)}
    views = {}
    for name, profile in profiles.items():
        path = write_slide(tmp_path / f"{name}.tif", [pixels], icc=profile)
        with OpenSlideSource(path) as slide:
            views[name] = np.asarray(slide.read_region(150, 150, 0.5, 128), dtype=int)
            assert slide.notes == (("colours converted from the slide's ICC profile to sRGB",) * (name == "swapped"))
    assert (views["none"] == views["srgb"]).all()
    assert np.abs(views["swapped"] - views["none"][..., ::-1]).max() <= 4


def red_and_blue_swapped(profile: bytes) -> bytes:
    """Returns an sRGB profile whose red and blue primaries are exchanged, under another name."""
    content = bytearray(
        profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB b", b"test b")
    )
    tags = {bytes(content[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(content[128:132]), 12)}
    red, blue = (slice(tags[name] + 4, tags[name] + 12) for name in (b"rXYZ", b"bXYZ"))
    content[red], content[blue] = content[blue], content[red]
    return bytes(content)


@given(st.lists(st.floats(1, 300), min_size=1, max_size=8).map(sorted), st.floats(0.3, 400))
def test_best_level_is_the_coarsest_fine_enough(downsamples: list[float], wanted: float) -> None:
    level = best_level([1.0, *downsamples], wanted)
    chosen = [1.0, *downsamples][level]
    assert level == 0 or chosen <= wanted * 1.01
    assert not any(chosen < other <= wanted for other in downsamples)


def test_a_view_is_read_from_its_best_level(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    levels = [np.full((1024 >> n, 1024 >> n, 3), colour, np.uint8) for n, colour in enumerate(colours)]
    with OpenSlideSource(write_slide(tmp_path / "a.tif", levels)) as source:
        seen = [source.read_region(256, 256, mpp, 64).getpixel((32, 32)) for mpp in (0.5, 0.9, 1.0, 1.9, 2.0, 5.0)]
    assert seen == [colours[0], colours[0], colours[1], colours[1], colours[2], colours[2]]


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("mpp", [0.7, 2.5, 5.0])
def test_a_region_is_the_area_mean_of_level_0(tmp_path: Path, levels: int, mpp: float) -> None:
    pixels = tissue_pixels(2000, 1600, seed=1, margin=0)
    slide = write_slide(tmp_path / "a.tif", halves(pixels, levels))
    size = 100
    left, top = 213.0, 157.0
    with OpenSlideSource(slide) as source:
        region = source.read_region(left + size * mpp / 2, top + size * mpp / 2, mpp, size)
    box = (left * 2, top * 2, (left + size * mpp) * 2, (top + size * mpp) * 2)
    expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX, box=box)
    difference = np.abs(np.asarray(region, np.float32) - np.asarray(expected, np.float32))
    assert region.mode == "RGB" and region.size == (size, size)
    assert difference.mean() < 2.5
    assert np.abs(np.asarray(region, np.float32).mean(axis=(0, 1)) - pixels_mean(pixels, box)).max() < 0.7


def pixels_mean(pixels: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    left, top, right, bottom = (round(edge) for edge in box)
    return pixels[top:bottom, left:right].mean(axis=(0, 1))


@pytest.mark.parametrize("period", [2, 3, 4])
def test_detail_too_fine_for_a_view_does_not_alias(tmp_path: Path, period: int) -> None:
    stripes = np.where(np.arange(1600) % period < period / 2, 255, 0).astype(np.uint8)
    pixels = np.repeat(np.tile(stripes, (1600, 1))[..., None], 3, axis=2)
    with OpenSlideSource(write_slide(tmp_path / "a.tif", [pixels])) as source:
        region = np.asarray(source.read_region(400.3, 400.7, 2.5, 256), np.float32)
    assert region.std() < 3  # the stripes themselves have a deviation of about 127


def test_a_mark_is_found_where_geometry_puts_it(tmp_path: Path) -> None:
    pixels = np.full((2000, 2000, 3), 240, np.uint8)
    pixels[995:1005, 1195:1205] = 0  # centred at 600, 500 um
    with OpenSlideSource(write_slide(tmp_path / "a.tif", halves(pixels, 3))) as source:
        for mpp, centre in ((0.5, (610.3, 507.1)), (1.25, (580.2, 490.9)), (2.5, (555.5, 540.4))):
            dark = 255 - np.asarray(source.read_region(*centre, mpp, 128).convert("L"), np.float64)
            dark -= np.median(dark)
            y, x = (np.arange(128) + 0.5 for _ in range(2))
            found = (dark.sum(axis=0) @ x / dark.sum(), dark.sum(axis=1) @ y / dark.sum())
            expected = ((600 - centre[0]) / mpp + 64, (500 - centre[1]) / mpp + 64)
            assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("kernel", [Image.Resampling.LANCZOS, Image.Resampling.BICUBIC], ids=["lanczos", "bicubic"])
def test_resampling_gives_the_pixels_of_pillow_within_rounding(kernel: Image.Resampling) -> None:
    image = Image.fromarray(tissue_pixels(611, 587, seed=4))
    side = 400 if kernel == Image.Resampling.LANCZOS else 620
    for box in ((0.0, 0.0, 611.0, 587.0), (3.3, 2.7, 610.999, 580.1), (8.1, 0.0, 600.2, 587.0)):
        fast = np.asarray(wsi.resampled(image, (side, side), box, kernel), np.int16)
        difference = np.abs(fast - np.asarray(image.resize((side, side), kernel, box=box), np.int16))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.02


def test_strips_give_what_one_read_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = write_slide(tmp_path / "a.tif", [tissue_pixels(2400, 2400, seed=2)])
    with OpenSlideSource(slide) as source:
        whole = np.asarray(source.read_region(600, 600, 10, 110)), np.asarray(source.thumbnail(150))
        monkeypatch.setattr(wsi, "BLOCK_PIXELS", 200_000)
        strips = np.asarray(source.read_region(600, 600, 10, 110)), np.asarray(source.thumbnail(150))
    for one, other in zip(whole, strips, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_region_off_the_slide_is_an_error(tmp_path: Path) -> None:
    with OpenSlideSource(write_slide(tmp_path / "a.tif", [tissue_pixels(800, 600, seed=3)])) as source:
        assert isinstance(source, SlideSource)
        assert source.read_region(200, 150, 2.5, 120).size == (120, 120)  # as high as the slide
        for centre in ((149.0, 150), (200, 151), (200, -1), (251.0, 150)):
            with pytest.raises(InputError, match=r"a\.tif.*nothing is padded"):
                source.read_region(*centre, 2.5, 120)
        with pytest.raises(InputError, match=r"level 0 at 0\.287 um/px or finer"):
            source.read_region(200, 150, 0.25, 120)


def test_what_was_not_scanned_takes_the_background_colour() -> None:
    pixels = Image.new("RGBA", (4, 1), (10, 20, 30, 255))
    pixels.putpixel((1, 0), (0, 0, 0, 0))
    pixels.putpixel((2, 0), (100, 100, 100, 128))
    flat = flattened(pixels, "#F0E0D0")
    assert [flat.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (240, 224, 208)]
    assert flat.getpixel((2, 0)) == pytest.approx((170, 162, 154), abs=1)


@pytest.mark.parametrize("compression", [None, "jpeg"], ids=["plain", "jpeg"])
def test_missing_tiles_are_background_without_tissue(tmp_path: Path, compression: str | None) -> None:
    """As sparse TIFFs store them: no bytes for a tile, here at all levels for the top left quarter of the slide."""
    levels = halves(tissue_pixels(2048, 2048, seed=6, margin=0), 3)
    slide = write_slide(tmp_path / "sparse.tif", levels, compression=compression)
    content = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as file:
        for page in file.pages:
            across = page.imagewidth // 256
            for tag in ("TileOffsets", "TileByteCounts"):
                entry = page.tags[tag]
                width = {3: 2, 4: 4, 16: 8}[entry.dtype]
                for tile in range(across * across):
                    if tile % across < across / 2 and tile // across < across / 2:
                        start = entry.valueoffset + width * tile
                        content[start : start + width] = bytes(width)
    slide.write_bytes(content)
    with OpenSlideSource(slide) as source:
        for mpp in (0.5, 1.0, 2.0):
            assert source.read_region(200, 200, mpp, int(200 / mpp)).getextrema() == ((255, 255),) * 3
            assert source.read_region(700, 700, mpp, int(200 / mpp)).getextrema() != ((255, 255),) * 3
        tissue = map_slide(source).tissue
    assert not tissue[:120, :120].any() and tissue[136:, 136:].mean() > 0.9


def test_a_damaged_slide_raises_with_slide_level_and_box(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "torn.tif", halves(tissue_pixels(1600, 1600, seed=4), 2))
    slide.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    with pytest.raises(InputError, match=r"torn\.tif(, level \d, box \(.*\) um|.*OpenSlide opens)"):
        OpenSlideSource(slide).read_region(600, 600, 0.5, 256)


def test_a_damaged_tile_raises_with_slide_level_and_box(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "torn.tif", [tissue_pixels(1024, 1024, seed=5)], compression="zlib")
    with tifffile.TiffFile(slide) as file:
        start, length = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    content = bytearray(slide.read_bytes())
    content[start : start + length] = bytes(length)
    slide.write_bytes(content)
    with OpenSlideSource(slide) as source:
        for _ in range(2):  # after a failed read OpenSlide answers nothing but the error
            with pytest.raises(InputError, match=r"torn\.tif, level 0, box \(.*\) um"):
                source.read_region(192, 192, 0.5, 100)


JPEG = {"compression": "jpeg", "compressionargs": {"level": 85}}
LAYOUTS = {
    "ycbcr": JPEG | {"photometric": "ycbcr", "subsampling": (2, 2)},
    "rgb": JPEG,
    "wide tiles": JPEG | {"tile": (128, 512)},
    "deflate": {"compression": "zlib"},
}


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_give_the_pixels_of_openslide(tmp_path: Path, layout: str, levels: int) -> None:
    pixels = halves(tissue_pixels(1504, 1132, seed=6, margin=20), levels)
    path = write_slide(tmp_path / "a.tif", pixels, **LAYOUTS[layout])
    with OpenSlideSource(path) as fast, only_openslide(path) as reference:
        for x, y, mpp, size in (
            (375, 282.5, 0.5, 512),
            (100, 90, 0.55, 300),
            (300, 281, 1.2, 200),
            (350.3, 300.7, 2.5, 200),
            (400, 282, 8, 70),
        ):
            one, other = (np.asarray(source.read_region(x, y, mpp, size), int) for source in (fast, reference))
            assert np.abs(one - other).max() <= 1
        assert np.abs(np.asarray(fast.thumbnail(80), int) - np.asarray(reference.thumbnail(80), int)).max() <= 1
        assert fast._agreed == ({} if layout == "deflate" else dict.fromkeys(fast._agreed, True))
        assert layout == "deflate" or len(fast._agreed) == levels


def test_levels_that_are_no_whole_multiples_agree(tmp_path: Path) -> None:
    pixels = tissue_pixels(1501, 1131, seed=7, margin=0)
    levels = [pixels, np.asarray(Image.fromarray(pixels).resize((375, 282), Image.Resampling.BOX))]
    path = write_slide(tmp_path / "a.tif", levels, **LAYOUTS["ycbcr"])
    with OpenSlideSource(path) as fast, only_openslide(path) as reference:
        one, other = (np.asarray(source.read_region(375, 280, 2.5, 200), int) for source in (fast, reference))
        assert fast._agreed == {1: True}
    assert np.abs(one - other).mean() < 1  # OpenSlide interpolates


def only_openslide(path: Path) -> OpenSlideSource:
    source = OpenSlideSource(path)
    assert source._tiles is not None
    source._tiles.close()
    source._tiles = None
    return source


def test_tiles_that_disagree_with_openslide_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tif", [tissue_pixels(1024, 1024, seed=8)], **LAYOUTS["ycbcr"])
    decoded = TiffTiles._decoded
    monkeypatch.setattr(TiffTiles, "_decoded", lambda self, page, index: decoded(self, page, index)[..., ::-1])
    with OpenSlideSource(path) as fast, only_openslide(path) as reference:
        one, other = (np.asarray(source.read_region(250, 250, 0.5, 300)) for source in (fast, reference))
        assert fast._agreed == {0: False}
    np.testing.assert_array_equal(one, other)


def test_a_tile_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "torn.tif", [tissue_pixels(1024, 1024, seed=9)], **LAYOUTS["ycbcr"])
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]
    content = bytearray(path.read_bytes())
    content[start + length // 2 : start + length] = bytes(length - length // 2)
    path.write_bytes(content)
    with OpenSlideSource(path) as source:
        source.read_region(64, 64, 0.5, 100)
        with pytest.raises(InputError, match=r"torn\.tif, level 0, box \(.*\) um"):
            source.read_region(320, 192, 0.5, 100)


def test_a_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = TiffTiles._decoded
    monkeypatch.setattr(
        TiffTiles, "_decoded", lambda self, page, index: decoded.append(index) or real(self, page, index)
    )
    path = write_slide(tmp_path / "a.tif", [tissue_pixels(1024, 1024, seed=10)], **LAYOUTS["ycbcr"])
    with OpenSlideSource(path) as source:
        for mpp in (0.5, 0.6, 0.9):
            source.read_region(256, 256, mpp, 128)
        assert len(decoded) == len(set(decoded)) == 4
        source._tiles._cache_bytes = 1  # type: ignore[union-attr]
        source.read_region(256, 256, 0.5, 512)
        assert len(source._tiles._cache) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("first", [True, False], ids=["overview first", "overview last"])
def test_an_overview_among_the_levels_is_refused(tmp_path: Path, first: bool) -> None:
    """OpenSlide takes every tiled image of a plain TIFF for a level, and the first one's scale for the slide's."""
    pixels = tissue_pixels(600, 520, seed=11)
    levels, overview = halves(pixels, 2), np.full((100, 220, 3), 230, np.uint8)
    path = write_slide(tmp_path / "a.tif", [overview, *levels] if first else [*levels, overview])
    with pytest.raises(InputError, match=r"a\.tif: expected levels of one shape.*600 x 520.*220 x 100"):
        OpenSlideSource(path)
    rounded = [pixels, pixels[:260, :301], pixels[:64, :76], pixels[:2, :2]]
    with OpenSlideSource(write_slide(tmp_path / "b.tif", rounded)) as slide:
        assert slide.size == (600, 520)


OME = '<OME><Image><Pixels SizeC="3" PhysicalSizeX="{0}" PhysicalSizeXUnit="{1}" PhysicalSizeY="{0}" {2}'


@pytest.mark.parametrize(
    ("size", "unit", "expected"), [("0.5", "\u00b5m", 0.5), ("250", "nm", 0.25), ("1", "pixel", None)]
)
def test_the_scale_of_an_ome_tiff(size: str, unit: str, expected: float | None) -> None:
    properties = {"tiff.ImageDescription": OME.format(size, unit, f'PhysicalSizeYUnit="{unit}"/>')}
    if expected is None:
        with pytest.raises(InputError, match="--mpp"):
            slide_mpp(properties, Path("a.ome.tif"))
    else:
        assert slide_mpp(properties, Path("a.ome.tif")) == pytest.approx(expected)


def test_an_ome_tiff_of_separate_channels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    channels = np.moveaxis(tissue_pixels(512, 300, seed=1), -1, 0)
    scale = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, channels, tile=(256, 256), photometric="minisblack", metadata=scale)
    with pytest.raises(InputError, match="3 channels"):
        OpenSlideSource(path)
    tifffile.imwrite(
        path, np.moveaxis(channels, 0, -1), tile=(256, 256), photometric="rgb", metadata=scale | {"axes": "YXS"}
    )
    with OpenSlideSource(path) as slide:
        assert slide.mpp == 0.5


def test_the_planes_of_an_ome_tiff_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    planes = np.stack([tissue_pixels(512, 300, seed=seed) for seed in (1, 2)])
    scale = {"axes": "ZYXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, planes, tile=(256, 256), photometric="rgb", metadata=scale)
    with OpenSlideSource(path) as slide:
        assert slide.notes == ("the first of 2 focus planes or time points is used",)


def test_what_openslide_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.tif").write_text("no slide")
    with pytest.raises(InputError, match=r"note\.tif.*OpenSlide"):
        OpenSlideSource(tmp_path / "note.tif")
    assert openslide.OpenSlide.detect_format(str(tmp_path / "note.tif")) is None
