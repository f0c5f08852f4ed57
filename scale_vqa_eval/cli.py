"""The command ``scale-vqa``; each subcommand is imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError, Problem, did_you_mean

CommandTable = dict[str, tuple[str, str, str]]
"""Name -> (module, function, one line of help)."""

BUILDS: Final[CommandTable] = {
    "release": ("dataset_script.authors_release", "release", "From the authors' JSON files, local or on the Hub."),
    "slides": ("dataset_script.slides.command", "slides", "Grounding questions from slides that OpenSlide opens."),
    "phantom": ("dataset_script.phantom.build", "phantom", "Questions on synthetic slides, for tests and teaching."),
    "zoom": ("dataset_script.zoom", "zoom", "Questions about where to look, with the boxes of the evidence."),
    "hub": ("scale_vqa_eval.export", "hub", "Add the config that `inspect eval hf/ORG/NAME` reads."),
    "join": ("dataset_script.splits", "join", "Merge release folders into one."),
    "anticipation": ("dataset_script.anticipation", "anticipation", "Which of four images matches a description."),
    "single": ("dataset_script.single_image", "single", "Rows from questions with one image, such as PathMMU's."),
}
EXPORTS: Final[CommandTable] = {
    "vlmevalkit": ("scale_vqa_eval.export", "vlmevalkit", "Tables for VLMEvalKit and EvalScope, also a blind one."),
    "ms-swift": ("training_recipes.export", "ms_swift", "JSONL conversations for SFT and RL with ms-swift."),
    "llama-factory": ("training_recipes.export", "llama_factory", "ShareGPT conversations for LLaMA-Factory."),
    "verl": ("training_recipes.export", "verl", "Parquet for verl."),
    "easyr1": ("training_recipes.export", "easyr1", "Parquet for EasyR1."),
    "csv": ("scale_vqa_eval.export", "csv_table", "CSV for spreadsheets, with the images as files."),
    "jsonl": ("scale_vqa_eval.export", "jsonl", "JSONL, with the images as files."),
    "fields": ("dataset_script.slides.export", "fields", "Nested fields of slides at given um/px, without questions."),
}
COMMANDS: Final[CommandTable] = {
    "build": ("scale_vqa_eval.cli", "build", "Build a release folder from a release, slides or synthetic slides."),
    "prepare": ("dataset_script.prepare", "prepare", 'Make load_dataset("scale-vqa") work offline, by name.'),
    "audit": ("scale_vqa_eval.audit.command", "audit", "Measure how well text-only baselines do, and why."),
    "control": ("scale_vqa_eval.controls.command", "control", "Make a split with text-only readers at chance."),
    "predict": ("scale_vqa_eval.predict.command", "predict", "Ask a vision-language model, with or without images."),
    "score": ("scale_vqa_eval.scoring.command", "score", "Score a predictions file."),
    "zoom": ("scale_vqa_eval.zoom.score", "zoom", "Score runs of predict --zoom: looks, evidence and controls."),
    "compare": ("scale_vqa_eval.scoring.command", "compare", "Compare two predictions files, paired and clustered."),
    "report": ("scale_vqa_eval.scoring.command", "report", "Make tables and plots for a paper from several runs."),
    "export": ("scale_vqa_eval.cli", "export", "Write questions or fields of slides for other tools."),
    "weights": ("model_card.weights", "weights", "Prepare a checkpoint: shards, LoRA merged, same logits."),
    "publish": ("model_card.hub.command", "publish", "Publish data, metric or weights; a dry run by default."),
    "card": ("model_card.cards", "card", "Write the card of a dataset, a model or the metric from its files."),
    "review": ("dataset_script.review.command", "review", "Let two pathologists review each question in a browser."),
    "curate": ("dataset_script.curate.command", "curate", "Make questions that need the images from captions."),
    "doctor": ("scale_vqa_eval.doctor", "doctor", "Check the installation and suggest fixes."),
}
MAX_SAME: Final = 5
"""Maximum number of printed problems with the same expectation, finding and hint; all are written to a file."""
MAX_SIMILAR: Final = 20
"""Maximum number of printed problems with the same expectation and hint."""


class LazyGroup(click.Group):
    """A click group that imports a command of its table when it is used."""

    def __init__(self, *args: Any, table: CommandTable, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            if not cmd_name.startswith("-"):
                hint = did_you_mean(cmd_name, self.table)
                ctx.fail(f"No such command {cmd_name!r}; {hint}: {', '.join(self.table)}")
            return None
        module, function, _ = self.table[cmd_name]
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in self.table.items()])


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scale-vqa")
def cli() -> None:
    """Scale-VQA: questions about pathology slides at several magnifications, scored beside a text-only baseline."""


@click.group(cls=LazyGroup, table=BUILDS)
def build() -> None:
    """Build a release folder: Parquet files and a dataset card, ready for load_dataset."""


@click.group(cls=LazyGroup, table=EXPORTS)
def export() -> None:
    """Write questions or fields of slides in the formats of other tools."""


def main() -> None:
    """Runs the command. Exit codes: 0 success, 1 a gate or validation failed, 2 wrong usage, 130 interrupted."""
    try:
        status = cli.main(standalone_mode=False)
    except InputError as error:
        _print_problems(error.problems)
        sys.exit(1)
    except click.exceptions.Abort:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        if hint := _nearest_choice(error):
            click.echo(hint, err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        extra = next((extra for extra, modules in _EXTRAS.items() if name in modules), None)
        if extra is None:
            raise
        click.echo(
            f"error: this command needs the package {error.name!r}, which is not installed; "
            f"fix: pip install 'scale-vqa[{extra}]'",
            err=True,
        )
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is None and not full:
            raise
        expected = "free disk space" if full else "a file or folder that can be read and written"
        hint = "free some, or name an output elsewhere" if full else "check the path and your rights"
        found = error.strerror or type(error).__name__
        _print_problems([Problem(str(error.filename or "the output"), expected, found, hint)])
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _print_problems(problems: Sequence[Problem]) -> None:
    """Prints the first problems of each kind on stderr and counts the others; a file lists all of them."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.expected, problem.hint), []).append(problem)
    cut = False
    for (expected, _), members in kinds.items():
        found: Counter[str] = Counter()
        printed = 0
        for problem in members:
            found[problem.found] += 1
            if found[problem.found] <= MAX_SAME and printed < MAX_SIMILAR:
                click.echo(f"error: {problem}", err=True)
                printed += 1
        if printed < len(members):
            click.echo(f"... and {len(members) - printed} more: expected {expected}", err=True)
            cut = True
    if len(problems) > 1:
        click.echo(f"{len(problems)} problems; nothing was written", err=True)
    if cut:
        import tempfile

        with tempfile.NamedTemporaryFile("w", prefix="scale-vqa-problems-", suffix=".txt", delete=False) as report:
            report.writelines(f"{problem}\n".encode("utf-8", "backslashreplace").decode() for problem in problems)
        click.echo(f"all of them, one per line: {report.name}", err=True)


def _nearest_choice(error: click.ClickException) -> str:
    """Returns a hint with the nearest value of a ``click.Choice`` option, or an empty string."""
    choice = getattr(getattr(error, "param", None), "type", None)
    given = re.match(r"'([^']*)' is not one of", error.message)
    hint = did_you_mean(given[1], map(str, choice.choices)) if isinstance(choice, click.Choice) and given else ""
    return hint if hint.startswith("did") else ""


_EXTRAS: Final = {
    "slides": ("openslide", "h5py", "skimage", "skia", "imagecodecs", "simplejpeg", "tifffile"),
    "ray": ("ray",),
    "audit": ("sklearn", "matplotlib", "imagehash", "httpx"),
    "train": ("torch", "transformers", "trl", "peft", "accelerate"),
    "curate": ("gradio",),
    "publish": ("detect_secrets", "mlcroissant", "safetensors"),
    "vllm": ("vllm",),
}
"""Extra -> modules that it installs."""

if __name__ == "__main__":
    main()
