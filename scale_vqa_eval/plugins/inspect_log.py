"""Writes the responses of an Inspect log as a predictions file: ``python -m scale_vqa_eval.plugins.inspect_log``.

``scale-vqa score``, ``compare`` and ``report`` also read the log itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.scoring.tool_results import tool_lines


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Predictions file.")
def main(log: Path, out: Path) -> None:
    """Write the responses of LOG, an Inspect log of the task scale_vqa, as a predictions file."""
    try:
        lines = tool_lines(log)
        if lines is None:
            raise InputError(Problem(str(log), "an Inspect log (.eval or .json)", "another file", "name a log"))
        rows = list(lines)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    atomic_write(out, "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in rows), "name another --out")
    click.echo(f"{out}: {len(rows)} responses", err=True)


if __name__ == "__main__":
    main()
