"""Turns released conversations into trainer rows for SFT."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict.images import Bounds, decode_image
from training_recipes.arguments import SFTArguments
from training_recipes.conversations import Conversations, read_conversations
from training_recipes.preflight import Unfit, measured
from training_recipes.rows import TARGET, Shape, assistant
from training_recipes.selection import Selection


@dataclass(frozen=True)
class ConversationRow:
    """The transform from a stored conversation to a trainer row; picklable."""

    bounds: Bounds
    location: str

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        made = [self.one(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in made] for name in made[0]}

    def one(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns one trainer row; raises InputError where an image cannot be decoded."""
        location = f"{self.location}, {row['id']}"
        images = [decode_image(Path(file).read_bytes(), f"{location}, {file}", self.bounds) for file in row["files"]]
        completion = [assistant(row[TARGET])]
        return {"id": row["id"], "prompt": json.loads(row["messages"]), "images": images, "completion": completion}


def select_conversations(
    recipe: SFTArguments, shape: Shape, processor: Any, seed: int, bound: int | None
) -> Selection:
    """Reads a conversation file and returns what fits, as ``selection.select`` does.

    Args:
        recipe: its conversations, image_root, train_limit and policy.
        shape: its bounds; prompt and views are those of the file.
        processor: of the model.
        seed: of the draw of ``train_limit``.
        bound: most tokens of a row.

    Raises:
        InputError: where the file or an image breaks the layout, or rows do not fit and are not to be dropped.
    """
    from datasets import Dataset

    path = str(recipe.conversations)
    found = read_conversations(path, str(recipe.image_root))
    _say(path, found)
    rows = Dataset.from_list(
        [
            {
                "id": row.id,
                "messages": json.dumps(row.messages),
                "files": [str(file) for file in row.images],
                TARGET: row.answer,
            }
            for row in found.rows
        ]
    )
    make = ConversationRow(shape.bounds, path)
    sizes = [[shape.bounds.size(*_size(file, path, row.id)) for file in row.images] for row in found.rows]
    messages = [list(row.messages) for row in found.rows]
    lengths = measured(processor, rows["id"], messages, sizes, rows[TARGET], lambda place: make.one(rows[place]))
    mixed = any(sizes) and not all(sizes)
    unfit = [
        Unfit(row.id, "no image" if mixed and not size else f"{total} tokens, the bound is {bound}")
        for row, size, total in zip(found.rows, sizes, lengths.total.tolist(), strict=True)
        if (mixed and not size) or (bound is not None and total > bound)
    ]
    if unfit and (recipe.unfit_rows == "refuse" or len(unfit) == len(rows)):
        hint = "raise the bound, lower max_pixels, or drop such rows with unfit_rows: drop"
        raise InputError([Problem(f"{path}, {row.id}", "a row that fits", row.reason, hint) for row in unfit])
    names = {row.id for row in unfit}
    kept = [place for place, row in enumerate(found.rows) if row.id not in names]
    if recipe.train_limit is not None and recipe.train_limit < len(kept):
        kept = sorted(random.Random(seed).sample(kept, recipe.train_limit))
    total = lengths.total[kept]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    rows = rows.select(kept).with_transform(make)
    return Selection(rows, path, tuple(unfit), (int(total.min()), int(total.max())), digest)


def _say(path: str, found: Conversations) -> None:
    print(f"{path}: {len(found.rows)} conversations", file=sys.stderr)
    if found.repaired:
        print(f"{path}: a literal \\n was made a line break in {found.repaired} conversations", file=sys.stderr)
    if found.doubtful:
        print(f"{path}: {found.doubtful} keep a \\n before a small letter, which may be LaTeX", file=sys.stderr)


def _size(file: Path, path: str, row: str) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        found = preview(str(error), 120)
        raise InputError(Problem(f"{path}, {row}, {file}", "an image", found, "bring back the original")) from error
