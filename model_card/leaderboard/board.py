"""Reads results files and published figures into the lines of the leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

NO_BLIND: Final = "no blind control"
PUBLISHED: Final = "published"
UPLOADED: Final = "uploaded"
MAX_FILE: Final = 20_000_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One model on one set of questions; shares are 0 to 1, None is unknown.

    Attributes:
        model: name, with the prompt where it is noted.
        questions: which questions: config, split, hash; of published figures what they were measured on.
        source: file, or where figures were published.
        marks: what has to stand beside the name.
    """

    model: str
    questions: str
    source: str
    accuracy: float
    interval: Interval | None = None
    blind: float | None = None
    blind_interval: Interval | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    adjusted: float | None = None
    by_dimension: Mapping[str, float] = field(default_factory=dict)
    n: int | None = None
    patients: int | None = None
    unparsed: float | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """All lines, and what was left out with the reason."""

    lines: tuple[Line, ...]
    left_out: tuple[str, ...]

    def sets(self) -> list[str]:
        """Returns the sets of questions: measured ones first, then by number of lines."""
        names = [line.questions for line in self.lines]
        published = {line.questions for line in self.lines if PUBLISHED in line.marks}
        return sorted(dict.fromkeys(names), key=lambda name: (name in published, -names.count(name), name))


def read_board(folder: Path, published: Path | None, uploads: Iterable[Path] = ()) -> Board:
    """Reads every ``*.json`` below a folder, further files, and published figures.

    A file that is no results file, that is of an ablation, or that leaves the folder through a link is left out and
    named.
    """
    lines: list[Line] = []
    left_out: list[str] = []
    root = folder.resolve()
    places = [(path, path.relative_to(folder).as_posix(), ()) for path in sorted(folder.rglob("*.json"))]
    places += [(path, path.name, (UPLOADED,)) for path in uploads]  # type: ignore[misc]
    for path, name, marks in places:
        try:
            if not marks and not path.resolve().is_relative_to(root):
                raise ValueError("it is a link out of the folder")
            lines.append(results_line(path, name, marks))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            left_out.append(f"{name}: {' '.join(said.split())[:200]}")
    if published is not None:
        lines += published_lines(published)
    return Board(tuple(lines), tuple(left_out))


def results_line(path: Path, name: str, marks: tuple[str, ...] = ()) -> Line:
    """Returns the line of one results file.

    Raises:
        ValueError, KeyError, TypeError: where it is none, or is a run with something taken away.
    """
    if path.stat().st_size > MAX_FILE:
        raise ValueError("the file is too large for a results file")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"accuracy", "by_dimension", "provenance"} <= content.keys():
        raise ValueError("it is no results file of `scale-vqa score --json`")
    about = content["provenance"]
    if about.get("ablation") not in (None, ""):
        raise ValueError(f"it is the run of an ablation ({str(about['ablation'])[:40]}), not of all images")
    blind = content.get("blind")
    if blind and (why := _no_control(about)):
        raise ValueError(why)
    prompt = f" ({about['prompt_id']})" if about.get("prompt_id") else ""
    config, split = about.get("config") or "default", about.get("split") or "all splits"
    return Line(
        model=f"{about.get('model') or Path(name).stem}{prompt}",
        questions=f"{config}, {split}, {str(about.get('data_hash') or 'no data hash')[:12]}",
        source=name,
        accuracy=_share(content["accuracy"]),
        interval=_interval(content.get("interval")),
        blind=_share(blind["accuracy"]) if blind else None,
        blind_interval=_interval(blind.get("interval")) if blind else None,
        gain=_number(content["visual_gain"], -1.0) if blind else None,
        gain_interval=_interval(blind.get("gain_interval"), -1.0) if blind else None,
        adjusted=_optional(content.get("leakage_adjusted_accuracy")) if blind else None,
        by_dimension={str(key): _share(part["accuracy"]) for key, part in content["by_dimension"].items()},
        n=_count(content.get("n")),
        patients=_count(content.get("clusters")) if content.get("clustered") else None,
        unparsed=_share(content["unparsed"]["rate"]) if content.get("unparsed") else None,
        marks=marks if blind else (*marks, NO_BLIND),
    )


def _no_control(about: Mapping[str, Any]) -> str:
    """Returns why a blind run is no control, by its own account; empty where nothing speaks against it."""
    blind = about.get("blind") or {}
    alike = ("model", "prompt_id", "sampling")
    noted = any(blind.get(name) is not None for name in (*alike, "backend", "ablation"))
    if noted and blind.get("ablation") != "blind":
        return f"its blind control notes the ablation {str(blind.get('ablation'))[:40]}, not blind"
    for name in alike:
        if None not in (about.get(name), blind.get(name)) and about[name] != blind[name]:
            return f"its blind control has another {name}"
    return ""


def published_lines(path: Path) -> list[Line]:
    """Returns the lines of published figures, in per cent in the file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    data, source = str(content.get("data", "not said")), str(content.get("source", "not said"))
    return [
        Line(
            model=str(model),
            questions=f"published: {data}",
            source=source,
            accuracy=_share(row["all"] / 100),
            by_dimension={str(part): _share(value / 100) for part, value in row.items() if part != "all"},
            marks=(PUBLISHED, NO_BLIND),
        )
        for model, row in content["models"].items()
    ]


def _number(value: Any, least: float = 0.0, most: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {str(value)[:40]!r}")
    if not least - 1e-9 <= value <= most + 1e-9:
        raise ValueError(f"expected a share of {least:g} to {most:g}, found {value:g}")
    return float(value)


def _share(value: Any) -> float:
    return _number(value)


def _optional(value: Any) -> float | None:
    """Leakage-adjusted accuracy may be far below 0 where the blind run is nearly always right."""
    return None if value is None else _number(value, -1e6)


def _interval(value: Any, least: float = 0.0) -> Interval | None:
    if value is None or None in value:
        return None
    low, high = (_number(end, least) for end in value)
    return low, high


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"expected a count, found {str(value)[:40]!r}")
    return value
