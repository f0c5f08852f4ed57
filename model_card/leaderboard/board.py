"""The lines of the leaderboard: results files, each read by itself, and published figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.audit.reported_scores import read_reported_scores
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import inside_root
from scale_vqa_eval.schema import ANTICIPATION, CONFIGS, DIMENSIONS, GROUNDING_KINDS
from scale_vqa_eval.scoring.blind_control import control_problems
from scale_vqa_eval.scoring.results import read_results
from scale_vqa_eval.text import one_line

NO_BLIND: Final = "no blind control"
NO_GAIN: Final = "no visual gain shown"
PUBLISHED: Final = "published"
UPLOADED: Final = "uploaded"
MAX_FILE: Final = 20_000_000
_OTHER_DIMENSIONS: Final = {
    "grounding": frozenset(GROUNDING_KINDS),
    ANTICIPATION: frozenset([ANTICIPATION]),
    "phantom": None,
}
"""Config -> its dimensions; None for any. All other configs have those of the benchmark."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class BoardLine:
    """One model on one set of questions; shares are 0 to 1, None is unknown.

    Attributes:
        model: name, with the prompt if it is stated.
        questions: config, split and data hash; for published figures what they were measured on.
        source: file, or where figures were published.
        ranked: whether a valid blind control shows that the images raised the accuracy.
        marks: warnings shown beside the name.
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
    ranked: bool = False
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """All lines, and what was left out with the reason."""

    lines: tuple[BoardLine, ...]
    left_out: tuple[str, ...]

    def sets(self) -> list[str]:
        """Returns the sets of questions: measured ones first, then by number of lines."""
        names = [line.questions for line in self.lines]
        published = {line.questions for line in self.lines if PUBLISHED in line.marks}
        return sorted(dict.fromkeys(names), key=lambda name: (name in published, -names.count(name), name))


def read_board(folder: Path, uploads: Iterable[Path] = ()) -> Board:
    """Reads every ``*.json`` below a folder, uploaded files, and the published figures.

    Each file is read by itself. One that is not a results file, has an invalid blind control, or leaves the folder
    through a link is left out and named, whatever it contains.
    """
    lines: list[BoardLine] = []
    left_out: list[str] = []
    files = [(path, path.relative_to(folder).as_posix(), ()) for path in sorted(folder.rglob("*.json"))]
    for path, name, marks in [*files, *((path, path.name, (UPLOADED,)) for path in uploads)]:
        try:
            if not marks and inside_root(folder, name) is None:
                raise ValueError("it is a link out of the folder")
            lines.append(results_line(path, name, marks))
        except InputError as error:
            first = error.problems[0]
            left_out.append(_plain(f"{name}: expected {first.expected}, found {first.found}", 300))
        except Exception as error:  # a file of a stranger: whatever is wrong with it, the others stay
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            left_out.append(_plain(f"{name}: {reason}", 300))
    return Board((*lines, *published_lines()), tuple(left_out))


def results_line(path: Path, name: str, marks: tuple[str, ...] = ()) -> BoardLine:
    """Returns the line of one results file.

    Raises:
        InputError, ValueError, KeyError, TypeError: if it is not a results file, a run without all images, a run whose
            blind control is invalid, or labelled with a config that it is not of.
    """
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        raise ValueError(f"it is not a plain file of at most {MAX_FILE:,} bytes")
    content = read_results(path)
    about = content["provenance"]
    if about.get("ablation") not in (None, ""):
        raise ValueError(f"it is the run of an ablation ({str(about['ablation'])[:40]}), not of all images")
    if problems := control_problems(name, content):
        raise InputError(problems)
    by_dimension = {_plain(key): _share(part["accuracy"]) for key, part in content["by_dimension"].items()}
    config, split = str(about.get("config") or "default"), about.get("split") or "all splits"
    own = _OTHER_DIMENSIONS.get(config, frozenset(DIMENSIONS)) if config in CONFIGS else None
    if own is not None and (strange := sorted(by_dimension.keys() - own)):
        raise ValueError(f"it is labelled {config}, which has no questions of {', '.join(strange)[:80]}")
    blind = content.get("blind")
    if blind and not about.get("blind"):
        raise ValueError("its blind control states nothing of itself")
    gain_interval = _interval(blind.get("gain_interval"), -1.0) if blind else None
    ranked = gain_interval is not None and gain_interval[0] > 0
    prompt = f" ({about['prompt_id']})" if about.get("prompt_id") else ""
    return BoardLine(
        model=_plain(f"{about.get('model') or Path(name).stem}{prompt}"),
        questions=_plain(f"{config}, {split}, {str(about.get('data_hash') or 'no data hash')[:12]}"),
        source=_plain(name),
        accuracy=_share(content["accuracy"]),
        interval=_interval(content.get("interval")),
        blind=_share(blind["accuracy"]) if blind else None,
        blind_interval=_interval(blind.get("interval")) if blind else None,
        gain=_number(content["visual_gain"], -1.0) if blind else None,
        gain_interval=gain_interval,
        adjusted=_adjusted(content.get("leakage_adjusted_accuracy")) if blind else None,
        by_dimension=by_dimension,
        n=_count(content.get("n")),
        patients=_count(content.get("clusters")) if content.get("clustered") else None,
        unparsed=_share(content["unparsed"]["rate"]) if content.get("unparsed") else None,
        ranked=ranked,
        marks=(*marks, *([NO_BLIND] if not blind else [] if ranked else [NO_GAIN])),
    )


def published_lines() -> list[BoardLine]:
    """Returns the lines of the figures that others published."""
    content = read_reported_scores("scale-vqa-test")
    return [
        BoardLine(
            model=model,
            questions=f"published: {content['data']}",
            source=str(content["source"]),
            accuracy=row["all"],
            by_dimension={part: value for part, value in row.items() if part != "all"},
            marks=(PUBLISHED, NO_BLIND),
        )
        for model, row in content["models"].items()
    ]


def _plain(text: Any, limit: int = 200) -> str:
    """Returns a text of a stranger on one line, control characters and surrogates shown as their codes."""
    return one_line(str(text)[:limit])


def _number(value: Any, minimum: float = 0.0, maximum: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum - 1e-9 <= value <= maximum + 1e-9:
        raise ValueError(f"expected a share of {minimum:g} to {maximum:g}, found {value!r:.40}")
    return float(value)


def _share(value: Any) -> float:
    return _number(value)


def _adjusted(value: Any) -> float | None:
    """Leakage-adjusted accuracy is far below 0 if the blind run is nearly always right."""
    return None if value is None else _number(value, -1e6)


def _interval(value: Any, minimum: float = 0.0) -> Interval | None:
    if value is None or None in value:
        return None
    low, high = (_number(end, minimum) for end in value)
    return low, high


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**12):
        raise ValueError("expected a count")
    return value
