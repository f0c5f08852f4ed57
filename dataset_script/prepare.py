"""``scale-vqa prepare``: after it the bare names work in any process on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.aliases import (
    DATASET_NAME,
    FOLDER_VARIABLE,
    HOW_TO_MAKE_ONE,
    HUB_VARIABLE,
    named_folder,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@click.command()
@click.option(
    "--data",
    metavar="DIR",
    help=f"Release folder or Hub id. [default: ${FOLDER_VARIABLE}, else ./{DATASET_NAME}, else ${HUB_VARIABLE}]",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
def prepare(data: str | None, workers: int) -> None:
    """Make load_dataset("scale-vqa") and evaluate.load("scale_vqa_acc") work by their bare names.

    Every config of the release folder goes into the cache of `datasets`, in place of what was prepared before, and
    the metric into the cache of `evaluate`. Both then load in any process, offline, in any directory, with or
    without this package imported. Running it again is cheap: what is there already is kept.
    """
    folder = _source(data)
    click.echo(f"preparing {folder}", err=True)
    from dataset_script.caches import prepare_dataset, prepare_metric, spare_the_network

    prepared = prepare_dataset(folder, workers)
    metric = prepare_metric()
    spare_the_network()
    click.echo(f"{DATASET_NAME} from {prepared.folder}")
    for name, splits in prepared.rows.items():
        counts = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
        notes = ["default"] * (name == prepared.default) + ["was there already"] * (name in prepared.kept)
        click.echo(f"  {name:<10} {counts}" + (f"  ({', '.join(notes)})" if notes else ""))
    click.echo(f"metric in {metric}")
    click.echo(_WHAT_TO_TYPE)


_WHAT_TO_TYPE = """\
Now, in any process:
  from datasets import load_dataset; import evaluate
  load_dataset("scale-vqa"), evaluate.load("scale_vqa_acc")
Without a network set HF_HUB_OFFLINE=1 and HF_EVALUATE_OFFLINE=1: nothing is asked then."""


def _source(data: str | None) -> Path:
    if data is not None:
        if Path(data).expanduser().is_dir():
            return Path(data).expanduser()
        if _HUB_ID.fullmatch(data) and not Path(data).exists():
            return _snapshot(data)
        raise click.BadParameter(f"{data!r} is neither a folder nor a Hub id org/name", param_hint="--data")
    folder = named_folder()
    if folder is not None:
        here = Path(DATASET_NAME)
        if here.is_dir() and not folder.samefile(here):
            click.echo(f"note: in this directory load_dataset({DATASET_NAME!r}) takes ./{DATASET_NAME}", err=True)
        return folder
    hub_id = os.environ.get(HUB_VARIABLE)
    if hub_id:
        return _snapshot(hub_id)
    raise click.UsageError(f"no release folder is named and none is here; {HOW_TO_MAKE_ONE}")


def _snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, repo_type="dataset", allow_patterns=["README.md", "*.parquet"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        hint = "check the id, `hf auth login` and the network, or name a folder"
        raise InputError(Problem(hub_id, "a data set on the Hub", found, hint)) from error
