"""Time and memory of the curation's steps at the size of tens of thousands of paths.

``python benchmarks/curate_steps.py [--slides 5000]`` runs decompose, generate and one round of two adversaries on
captions of phantom slides (four paths each), every step in a process of its own, and prints seconds and peak memory
for each path. The scripted double answers within the process, so that everything but the models is measured: each
answer is written to disk as ever (``TMPDIR`` says where). The audit's probes have figures of their own and are left
out; ``--probes`` puts them in.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from phantom_captions import caption_plans, caption_row
from scripted_roles import answer

from dataset_script.curate.work import write_lines

STEPS = ("open", "decompose", "generate", "screen")


async def _answered(session: Any, model: str, messages: Any, sampling: Mapping[str, Any], key: str) -> Any:
    """Stands in for the HTTP call: the scripted double, in this process."""
    from scale_vqa_eval.chat_replies import CallResult

    text = answer({"model": model, "messages": messages})
    return CallResult(text=text, finish="stop", prompt_tokens=1, completion_tokens=1, served=model)


def _run(step: str, folder: str, out: Any) -> None:
    """Runs one step and sends seconds, peak memory (MB), and that of the bare process."""
    from dataset_script.curate import (
        command,
        screening,  # noqa: F401  imported before the bare process is measured
    )
    from dataset_script.curate.work import open_work, read_settings
    from scale_vqa_eval.llm import LLMSession

    LLMSession.ask = _answered  # type: ignore[assignment, method-assign]
    root = Path(folder)
    settings = read_settings(root / "curate.yaml")
    bare = _peak()
    start = time.perf_counter()
    work = open_work(root / "work", root / "captions.jsonl", settings)
    run = command.CurationRun(settings, work, progress=False)
    if step != "open":
        {"decompose": command.decompose, "generate": command.generate, "screen": command.screen}[step](run)
    out.send((time.perf_counter() - start, _peak(), bare))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(step: str, folder: Path) -> tuple[float, float, float]:
    """Returns seconds, peak memory and bare memory (MB) of a step in a fresh process."""
    context = multiprocessing.get_context("spawn")
    there, here = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(step, str(folder), here))
    process.start()
    here.close()
    try:
        found: tuple[float, float, float] = there.recv()
    except EOFError:
        raise click.ClickException(f"step {step} failed") from None
    process.join()
    return found


@click.command()
@click.option("--slides", type=click.IntRange(1), default=5000, show_default=True, help="Four paths of each.")
@click.option("--probes", is_flag=True, help="Fit the audit's probes to the pool as well.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(slides: int, probes: bool, seed: int) -> None:
    """Print a table: step, seconds, milliseconds a path, peak memory, kB a path above the bare process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lines(folder / "captions.jsonl", (caption_row(plan) for plan in caption_plans(slides, seed)))
        role = {"base_url": "http://127.0.0.1:9/v1"}
        roles: dict[str, Any] = {one: {**role, "model": one} for one in ("decompose", "generate", "analyse")}
        roles["adversary"] = [{**role, "name": one, "model": one, "repeats": 1} for one in ("medoid", "longest")]
        settings = {"seed": seed, "rounds": 1, "probes": probes, "source": "phantom captions", "roles": roles}
        (folder / "curate.yaml").write_text(json.dumps(settings), encoding="utf-8")
        click.echo(
            f"{4 * slides} paths\n\n| step | seconds | ms a path | peak MB | kB a path |\n|---|---|---|---|---|"
        )
        for step in STEPS:
            seconds, peak, bare = measure(step, folder)
            click.echo(
                f"| {step} | {seconds:.0f} | {1000 * seconds / 4 / slides:.1f} | {peak:.0f} "
                f"| {1024 * (peak - bare) / 4 / slides:.1f} |"
            )
        made = json.loads((folder / "work" / "items.json").read_text(encoding="utf-8"))
        click.echo(f"\n{made['items']} questions, {made['sets_planned']} exchange sets")


if __name__ == "__main__":
    main()
