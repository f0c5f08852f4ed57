"""The dataset card of a release folder: YAML that ``datasets`` reads, and a note on the source of each config.

Sections that a command wrote are enclosed in marks; all other text is written by users and is kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import parse_yaml, sha256_file
from scale_vqa_eval.schema import CONFIGS, DATASET_NAME

OPEN: Final = "<!-- section {name}: written by `scale-vqa card`; text of yours goes outside of the marks -->"
CLOSE: Final = "<!-- end of section {name} -->"

AUTHORS: Final = "Scale-VQA release"
"""Prefix of the ``source`` of rows that come from the authors' files, or were made from them."""


@dataclass(frozen=True)
class DataOrigin:
    """What a card states about the origin of the rows.

    Attributes:
        title: name of the dataset.
        annotators: values of the Hub's ``annotations_creators``; empty if unknown.
        of_paper: whether the folder contains questions of the paper.
    """

    title: str
    annotators: tuple[str, ...]
    of_paper: bool = False


_ORIGINS: Final = {
    AUTHORS: DataOrigin("Scale-VQA", ("expert-generated", "machine-generated"), True),
    "phantom": DataOrigin("Questions on synthetic slides in the format of Scale-VQA", ("machine-generated",)),
    "slide geometry": DataOrigin("Questions from slide geometry in the format of Scale-VQA", ("machine-generated",)),
    "curated": DataOrigin("Questions from captions in the format of Scale-VQA", ("machine-generated",)),
}
"""Prefix of a row's ``source`` -> origin."""
_UNKNOWN: Final = DataOrigin("Questions in the format of Scale-VQA", ())

NO_LICENCE: Final = "see-the-configs"
"""``license_name`` of a card whose licence is not stated yet."""
INCOMPLETE: Final = "incomplete"
"""Section that lists what the card does not state yet; it is removed when the card is completed."""
NOTE_MARK: Final = "<!-- note {config} -->"
CONTROLS: Final = ("block_exchange", "exchange", "screened")
"""Configs derived from another one; they are the default config only if there is no other."""
HUB: Final = "hub"
"""Config derived from another one for Inspect's tasks on the Hub: one text and one composed image per question."""
HUB_PROMPT: Final = "hub/prompt.yaml"
"""File with the prompt that the texts of ``hub`` were made with."""
_SPLIT_ORDER: Final = ("train", "validation", "val", "test")
_SECTION: Final = re.compile(
    r"^(?:## [^\n]*\n\s*)?<!-- section (?P<name>[\w-]+): [^\n]* -->\n.*?^<!-- end of section (?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
_HEAD: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def head(text: str) -> dict[str, Any]:
    """Returns the YAML metadata of a card, or an empty mapping if it has none.

    Raises:
        InputError: if it is not a YAML mapping.
    """
    found = _HEAD.match(text)
    content = parse_yaml(found[1], "the card") if found else {}
    if content is not None and not isinstance(content, dict):
        raise InputError(Problem("the card", "a YAML mapping as its metadata", preview(content), "fix the metadata"))
    return content or {}


def body(text: str) -> str:
    """Returns a card's text without its YAML metadata."""
    found = _HEAD.match(text)
    return text[found.end() :] if found else text


def marked_sections(text: str) -> dict[str, str]:
    """Returns name -> marked section in order, including its marks and the heading directly before them."""
    return {found["name"]: found[0] for found in _SECTION.finditer(text)}


def read_notes(card: Path) -> dict[str, str]:
    """Returns config -> note of an earlier card."""
    text = card.read_text(encoding="utf-8-sig")
    parts = {config: text.split(NOTE_MARK.format(config=config), 2) for config in CONFIGS}
    return {config: part[1].strip() if len(part) > 2 else "" for config, part in parts.items() if len(part) > 1}


def write_card(folder: Path, notes: Mapping[str, str], previous: Path | None = None) -> None:
    """Writes ``folder/README.md`` for the Parquet files in the folder.

    Args:
        folder: the release folder; every sub-folder with Parquet files is a config.
        notes: config -> Markdown paragraph on its provenance.
        previous: an earlier card, whose notes on other configs, licence and hand-written sections are kept. Sections
            that ``scale-vqa card`` wrote are removed, because the rows may have changed.
    """
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData
    from jinja2 import Environment, PackageLoader

    present = [config for config in CONFIGS if any((folder / config).glob("*.parquet"))]
    infos = {config: _info(folder / config, config) for config in present}
    origin = data_origin(folder)
    data = DatasetCardData(
        language=["en"],
        license="other",
        license_name=NO_LICENCE,
        task_categories=["visual-question-answering", "multiple-choice"],
        tags=["pathology", "medical", "multi-image", "multi-scale"],
        pretty_name=origin.title,
        annotations_creators=list(origin.annotators) or None,
    )
    first = next((config for config in present if config not in (*CONTROLS, HUB)), present[0])
    configs: dict[str, dict[str, Any]] = {}
    for config in present:
        configs[config] = {
            "data_files": [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in infos[config].splits]
        }
        if config == first:
            configs[config]["default"] = True
        # `datasets` keys its cache of a local folder by the card, not by the files: without a hash of the content,
        # changed rows of the same size would not be read again
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
        origin=origin,
        mark=NOTE_MARK,
        opening=OPEN.format(name=INCOMPLETE),
        closing=CLOSE.format(name=INCOMPLETE),
    )
    if previous is not None and previous.is_file():
        old = previous.read_text(encoding="utf-8-sig")
        for key, value in kept_facts(head(old), vars(data), NO_LICENCE).items():
            setattr(data, key, value)
        theirs = own_words(body(old), text)
        text = text.replace("## Citation\n", f"{theirs}\n\n## Citation\n" if theirs else "## Citation\n", 1)
    card = DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)
    (folder / "README.md").write_text(str(card), encoding="utf-8", newline="\n")


def data_origin(folder: Path) -> DataOrigin:
    """Returns the origin of the rows of a release folder, from their ``source`` column."""
    import pyarrow.parquet as pq

    sources: set[str] = set()
    for file in folder.glob("*/*.parquet"):
        if "source" in pq.read_schema(file).names:
            sources |= {str(one) for one in pq.read_table(file, columns=["source"])["source"].unique().to_pylist()}
    kinds = {next((name for name in _ORIGINS if source.startswith(name)), "") for source in sources}
    if AUTHORS in kinds:
        return _ORIGINS[AUTHORS]
    if len(kinds) == 1:
        return _ORIGINS.get(kinds.pop(), _UNKNOWN)
    annotators = {_ORIGINS.get(kind, _UNKNOWN).annotators for kind in kinds}
    return replace(_UNKNOWN, annotators=annotators.pop() if len(annotators) == 1 else ())


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_file(path)))
    return digest.hexdigest()


def _info(folder: Path, config: str) -> Any:
    """Returns the ``DatasetInfo`` of a config, from the Parquet metadata of its files."""
    import pyarrow.parquet as pq
    from datasets import Features
    from datasets.info import DatasetInfo
    from datasets.splits import SplitDict, SplitInfo

    splits = SplitDict(dataset_name=DATASET_NAME)
    download_size, features = 0, None
    names = {path.name.rsplit("-", 3)[0] for path in folder.glob("*.parquet")}
    for split in sorted(names, key=lambda name: (_SPLIT_ORDER.index(name) if name in _SPLIT_ORDER else 9, name)):
        files = sorted(folder.glob(f"{split}-*-of-*.parquet"))
        metas = [pq.read_metadata(file) for file in files]
        size = sum(meta.row_group(group).total_byte_size for meta in metas for group in range(meta.num_row_groups))
        features = Features.from_arrow_schema(metas[0].schema.to_arrow_schema())
        rows = sum(meta.num_rows for meta in metas)
        splits.add(SplitInfo(name=split, num_bytes=size, num_examples=rows, dataset_name=DATASET_NAME))
        download_size += sum(file.stat().st_size for file in files)
    return DatasetInfo(
        features=features,
        splits=splits,
        config_name=config,
        dataset_name=DATASET_NAME,
        download_size=download_size,
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )


def own_words(old: str, new: str) -> str:
    """Returns the hand-written sections of an earlier card: those without marks whose headings are not in ``new``.

    >>> own_words("# T\\n\\n## Columns\\nx\\n\\n## Thanks\\nTo all.\\n", "## Columns\\n")
    '## Thanks\\nTo all.'
    """
    known = {"", *by_heading(new)}
    kept = [text.strip() for heading, text in by_heading(_SECTION.sub("", old)).items() if heading not in known]
    return "\n\n".join(kept)


def by_heading(text: str) -> dict[str, str]:
    """Returns second-level heading -> its section in order, with ``""`` for the text before; ignores fenced code.

    An open code fence is closed, because it would include text that is appended to the section.
    """
    sections: dict[str, list[str]] = {"": []}
    heading, fence = "", ""
    for line in text.splitlines(keepends=True):
        opening = re.match(r" {0,3}(`{3,}(?!.*`)|~{3,})", line)
        closing = re.match(r" {0,3}(`{3,}|~{3,})\s*$", line)
        if opening and not fence:
            fence = opening.group(1)
        elif fence and closing and closing.group(1).startswith(fence):
            fence = ""
        if not fence and (found := re.match(r"##\s+(.+?)\s*#*\s*$", line)):
            heading, number = found.group(1), 1
            while heading in sections:
                number += 1
                heading = f"{found.group(1)} ({number})"
            sections[heading] = []
        sections[heading].append(line)
    if fence:
        sections[heading] = ["".join(sections[heading]).rstrip("\n"), f"\n{fence}\n"]
    return {heading: "".join(lines) for heading, lines in sections.items() if "".join(lines).strip()}


def kept_facts(old: Mapping[str, Any], written: Mapping[str, Any], placeholder: str) -> dict[str, Any]:
    """Returns the YAML metadata of an earlier card that a new card lacks, and its licence if one was stated.

    ``placeholder`` is the ``license_name`` of a card without a stated licence.
    """
    kept = {key: value for key, value in old.items() if key not in written}
    if old.get("license") and old.get("license_name") != placeholder:
        kept |= {key: old.get(key) for key in ("license", "license_name", "license_link")}
    return kept
