"""Names of repositories on the Hub, as options take them."""

from __future__ import annotations

import re
from typing import Final

import click

_REPO: Final = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)


def repo_option(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Checks an option that names a repository; one that is not given passes.

    Raises:
        click.BadParameter: where it is not ORG/NAME as the Hub allows it.
    """
    if value is None:
        return None
    if not _REPO.fullmatch(value) or ".." in value or "--" in value or len(value) > 96 or value.endswith(".git"):
        raise click.BadParameter(f"a repository is ORG/NAME (letters, digits, '-', '_', '.'), got {value!r}")
    return value
