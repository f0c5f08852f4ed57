"""The licence of what is published: it is stated by who publishes, never assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scale_vqa_eval.errors import Problem, preview
from scale_vqa_eval.release_folder.card import NO_LICENCE

_ID: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LINK: Final = re.compile(r"https?://[^\s()<>]+|[\w.-]+")


@dataclass(frozen=True)
class Licence:
    """A licence as the Hub's YAML has it; ``name`` and ``link`` belong to ``other``."""

    id: str
    name: str | None = None
    link: str | None = None

    def yaml(self) -> dict[str, str]:
        """The keys of a card's head."""
        fields = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in fields.items() if value is not None}


def stated_licence(
    given: Mapping[str, str | None], card: Mapping[str, Any], location: str, problems: list[Problem]
) -> Licence | None:
    """Returns the licence that was given, else the one that the card has; notes a fault where there is none.

    Args:
        given: ``license``, ``license_name``, ``license_link``; None where not given.
        card: the YAML of the card as it is.
        location: what the fault names.
        problems: what is missing is added.
    """
    source: Mapping[str, Any] = given if given.get("license") else card
    id_, name, link = (source.get(key) for key in ("license", "license_name", "license_link"))
    if not id_ or name == NO_LICENCE:
        hint = "name it with --license; who publishes rows of others needs their leave"
        problems.append(Problem(location, "a licence", "none", hint))
    elif not isinstance(id_, str) or not _ID.fullmatch(id_):
        problems.append(
            Problem(location, "a licence id of the Hub (apache-2.0, cc-by-4.0, other)", preview(id_), "correct it")
        )
    elif id_ == "other" and not (name and link):
        hint = "name --license-name and --license-link"
        problems.append(Problem(location, "name and link of a licence that the Hub does not list", "not both", hint))
    elif link is not None and not _LINK.fullmatch(str(link)):
        problems.append(Problem(location, "a link https://... or a file such as LICENSE", preview(link), "correct it"))
    else:
        return Licence(id_, name, link)
    return None
