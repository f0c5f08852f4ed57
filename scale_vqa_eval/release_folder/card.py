"""The dataset card of a release folder: YAML that makes it load, and where the rows of each config come from.

Parts of a card that a command wrote lie between marks; everything outside of them belongs to people and is kept.
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
"""Prefix of the source of rows that come from the authors' files, or were made of those."""


@dataclass(frozen=True)
class DataOrigin:
    """What a card may claim about the rows of a folder.

    Attributes:
        title: name of the data set.
        annotators: ``annotations_creators`` as the Hub has them; empty if unknown.
        of_paper: whether rows are the paper's.
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
"""Prefix of a row's source -> what it means."""
_UNKNOWN: Final = DataOrigin("Questions in the format of Scale-VQA", ())

NO_LICENCE: Final = "see-the-configs"
"""Name of the licence of a card for which nobody has stated one yet."""
INCOMPLETE: Final = "incomplete"
"""Section in which a card says of itself what it does not state yet; completing the card takes it out."""
NOTE_MARK: Final = "<!-- note {config} -->"
CONTROLS: Final = ("block_exchange", "exchange", "screened")
"""Configs made of another one, which are never what loads without a name where the other is there."""
HUB: Final = "hub"
"""Config made of another one for Inspect's tasks on the Hub: a text and a composed image for each question."""
HUB_PROMPT: Final = "hub/prompt.yaml"
"""The prompt whose texts the rows of ``hub`` hold."""
_SPLIT_ORDER: Final = ("train", "validation", "val", "test")
_SECTION: Final = re.compile(
    r"^(?:## [^\n]*\n\s*)?<!-- section (?P<name>[\w-]+): [^\n]* -->\n.*?^<!-- end of section (?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
_HEAD: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def head(text: str) -> dict[str, Any]:
    """Returns the YAML of a card; empty if it has none.

    Raises:
        InputError: if it is not a YAML mapping.
    """
    found = _HEAD.match(text)
    content = parse_yaml(found[1], "the card") if found else {}
    if content is not None and not isinstance(content, dict):
        raise InputError(Problem("the card", "a YAML mapping in its head", preview(content), "fix the head"))
    return content or {}


def body(text: str) -> str:
    """Returns a card's text without its head."""
    found = _HEAD.match(text)
    return text[found.end() :] if found else text


def marked_sections(text: str) -> dict[str, str]:
    """Returns name -> marked section in their order, with its marks and the heading right before them."""
    return {found["name"]: found[0] for found in _SECTION.finditer(text)}


def read_notes(card: Path) -> dict[str, str]:
    """Returns config -> the paragraph that an earlier card has for it."""
    text = card.read_text(encoding="utf-8-sig")
    parts = {config: text.split(NOTE_MARK.format(config=config), 2) for config in CONFIGS}
    return {config: part[1].strip() if len(part) > 2 else "" for config, part in parts.items() if len(part) > 1}


def write_card(folder: Path, notes: Mapping[str, str], previous: Path | None = None) -> None:
    """Writes ``folder/README.md`` from the Parquet files that lie in the folder.

    Args:
        folder: the release folder; every sub-folder with Parquet files is a config.
        notes: config -> Markdown paragraph on its provenance.
        previous: a card whose notes are kept for the configs that ``notes`` does not name, and with them its licence
            and its sections written by hand; what ``scale-vqa card`` wrote goes, as the rows may have changed.
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
    """Returns where the rows of a release folder come from, by their ``source`` column."""
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
    """Returns the ``DatasetInfo`` of a config, from the footers of its files."""
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
    """Returns the sections of an earlier card that somebody wrote by hand: outside of marks, under headings of theirs.

    Marked sections are left out: they hold figures of rows that may have changed.

    Args:
        old: body of the earlier card.
        new: body of the card that takes its place; its headings are known.

    >>> own_words("# T\\n\\n## Columns\\nx\\n\\n## Thanks\\nTo all.\\n", "## Columns\\n")
    '## Thanks\\nTo all.'
    """
    known = {"", *by_heading(new)}
    kept = [text.strip() for heading, text in by_heading(_SECTION.sub("", old)).items() if heading not in known]
    return "\n\n".join(kept)


def by_heading(text: str) -> dict[str, str]:
    """Returns second-level heading -> its section, in order, ``""`` for the text before; fenced code has no headings.

    A fence that is left open is closed: in Markdown it runs to the end, and would swallow the text put after it.
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
    """Returns the YAML keys of an earlier card that a new one lacks, and its licence where one was stated.

    Args:
        old: head of the earlier card.
        written: head of the new one.
        placeholder: the licence name that says that none was stated.
    """
    kept = {key: value for key, value in old.items() if key not in written}
    if old.get("license") and old.get("license_name") != placeholder:
        kept |= {key: old.get(key) for key in ("license", "license_name", "license_link")}
    return kept
