"""``scale-vqa build zoom``: questions about where to look, with the boxes that hold their evidence.

On real slides the truth is geometry: a field is shown, and the question is at which of four places, in which of four
fields around it, or in which part of the slide it lies. On synthetic slides it is the scene: which finding a piece of
tissue shows, or which piece shows it, at one scale or at two. All questions come in exchange groups of four: one text,
the same options, each right once.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from dataset_script.phantom.geometry import Rect, seeded
from dataset_script.phantom.plan import FEATURES, Facts, PhantomPath, PhantomPlan
from dataset_script.phantom.scene import LABEL_MPP, Label
from dataset_script.phantom.slide import PhantomSlide, write_slide
from dataset_script.slides.build_cache import encode_jpeg, read_field
from dataset_script.slides.plan import FAR, NEAR, GroundingSettings, plan_slide
from dataset_script.slides.sampling import Field, FieldGroup
from dataset_script.slides.slide_files import find_slides, read_patients
from dataset_script.slides.workers import run_all, worker_pool
from dataset_script.splits import patient_splits
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_write, exclusive_output
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP, row_id
from scale_vqa_eval.wsi import OpenSlideSource

QUESTIONS_FILE: Final = "zoom.jsonl"
AREA: Final[Rect] = (3532.0, 3532.0, 7732.0, 7732.0)
"""The part of a synthetic slide that is drawn, um: a quarter of each of its four pieces, at a seventh of the cost."""
PIECES: Final = ("upper left", "upper right", "lower left", "lower right")
SYNTHETIC: Final = {
    "which-finding": "How does the {piece} piece of tissue look at 40x and at 200x?",
    "where-mid": "Which piece of tissue, alone among the four, shows {finding} vessels at 40x?",
    "where-high": "Which piece of tissue, alone among the four, shows many mitoses at 200x?",
    "where-two-scales": "Which piece of tissue shows {first} growth at 10x and nuclei of grade {second} at 200x?",
}
COARSE: Final = {
    "named-piece": "How does the {piece} piece of tissue look at 40x?",
    "lone-piece": "How does the one piece of tissue with a diffuse infiltrate look at 40x?",
}
"""Kinds of slides that are drawn to 40x only: the text, or the overview, says which piece is asked about."""
MIN_PIECE: Final = 700.0
"""Side of the square that each piece of such a slide shows beside its focus, um."""
REAL: Final = {
    "which-place": f"The second image shows a field of the slide at 200x ({MPP['high_mag']:g} um per pixel). Around "
    "which of four places does it lie? Places are in um from the left and from the top edge of the slide.",
    "join-scales": f"The second image shows a field of the slide at 200x ({MPP['high_mag']:g} um per pixel). Which of "
    "four wider fields of the slide contains it? Centres are in um from the left and from the top edge.",
    "search": f"The second image shows a field of the slide at 200x ({MPP['high_mag']:g} um per pixel). In which of "
    "four large fields of the slide does it lie? Centres are in um from the left and from the top edge.",
}
"""Kind -> question, the same for every row of the kind."""
Row = dict[str, Any]


def synthetic_plans(quartets: int, seed: int) -> list[PhantomPlan]:
    """Plans synthetic slides, four at a time; the facts of four slides make exchange groups."""
    plans = []
    for quartet in range(quartets):
        rng = random.Random(seeded(seed, "zoom", quartet))
        two = {name: rng.sample(sorted(FEATURES[name].phrases), 2) for name in ("growth", "nuclei", "stroma", "cells")}
        vessels = rng.sample(sorted(FEATURES["vessels"].phrases), 2)
        target, mitoses, alone = (rng.sample(range(GROUP_SIZE), GROUP_SIZE) for _ in range(3))
        findings = [rng.sample(range(GROUP_SIZE), GROUP_SIZE) for _ in PIECES]
        for slide in range(GROUP_SIZE):
            # of four combinations of growth and nuclei the first is the one that is asked for
            combination = rng.sample(range(1, GROUP_SIZE), GROUP_SIZE - 1)
            combination.insert(target[slide], 0)
            paths = []
            for piece in range(len(PIECES)):
                growth, nuclei = divmod(combination[piece], 2)
                stroma, cells = divmod(findings[piece][slide], 2)
                facts = Facts(
                    growth=two["growth"][growth],
                    nuclei=two["nuclei"][nuclei],
                    stroma=two["stroma"][stroma],
                    cells=two["cells"][cells],
                    vessels=vessels[piece != alone[slide]],
                    mitoses="many" if piece == mitoses[slide] else "zero",
                    focus=rng.choice(sorted(FEATURES["focus"].phrases)),
                    infiltrate="diffuse",
                    site="avoiding",
                    depth="centre",
                )
                paths.append(PhantomPath(f"piece-{piece + 1}", facts, (), True))
            name = f"synthetic-{seed}-{GROUP_SIZE * quartet + slide + 1:04d}"
            plans.append(
                PhantomPlan(name, seeded(seed, "zoom slide", quartet, slide), f"q{quartet:04d}", tuple(paths))
            )
    return plans


def coarse_plans(quartets: int, seed: int) -> list[PhantomPlan]:
    """Plans slides for questions at 40x: one piece has a diffuse infiltrate, each a stroma and vessels."""
    plans = []
    for quartet in range(quartets):
        rng = random.Random(seeded(seed, "zoom coarse", quartet))
        lone, balanced = rng.sample(range(GROUP_SIZE), GROUP_SIZE), False
        while not balanced:  # findings differ from slide to slide, of each piece and of the lone one
            findings = [rng.sample(range(GROUP_SIZE), GROUP_SIZE) for _ in PIECES]
            balanced = len({findings[piece][slide] for slide, piece in enumerate(lone)}) == GROUP_SIZE
        for slide in range(GROUP_SIZE):
            paths = []
            for piece in range(len(PIECES)):
                stroma, vessels = divmod(findings[piece][slide], 2)
                facts = Facts(
                    growth=rng.choice(sorted(FEATURES["growth"].phrases)),
                    nuclei="uniform",
                    stroma=sorted(FEATURES["stroma"].phrases)[stroma],
                    vessels=sorted(FEATURES["vessels"].phrases)[vessels],
                    cells="lymphocytes",
                    mitoses="zero",
                    focus=rng.choice(sorted(FEATURES["focus"].phrases)),
                    infiltrate="diffuse" if piece == lone[slide] else "minimal",
                    site="avoiding",
                    depth="centre",
                )
                paths.append(PhantomPath(f"piece-{piece + 1}", facts, (), True))
            name = f"coarse-{seed}-{GROUP_SIZE * quartet + slide + 1:04d}"
            attempts = (
                PhantomPlan(name, seeded(seed, "coarse slide", quartet, slide, n), f"q{quartet:04d}", tuple(paths))
                for n in itertools.count()
            )
            plan = next(one for one in attempts if _shows_all(PhantomSlide(one)))
            plans.append(plan)
    return plans


def _shows_all(slide: PhantomSlide) -> bool:
    boxes = (piece_box(slide, piece) for piece in range(len(PIECES)))
    return all(box[2] - box[0] >= MIN_PIECE for box in boxes)


def coarse_rows(plans: Sequence[PhantomPlan]) -> Iterator[Row]:
    """Yields the questions of slides that are drawn to 40x."""
    looks = [
        (stroma, vessels)
        for stroma in sorted(FEATURES["stroma"].phrases)
        for vessels in sorted(FEATURES["vessels"].phrases)
    ]
    options = [f"{FEATURES['stroma'].phrases[s]} stroma, {FEATURES['vessels'].phrases[v]} vessels" for s, v in looks]
    for plan in plans:
        slide, facts = PhantomSlide(plan), [path.facts for path in plan.paths]
        lone = [one.infiltrate for one in facts].index("diffuse")
        asked = [("lone-piece", COARSE["lone-piece"], lone)]
        asked += [("named-piece", COARSE["named-piece"].format(piece=name), n) for n, name in enumerate(PIECES)]
        for number, (kind, text, piece) in enumerate(asked):
            right = looks.index((facts[piece].stroma, facts[piece].vessels))
            zoom = {
                "slide": f"{plan.name}.tif",
                "evidence": [{"view": "mid_mag", "boxes": [piece_box(slide, piece)]}],
            }
            group = f"{plan.split}::q{number}"
            yield _row(plan.name, plan.name, f"q{number}", kind, text, options, right, group, zoom)


def piece_box(slide: PhantomSlide, piece: int) -> list[float]:
    """Returns the largest square of the drawn part that shows a piece of tissue and none of its focus, in um."""
    fragment = slide.fragment(piece)
    left, top = (fragment.frame[axis] - AREA[axis] for axis in (0, 1))
    side = fragment.labels.shape[0]
    shown = np.isin(fragment.labels, (Label.BACKGROUND, Label.FOCUS, Label.FOLLICLE), invert=True)
    middles = (np.arange(side) + 0.5) * LABEL_MPP
    shown &= ((middles + left > 0) & (middles + left < AREA[2] - AREA[0]))[None, :]
    shown &= ((middles + top > 0) & (middles + top < AREA[3] - AREA[1]))[:, None]
    reach = ndimage.distance_transform_cdt(np.pad(shown, 1), "chessboard")[1:-1, 1:-1]
    row, column = np.unravel_index(int(reach.argmax()), reach.shape)
    x, y, half = middles[column] + left, middles[row] + top, (int(reach.max()) - 0.5) * LABEL_MPP
    return [round(float(edge), 1) for edge in (x - half, y - half, x + half, y + half)]


def synthetic_rows(plans: Sequence[PhantomPlan]) -> Iterator[Row]:
    """Yields the questions of synthetic slides; the four slides of a group follow one another."""
    for plan in plans:
        slide, facts = PhantomSlide(plan), [path.facts for path in plan.paths]
        boxes = [piece_box(slide, piece) for piece in range(len(PIECES))]
        same = [other for other in plans if other.split == plan.split]
        pairs = [(one.growth, one.nuclei) for one in facts]
        first, second = _shared_pair(same)
        alone = next(one.vessels for one in facts if sum(other.vessels == one.vessels for other in facts) == 1)
        many = [one.mitoses for one in facts].index("many")
        phrases = {name: FEATURES[name].phrases for name in FEATURES}
        lone = [one.vessels for one in facts].index(alone)
        grown = [number for number, one in enumerate(facts) if one.growth == first]
        where_mid = SYNTHETIC["where-mid"].format(finding=phrases["vessels"][alone])
        where_both = SYNTHETIC["where-two-scales"].format(
            first=phrases["growth"][first], second=phrases["nuclei"][second]
        )
        asked: list[tuple[str, str, Sequence[str], int, list[tuple[str, Sequence[int]]]]] = [
            ("where-mid", where_mid, PIECES, lone, [("mid_mag", [lone])]),
            ("where-high", SYNTHETIC["where-high"], PIECES, many, [("high_mag", [many])]),
            # at 200x one of the two pieces with this growth decides
            ("where-two-scales", where_both, PIECES, pairs.index((first, second)),
             [("low_mag", range(4)), ("high_mag", grown)]),
        ]  # fmt: skip
        for piece, name in enumerate(PIECES):
            combinations = sorted(
                {(other.paths[piece].facts.stroma, other.paths[piece].facts.cells) for other in same}
            )
            options = [f"{phrases['stroma'][s]} stroma, {phrases['cells'][c]}" for s, c in combinations]
            right = combinations.index((facts[piece].stroma, facts[piece].cells))
            text = SYNTHETIC["which-finding"].format(piece=name)
            asked.append(("which-finding", text, options, right, [("mid_mag", [piece]), ("high_mag", [piece])]))
        for number, (kind, text, options, right, evidence) in enumerate(asked):
            boxed = [{"view": view, "boxes": [boxes[piece] for piece in pieces]} for view, pieces in evidence]
            path_id = f"q{number}"
            yield _row(
                plan.name, plan.name, path_id, kind, text, options, right, f"{plan.split}::{path_id}",
                {"slide": f"{plan.name}.tif", "evidence": boxed},
            )  # fmt: skip


def _shared_pair(plans: Sequence[PhantomPlan]) -> tuple[str, str]:
    """Returns the pair of growth and nuclei that each of four slides shows at another piece: the one asked for."""
    places = {
        pair: [next(n for n, path in enumerate(plan.paths) if (path.facts.growth, path.facts.nuclei) == pair)
               for plan in plans]
        for pair in sorted({(path.facts.growth, path.facts.nuclei) for path in plans[0].paths})
    }  # fmt: skip
    return next(pair for pair, found in places.items() if sorted(found) == list(range(GROUP_SIZE)))


def real_rows(
    path: Path, name: str, patient: str, settings: GroundingSettings, save: Callable[[str, bytes], str]
) -> tuple[list[Row], list[str]]:
    """Returns the questions of a slide and how its use differs from what was asked; ``save`` keeps query images.

    Raises:
        InputError: where the slide cannot be read.
    """
    rows: list[Row] = []
    with OpenSlideSource(path, settings.mpp) as source:
        plan = plan_slide(source, settings)
        notes = [*source.notes, *plan.notes]
        kinds = [("which-place", NEAR), ("join-scales", NEAR), ("search", FAR)]
        for kind, layout in kinds:
            for number, group in enumerate(plan.groups.get(layout, ())):
                if group.parents[0].view == group.targets[0].view and kind != "which-place":
                    continue
                options = [_place(kind, field) for field in _options(kind, group)]
                for index, target in enumerate(group.targets):
                    rank = sorted(group.targets).index(target)
                    path_id = f"{'w' if layout == FAR else 'p'}{number * GROUP_SIZE + rank:04d}"
                    query = save(target.name(path.stem), encode_jpeg(read_field(source, target)))
                    evidence = [{"view": "mid_mag", "boxes": [_box(target)]}]
                    zoom = {"slide": name, "evidence": evidence, "query": query, "mpp": settings.mpp}
                    group_name = f"{path.stem}::{kind}::{number:04d}"
                    rows.append(_row(path.stem, patient, path_id, kind, REAL[kind], options, index, group_name, zoom))
    return rows, notes


def _options(kind: str, group: FieldGroup) -> Sequence[Field]:
    return group.targets if kind == "which-place" else group.parents


def _place(kind: str, field: Field) -> str:
    place = f"x {field.x:.0f} um, y {field.y:.0f} um"
    return place if kind == "which-place" else f"the {MAGNIFICATION[field.view]} field around {place}"


def _box(field: Field) -> list[float]:
    half = field.side / 2
    return [round(edge, 1) for edge in (field.x - half, field.y - half, field.x + half, field.y + half)]


def _row(
    slide: str, patient: str, path_id: str, kind: str, text: str, options: Sequence[str], right: int, group: str,
    zoom: Mapping[str, Any],
) -> Row:  # fmt: skip
    return {
        "id": row_id(slide, path_id, kind),
        "question": text,
        "options": list(options),
        "answer": LETTERS[right],
        "dimension": kind,
        "wsi_name": slide,
        "patient_id": patient,
        "path_id": path_id,
        "group": group,
        "zoom": {key: value for key, value in zoom.items() if value is not None},
    }


def _write_synthetic(task: tuple[PhantomPlan, Path, float]) -> tuple[Problem, ...]:
    plan, folder, mpp = task
    write_slide(PhantomSlide(plan), folder / f"{plan.name}.tif", AREA, mpp)
    return ()


def build_zoom(
    places: Sequence[Path],
    synthetic: int,
    out: Path,
    settings: GroundingSettings,
    patients: Path | None,
    workers: int,
    finest: str = "200x",
) -> dict[str, int]:
    """Writes the question file, its query images and the slides (drawn, or a link to the folder of the real ones).

    The question file comes last and in one rename; slides that are drawn already are kept, so a killed build resumes.

    Returns:
        kind -> number of questions.
    """
    with exclusive_output(out) as real:
        known = {QUESTIONS_FILE, "slides", "queries"}
        if real.exists() and (not real.is_dir() or {entry.name for entry in real.iterdir()} - known):
            expected, found = "no folder yet, or one of this command", "one that holds something else"
            raise InputError(Problem(str(out), expected, found, "name another --out"))
        if places and (real / "slides").is_dir() and not (real / "slides").is_symlink():
            expected, found = "no folder yet, or one of questions on real slides", "one with synthetic slides"
            raise InputError(Problem(str(out), expected, found, "name another --out"))
        real.mkdir(exist_ok=True)
        rows, unused = (_synthetic(real, synthetic, settings.seed, workers, finest) if synthetic else
                        _real(real, places, settings, patients))  # fmt: skip
        if not rows:
            raise InputError(unused)
        owners = [row["group"].partition("::")[0] if synthetic else row["patient_id"] for row in rows]
        split_of = patient_splits(Counter(owners), settings.seed)
        for row, owner in zip(rows, owners, strict=True):
            row["split"] = split_of[owner]
        atomic_write(real / QUESTIONS_FILE, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
    return Counter(row["dimension"] for row in rows)


def _synthetic(out: Path, count: int, seed: int, workers: int, finest: str) -> tuple[list[Row], list[Problem]]:
    coarse = finest == "40x"
    plans = (coarse_plans if coarse else synthetic_plans)(-(-count // GROUP_SIZE), seed)
    mpp = MPP["mid_mag" if coarse else "high_mag"]
    folder = out / "slides"
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    with worker_pool(min(workers, len(plans))) as run:
        run_all(run, _write_synthetic, [(plan, folder, mpp) for plan in plans], "slides drawn")
    return list((coarse_rows if coarse else synthetic_rows)(plans)), []


def _real(
    out: Path, places: Sequence[Path], settings: GroundingSettings, patients: Path | None
) -> tuple[list[Row], list[Problem]]:
    files = find_slides(places)
    patient_of = read_patients(files, patients)
    root = Path(os.path.commonpath([path.resolve().parent for path in files]))
    (out / "queries").mkdir(exist_ok=True)
    written: set[str] = set()

    def save(name: str, content: bytes) -> str:
        atomic_write(out / "queries" / name, content)
        written.add(name)
        return f"queries/{name}"

    rows: list[Row] = []
    unused: list[Problem] = []
    problems: list[Problem] = []
    for path in tqdm(files, "slides", unit="slide"):
        name = path.resolve().relative_to(root).as_posix()
        try:
            found, notes = real_rows(path, name, patient_of[path.stem], settings, save)
        except InputError as error:
            problems += error.problems
            continue
        for note in notes:
            click.echo(f"{path.stem}: {note}", err=True)
        if not found:
            refused = notes and notes[-1].startswith("refused: ")
            hint = "leave it out" if refused else "give slides with more tissue, or a lower --min-tissue"
            unused.append(Problem(str(path), "fields for four questions", "; ".join(notes) or "none", hint))
        rows += found
    if problems:
        raise InputError(problems)
    for image in (out / "queries").iterdir():
        if image.name not in written:
            image.unlink()
    if (out / "slides").is_symlink():
        (out / "slides").unlink()
    if not (out / "slides").exists():
        (out / "slides").symlink_to(root)
    return rows, unused


@click.command()
@click.argument("places", nargs=-1, metavar="[SLIDE_OR_DIR]...", type=click.Path(exists=True, path_type=Path))
@click.option("--synthetic", type=click.IntRange(1), help="Synthetic slides to draw; rounded up to a multiple of 4.")
@click.option(
    "--finest",
    type=click.Choice(["200x", "40x"]),
    default="200x",
    show_default=True,
    help="Finest scale of synthetic slides. With 40x they are drawn ten times as fast, with easier questions.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for questions, images and slides.")
@click.option(
    "--paths-per-slide",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Questions of each kind per slide; rounded up to a multiple of four.",
)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw slides.")
@click.option("--mpp", type=click.FloatRange(0, min_open=True), help="Um per pixel, in place of what slides state.")
@click.option("--min-tissue", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option(
    "--patients",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV with columns slide,patient. Default: from TCGA names, else each slide is a patient.",
)
def zoom(
    places: Sequence[Path],
    synthetic: int | None,
    finest: str,
    out: Path,
    paths_per_slide: int,
    seed: int,
    workers: int,
    mpp: float | None,
    min_tissue: float,
    patients: Path | None,
) -> None:
    """Build questions about where to look on slides, for `scale-vqa predict --zoom`.

    Name slides, or draw synthetic ones. Each question carries the boxes that hold its evidence; the folder has
    zoom.jsonl, the images that belong to questions, and the slides (a link to the folder of real ones).
    """
    if bool(places) == bool(synthetic):
        raise click.UsageError("name slides, or give --synthetic N, and not both")
    if places and finest != "200x":
        raise click.UsageError("--finest applies only to synthetic slides: give --synthetic too")
    paths = -(-paths_per_slide // GROUP_SIZE) * GROUP_SIZE
    settings = GroundingSettings(paths_per_slide=paths, seed=seed, least_tissue=min_tissue, mpp=mpp)
    counts = build_zoom(places, synthetic or 0, out, settings, patients, workers, finest)
    click.echo(f"{out}: {', '.join(f'{kind} {count}' for kind, count in counts.items())} questions")
