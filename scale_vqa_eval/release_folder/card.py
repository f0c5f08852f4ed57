"""The dataset card of a release folder: YAML that makes it load, and an honest account of each config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from datasets import Features
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment, PackageLoader

from scale_vqa_eval.release_folder.card_marks import CLOSE, OPEN, body, head, kept_facts, own_words
from scale_vqa_eval.schema import CONFIGS

NO_LICENCE: Final = "see-the-configs"
"""Name of the licence of a card for which nobody has stated one yet."""
INCOMPLETE: Final = "incomplete"
"""Section in which a card says of itself what it does not state yet; completing the card takes it out."""
NOTE_MARK: Final = "<!-- note {config} -->"
CONTROLS: Final = ("exchange", "screened")
"""Configs made of another one, which are never what loads without a name where the other is there."""
_SPLIT_ORDER: Final = ("train", "validation", "val", "test")


def write_card(folder: Path, notes: Mapping[str, str], previous: Path | None = None) -> None:
    """Writes ``folder/README.md`` from the Parquet files that lie in the folder.

    Args:
        folder: the release folder; every sub-folder with Parquet files is a config.
        notes: config -> Markdown paragraph on its provenance.
        previous: a card whose notes are kept for the configs that ``notes`` does not name, and with them its licence
            and its sections written by hand; what ``scale-vqa card`` wrote goes, as the rows may have changed.
    """
    present = [config for config in CONFIGS if any((folder / config).glob("*.parquet"))]
    infos = {config: _info(folder / config, config) for config in present}
    data = DatasetCardData(
        language=["en"],
        license="other",
        license_name=NO_LICENCE,
        task_categories=["visual-question-answering", "multiple-choice"],
        tags=["pathology", "medical", "multi-image", "multi-scale"],
        pretty_name="Scale-VQA",
        annotations_creators=["expert-generated", "machine-generated"],
    )
    first = next((config for config in present if config not in CONTROLS), present[0])
    configs: dict[str, dict[str, Any]] = {}
    for config in present:
        configs[config] = {
            "data_files": [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in infos[config].splits]
        }
        if config == first:
            configs[config]["default"] = True
        # `datasets` keys its cache of a local folder by the card, not by the files: with the content's hash in the
        # card, rows that changed while no size did are read anew.
        configs[config]["description"] = f"{CONFIGS[config]} (content sha256:{_content_hash(folder / config)})"
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(configs).to_dataset_card_data(data)
    kept = read_notes(previous) if previous is not None and previous.is_file() else {}
    template = Environment(
        loader=PackageLoader("scale_vqa_eval", "templates"), keep_trailing_newline=True
    ).get_template("dataset_card.md.j2")
    text = template.render(
        configs=[(name, CONFIGS[name], infos[name], {**kept, **notes}.get(name, "")) for name in present],
        first=first,
        mark=NOTE_MARK,
        opening=OPEN.format(name=INCOMPLETE),
        closing=CLOSE.format(name=INCOMPLETE),
    )
    if previous is not None and previous.is_file():
        old = previous.read_text(encoding="utf-8")
        for key, value in kept_facts(head(old), vars(data), NO_LICENCE).items():
            setattr(data, key, value)
        theirs = own_words(body(old), text)
        text = text.replace("## Citation\n", f"{theirs}\n\n## Citation\n" if theirs else "## Citation\n", 1)
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)
    (folder / "README.md").write_text(str(card), encoding="utf-8", newline="\n")


def read_notes(card: Path) -> dict[str, str]:
    """Returns config -> the paragraph that an earlier card has for it."""
    text = card.read_text(encoding="utf-8")
    notes = {}
    for config in CONFIGS:
        mark = NOTE_MARK.format(config=config)
        if mark in text:
            notes[config] = text.split(mark, 2)[1].strip() if text.count(mark) > 1 else ""
    return notes


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _info(folder: Path, config: str) -> DatasetInfo:
    splits = SplitDict(dataset_name="scale-vqa")
    sizes = 0
    features = None
    names = {path.name.rsplit("-", 3)[0] for path in folder.glob("*.parquet")}
    for split in sorted(names, key=lambda name: (_SPLIT_ORDER.index(name) if name in _SPLIT_ORDER else 9, name)):
        files = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        metas = [pq.ParquetFile(file) for file in files]
        rows = sum(meta.metadata.num_rows for meta in metas)
        size = sum(
            meta.metadata.row_group(group).total_byte_size
            for meta in metas
            for group in range(meta.metadata.num_row_groups)
        )
        features = Features.from_arrow_schema(metas[0].schema_arrow)
        splits.add(SplitInfo(name=split, num_bytes=size, num_examples=rows, dataset_name="scale-vqa"))
        sizes += sum(file.stat().st_size for file in files)
    return DatasetInfo(
        features=features,
        splits=splits,
        config_name=config,
        dataset_name="scale-vqa",
        download_size=sizes,
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
