"""``scale-vqa export fields``: nested fields of slides at exact scales, without questions.

One set of fields has one centre: the finest field, and around it the coarser ones, moved inward where the slide ends.
Beside the JPEG files are a manifest, the outlines for QuPath (GeoJSON), and coordinates in the layout of TRIDENT
(Zhang et al. 2025, arXiv:2502.06750; an HDF5 file a slide and scale with the dataset ``coords``).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from dataset_script.slides.build_cache import encode_jpeg
from dataset_script.slides.thumbnail import TissueMap, map_slide
from dataset_script.slides.workers import run_all, worker_pool
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_path, atomic_write, exclusive_output, parse_json, sha256_json, write_json
from scale_vqa_eval.wsi import MAGNIFY_LIMIT, UM_AT_1X, OpenSlideSource

MANIFEST: Final = "manifest.csv"
SETTINGS_FILE: Final = "fields.json"
_COLUMNS: Final = (
    *("file", "slide", "patient_id", "set", "mpp", "size_px", "center_x_um", "center_y_um", "side_um"),
    *("left_px", "top_px", "side_px", "slide_mpp", "tissue", "inside_of"),
)
USUAL_PX: Final = 512
MIN_RATIO: Final = 2.0
"""Without --sizes, a field that was made smaller is at least this many times as wide as the next finer one."""
_COLOURS: Final = ((228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 127, 0))
_TRIES: Final = 50
"""Random centres tried for each set of fields."""


@dataclass(frozen=True)
class FieldSettings:
    """Which fields are exported.

    Attributes:
        mpps: um per pixel of each scale, coarsest first.
        sizes: pixels along a side at each scale; empty for 512, or fewer on a slide too small for that.
        per_slide: sets of fields of a slide, at random places of tissue.
        step: um between the centres of a grid, in place of random places; or None.
        min_tissue: minimum share of tissue in the finest field.
        seed: seed of the random places.
        mpp: um per pixel of level 0, in place of what the slides state; or None.
    """

    mpps: tuple[float, ...]
    sizes: tuple[int, ...]
    per_slide: int = 40
    step: float | None = None
    min_tissue: float = 0.5
    seed: int = 42
    mpp: float | None = None


@dataclass(frozen=True)
class SquareField:
    """A square of a slide: scale, pixels, centre in um from the top left corner of level 0."""

    mpp: float
    size_px: int
    x: float
    y: float

    @property
    def side(self) -> float:
        """Side in um."""
        return self.size_px * self.mpp


def nested_fields(x: float, y: float, settings: FieldSettings, extent: tuple[float, float]) -> list[SquareField]:
    """Returns the fields of a set, finest first: each has the centre given, moved inward where the slide ends.

    >>> settings = FieldSettings((10.0, 0.5), (100, 100))
    >>> [(field.x, field.side) for field in nested_fields(30.0, 600.0, settings, (1200.0, 1200.0))]
    [(30.0, 50.0), (500.0, 1000.0)]
    """
    fields = []
    for mpp, size in sorted(zip(settings.mpps, settings.sizes, strict=True)):
        half = size * mpp / 2
        inside = [min(max(at, half), limit - half) for at, limit in zip((x, y), extent, strict=True)]
        fields.append(SquareField(mpp, size, round(inside[0], 1), round(inside[1], 1)))
    return fields


def field_sets(tissue: TissueMap, settings: FieldSettings, name: str) -> list[list[SquareField]]:
    """Returns the sets of fields of a slide whose finest field holds enough tissue and no pen.

    Random places lie at least a side of the finest field apart.
    """
    fine = min(zip(settings.mpps, settings.sizes, strict=True))
    side = fine[0] * fine[1]
    ends = [limit - side / 2 for limit in tissue.extent]
    if settings.step is not None:
        axes = [np.arange(side / 2, end + 1e-6, settings.step) for end in ends]
        x, y = (values.ravel() for values in np.meshgrid(*axes))
    else:
        rng = np.random.default_rng([settings.seed, int(sha256_json(name)[:8], 16)])
        bounds = (0.0, tissue.extent[0], 0.0, tissue.extent[1])
        x, y = tissue.tissue_points(bounds, settings.per_slide * _TRIES, rng)
        x, y = (np.clip(values, side / 2, end) for values, end in zip((x, y), ends, strict=True))
    fit = tissue.tissue_share(x, y, side) >= settings.min_tissue if x.size else np.zeros(0, bool)
    chosen = np.empty((0, 2))
    for centre in np.column_stack([x[fit], y[fit]]):
        if settings.step is None and len(chosen) == settings.per_slide:
            break
        if settings.step is not None or (np.abs(chosen - centre).max(axis=1, initial=0) >= side).all():
            chosen = np.vstack([chosen, centre])
    return [nested_fields(float(x), float(y), settings, tissue.extent) for x, y in chosen]


def export_slide(task: tuple[Path, Path, FieldSettings, str]) -> tuple[Problem, ...]:
    """Writes the fields of one slide below ``out/<slide>`` unless they are complete; returns its problems."""
    path, out, settings, patient = task
    folder = out / path.stem
    if (folder / MANIFEST).is_file():
        return ()
    try:
        with OpenSlideSource(path, settings.mpp) as source:
            tissue = map_slide(source)
            rows: list[dict[str, Any]] = []
            for number, fields in enumerate(field_sets(tissue, settings, source.name)):
                for field in fields:
                    name = f"{number:05d}_{field.mpp:g}um_x{field.x:.1f}_y{field.y:.1f}_{field.size_px}px.jpg"
                    if not (folder / name).is_file():
                        image = source.read_region(field.x, field.y, field.mpp, field.size_px)
                        atomic_write(folder / name, encode_jpeg(image), "name another --out")
                    rows.append(_row(f"{path.stem}/{name}", source, patient, number, field, tissue))
            for finer, row in itertools.pairwise(rows):
                finer["inside_of"] = row["file"] if row["set"] == finer["set"] else ""
            atomic_write(folder / "fields.geojson", _geojson(rows), "name another --out")
            for mpp in settings.mpps:
                _write_coords(out, source, settings, [row for row in rows if row["mpp"] == mpp])
            atomic_write(folder / MANIFEST, _csv(rows), "name another --out")
    except InputError as error:
        return error.problems
    return ()


def _row(
    file: str, source: OpenSlideSource, patient: str, number: int, field: SquareField, tissue: TissueMap
) -> dict[str, Any]:
    share = float(tissue.means(np.array([field.x]), np.array([field.y]), field.side)[0, 0])
    left, top = ((at - field.side / 2) / source.mpp for at in (field.x, field.y))
    values = (file, source.name, patient, number, field.mpp, field.size_px, field.x, field.y, round(field.side, 3))
    pixels = (max(0, round(left)), max(0, round(top)), round(field.side / source.mpp), source.mpp)
    return dict(zip(_COLUMNS, (*values, *pixels, round(share, 4), ""), strict=True))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _geojson(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the outlines of fields in pixels of level 0, as QuPath reads annotations."""
    scales = sorted({row["mpp"] for row in rows})
    features = []
    for row in sorted(rows, key=lambda row: (-row["mpp"], row["set"])):
        left, top, side = row["left_px"], row["top_px"], row["side_px"]
        right, bottom = left + side, top + side
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        colour = _COLOURS[scales.index(row["mpp"]) % len(_COLOURS)]
        properties = {
            "objectType": "annotation",
            "name": row["file"].rpartition("/")[2],
            "classification": {"name": f"{row['mpp']:g} um/px", "color": list(colour)},
            "measurements": {"set": row["set"], "um per pixel": row["mpp"], "tissue": row["tissue"]},
        }
        geometry = {"type": "Polygon", "coordinates": [ring]}
        key = sha256_json(row["file"])
        identity = "-".join((key[:8], key[8:12], key[12:16], key[16:20], key[20:32]))
        features.append({"type": "Feature", "id": identity, "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n"


def _write_coords(out: Path, source: OpenSlideSource, settings: FieldSettings, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the corners of the fields of one scale, in pixels of level 0, as TRIDENT's ``read_coords`` takes them."""
    import h5py

    if not rows:
        return
    mpp, size = rows[0]["mpp"], rows[0]["size_px"]
    path = out / f"{mpp:g}um_{size}px" / "patches" / f"{source.name}_patches.h5"
    attributes = {
        "patch_size": size,
        "patch_size_level0": rows[0]["side_px"],
        "level0_magnification": _power(source.mpp),
        "target_magnification": _power(mpp),
        "overlap": 0 if settings.step is None else max(0, round((rows[0]["side_um"] - settings.step) / mpp)),
        "name": source.name,
        "savetodir": str(path.parent.parent),
        "level0_width": source.size[0],
        "level0_height": source.size[1],
        "level0_mpp": source.mpp,
        "target_mpp": mpp,
    }
    with atomic_path(path, "name another --out") as partial, h5py.File(partial, "w") as file:
        corners = np.array([(row["left_px"], row["top_px"]) for row in rows], np.int64)
        dataset = file.create_dataset("coords", data=corners)
        dataset.attrs.update(attributes)


def _power(mpp: float) -> float | int:
    """Returns the power of the objective that scans at a scale, whole where it is."""
    power = UM_AT_1X / mpp
    return round(power) if math.isclose(power, round(power), rel_tol=0.15) and power >= 1 else round(power, 3)


class NumberList(click.ParamType):
    """Numbers above 0, separated by commas."""

    def __init__(self, kind: type[float] | type[int]) -> None:
        self.kind = kind
        self.name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            numbers = (0,)
        if not all(0 < number < 1e5 for number in numbers):
            self.fail(f"expected numbers above 0, separated by commas, found {value!r}", param, ctx)
        return numbers


@click.command()
@click.argument(
    "places", nargs=-1, required=True, metavar="SLIDE_OR_DIR...", type=click.Path(exists=True, path_type=Path)
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
@click.option(
    "--mpps", type=NumberList(float), default="10,2.5,0.5", show_default=True, help="Um per pixel of each scale."
)
@click.option(
    "--sizes",
    type=NumberList(int),
    default=(),
    help="Pixels per side, of all scales or of each, kept exactly.  [default: 512, fewer on a small slide]",
)
@click.option("--per-slide", type=click.IntRange(1), default=40, show_default=True, help="Sets of fields per slide.")
@click.option(
    "--step",
    type=click.FloatRange(0, min_open=True),
    help="Spacing of a grid in um.  [default: random places]",
)
@click.option("--min-tissue", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="In the finest field.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that read slides.")
@click.option(
    "--mpp", type=click.FloatRange(0, min_open=True), help="Um per pixel of level 0, if slides state it wrongly."
)
@click.option("--patients", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV slide,patient.")
def fields(
    places: Sequence[Path],
    out: Path,
    mpps: tuple[float, ...],
    sizes: tuple[int, ...],
    workers: int,
    patients: Path | None,
    **chosen: Any,
) -> None:
    """Write nested fields of slides as JPEG, with a manifest, GeoJSON for QuPath and coordinates for TRIDENT.

    Every field has exactly the requested scale and lies within the slide; nothing is padded. The same slides, options
    and seed give the same bytes. If interrupted, run it again: it resumes.
    """
    from dataset_script.slides.slide_files import find_slides, read_patients

    if len(set(mpps)) < len(mpps) or len(sizes) not in (0, 1, len(mpps)):
        raise click.BadParameter(f"expected one size, or one for each of {len(mpps)} scales", param_hint="--sizes")
    pairs = sorted(zip(mpps, sizes * len(mpps) if len(sizes) == 1 else sizes or mpps, strict=True), reverse=True)
    sides = [mpp * size for mpp, size in pairs]
    if sizes and sides != sorted(sides, reverse=True):
        shown = ", ".join(f"{size} px at {mpp:g} um/px" for mpp, size in pairs)
        raise click.BadParameter(f"a finer field must lie inside the coarser, found {shown}", param_hint="--sizes")
    settings = FieldSettings(tuple(mpp for mpp, _ in pairs), tuple(size for _, size in pairs if sizes), **chosen)
    found = find_slides(places)
    named = read_patients(found, patients)
    with exclusive_output(out):
        fitted = _check(found, out, settings)
        with worker_pool(workers) as run:
            tasks = [(slide, out, fitted[slide], named[slide.stem]) for slide in found]
            run_all(run, export_slide, tasks, "slides exported")
        rows = [row for slide in found for row in _manifest(out / slide.stem / MANIFEST)]
        atomic_write(out / MANIFEST, _csv(rows), "name another --out")
    empty = [slide.stem for slide in found if slide.stem not in {row["slide"] for row in rows}]
    for name in empty:
        click.echo(f"no field: {name} has no place with --min-tissue {settings.min_tissue:g}", err=True)
    click.echo(f"{out / MANIFEST}: {len(rows)} fields of {len(found) - len(empty)} slides")


def _manifest(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _check(slides: Sequence[Path], out: Path, settings: FieldSettings) -> dict[Path, FieldSettings]:
    """Checks every slide before any is read, and that an export begun in the folder has the same settings.

    Returns:
        the settings of each slide, with the sizes that it can hold.

    Raises:
        InputError: naming each slide that is too small or too coarse for a field.
    """
    problems: list[Problem] = []
    fitted: dict[Path, FieldSettings] = {}
    for path in slides:
        try:
            with OpenSlideSource(path, settings.mpp) as source:
                fitted[path] = _fitted(path, min(source.size) * source.mpp, source.mpp, settings)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    wanted = {
        **json.loads(json.dumps(asdict(settings))),
        "slides": {path.stem: path.stat().st_size for path in slides},
    }
    path = out / SETTINGS_FILE
    begun = parse_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else wanted
    if begun != wanted:
        found = "an export with other slides or settings"
        raise InputError(Problem(str(out), "this export, or an empty folder", found, "name another --out"))
    write_json(path, wanted, "name another --out")
    return fitted


def _fitted(path: Path, extent: float, scale: float, settings: FieldSettings) -> FieldSettings:
    """Returns the settings with the sizes that a slide can hold; what is smaller or left out is named on stderr.

    Args:
        path: the slide.
        extent: its shorter side in um.
        scale: um per pixel of its level 0.
        settings: as they were given.
    """
    if scale > (finest := settings.mpps[-1]) * MAGNIFY_LIMIT:
        expected = f"level 0 at {finest * MAGNIFY_LIMIT:.3g} um/px or finer for fields at {finest:g} um/px"
        raise InputError(Problem(str(path), expected, f"{scale:.4g} um/px", "give coarser --mpps"))
    if settings.sizes:
        largest = settings.mpps[0] * settings.sizes[0]
        if largest > extent:
            expected = f"a slide that holds a field of {largest:.0f} um ({settings.sizes[0]} px)"
            hint = "give smaller --sizes, leave --sizes out, or leave the slide out"
            raise InputError(Problem(str(path), expected, f"{extent:.0f} um", hint))
        return settings
    kept: list[tuple[float, int]] = []
    for mpp in reversed(settings.mpps):
        size = min(USUAL_PX, int(extent / mpp))
        if size < 1 or (kept and size < USUAL_PX and size * mpp < MIN_RATIO * kept[-1][0] * kept[-1][1]):
            click.echo(f"{path.name}: no field at {mpp:g} um/px, the slide is {extent:.0f} um wide", err=True)
            continue
        if size < USUAL_PX:
            click.echo(f"{path.name}: {size} px at {mpp:g} um/px, the slide is {extent:.0f} um wide", err=True)
        kept.append((mpp, size))
    kept.sort(reverse=True)
    return replace(settings, mpps=tuple(mpp for mpp, _ in kept), sizes=tuple(size for _, size in kept))
