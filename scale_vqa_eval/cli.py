"""The command ``scale-vqa``: a table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError

# name -> (module, function, one line of help); rooms are named by text, so the ground floor imports none of them
COMMANDS: dict[str, tuple[str, str, str]] = {
    "build": ("dataset_script.commands", "build", "Build a release folder from a release, slides or phantom slides."),
    "prepare": ("dataset_script.prepare", "prepare", 'Make load_dataset("scale-vqa") work by its bare name.'),
    "audit": ("scale_vqa_eval.audit.command", "audit", "Measure how far a reader without images gets, and why."),
    "control": ("scale_vqa_eval.controls.command", "control", "Make the exchange or screened split."),
    "predict": (
        "scale_vqa_eval.predict.command",
        "predict",
        "Ask a vision-language model, with or without its images.",
    ),
    "score": ("scale_vqa_eval.scoring.command", "score", "Score a predictions file."),
    "compare": ("scale_vqa_eval.scoring.command", "compare", "Compare two predictions files, paired and clustered."),
    "report": ("scale_vqa_eval.scoring.command", "report", "Join runs into the tables and plots of a paper."),
    "weights": ("model_card.weights", "weights", "Prepare a checkpoint: shards, LoRA merged, same logits."),
    "publish": ("model_card.publish.command", "publish", "Publish data, metric or weights; a dry run first."),
    "card": ("model_card.card_command", "card", "Write the card of a dataset, a model or the metric from its files."),
    "review": (
        "dataset_script.review.command",
        "review",
        "Let two pathologists judge each question, on a local page.",
    ),
    "curate": (
        "dataset_script.curate.command",
        "curate",
        "Make questions that need the images from expert captions.",
    ),
    "doctor": ("scale_vqa_eval.doctor", "doctor", "Say what is installed, what will not work here, and the fix."),
}


class LazyGroup(click.Group):
    """A click group whose commands live in a table of ``(module, function, help)`` and are imported on use."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
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
    """Scale-VQA: questions across the magnifications of a slide, scored beside their blind control."""


def main() -> None:
    """Runs the command; exit 0 done, 1 a gate or validation failed, 2 wrong use."""
    try:
        status = cli.main(standalone_mode=False)
    except InputError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        if len(error.problems) > 1:
            click.echo(f"{len(error.problems)} faults; nothing was written", err=True)
        sys.exit(1)
    except click.exceptions.Abort:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        click.echo(
            f"error: this command needs the package {error.name!r}, which is not installed; "
            f"fix: pip install 'scale-vqa[{extra}]'",
            err=True,
        )
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


_EXTRA_OF = {
    "openslide": "slides",
    "skimage": "slides",
    "skia": "slides",
    "imagecodecs": "slides",
    "tifffile": "slides",
    "sklearn": "audit",
    "matplotlib": "audit",
    "imagehash": "audit",
    "httpx": "audit",
    "torch": "train",
    "transformers": "train",
    "trl": "train",
    "peft": "train",
    "accelerate": "train",
    "gradio": "curate",
    "ray": "curate",
    "detect_secrets": "publish",
    "mlcroissant": "publish",
    "safetensors": "publish",
    "vllm": "vllm",
}

if __name__ == "__main__":
    main()
