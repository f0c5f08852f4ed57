"""Marked sections of a card: what a command writes stands between marks, everything else belongs to its reader.

A card is rendered as a whole from its template. Where there is a card already, only what stands between the marks is
replaced, so that a paragraph that somebody wrote by hand stays where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, Final

import yaml
from huggingface_hub import RepoCard
from huggingface_hub.repocard_data import CardData

from scale_vqa_eval.release_folder.card import CLOSE, OPEN, body, head, marked_sections
from scale_vqa_eval.text import markdown

MACROS: Final = (
    "{% macro section(name, heading='') %}{% if heading %}## {{ heading }}\n\n{% endif %}"
    + OPEN.replace("{name}", "{{ name }}")
    + "\n{{ caller() | trim }}\n"
    + CLOSE.replace("{name}", "{{ name }}")
    + "{% endmacro %}"
)


def render(kind: type[RepoCard], data: CardData, template: str, **values: Any) -> str:
    """Renders a template of this room with a card class of huggingface_hub; returns the card's text.

    Args:
        kind: ``DatasetCard`` or ``ModelCard``, or ``RepoCard`` for a Space.
        data: the card's YAML.
        template: file name in ``templates``; it has ``section`` for marked sections and ``md`` for escaping.
        values: what the template names.
    """
    source = (files("model_card") / "templates" / template).read_text(encoding="utf-8")
    text = str(kind.from_template(data, template_str=MACROS + source, md=markdown, **values))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def merged(old: str, new: str, before: str | None = None) -> str:
    """Puts the marked sections of ``new`` into ``old``; all other text of ``old`` stays.

    A section that ``old`` lacks comes after the one that stands before it in ``new``, the first ones before the
    heading ``before``, else at the end. One that ``new`` lacks no longer holds and goes.

    Args:
        old: the body of a card, or a whole one.
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
    """Puts a rendered card over an earlier one: marked sections and the YAML keys that it sets; the rest stays.

    Args:
        old: the earlier card.
        new: the rendered one.
        before: as in ``merged``.
        keep: YAML keys that stay as ``old`` has them, whatever ``new`` says.
    """
    theirs, ours = head(old), head(new)
    if "license" in ours:  # the three go together: another licence has another name
        theirs = {k: v for k, v in theirs.items() if k not in ("license_name", "license_link") or k in ours}
    tags = [*theirs.get("tags", []), *(tag for tag in ours.get("tags", []) if tag not in theirs.get("tags", []))]
    data = {**theirs, **{key: value for key, value in ours.items() if key not in keep or key not in theirs}}
    data |= {"tags": tags} if tags else {}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---\n{merged(body(old), body(new), before)}"


def _inserted(text: str, block: str, after: str | None, before: str | None) -> str:
    if after is not None:
        return text.replace(after, f"{after}\n\n{block}", 1)
    if before is not None:
        found = re.search(rf"^{re.escape(before)}[ \t]*$", text, re.MULTILINE)
        if found:
            return f"{text[: found.start()].rstrip()}\n\n{block}\n\n{text[found.start() :]}"
    return f"{text.rstrip()}\n\n{block}\n"
