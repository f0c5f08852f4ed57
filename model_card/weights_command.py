"""``scale-vqa weights``: a checkpoint made ready to be published."""

from __future__ import annotations

import re
from pathlib import Path

import click


def _size(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", value.strip(), re.IGNORECASE):
        raise click.BadParameter(f"{value!r} is no size such as 5GB or 500MB")
    return value


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A folder that is made.")
@click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", callback=_size, help="Largest weight file."
)
@click.option("--base", metavar="MODEL", help="Base of a LoRA adapter, and where missing files come from.")
@click.option("--keep-adapter", is_flag=True, help="Leave a LoRA adapter unmerged.  [default: merge it]")
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Load source and result, one after the other, and compare their logits.",
)
def weights(
    checkpoint: Path, out: Path, max_shard_size: str, base: str | None, keep_adapter: bool, check: bool
) -> int:
    """Write CHECKPOINT as it is published: safetensors shards, processor, chat template, generation config.

    Exit 1 where the logits are not those of CHECKPOINT.
    """
    from model_card.weights import prepare_weights

    made = prepare_weights(checkpoint, out, max_shard_size, not keep_adapter, base)
    click.echo(f"{made.folder}: {made.kind}, {made.tensors} tensors, {made.size} bytes, {len(made.shards)} files")
    if not check:
        return 0
    from model_card.logits import same_logits

    tolerance = None if made.kind == "merged" else 0.0
    own = (checkpoint / "tokenizer_config.json").is_file()  # an adapter often has no processor of its own
    found = same_logits(checkpoint, out, tolerance, base or made.base, processor=None if own else out)
    verdict = "the same" if found.same else "NOT the same"
    click.echo(
        f"logits of {found.tokens} tokens: {verdict}; largest difference {found.difference:.3g} standard deviations, "
        f"allowed {found.tolerance:.3g}" + (f"; inputs differ: {', '.join(found.inputs)}" if found.inputs else ""),
        err=not found.same,
    )
    return 0 if found.same else 1
