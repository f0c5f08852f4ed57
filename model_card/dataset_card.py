"""The card of a release folder, completed from its rows and its audits.

The folder's writer makes the card that loads: configs, features, the account of each config. What it cannot know
(the licence, the audit, what the rows are fit for) is set here in marked sections; ``configs``, ``dataset_info`` and
all text outside of the marks stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from huggingface_hub import DatasetCard, DatasetCardData

from model_card.curation import read_curation
from model_card.dataset_facts import IDS_SHOWN, read_audits, split_facts
from model_card.licence import stated_licence
from model_card.sections import merged_card, render
from scale_vqa_eval import __version__
from scale_vqa_eval.audit.defects import KINDS
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.release_folder.card import head, read_notes

AUTHORS: Final = "Scale-VQA release"
"""How the source of rows begins that were read from the authors' files, or made of those."""
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(
    folder: Path,
    licence: Mapping[str, str | None],
    audits: Sequence[Path],
    curation: Path | None = None,
) -> str:
    """Returns the completed card of a release folder.

    Args:
        folder: the release folder.
        licence: ``license``, ``license_name``, ``license_link`` as given; what the card has stands in.
        audits: files of ``scale-vqa audit --json`` that cover every config.
        curation: the report of a curation run.

    Raises:
        InputError: naming every fact that is missing at once.
    """
    path = folder / "README.md"
    facts, places = split_facts(folder)
    old = path.read_text(encoding="utf-8")
    problems: list[Problem] = []
    stated = stated_licence(licence, head(old), str(path), problems)
    notes = read_notes(path)
    configs = list(dict.fromkeys(part.config for part in facts))
    for config in configs:
        if notes.get(config, "") in ("", "No account was given when this config was written."):
            location = f"{path}, config {config}"
            problems.append(
                Problem(location, "an account of where its rows come from", "none", "write it between the marks")
            )
    found = read_audits(audits, places, problems)
    made = None if curation is None else read_curation(curation, places, problems)
    if problems or stated is None:
        raise InputError(problems)
    rows = sum(part.n for part in facts)
    data = DatasetCardData(
        **stated.yaml(),
        size_categories=[next((name for most, name in _SIZES if rows < most), "n>1M")],
        tags=["leakage-audited"],
    )
    new = render(
        DatasetCard,
        data,
        "dataset_card.md.j2",
        facts=facts,
        audits=found,
        curation=made,
        kinds=KINDS,
        preview=IDS_SHOWN,
        licence=stated,
        authors_rows=sorted(
            {part.config for part in facts if any(source.startswith(AUTHORS) for source in part.sources)},
            key=configs.index,
        ),
        version=__version__,
        pc=_percent,
    )
    return merged_card(old, new, "## Citation", keep=("configs", "dataset_info"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
