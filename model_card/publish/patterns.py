"""What secrets and paths of this machine look like.

The formats of secrets are those that detect-secrets keeps (its plugins with regular expressions, used without its
look-ups on the network), and a few that it lacks: the Hub's own tokens, Google and Anthropic keys, newer OpenAI keys.
Strings that are merely random are not looked for: hashes, row ids and vocabularies are full of them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
import re
import tempfile
from pathlib import Path
from typing import Any, Final

_ADDED: Final = {
    "Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "OpenAI key": r"\bsk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{40,}",
    "Anthropic key": r"\bsk-ant-[A-Za-z0-9_-]{24,}",
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "GitHub token": r"\bgithub_pat_[A-Za-z0-9_]{40,}",
}
# addresses are no secrets, and these three take most of the time to find keys of one provider
_LEFT_OUT: Final = {"IPPublicDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "SoftlayerDetector"}
# two or three capitals and a word: common in any vocabulary
_TOO_LOOSE: Final = {"ArtifactoryDetector"}

_ROOTS: Final = (
    "home|Users|root|mnt|media|scratch|data|datasets|work|workspace|srv|opt|var|tmp|private|Volumes|gpfs|lustre|nfs|"
    "cluster|storage|export|dbfs|kaggle|content|mount|project|projects|groups|net"
)
LOCAL_PATH: Final = re.compile(
    rf"(?<![\w.:/~$}}>)-])/(?:{_ROOTS})/[\w.@+~-]+(?:/[^\s\"'`<>|,;)\]]*)?"
    r"|\bfile://+[^\s\"'`<>)]+"
    r"|(?<![A-Za-z0-9])[A-Za-z]:(?:\\\\?|/)(?:Users|Documents and Settings|home|data|temp)(?:\\\\?|/)[^\s\"'`<>|]*"
    r"|(?<![\w/])~/[\w.][^\s\"'`<>|,;)]*"
)
QUOTED_PATH: Final = re.compile(
    r"\"(/[^/\"\s]+(?:/[^/\"\s]+)+/?|[A-Za-z]:(?:\\\\|/)[^\"]+|\\\\\\\\[\w.-]+\\\\[^\"\\]+(?:\\\\[^\"\\]+)*)\""
)
"""A JSON or YAML string that is nothing but an absolute path, whatever its root."""
WHOLE_PATH: Final = re.compile(
    r"/[^/\s]+(?:/[^/\s]+)+/?|[A-Za-z]:[\\/][^\n]+|\\\\[\w.-]+\\[^\n\\]+(?:\\[^\n\\]+)*|file://\S+"
)
"""A value of a table that is nothing but an absolute path."""

ANCHORS: Final = (b"hf_", b"AKIA", b"ASIA", b"ghp_", b"github_pat_", b"glpat-", b"PRIVATE KEY", b"AIza", b"sk-ant-")
ANCHORED: Final = re.compile(
    rb"hf_[A-Za-z0-9]{34}(?![A-Za-z0-9])|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])|ghp_[A-Za-z0-9]{36}"
    rb"|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20}|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"
    rb"|AIza[0-9A-Za-z_-]{35}|sk-ant-[A-Za-z0-9_-]{24,}"
)
PATH_ANCHORS: Final = (b"/home/", b"/Users/", b"/root/", b"\\Users\\", b"/scratch/", b"/mnt/")
ANCHORED_PATH: Final = re.compile(
    rb"(?<![\w.:/])/(?:home|Users|root|scratch|mnt)/[\w.@+-]{2,}(?:/[\w.@+ -]+)*|[A-Za-z]:\\Users\\[\w.@+-]{2,}"
)


@functools.cache
def secret_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Returns (name, regular expression) of every known format of a secret.

    Raises:
        ModuleNotFoundError: where detect-secrets is not installed (extra ``publish``).
    """
    import detect_secrets.plugins as plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    found: list[tuple[str, re.Pattern[str]]] = [(name, re.compile(text)) for name, text in _ADDED.items()]
    for module_info in sorted(pkgutil.iter_modules(plugins.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{plugins.__name__}.{module_info.name}")
        for name, plugin in sorted(vars(module).items()):
            concrete = inspect.isclass(plugin) and not inspect.isabstract(plugin)
            if concrete and issubclass(plugin, RegexBasedDetector) and name not in _LEFT_OUT | _TOO_LOOSE:
                found += [(str(plugin.secret_type), pattern) for pattern in plugin().denylist]
    return tuple(found)


@functools.cache
def keyword_detector() -> Any:
    """Returns detect-secrets' detector of ``password = "..."`` and the like, for short texts."""
    from detect_secrets.plugins.keyword import KeywordDetector

    return KeywordDetector()


def own_secrets(token: str | None) -> tuple[str, ...]:
    """Returns the secrets of who publishes: the token, and values of variables that are named like secrets."""
    named = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
    values = {value for name, value in os.environ.items() if named.search(name) and len(value) >= 12}
    values = {value for value in values if not Path(value).exists()}
    return tuple(sorted(values | ({token} if token else set())))


def own_places(folder: Path) -> tuple[str, ...]:
    """Returns absolute paths of this machine that no published text may name, longest first."""
    places = {str(folder.absolute()), str(folder.resolve().parent), str(Path.home()), str(Path.cwd())}
    places |= {tempfile.gettempdir()}
    return tuple(
        sorted((place for place in places if place.count("/") + place.count("\\") > 1), key=len, reverse=True)
    )
