"""Scale-VQA for VLMEvalKit: ``python -m scale_vqa_eval.plugins.vlmevalkit`` with the options of its ``run.py``.

The tables of ``scale-vqa export vlmevalkit`` in ``$LMUData`` are asked with the messages of ``predict`` and parsed by
the rule of ``score``. Without this module, VLMEvalKit uses its own prompt and its own rule.
"""

# mypy: disable-error-code="import-not-found, misc, unused-ignore"
from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import vlmeval.dataset
from vlmeval.dataset.image_mcq import CustomMCQDataset
from vlmeval.dataset.text_mcq import CustomTextMCQDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict import DEFAULT_PROMPT
from scale_vqa_eval.predict.prompts import Prompt, filled, load_prompt
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, VIEWS
from scale_vqa_eval.scoring.tool_results import PROMPT_COLUMN, tool_lines

_HEAD: Final = "index\tid\tquestion\t"


@cache
def _prompt() -> Prompt:
    return load_prompt(DEFAULT_PROMPT)


def _tables(images: bool) -> list[str]:
    """Returns the names of our tables with or without images in ``$LMUData``."""
    found = []
    for path in sorted(Path(LMUDataRoot()).glob("*.tsv")):
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.readline(10_000)
        if head.startswith(_HEAD) and ("\timage" in head) == images:
            found.append(path.stem)
    return found


class _Questions:
    """Base class of the tables with and without images."""

    force_use_dataset_prompt = True
    dataset_name: str
    data: Any

    def post_build(self, dataset: str) -> None:
        """Adds a column that marks the table of predictions as made with our prompt."""
        self.data[PROMPT_COLUMN] = f"{_prompt().id}@{_prompt().version}"

    def build_prompt(self, line: Any) -> list[dict[str, str]]:
        """Returns the messages of ``predict``: views, option images each after its letter, and the text."""
        line = self.data.iloc[line] if isinstance(line, int) else line
        prompt, options = _prompt(), _options(line)
        paths = self._images(line)
        marked = isinstance(line.get("hint"), str) and len(options) <= len(paths)
        shown = len(paths) - len(options) * marked
        parts = [{"role": "system", "type": "text", "value": prompt.system}] if prompt.system else []
        for view, path in zip(VIEWS, paths[:shown], strict=False):
            if prompt.view_label:
                label = filled(prompt.view_label, view=view, magnification=MAGNIFICATION[view])
                parts.append({"type": "text", "value": label})
            parts.append({"type": "image", "value": path})
        for letter, path in zip(LETTERS, paths[shown:], strict=False):
            parts.append({"type": "text", "value": filled(prompt.option_label, letter=letter)})
            parts.append({"type": "image", "value": path})
        return [*parts, {"type": "text", "value": prompt.text(str(line["question"]), options)}]

    def _images(self, line: Any) -> list[str]:
        return []

    def evaluate(self, eval_file: str, **_: Any) -> Any:
        """Returns accuracies by split and dimension; a question must be right under all its rotations."""
        import pandas as pd

        lines = list(tool_lines(Path(eval_file)) or ())
        gold = {(row["id"], str(row["index"])): row for row in self.data.to_dict("records")}
        pairs = zip(lines, load(eval_file)["index"], strict=True)
        keys = [(str(line["id"]), str(index)) for line, index in pairs]
        right = pd.DataFrame(
            {
                "id": [identity for identity, _ in keys],
                "split": [gold[key]["split"] for key in keys],
                "category": [gold[key]["category"] for key in keys],
                "hit": [_right(line, gold[key]) for line, key in zip(lines, keys, strict=True)],
            }
        )
        whole = right.groupby(["split", "category", "id"], as_index=False)["hit"].min()
        table = whole.pivot_table(index="split", columns="category", values="hit", aggfunc="mean")
        table.insert(0, "Overall", whole.groupby("split")["hit"].mean())
        accuracy = table.reset_index().rename_axis(columns=None)
        dump(accuracy, get_intermediate_file_path(eval_file, "_acc", "csv"))
        return accuracy


def _right(line: dict[str, Any], row: dict[str, Any]) -> float:
    return float(parse_response(line["response"], "reference", len(_options(row))).letter == row["answer"])


def _options(row: Any) -> list[str]:
    import pandas as pd

    return [str(row[letter]) for letter in LETTERS if letter in row and not pd.isna(row[letter])]


class ScaleVQAImages(_Questions, CustomMCQDataset):
    """The tables with images."""

    @classmethod
    def supported_datasets(cls) -> list[str]:
        return _tables(images=True)

    def _images(self, line: Any) -> list[str]:
        from vlmeval.smp import toliststr

        paths = toliststr(line["image_path"]) if self.meta_only else self.dump_image(line)
        return list(paths)


class ScaleVQABlind(_Questions, CustomTextMCQDataset):
    """The tables without images: the blind control, with the same text."""

    @classmethod
    def supported_datasets(cls) -> list[str]:
        return _tables(images=False)


vlmeval.dataset.DATASET_CLASSES[:0] = [ScaleVQAImages, ScaleVQABlind]


def main() -> None:
    """Runs VLMEvalKit's own command."""
    from vlmeval.run import main as run

    try:
        run()
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
