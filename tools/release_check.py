"""make release-check: builds the three folders that would be published from demo data and checks each.

python tools/release_check.py [--out DIR] [--slides N] [--bare-python PATH]

Exit 0 where every check passed. The folders stay in DIR, to be looked at.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from release_checks import (
    bare_python,
    card_problems,
    croissant_problems,
    loading_problems,
    metric_problems,
    publish_problems,
    viewer_problems,
)
from release_folders import FACTS, ROOT, build_dataset, build_metric, build_model

LEFT = f"""
What is left to a person, because no program can know it:
  1. The rows: build the real release folder; the authors' questions came without a licence, so ask for their leave.
  2. The licence of data and weights (scale-vqa card dataset --license; license in the facts of the model).
  3. An audit of every config, and experts who confirm the exchange groups: until then the card says that none did.
  4. Scores of the real weights with --blind; a card marks what has no blind control.
  5. The facts: who made it, a contact, power of the devices and where that figure is from. Repository and Issues (or
     Contact) under [project.urls] of pyproject.toml: the cards take their links from there.
  6. Read the three cards in {{out}}, then those of the real folders.
  7. make release VERSION=x.y.z, look at the diff, commit and tag.
  8. A token with write access (hf auth login); then, each first without --yes, which shows what would change:
       scale-vqa publish dataset FOLDER --repo ORG/scale-vqa --yes
       scale-vqa publish metric --repo ORG/scale_vqa_acc --yes
       scale-vqa weights CHECKPOINT --out FOLDER, scale-vqa card model ... --out FOLDER,
       scale-vqa publish model FOLDER --repo ORG/NAME --yes
       scale-vqa publish space model_card/leaderboard --repo ORG/NAME --yes, with results files in its results/
  9. On the Hub: look at the viewer, open the Spaces, ask for a DOI; then
     scale-vqa card dataset FOLDER --doi DOI, doi in the facts of the model, and publish the cards again.
Nothing of the demo ({FACTS["dataset"]}, {FACTS["repo"]}) is meant to be published.
"""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "build" / "release-check", show_default=True)
@click.option("--slides", default=4, show_default=True, help="Phantom slides of the demo data.")
@click.option(
    "--bare-python", "bare", type=click.Path(exists=True, path_type=Path), help="An environment made before."
)
def main(out: Path, slides: int, bare: Path | None) -> None:
    """Build, check, and say what is left."""
    started = time.monotonic()
    out = out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    dataset = build_dataset(out, slides)
    metric = build_metric(out)
    model = build_model(out, dataset)
    python = bare or bare_python(out / "bare", metric / "requirements.txt")
    checks: dict[str, Callable[[], list[str]]] = {
        "version, one in every place": version_problems,
        "dataset: card": lambda: card_problems(dataset, "dataset"),
        "dataset: Parquet as the viewer needs it": lambda: viewer_problems(dataset),
        "dataset: loads by load_dataset alone": lambda: loading_problems(dataset, out / "home-data"),
        "dataset: Croissant, valid and its records the rows": lambda: croissant_problems(dataset),
        "dataset: nothing secret, local or strange": lambda: publish_problems(dataset, "dataset"),
        "metric: card": lambda: card_problems(metric, "metric"),
        "metric: works with its requirements alone": lambda: metric_problems(metric, python, out / "home-metric"),
        "metric: nothing secret, local or strange": lambda: publish_problems(metric, "metric"),
        "model: card, model-index, .eval_results": lambda: card_problems(model, "model"),
        "model: nothing secret, local or strange": lambda: publish_problems(model, "model"),
    }
    problems = 0
    for name, check in checks.items():
        found = check()
        click.echo(f"{'ok    ' if not found else 'FAILED'}  {name}")
        for line in found:
            click.echo(f"        {line}")
        problems += len(found)
    click.echo(LEFT.format(out=out))
    click.echo(f"{len(checks)} checks, {problems} faults, {time.monotonic() - started:.0f} s", err=True)
    sys.exit(1 if problems else 0)


def version_problems() -> list[str]:
    """Compares the places that name the version."""
    command = [sys.executable, str(ROOT / "tools" / "release.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.splitlines()


if __name__ == "__main__":
    main()
