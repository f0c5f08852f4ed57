"""Code shared by all cards: rendering, merging, licences. Also the card of the metric.

A card is rendered from its template. ``merged_card`` updates an existing local card: only the text between the markers
is replaced. ``merge_cards`` merges the folder's card with the card on the Hub, where each of these is a part: a YAML
key, an entry of ``configs`` or ``dataset_info``, the text before the first heading, and a section under a second-level
heading. The manifest of the last publication has a digest of every part as it was generated then. For each part:

- If only one card has it, the merged card has it too, unless it is an unchanged generated part that is no longer
  generated.
- If the Hub's part is unchanged since it was generated, the folder's part replaces it.
- Otherwise somebody edited it on the Hub. It is kept as it is, and the plan lists it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import click
import yaml
from huggingface_hub import RepoCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import CardData
from huggingface_hub.utils import validate_repo_id

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write, parse_json, sha256_json
from scale_vqa_eval.release_folder.card import CLOSE, NO_LICENCE, OPEN, body, by_heading, head, marked_sections
from scale_vqa_eval.schema import METRIC_FOLDER
from scale_vqa_eval.text import markdown, percent, points

CROISSANT: Final = "croissant.json"
CROISSANT_HINT: Final = "write it again: scale-vqa card dataset --croissant --repo ORG/NAME, or remove it"
PAPER: Final = files("model_card").joinpath("templates", "paper.bib").read_text(encoding="utf-8").strip()
"""BibTeX of the paper."""
FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_MACROS: Final = (
    "{% macro section(name, heading='') %}{% if heading %}## {{ heading }}\n\n{% endif %}"
    + OPEN.replace("{name}", "{{ name }}")
    + "\n{{ caller() | trim }}\n"
    + CLOSE.replace("{name}", "{{ name }}")
    + "{% endmacro %}"
    + "{% macro software(version) %}@software{scale_vqa_package,\n"
    + "  title   = {scale-vqa: the release package of Scale-VQA, with leakage audit and controls},\n"
    + "  author  = {{ '{{The scale-vqa developers}}' }},\n  version = {{ '{' }}{{ version }}{{ '}' }},\n"
    + "{% if urls.Repository %}  url     = {{ '{' }}{{ urls.Repository }}{{ '}' }},\n{% endif %}"
    + "  license = {Apache-2.0}\n}{% endmacro %}"
    + "{% macro ci(pair, format=pc) %}[{{ format(pair[0]) }}, {{ format(pair[1]) }}]{% endmacro %}"
)
_DOI: Final = re.compile(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+")
_LICENCE_ID: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LICENCE_LINK: Final = re.compile(r"https?://[^\s()<>]+|[\w.-]+")
_EXAMPLE: Final[dict[str, list[Any]]] = {
    "predictions": ["<think>Glands at 40x.</think> <answer>B</answer>", "<answer>C</answer>", "It is A.", None],
    "references": ["B", "C", "A", "D"],
    "cluster": ["P1", "P1", "P2", "P3"],
    "blind": ["<answer>B</answer>", "<answer>A</answer>", "<answer>A</answer>", "<answer>A</answer>"],
}
_EXAMPLE_FIGURES: Final = (
    "accuracy",
    "interval",
    "clusters",
    "unparsed",
    "blind",
    "visual_gain",
    "leakage_adjusted_accuracy",
)
_SPACE_FIELDS: Final = ("title", "sdk", "sdk_version", "app_file", "license", "tags")
_BY_CONFIG: Final = ("configs", "dataset_info")

CardPart = tuple[str, str]
"""("yaml", key), ("configs" or "dataset_info", config) or ("section", heading)."""


@dataclass(frozen=True)
class Licence:
    """A licence as in the Hub's YAML; ``name`` and ``link`` are required for the id ``other``."""

    id: str
    name: str | None = None
    link: str | None = None

    def yaml(self) -> dict[str, str]:
        """Returns the licence's keys of a card's YAML."""
        fields = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in fields.items() if value is not None}


def stated_licence(
    given: Mapping[str, str | None], card: Mapping[str, Any], location: str, problems: list[Problem]
) -> Licence | None:
    """Returns the given licence, or else that of the card; the publisher must state one.

    Args:
        given: ``license``, ``license_name`` and ``license_link``, each possibly None.
        card: YAML of the existing card.
        location: location for problems.
        problems: problems are appended.
    """
    source: Mapping[str, Any] = given if given.get("license") else card
    id_, name, link = (source.get(key) for key in ("license", "license_name", "license_link"))
    if not id_ or name == NO_LICENCE:
        hint = "give it with --license; publishing other people's rows needs their permission"
        problems.append(Problem(location, "a licence", "none", hint))
    elif not isinstance(id_, str) or not _LICENCE_ID.fullmatch(id_):
        expected = "a licence id of the Hub (apache-2.0, cc-by-4.0, other)"
        problems.append(Problem(location, expected, preview(id_), "correct it"))
    elif id_ == "other" and not (name and link):
        hint = "name --license-name and --license-link"
        problems.append(Problem(location, "name and link of a licence that the Hub does not list", "not both", hint))
    elif link is not None and not _LICENCE_LINK.fullmatch(str(link)):
        problems.append(Problem(location, "a link https://... or a file such as LICENSE", preview(link), "correct it"))
    else:
        return Licence(id_, name, link)
    return None


def repo_option(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Click callback: checks that an option is a valid ORG/NAME on the Hub."""
    if value is not None:
        try:
            validate_repo_id(value)
        except HFValidationError:
            value = None
        if value is None or "/" not in value or not value.isascii():
            raise click.BadParameter("a repository is ORG/NAME (letters, digits, '-', '_', '.')")
    return value


def stated_doi(given: object, location: str, problems: list[Problem]) -> str | None:
    """Returns a DOI without its resolver's URL; adds a problem if it is not a DOI.

    >>> stated_doi("https://doi.org/10.57967/hf/1234", "facts.yaml", [])
    '10.57967/hf/1234'
    """
    doi = re.sub(r"^(?:https?://(?:dx\.)?doi\.org/|doi:)", "", str(given)) if given else None
    if doi is not None and not _DOI.fullmatch(doi):
        problems.append(Problem(location, "a DOI such as 10.57967/hf/1234", preview(given), "correct it"))
        return None
    return doi


def read_object(path: Path, what: str, hint: str, fields: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object; raises InputError if the file cannot be read, or lacks one of ``fields``."""
    wanted = set(fields)
    expected = f"{what} with {', '.join(sorted(wanted))}" if wanted else what
    try:
        content = parse_json(path.read_text(encoding="utf-8"), str(path))
    except InputError as error:
        raise InputError([Problem(one.location, what, one.found, hint) for one in error.problems]) from error
    except (OSError, ValueError) as error:
        raise InputError(Problem(str(path), what, preview(str(error), 160), hint)) from error
    if not isinstance(content, dict):
        raise InputError(Problem(str(path), expected, type(content).__name__, hint))
    if missing := ", ".join(sorted(wanted - content.keys())):
        raise InputError(Problem(str(path), expected, f"missing: {missing}", hint))
    return content


def hash_problems(location: str, content: str, hashes: Mapping[str, str]) -> list[Problem]:
    """Returns a problem if Croissant metadata lists other Parquet files or hashes than the folder has.

    Args:
        location: location for the problem.
        content: text of ``croissant.json``.
        hashes: path -> SHA-256 of the Parquet files.
    """
    try:
        listed = parse_json(content, location)["distribution"]
        named = {one["contentUrl"]: one["sha256"] for one in listed if "sha256" in one}
    except (InputError, KeyError, TypeError):
        named = {}
    wrong = sorted(path for path in named.keys() | hashes.keys() if named.get(path) != hashes.get(path))
    if not wrong:
        return []
    found = f"others of {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
    return [Problem(location, "the SHA-256 of the folder's Parquet files", found, CROISSANT_HINT)]


def project_urls() -> dict[str, str]:
    """Returns the project's URLs by name (repository, issues, paper), from its package metadata."""
    try:
        listed = metadata("scale-vqa").get_all("Project-URL") or []
    except PackageNotFoundError:
        listed = []
    return dict(tuple(entry.split(", ", 1)) for entry in listed)


def render(kind: type[RepoCard], data: CardData, template: str, **values: Any) -> str:
    """Returns the text of a card, rendered with a card class of huggingface_hub.

    Args:
        kind: ``DatasetCard``, ``ModelCard``, or ``RepoCard`` for a Space.
        data: the card's YAML.
        template: file name in ``templates``. It can use ``section`` (a marked section), ``md`` (escaping), ``pc`` and
            ``points`` (percentages), ``ci`` (intervals), ``paper`` (BibTeX) and ``urls`` (of the project).
        values: variables of the template.
    """
    source = files("model_card").joinpath("templates", template).read_text(encoding="utf-8")
    shared = {"md": markdown, "pc": percent, "points": points, "paper": PAPER, "urls": project_urls()}
    text = str(kind.from_template(data, template_str=_MACROS + source, **shared, **values))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def merged(old: str, new: str, before: str | None = None) -> str:
    """Replaces the marked sections of a card with newly rendered ones; other text is unchanged.

    A new section follows the section that precedes it in ``new``; if there is none, it goes before the line
    ``before``, or to the end. A section that is not in ``new`` is removed.

    Args:
        old: the body of a card, or a complete card.
        new: the same, newly rendered.
        before: a line such as ``## Citation``.

    >>> old = "Mine.\\n\\n## Citation\\nX"
    >>> new = OPEN.format(name="a") + "\\nOurs.\\n" + CLOSE.format(name="a")
    >>> merged(merged(old, new, "## Citation"), new.replace("Ours", "Newer"), "## Citation").splitlines()[3]
    'Newer.'
    """
    there, wanted = marked_sections(old), marked_sections(new)
    text = old
    for name, block in there.items():
        text = text.replace(block, wanted[name], 1) if name in wanted else text.replace(block + "\n", "", 1)
    last: str | None = None
    for name, block in wanted.items():
        if name not in there:
            heading = re.search(rf"^{re.escape(before)}[ \t]*$", text, re.MULTILINE) if before is not None else None
            if last is not None:
                text = text.replace(last, f"{last}\n\n{block}", 1)
            elif heading:
                text = f"{text[: heading.start()].rstrip()}\n\n{block}\n\n{text[heading.start() :]}"
            else:
                text = f"{text.rstrip()}\n\n{block}\n"
        last = block
    return re.sub(r"\n{3,}", "\n\n", text)


def merged_card(old: str, new: str, before: str | None = None, keep: Iterable[str] = ()) -> str:
    """Updates a card with a newly rendered one: its marked sections and the YAML keys that the new one sets.

    Args:
        old: the existing card.
        new: the rendered card.
        before: as in ``merged``.
        keep: YAML keys whose values in ``old`` are kept.
    """
    theirs, ours = head(old), head(new)
    if "license" in ours:  # a name or link of the old licence must not describe the new one
        theirs = {k: v for k, v in theirs.items() if k not in ("license_name", "license_link") or k in ours}
    data = theirs | {key: value for key, value in ours.items() if key not in keep or key not in theirs}
    if tags := list(dict.fromkeys([*theirs.get("tags", []), *ours.get("tags", [])])):
        data["tags"] = tags
    return f"---\n{dump_yaml(data)}---\n{merged(body(old), body(new), before)}"


def dump_yaml(value: Any) -> str:
    """Returns YAML for a card: keys in insertion order, one line per value."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def by_config(value: Any) -> dict[str, dict[str, Any]]:
    """Returns the entries of ``configs`` or ``dataset_info`` by config; a single entry may be given without a list."""
    listed = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    return {str(entry.get("config_name", "default")): entry for entry in listed if isinstance(entry, dict)}


@dataclass(frozen=True)
class MergedCard:
    """The folder's card merged with that on the Hub.

    Attributes:
        text: text to publish.
        kept: names of the parts that were edited on the Hub and are kept.
        added: names of the parts that only the Hub has.
        generated: part name -> digest, for all parts of the folder's card.
    """

    text: str
    kept: tuple[str, ...]
    added: tuple[str, ...]
    generated: dict[str, str]


def merge_cards(
    local: str, remote: str | None, generated: Mapping[str, str], replace: frozenset[str] = frozenset()
) -> MergedCard:
    """Merges the folder's card with the card on the Hub.

    Args:
        local: the folder's card.
        remote: the card on the Hub, or None.
        generated: part name -> digest at the last publication; empty if unknown.
        replace: names of the parts to take from the folder in any case; ``card`` for all.

    Raises:
        InputError: if the YAML of a card cannot be read, or ``replace`` has an unknown name.
    """
    ours = _parts(local, "the folder's card")
    digests = {_name_of(part): _digest(value) for part, value in ours.items()}
    if remote is None or remote == local:
        return MergedCard(local, (), (), digests)
    theirs = _parts(remote, "the card on the Hub")
    known = {_name_of(part) for part in (*ours, *theirs)} | {"card"}
    if unknown := sorted(replace - known):
        expected = f"one of {', '.join(sorted(known))}"
        raise InputError(Problem("--replace", expected, ", ".join(unknown), "name a part that the plan lists"))
    kept, added, merged = [], [], dict(ours)
    for part, value in theirs.items():
        name = _name_of(part)
        as_generated = generated.get(name) == _digest(value)
        if name in replace or "card" in replace:
            continue
        if part not in ours:
            if not as_generated or part[0] in _BY_CONFIG:
                merged[part] = value
                added.append(name)
        elif _digest(value) != digests[name] and not as_generated:
            merged[part] = value
            kept.append(name)
    text = local if merged == ours else remote if merged == theirs else _joined(merged, list(ours), list(theirs))
    return MergedCard(text, tuple(kept), tuple(added), digests)


def _name_of(part: CardPart) -> str:
    """Returns the displayed name of a part: ``license``, ``dataset_info:default``, ``## Limits``."""
    group, key = part
    if group == "section":
        return f"## {key}" if key else "text before the first heading"
    return key if group == "yaml" else f"{group}:{key}"


def _parts(text: str, whose: str) -> dict[CardPart, Any]:
    try:
        front = head(text)
    except InputError as error:
        raise InputError([Problem(f"YAML of {whose}", e.expected, e.found, e.hint) for e in error.problems]) from None
    parts: dict[CardPart, Any] = {}
    for key, value in front.items():
        if key in _BY_CONFIG:
            parts |= {(key, config): entry for config, entry in by_config(value).items()}
        else:
            parts["yaml", str(key)] = value
    return parts | {("section", heading): section for heading, section in by_heading(body(text)).items()}


def _digest(value: Any) -> str:
    plain = json.loads(json.dumps(value.strip() if isinstance(value, str) else value, default=str))
    return sha256_json(plain)[:16]


def _joined(parts: Mapping[CardPart, Any], ours: Sequence[CardPart], theirs: Sequence[CardPart]) -> str:
    """Joins parts in the folder's order; a part of the Hub alone follows the part that precedes it there."""
    order = list(ours)
    for index, part in enumerate(theirs):
        if part not in order:
            before = next((one for one in reversed(theirs[:index]) if one in order and one[0] == part[0]), None)
            order.insert(order.index(before) + 1 if before else len(order), part)
    front: dict[str, Any] = {}
    sections = []
    for part in (part for part in order if part in parts):
        if part[0] == "yaml":
            front[part[1]] = parts[part]
        elif part[0] in _BY_CONFIG:
            front.setdefault(part[0], []).append(parts[part])
        else:
            sections.append(parts[part].strip("\n"))
    if "configs" in front:
        front["configs"] = _one_default(front["configs"], {part[1] for part in ours if part[0] == "configs"})
    text = "\n\n".join(sections)
    return f"---\n{dump_yaml(front)}---\n\n{text}\n" if front else f"{text}\n"


def _one_default(configs: list[dict[str, Any]], ours: set[str]) -> list[dict[str, Any]]:
    """Keeps at most one default config; the folder's takes precedence."""
    defaults = [entry for entry in configs if entry.get("default")]
    if len(defaults) < 2:
        return configs
    chosen = next((entry for entry in defaults if str(entry.get("config_name")) in ours), defaults[0])
    return [
        entry if entry is chosen or not entry.get("default") else {k: v for k, v in entry.items() if k != "default"}
        for entry in configs
    ]


@click.command()
@click.option(
    "--folder", type=FOLDER, default=METRIC_FOLDER, help="[default: the metric of this package]", metavar="DIR"
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="README file to write.")
def metric(folder: Path, out: Path) -> None:
    """Write the card of the metric's Space: its README plus a computed example and a citation."""
    atomic_write(out, metric_card(folder), "name another --out")
    click.echo(str(out))


def metric_card(folder: Path) -> str:
    """Returns the card of a metric's folder; the folder's README is the hand-written part.

    Raises:
        InputError: if the README's YAML lacks fields that a Space needs.
    """
    import evaluate

    path = folder / "README.md"
    if not path.is_file():
        raise InputError(
            Problem(str(folder), "the folder of a metric, with a README.md", "none", "name scale_vqa_acc")
        )
    old = path.read_text(encoding="utf-8")
    front, hint = head(old), "a Space needs it: add it"
    if missing := [name for name in _SPACE_FIELDS if not front.get(name)]:
        raise InputError([Problem(str(path), f"{name} in the metadata", "none", hint) for name in missing])
    figures = evaluate.load(str(folder / f"{folder.resolve().name}.py")).compute(**_EXAMPLE)
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 6))
    call = (f"    {name}={json.dumps(values).replace('null', 'None')}" for name, values in _EXAMPLE.items())
    shown = yaml.safe_dump({name: rounded[name] for name in _EXAMPLE_FIGURES}, sort_keys=False).strip()
    return merged_card(old, render(RepoCard, CardData(), "metric_card.md.j2", call=",\n".join(call), figures=shown))
