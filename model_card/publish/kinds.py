"""The kinds of repository that are published: dataset, metric (a Space) and model, and what belongs into each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MANIFEST: Final = "publish.json"
"""File that publishing adds: names, sizes and SHA-256 of all files, and what of the card was generated."""
CARD: Final = "README.md"
CROISSANT: Final = "croissant.json"
_TEXT: Final = frozenset({".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".cff", ".bib", ".csv"})
_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".svg"})


@dataclass(frozen=True)
class Kind:
    """A kind of repository.

    Attributes:
        name: what the user types.
        repo_type: what the Hub calls it.
        sdk: of a Space.
        endings: of the files that belong into it; others are refused.
        loaded: patterns of files that loading picks up by name, so that an old one beside new ones would be read too.
    """

    name: Literal["dataset", "metric", "space", "model"]
    repo_type: str
    sdk: str | None
    endings: frozenset[str]
    loaded: tuple[str, ...] = ()

    def belongs(self, path: str) -> bool:
        """Whether a file of this name (a POSIX path in the repository) belongs into the repository."""
        name = path.rsplit("/", 1)[-1]
        ending = "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""
        return ending in self.endings or name in ("LICENSE", "NOTICE")


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("dataset", "dataset", None, _TEXT | _PICTURES | {".parquet", ".html"}),
        Kind("metric", "space", "gradio", _TEXT | _PICTURES | {".py", ".css", ".html", ".parquet"}),
        Kind("space", "space", "gradio", _TEXT | _PICTURES | {".py", ".css", ".html", ".parquet"}),
        Kind(
            "model",
            "model",
            None,
            _TEXT | _PICTURES | {".safetensors", ".jinja", ".model", ".tiktoken"},
            ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.bin", "adapter_config.json"),
        ),
    )
}
