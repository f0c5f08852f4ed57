"""What simple image features answer of grounding questions, on slides that a reader has not seen.

    scale-vqa build slides SLIDE_OR_DIR... --out OUT
    python benchmarks/image_shortcuts.py OUT [--tuned SLIDE ...]

Three readers compare the image in question with each option, and know nothing of where tissue lies:

- colour: takes the option whose mean red, green and blue are nearest; nothing is fitted.
- features: takes the option that is nearest in 24 features (colour, stain, lightness, texture; ``FEATURES``), each in
  its own standard deviations among the images of that view.
- fitted: a forest and a logistic model on the differences of these features, as they are and ranked within the
  question, fitted to all other slides (leave one slide out).

Images are averaged down to 256 pixels. Of an origin question, the options are the boxes as they are drawn in the 10x
view. A reader is at chance where its accuracy lies within the 95% interval of chance: one in four, plus and minus
Student's t times the standard error clustered by slide. Slides named with ``--tuned``, on which settings were chosen,
are fitted to and not counted.
"""

from __future__ import annotations

import argparse
import io
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from skimage.color import rgb2hed
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset_script.slides.build_cache import box_in
from dataset_script.slides.sampling import field
from dataset_script.slides.thumbnail import OTSU_BOUNDS, optical_density
from scale_vqa_eval.release_folder.read import release_files
from scale_vqa_eval.scale_vqa_acc.clustered import cluster_codes, clustered_standard_error
from scale_vqa_eval.schema import GROUNDING_KINDS

Values = NDArray[np.float64]

FEATURES = (
    *(f"{name} {part}" for part in ("red", "green", "blue") for name in ("mean", "spread")),
    *(f"{name} {part}" for part in ("haematoxylin", "eosin", "residual") for name in ("mean", "spread")),
    *(f"{name} saturation" for name in ("mean", "spread")),
    *(f"{share}% of lightness" for share in (5, 25, 50, 75, 95)),
    *("entropy of lightness", "gradient", "gradient at four pixels", "Laplacian", "share of tissue"),
)
QUERY = {"zoom-in": "mid_mag", "zoom-out": "high_mag", "origin": "high_mag", "bridge": "high_mag"}
PLACE = re.compile(r"_x(-?[\d.]+)_y(-?[\d.]+)_(\d+)px")


def features(image: Image.Image) -> Values:
    """Returns the (24,) features of an RGB image."""
    pixels = np.asarray(image)
    values = pixels.astype(np.float64) / 255
    stains = rgb2hed(values)
    grey = values @ np.array([0.299, 0.587, 0.114])
    saturation = (values.max(axis=-1) - values.min(axis=-1)) / np.maximum(values.max(axis=-1), 1 / 255)
    counts = np.bincount((grey * 31.99).astype(int).ravel(), minlength=32) / grey.size
    blurred = ndimage.uniform_filter(grey, 4)
    density = optical_density(pixels).mean(axis=-1)
    return np.array(
        [
            *(float(part(values[..., channel])) for channel in range(3) for part in (np.mean, np.std)),
            *(float(part(stains[..., channel])) for channel in range(3) for part in (np.mean, np.std)),
            saturation.mean(),
            saturation.std(),
            *np.percentile(grey, [5, 25, 50, 75, 95]),
            stats.entropy(counts),
            np.log(np.hypot(*np.gradient(grey)).mean() + 1e-6),
            np.log(np.hypot(*np.gradient(blurred)).mean() + 1e-6),
            np.log(ndimage.laplace(grey).var() + 1e-6),
            np.mean(density > OTSU_BOUNDS[1]),
        ]
    )


@lru_cache(maxsize=4096)
def file_features(content: bytes) -> Values:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return features(image.reduce(max(1, min(image.size) // 256)))


def box_features(rows: list[dict[str, Any]]) -> list[Values]:
    """Returns the features of the four boxes of a group of origin questions, in the order of their letters."""
    view = rows[0]["low_mag"]
    context = field("low_mag", *map(float, PLACE.search(view["path"]).groups()[:2]), view_px(view["path"]))
    image = Image.open(io.BytesIO(view["bytes"])).convert("RGB")
    boxes = []
    for row in sorted(rows, key=lambda row: row["answer"]):
        path = row["high_mag"]["path"]
        target = field("high_mag", *map(float, PLACE.search(path).groups()[:2]), view_px(path))
        boxes.append(features(image.crop(tuple(int(edge) for edge in box_in(context, target)))))
    return boxes


def view_px(path: str) -> int:
    return int(PLACE.search(path).group(3))


def read_questions(folder: Path) -> dict[str, tuple[Values, Values, NDArray[np.intp], list[str]]]:
    """Returns kind -> queries (n, 24), options (n, 4, 24), gold (n,), slide of each question."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    kept: dict[str, list[Any]] = {kind: [] for kind in GROUNDING_KINDS}
    for files in release_files(folder, "grounding").values():
        for path in files:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    groups[row["group"]].append(row)
                    if len(groups[row["group"]]) == 4:
                        rows, kind = groups.pop(row["group"]), row["group"].split("::")[-2]
                        shared = [file_features(option["bytes"]) for option in rows[0]["option_images"]]
                        options = box_features(rows) if kind == "origin" else shared
                        kept[kind] += [
                            (file_features(one[QUERY[kind]]["bytes"]), options, one["answer"], one["wsi_name"])
                            for one in rows
                        ]
    assert not groups, "groups of four questions that are incomplete"
    return {
        kind: (np.array(columns[0]), np.array(columns[1]), np.array(columns[2]), list(columns[3]))
        for kind, found in kept.items()
        if found
        for columns in [tuple(zip(*found, strict=True))]
    }


def fitted_picks(near: Values, gold: NDArray[np.intp], slides: NDArray[np.str_], seed: int) -> NDArray[np.intp]:
    """Returns the option that models fitted to the other slides take, from (n, 4, f) differences."""
    ranked = near.argsort(axis=1).argsort(axis=1)
    columns = np.concatenate([near, near - near.mean(axis=1, keepdims=True), ranked], axis=2)
    right = np.arange(4) == gold[:, None]
    picks = np.zeros(len(gold), dtype=np.intp)
    for slide in np.unique(slides):
        seen, unseen = slides != slide, slides == slide
        votes = np.zeros((unseen.sum(), 4))
        for model in (
            ExtraTreesClassifier(100, min_samples_leaf=5, random_state=seed),
            make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        ):
            model.fit(columns[seen].reshape(-1, columns.shape[-1]), right[seen].ravel())
            chances = model.predict_proba(columns[unseen].reshape(-1, columns.shape[-1]))[:, 1].reshape(-1, 4)
            votes += chances / chances.sum(axis=1, keepdims=True)
        picks[unseen] = votes.argmax(axis=1)
    return picks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tuned", nargs="*", default=[], help="slides on which settings were chosen")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| kind | questions | slides | reader | right | 95% of chance | |\n|---|---|---|---|---|---|---|")
    for kind, (queries, options, gold, names) in read_questions(given.folder).items():
        slides = np.array(names)
        counted = ~np.isin(slides, given.tuned)
        spread = options.reshape(-1, len(FEATURES))
        scaled = (options - spread.mean(axis=0)) / (spread.std(axis=0) + 1e-9)
        asked = (queries - queries.mean(axis=0)) / (queries.std(axis=0) + 1e-9)
        colours = [FEATURES.index(f"mean {part}") for part in ("red", "green", "blue")]
        readers = {
            "colour": np.linalg.norm(options[..., colours] - queries[:, None, colours], axis=2).argmin(axis=1),
            "features": np.linalg.norm(scaled - asked[:, None], axis=2).argmin(axis=1),
            "fitted": fitted_picks(np.abs(scaled - asked[:, None]), gold, slides, given.seed),
        }
        for reader, picks in readers.items():
            right = (picks == gold)[counted].astype(float)
            codes, count = cluster_codes(slides[counted].tolist())
            reach = stats.t.ppf(0.975, count - 1) * clustered_standard_error(right, codes, count)
            low, high = 0.25 - reach, 0.25 + reach
            verdict = "at chance" if low <= right.mean() <= high else "above" if right.mean() > high else "below"
            print(
                f"| {kind} | {len(right)} | {count} | {reader} | {right.mean():.1%} | {low:.1%} to {high:.1%} "
                f"| {verdict} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
