"""``scale-vqa build hub``: the config that Inspect reads from the Hub without our code, with one image per question.

``inspect eval hf/ORG/NAME`` gives each sample one text and one image, as a data URI. The views of a question are
side by side, with magnification and scale bar, and the option images below, each with its letter.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import yaml
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.predict import DEFAULT_PROMPT, PROMPT_HELP
from scale_vqa_eval.predict.images import OPTION_IMAGES, Bounds, ImageRef, decode_image, embedded_bytes
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.release_folder.card import HUB, HUB_PROMPT
from scale_vqa_eval.release_folder.read import release_configs, release_files
from scale_vqa_eval.release_folder.write import ROWS_PER_GROUP, check_out, write_release
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, MPP, VIEWS

SIDE: Final = 512
"""Longer side of a view in the composed image, in pixels."""
MIN_TEXT: Final = 20
"""Minimum height of text in pixels when the composed image is scaled to 1,024 px, as many models do."""
_GAP, _STRIP, _TEXT = 16, 56, 36
_BAR: Final = 0.4
"""Maximum length of a scale bar as a share of the view's width."""


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default="scale-vqa")
@click.option("--config", help="Config to convert.  [default: the one that loads without a name]")
@click.option("--prompt", "prompt_name", default=DEFAULT_PROMPT, show_default=True, help=PROMPT_HELP)
def hub(folder: Path, config: str | None, prompt_name: str) -> None:
    """Add the config `hub` to a release FOLDER: each question as one text and one composed image.

    `scale-vqa publish dataset` then writes eval.yaml, and `inspect eval hf/ORG/NAME` asks the questions, with and
    without their images.
    """
    config = config or next((name for name in release_configs(folder) if name != HUB), HUB)
    if config in (HUB, "text"):
        raise click.BadParameter(f"the config {config} has no images to compose", param_hint="--config")
    prompt, splits = load_prompt(prompt_name), release_files(folder, config)
    check_out(folder)
    tables = {split: _rows(files, prompt, f"{config}, {split}") for split, files in splits.items()}
    note = (
        f"The rows of `{config}`, each with the text that a model is asked (`prompt`, by the prompt "
        f"`{prompt.id}@{prompt.version}`, hash `{prompt.digest}`) and one image (`composite`, a data URI): the views "
        f"side by side, low to high, scaled to {SIDE} px, and option images below. Magnifications and scale bars are "
        "the nominal ones of the views. Scores on composed images are not those on separate images."
    )
    content = yaml.safe_dump(prompt.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
    write_release(folder, {HUB: tables}, {HUB: note}, files={HUB_PROMPT: content.encode()})
    click.echo(f"{folder}: {HUB} from {config}, {', '.join(splits)}")


def _rows(files: Sequence[Path], prompt: Prompt, location: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split; consecutive rows with the same images share one composed image."""
    import pyarrow.parquet as pq

    shards = [pq.ParquetFile(file) for file in files]
    total = sum(shard.metadata.num_rows for shard in shards)
    last = ("", "")
    rows = (row for shard in shards for batch in shard.iter_batches(ROWS_PER_GROUP) for row in batch.to_pylist())
    for number, row in enumerate(tqdm(rows, f"{location} composed", total=total, disable=None)):
        parts = {ImageRef(number, view): row.pop(view, None) for view in VIEWS}
        options = row.pop(OPTION_IMAGES, None) or []
        contents = {ref: embedded_bytes(cell, ref, location) for ref, cell in parts.items() if cell}
        for index in range(len(options)):
            ref = ImageRef(number, OPTION_IMAGES, index)
            contents[ref] = embedded_bytes(options, ref, location)
        if not contents:
            hint = "build the config with images, or name another --config"
            raise InputError(Problem(f"{location}, {row['id']}", "at least one image", "none", hint))
        key = sha256_json([(ref.column, hashlib.sha256(one).hexdigest()) for ref, one in contents.items()])
        if key != last[0]:
            decoded = {ref: decode_image(one, f"{row['id']}, {ref.column}", Bounds()) for ref, one in contents.items()}
            last = key, _uri(compose(decoded))
        yield {**row, "prompt": prompt.text(row["question"], row["options"]), "composite": last[1]}


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def compose(images: dict[ImageRef, Image.Image]) -> Image.Image:
    """Composes the views side by side, with magnification and scale bar, and the option images with letters below.

    Labels are in white strips above and below the views. Text is at least ``MIN_TEXT`` pixels high once the image is
    scaled to 1,024 pixels.
    """
    views = {ref.column: image for ref, image in images.items() if ref.option is None}
    options = [image for ref, image in images.items() if ref.option is not None]
    columns = max(len(views), min(len(options), 4), 1)
    width = columns * SIDE + (columns + 1) * _GAP
    rows = [list(views.items())] * bool(views)
    lettered = list(zip(LETTERS, options, strict=False))
    rows += [lettered[first : first + 4] for first in range(0, len(options), 4)]
    text = max(_TEXT, round(MIN_TEXT * width / 1024) + 4)
    page = Image.new("RGB", (width, len(rows) * (SIDE + 2 * _STRIP) + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(text)
    for number, row in enumerate(rows):
        top = number * (SIDE + 2 * _STRIP)
        for column, (name, image) in enumerate(row):
            factor = SIDE / max(image.size)
            size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
            left = _GAP + column * (SIDE + _GAP)
            page.paste(image.resize(size, Image.Resampling.LANCZOS), (left, top + _STRIP))
            label = f"{MAGNIFICATION[name]} ({MPP[name]:g} um/px)" if name in MPP else f"{name}."
            draw.text((left, top + _STRIP / 2), label, fill="black", font=font, anchor="lm")
            if name in MPP:
                length = bar_length(_BAR * size[0] * MPP[name] / factor)
                end, y = left + length * factor / MPP[name], top + _STRIP + size[1] + _STRIP / 2
                draw.rectangle((left, y - 6, end, y + 6), fill="black")
                bar = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
                draw.text((end + _GAP, y), bar, fill="black", font=font, anchor="lm")
    return page


def bar_length(limit: float) -> float:
    """Returns the largest round length of a scale bar that is at most ``limit`` (um).

    >>> bar_length(2048), bar_length(512), bar_length(102.4), bar_length(0.7)
    (2000.0, 500.0, 100.0, 0.5)
    """
    steps = (10.0**power * digit for power in range(-3, 7) for digit in (1, 2, 5))
    return max((step for step in steps if step <= limit), default=limit)
