"""The card of a release folder, completed from its rows, audits and curation report, and its Croissant metadata.

The builder of a folder writes a card with which it loads: configs, features and the provenance of each config. This
module adds marked sections (licence, audit, uses). It leaves ``configs``, ``dataset_info`` and all text outside the
markers unchanged. Croissant metadata (https://docs.mlcommons.org/croissant, written by ``mlcroissant``) lists every
Parquet file with its SHA-256, and has one record set per split, with fields from the Parquet schema.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from model_card.cards.text import (
    CROISSANT,
    CROISSANT_HINT,
    FILE,
    FOLDER,
    Licence,
    hash_problems,
    merged_card,
    read_object,
    render,
    repo_option,
    stated_doi,
    stated_licence,
)
from scale_vqa_eval import __version__
from scale_vqa_eval.audit.defects import KINDS
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, sha256_file
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.card import AUTHORS, data_origin, head, read_notes
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.schema import CONFIGS, LETTERS
from scale_vqa_eval.scoring.score import dimension_order, questions_digest

_MAX_IDS: Final = 2  # row ids per defect in the card
_AUDIT_FIELDS: Final = ("n", "verdict", "strongest", "probes", "dimensions", "null_check", "defects", "provenance")
_REPORT_FIELDS: Final = (
    "format",
    "input",
    "questions",
    "rounds",
    "costs",
    "outcomes",
    "models",
    "blind",
    "provenance",
)
_REPORT_FORMAT: Final = 1
_SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

DatasetSlice = tuple[str, str | None]
"""Config and split; the split is None for the complete config."""


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--license", metavar="ID", help="Licence id of the Hub: apache-2.0, cc-by-4.0, other, ...")
@click.option("--license-name", metavar="NAME", help="Name of the licence if its id is `other`.")
@click.option("--license-link", metavar="URL", help="Link to the licence if its id is `other`.")
@click.option("--audit", "audits", multiple=True, type=FILE, metavar="FILE", help="`audit --json`; repeatable.")
@click.option("--curation", type=FILE, metavar="FILE", help="Report of a curation run.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: FOLDER/README.md]")
@click.option("--croissant", is_flag=True, help="Also write FOLDER/croissant.json; needs --repo.")
@click.option("--doi", metavar="DOI", help="DOI that the Hub gave the dataset.")
@click.option("--repo", callback=repo_option, metavar="ORG/NAME", help="Hub id of the dataset.")
def dataset(
    folder: Path,
    audits: tuple[Path, ...],
    curation: Path | None,
    out: Path | None,
    croissant: bool,
    repo: str | None,
    doi: str | None,
    **licence: str | None,
) -> None:
    """Complete the card of the release FOLDER: splits, audit, known defects, uses, licence.

    Every config needs an audit of its rows: scale-vqa audit FOLDER --config NAME --json FILE.
    """
    if croissant and not repo:
        raise click.UsageError("--croissant needs --repo ORG/NAME, because the metadata has the address of the data")
    out = out or folder / "README.md"
    files = {out: dataset_card(folder, licence, audits, curation, repo, doi)}
    stated = stated_licence(licence, head(files[out]), str(out), [])
    if croissant and repo and stated:
        files[folder / CROISSANT] = croissant_metadata(folder, repo, stated, head(files[out]).get("doi"))
    for path, text in files.items():
        atomic_write(path, text, "name another --out")
        click.echo(str(path))


def dataset_card(
    folder: Path,
    licence: Mapping[str, str | None],
    audits: Sequence[Path],
    curation: Path | None = None,
    repo: str | None = None,
    doi: str | None = None,
) -> str:
    """Returns the completed card of a release folder.

    Args:
        folder: the release folder.
        licence: ``license``, ``license_name`` and ``license_link``; by default those of the existing card.
        audits: files of ``scale-vqa audit --json`` that together cover every config.
        curation: report of a curation run.
        repo: Hub id of the dataset.
        doi: DOI of the dataset; by default that of the existing card.

    Raises:
        InputError: listing all missing facts.
    """
    path = folder / "README.md"
    facts, slices = split_facts(folder)
    old = path.read_text(encoding="utf-8")
    problems: list[Problem] = []
    stated = stated_licence(licence, head(old), str(path), problems)
    doi = stated_doi(doi or head(old).get("doi"), f"{path}, doi", problems)
    notes = read_notes(path)
    configs = list(dict.fromkeys(part["config"] for part in facts))
    for config in configs:
        if notes.get(config, "") in ("", "No account was given when this config was written."):
            expected, hint = "a note on where its rows come from", "write it between the marks"
            problems.append(Problem(f"{path}, config {config}", expected, "none", hint))
    audited = _read_audits(audits, slices, problems)
    report = None if curation is None else _read_curation(curation, problems)
    if problems or stated is None:
        raise InputError(problems)
    rows = sum(part["n"] for part in facts)
    size = next((name for bound, name in _SIZES if rows < bound), "n>1M")
    authors = {part["config"] for part in facts if any(one.startswith(AUTHORS) for one in part["sources"])}
    new = render(
        DatasetCard,
        DatasetCardData(**stated.yaml(), size_categories=[size], tags=["leakage-audited"], doi=doi),
        "dataset_card.md.j2",
        facts=facts,
        audits=audited,
        curation=report,
        same_rows=report is not None and report["provenance"].get("data_hash") in slices,
        kinds=KINDS,
        max_ids=_MAX_IDS,
        licence=stated,
        origin=data_origin(folder),
        repo=repo,
        doi=doi,
        authors_rows=[config for config in configs if config in authors],
        version=__version__,
    )
    return merged_card(old, new, "## Citation", keep=("configs", "dataset_info"))


def split_facts(folder: Path) -> tuple[list[dict[str, Any]], dict[str, list[DatasetSlice]]]:
    """Returns the counts of every split of a folder, and data hash -> slices of the data with this hash."""
    facts: list[dict[str, Any]] = []
    slices: dict[str, list[DatasetSlice]] = {}
    for config, splits in release_configs(folder).items():
        everything: list[Question] = []
        for split, files in splits.items():
            questions = read_questions(folder, split, config)
            slices.setdefault(questions_digest(questions), []).append((config, split))
            facts.append(_counted(config, split, questions, files))
            everything += questions
        slices.setdefault(questions_digest(everything), []).append((config, None))
    return facts, slices


def _counted(config: str, split: str, questions: Sequence[Question], files: Sequence[Path]) -> dict[str, Any]:
    """Returns the counts of a split, such as right answers per letter (A first) and questions per dimension."""
    dimensions = Counter(question.dimension or "none" for question in questions)
    letters = Counter(question.answer for question in questions)
    options = max(len(question.options) for question in questions)
    columns = [pq.read_table(file, columns=["source"]) for file in files if "source" in pq.read_schema(file).names]
    return {
        "config": config,
        "split": split,
        "n": len(questions),
        "patients": len({question.cluster for question in questions}),
        "slides": len({question.slide for question in questions}),
        "letters": [letters[index] for index in range(min(options, len(LETTERS)))],
        "dimensions": dict(sorted(dimensions.items(), key=lambda item: dimension_order(item[0]))),
        "groups": len({question.group for question in questions if question.group}),
        "sources": sorted({one for table in columns for one in table["source"].unique().to_pylist() if one}),
    }


def _read_audits(
    paths: Sequence[Path], slices: Mapping[str, Sequence[DatasetSlice]], problems: list[Problem]
) -> list[dict[str, Any]]:
    """Reads audits and matches them to rows by data hash; configs with the same texts share an audit."""
    audits: list[dict[str, Any]] = []
    covered: set[DatasetSlice] = set()
    for path in paths:
        try:
            report = read_object(path, "an audit", "run `scale-vqa audit --json`", _AUDIT_FIELDS)
        except InputError as error:
            problems.extend(error.problems)
            continue
        of = slices.get(report["provenance"].get("data_hash"), ())
        if not of:
            expected, hint = "an audit of rows of this folder", "run the audit again on this folder"
            problems.append(Problem(str(path), expected, "the data hash of other rows", hint))
            continue
        covered.update(of)
        configs = [config for config, split in of if split is None]
        splits = [f"{config}, {split}" for config, split in of if split is not None and config not in configs]
        heuristic = max((probe for probe in report["probes"] if not probe["trained"]), key=lambda p: p["accuracy"])
        rows = " and ".join([*configs, *splits])
        defects: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for defect in report["defects"]:
            defects.setdefault(str(defect["kind"]), []).append(str(defect["id"]))
        defects = {kind: ids for kind, ids in defects.items() if ids}
        audits.append({"rows": rows, "report": report, "heuristic": heuristic, "defects": defects})
    everything = [one for group in slices.values() for one in group]
    for config in dict.fromkeys(config for config, _ in everything):
        splits_of = {one for one in everything if one[0] == config and one[1] is not None}
        if (config, None) not in covered and not splits_of <= covered:
            hint = f"scale-vqa audit FOLDER --config {config} --json audit-{config}.json, and name it with --audit"
            problems.append(Problem(f"config {config}", "an audit of its rows", "none", hint))
    order = list(dict.fromkeys([*CONFIGS, *(config for config, _ in everything)]))
    return sorted(audits, key=lambda audit: order.index(audit["rows"].split(",")[0].split(" and ")[0]))


def _read_curation(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        report = read_object(path, "a curation report", "take the one that `scale-vqa curate` wrote", _REPORT_FIELDS)
    except InputError as error:
        problems.extend(error.problems)
        return None
    if report["format"] != _REPORT_FORMAT:
        expected, hint = f"a curation report of format {_REPORT_FORMAT}", "use the version of scale-vqa that wrote it"
        problems.append(Problem(str(path), expected, preview(report["format"]), hint))
        return None
    return report


_PARQUET: Final = "application/x-parquet"
_DESCRIPTION: Final = (
    "Four-option questions about nested fields of one pathology slide at three magnifications. For research only, not "
    "for diagnosis."
)
_PAPER: Final = "Phan et al., Enhancing Pathological VLMs with Cross-scale Reasoning, MICCAI 2026, arXiv:2606.17412"


def croissant_metadata(folder: Path, repo: str, licence: Licence, doi: str | None = None) -> str:
    """Returns the Croissant JSON-LD of a release folder; deterministic.

    Raises:
        InputError: if ``mlcroissant`` reports an error in the result.
    """
    import mlcroissant as mlc

    configs, origin = release_configs(folder), data_origin(folder)
    shards = [file for splits in configs.values() for files in splits.values() for file in files]
    distribution: list[Any] = [
        mlc.FileObject(
            id=name,
            name=name,
            content_url=name,
            content_size=f"{file.stat().st_size} B",
            encoding_formats=[_PARQUET],
            sha256=sha256_file(file),
        )
        for file in shards
        for name in [file.relative_to(folder).as_posix()]
    ]
    cite = _PAPER if origin.of_paper else f"{origin.title}, made with scale-vqa {__version__}. Format: {_PAPER}"
    cite += f". Data: https://doi.org/{doi}" if doi else ""
    records = []
    for config, splits in configs.items():
        for split, files in splits.items():
            name, parquet = f"{config}/{split}", f"{config}/{split}-files"
            pattern = f"{config}/{split}-*.parquet"
            distribution.append(mlc.FileSet(id=parquet, name=parquet, encoding_formats=[_PARQUET], includes=[pattern]))
            records.append(mlc.RecordSet(id=name, name=name, fields=list(_fields(mlc, name, files[0]))))
    metadata = mlc.Metadata(
        name=repo.split("/")[-1],
        description=f"{origin.title}. {_DESCRIPTION}",
        url=f"https://huggingface.co/datasets/{repo}",
        license=[licence.link or licence.id],
        version=__version__,
        cite_as=cite,
        distribution=distribution,
        record_sets=records,
    )
    if metadata.issues.errors:
        found = preview(" ".join(sorted(map(str, metadata.issues.errors))), 300)
        raise InputError(Problem(str(folder), "rows that Croissant can describe", found, "report this folder"))
    return json.dumps(metadata.to_json(), indent=2, ensure_ascii=False, default=str) + "\n"


def check_croissant(path: Path) -> list[Problem]:
    """Returns the problems of a Croissant file: errors of ``mlcroissant``, and hashes that differ from the files'."""
    import mlcroissant as mlc

    try:
        dataset = mlc.Dataset(jsonld=str(path))
    except (OSError, ValueError, mlc.ValidationError) as error:
        return [Problem(str(path), "valid Croissant metadata", preview(str(error), 300), CROISSANT_HINT)]
    issues = sorted(dataset.metadata.issues.errors)
    problems = [
        Problem(str(path), "valid Croissant metadata", preview(str(issue), 200), CROISSANT_HINT) for issue in issues
    ]
    files = {file.relative_to(path.parent).as_posix(): sha256_file(file) for file in path.parent.rglob("*.parquet")}
    return problems + hash_problems(str(path), path.read_text(encoding="utf-8"), files)


def _fields(mlc: Any, name: str, file: Path) -> Iterator[Any]:
    """Yields a field for each column that Croissant can read."""
    schema = pq.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    for column, feature in features.items():
        options: dict[str, Any] = {}
        transforms, description = [], None
        listed = isinstance(feature, Mapping) and feature.get("_type") == "List"
        kind = (feature["feature"] if listed else feature).get("_type") if isinstance(feature, Mapping) else None
        if kind == "Image":
            data_type, transforms = mlc.DataType.IMAGE_OBJECT, [mlc.Transform(json_path="bytes")]
            # the older spelling `repeated`: mlcroissant decodes each of its images, and fails on an array of images
            options = {"repeated": True} if listed else {}
        elif kind == "ClassLabel" and not listed:
            data_type = mlc.DataType.INTEGER
            description = ", ".join(f"{index} = {label}" for index, label in enumerate(feature["names"]))
        elif kind == "Value":
            data_type = mlc.DataType.TEXT
            options = {"is_array": True, "array_shape": "-1"} if listed else {}
        else:
            continue
        extract = mlc.Extract(column=column)
        yield mlc.Field(
            id=f"{name}/{column}",
            name=column,
            description=description,
            data_types=[data_type],
            source=mlc.Source(file_set=f"{name}-files", extract=extract, transforms=transforms),
            **options,
        )
