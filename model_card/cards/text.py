"""What all cards share: rendering, sections between marks, the stated licence. And the smallest card, the metric's.

A card is rendered from its template. Where there is a card already, only the text between the marks is replaced, so
that a paragraph that somebody wrote by hand stays where it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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
from scale_vqa_eval.files import atomic_write, parse_json
from scale_vqa_eval.release_folder.card import CLOSE, NO_LICENCE, OPEN, body, head, marked_sections
from scale_vqa_eval.schema import METRIC_FOLDER
from scale_vqa_eval.text import markdown, percent, points

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


@dataclass(frozen=True)
class Licence:
    """A licence as in the Hub's YAML; ``name`` and ``link`` go with the id ``other``."""

    id: str
    name: str | None = None
    link: str | None = None

    def yaml(self) -> dict[str, str]:
        """Returns the keys of a card's head."""
        fields = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in fields.items() if value is not None}


def stated_licence(
    given: Mapping[str, str | None], card: Mapping[str, Any], location: str, problems: list[Problem]
) -> Licence | None:
    """Returns the licence that was given, else that of the card. A licence is stated by who publishes, never assumed.

    Args:
        given: ``license``, ``license_name``, ``license_link``; None where not given.
        card: the YAML of the card as it is.
        location: location that problems name.
        problems: what is missing is added.
    """
    source: Mapping[str, Any] = given if given.get("license") else card
    id_, name, link = (source.get(key) for key in ("license", "license_name", "license_link"))
    if not id_ or name == NO_LICENCE:
        hint = "name it with --license; who publishes rows of others needs their permission"
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
    """Checks an option that names a repository on the Hub.

    Raises:
        click.BadParameter: if it is not ORG/NAME as the Hub allows it.
    """
    if value is not None:
        try:
            validate_repo_id(value)
        except HFValidationError:
            value = None
        if value is None or "/" not in value or not value.isascii():
            raise click.BadParameter("a repository is ORG/NAME (letters, digits, '-', '_', '.')")
    return value


def stated_doi(given: object, location: str, problems: list[Problem]) -> str | None:
    """Returns a DOI without its resolver's address; adds a problem if it is not one.

    >>> stated_doi("https://doi.org/10.57967/hf/1234", "facts.yaml", [])
    '10.57967/hf/1234'
    """
    doi = re.sub(r"^(?:https?://(?:dx\.)?doi\.org/|doi:)", "", str(given)) if given else None
    if doi is not None and not _DOI.fullmatch(doi):
        problems.append(Problem(location, "a DOI such as 10.57967/hf/1234", preview(given), "correct it"))
        return None
    return doi


def read_object(path: Path, what: str, hint: str, fields: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON object that has certain fields.

    Raises:
        InputError: naming the file and the fields that it lacks.
    """
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


def project_urls() -> dict[str, str]:
    """Returns name -> URL of the project (repository, issues, paper), as its ``pyproject.toml`` has them."""
    try:
        listed = metadata("scale-vqa").get_all("Project-URL") or []
    except PackageNotFoundError:
        listed = []
    return dict(tuple(entry.split(", ", 1)) for entry in listed)


def render(kind: type[RepoCard], data: CardData, template: str, **values: Any) -> str:
    """Renders a template with a card class of huggingface_hub; returns the card's text.

    Args:
        kind: ``DatasetCard`` or ``ModelCard``, or ``RepoCard`` for a Space.
        data: the card's YAML.
        template: file name in ``templates``. It has ``section`` for marked sections, ``md`` for escaping, ``pc`` and
            ``points`` for shares, ``ci`` for intervals, ``paper`` for the paper's BibTeX, ``urls`` of the project.
        values: variables of the template.
    """
    source = files("model_card").joinpath("templates", template).read_text(encoding="utf-8")
    shared = {"md": markdown, "pc": percent, "points": points, "paper": PAPER, "urls": project_urls()}
    text = str(kind.from_template(data, template_str=_MACROS + source, **shared, **values))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def merged(old: str, new: str, before: str | None = None) -> str:
    """Puts the marked sections of ``new`` into ``old``; all other text of ``old`` stays.

    A section that ``old`` lacks goes after the section that precedes it in ``new``; the first ones go before the
    heading ``before``, else to the end. A section that ``new`` lacks no longer holds and is removed.

    Args:
        old: the body of a card, or a complete one.
        new: the same, just rendered.
        before: a line, such as ``## Citation``.

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
            text = _inserted(text, block, last, before)
        last = block
    return re.sub(r"\n{3,}", "\n\n", text)


def merged_card(old: str, new: str, before: str | None = None, keep: Iterable[str] = ()) -> str:
    """Puts a rendered card over an earlier one: marked sections, and the YAML keys that it sets; the rest stays.

    Args:
        old: the earlier card.
        new: the rendered one.
        before: as in ``merged``.
        keep: YAML keys that stay as in ``old``.
    """
    theirs, ours = head(old), head(new)
    if "license" in ours:  # the three keys go together: another licence has another name
        theirs = {k: v for k, v in theirs.items() if k not in ("license_name", "license_link") or k in ours}
    data = theirs | {key: value for key, value in ours.items() if key not in keep or key not in theirs}
    if tags := list(dict.fromkeys([*theirs.get("tags", []), *ours.get("tags", [])])):
        data["tags"] = tags
    return f"---\n{dump_yaml(data)}---\n{merged(body(old), body(new), before)}"


def dump_yaml(value: Any) -> str:
    """Returns YAML as cards have it: keys in their order, one line a value."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


@click.command()
@click.option(
    "--folder", type=FOLDER, default=METRIC_FOLDER, help="[default: the metric of this package]", metavar="DIR"
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The README to write.")
def metric(folder: Path, out: Path) -> None:
    """Write the card of the metric's Space: its README with a computed example and a citation."""
    atomic_write(out, metric_card(folder), "name another --out")
    click.echo(str(out))


def metric_card(folder: Path) -> str:
    """Returns the card of a metric's folder; the folder's README is its hand-written part.

    Raises:
        InputError: naming every field of the README's head that a Space needs and that is missing.
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
        raise InputError([Problem(str(path), f"{name} in the head", "none", hint) for name in missing])
    figures = evaluate.load(str(folder / f"{folder.resolve().name}.py")).compute(**_EXAMPLE)
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 6))
    call = (f"    {name}={json.dumps(values).replace('null', 'None')}" for name, values in _EXAMPLE.items())
    shown = yaml.safe_dump({name: rounded[name] for name in _EXAMPLE_FIGURES}, sort_keys=False).strip()
    return merged_card(old, render(RepoCard, CardData(), "metric_card.md.j2", call=",\n".join(call), figures=shown))


def _inserted(text: str, block: str, after: str | None, before: str | None) -> str:
    if after is not None:
        return text.replace(after, f"{after}\n\n{block}", 1)
    if before is not None and (found := re.search(rf"^{re.escape(before)}[ \t]*$", text, re.MULTILINE)):
        return f"{text[: found.start()].rstrip()}\n\n{block}\n\n{text[found.start() :]}"
    return f"{text.rstrip()}\n\n{block}\n"
