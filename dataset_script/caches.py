"""Fills the caches of ``datasets``, ``evaluate`` and the Hub's client so that the bare names work in any process.

Everything is made in a hidden folder beside its place and moved there in one rename: whatever is in a cache is whole,
and a killed run is taken up again by the next one, config by config.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import datasets
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from dataset_script.builder import RefusedRow, ScaleVQA
from dataset_script.shards import content_hash, release_shards
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.aliases import DATASET_NAME, LEDGER, METRIC_FOLDER, METRIC_NAME

_MARK: Final = "prepared-"
_AHEAD_S: Final = 3650 * 86400
_CACHED_METRIC: Final = f"evaluate-metric/{METRIC_NAME}"


@dataclass(frozen=True)
class Prepared:
    """What lies in the cache of ``datasets`` under the bare name.

    Attributes:
        folder: the release folder it was read from.
        default: the config that ``load_dataset("scale-vqa")`` gives.
        rows: config -> split -> number of rows.
        kept: the configs that were there already, with the same content.
    """

    folder: str
    default: str
    rows: dict[str, dict[str, int]]
    kept: tuple[str, ...]


def prepare_dataset(folder: Path, workers: int = 1) -> Prepared:
    """Puts every config of a release folder into the cache, in place of what was prepared before.

    Args:
        folder: the release folder.
        workers: processes; more than one helps where a split has several shards.

    Raises:
        InputError: where the folder cannot be loaded; the cache is as it was then.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    root, staging = cache / DATASET_NAME, cache / f".{DATASET_NAME}.partial"
    cache.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache / f".{DATASET_NAME}.lock"):
        configs = release_shards(folder)
        places = {
            name: Path(name, "0.0.0", _MARK + content_hash(name, shards)[:32]) for name, shards in configs.items()
        }
        kept = tuple(name for name, place in places.items() if (root / place).is_dir())
        made = {
            name: _generated(staging, folder, name, place.name, workers)
            for name, place in places.items()
            if name not in kept
        }
        for name, generated in made.items():
            (root / places[name]).parent.mkdir(parents=True, exist_ok=True)
            generated.rename(root / places[name])
        default = next(iter(configs))
        _set_order(root, places, default)
        rows = {name: _rows(root / place) for name, place in places.items()}
        prepared = Prepared(str(folder.absolute()), default, rows, kept)
        _write(root / LEDGER, json.dumps(asdict(prepared), indent=2) + "\n")
        for old in set(root.glob(f"*/*/{_MARK}*")) - {root / place for place in places.values()}:
            shutil.rmtree(old)
        shutil.rmtree(staging, ignore_errors=True)
    return prepared


def prepare_metric(folder: Path = METRIC_FOLDER) -> Path:
    """Puts the metric's script, with the modules that it imports, into the cache of ``evaluate``; returns its place.

    Args:
        folder: the metric folder, ``<name>/<name>.py`` with its leaf modules beside it.

    Raises:
        InputError: where a module imports another that the script itself does not import: ``evaluate`` copies those
            alone, so the metric would not load from its cache, a path or a Space.
    """
    from evaluate.loading import LocalEvaluationModuleFactory, init_dynamic_modules  # slow: seconds

    modules = Path(init_dynamic_modules())
    staging = modules / f".{METRIC_NAME}.partial"
    namespace = modules / "metrics"
    place = namespace / _CACHED_METRIC.replace("/", "--")
    place.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(namespace / f".{METRIC_NAME}.lock"):
        shutil.rmtree(staging, ignore_errors=True)
        factory = LocalEvaluationModuleFactory(str(folder / f"{METRIC_NAME}.py"), dynamic_modules_path=str(staging))
        factory.name = _CACHED_METRIC  # the name under which `evaluate` looks for what it has loaded from the Hub
        version = factory.get_module().hash
        made = staging / "metrics" / place.name / version
        _check_imports(made)
        for package in (namespace, place):
            (package / "__init__.py").touch()
        if (place / version).exists():
            shutil.rmtree(place / version)
        made.rename(place / version)
        (place / version / f"{METRIC_NAME}.py").touch()  # `evaluate` takes the newest
        shutil.rmtree(staging, ignore_errors=True)
    return place / version


def spare_the_network() -> None:
    """Leaves a placeholder of a data set "scale-vqa" in the cache of the Hub's client.

    ``datasets`` asks the Hub for a bare name before it looks into its own cache, and repeats that for 24 s where no
    network answers. With a card in the client's cache the first failure settles it; a "loading script" beside the
    card is what makes ``datasets`` give up on the Hub, again without asking, and turn to its cache.
    """
    text = f"Placeholder of `scale-vqa prepare`: {DATASET_NAME} is prepared in the cache of `datasets`.\n"
    revision = hashlib.sha1(text.encode()).hexdigest()
    repository = Path(constants.HF_HUB_CACHE) / f"datasets--{DATASET_NAME}"
    for name in (f"snapshots/{revision}/README.md", f"snapshots/{revision}/{DATASET_NAME}.py"):
        _write(repository / name, f"# {text}")
    _write(repository / "refs" / "main", revision)


def _generated(staging: Path, folder: Path, config: str, version: str, workers: int) -> Path:
    """Returns the folder of one config, made in ``staging``; a whole one of a killed run is taken as it is."""
    for half in staging.glob(f"*/{config}/*/*.incomplete"):
        shutil.rmtree(half)
    builder = ScaleVQA(cache_dir=str(staging), config_name=config, hash=version, data_dir=str(folder))
    try:
        builder.download_and_prepare(num_proc=workers if workers > 1 else None)
    except RefusedRow:
        raise
    except DatasetGenerationError as error:
        location, found = f"{folder}, config {config}", preview(str(error.__cause__ or error), 200)
        hint = "build or download the folder again, or make room"
        raise InputError(Problem(location, "files that can be read into the cache", found, hint)) from error
    return Path(builder.cache_dir)


def _set_order(root: Path, places: dict[str, Path], default: str) -> None:
    """Makes ``default`` the config of the bare name: ``datasets`` takes the folder that changed last.

    Its time is set ahead, because ``map`` writes into the folder of the config that it is called on, and a
    ``./scale-vqa`` loaded later lands beside it; either would take the name over otherwise.
    """
    now = time.time()
    for name, place in places.items():
        ahead = now + _AHEAD_S if name == default else now
        os.utime(root / place, (now, ahead))


def _rows(place: Path) -> dict[str, int]:
    splits = datasets.DatasetInfo.from_directory(str(place)).splits or {}
    return {str(name): split.num_examples for name, split in splits.items()}


def _check_imports(folder: Path) -> None:
    from evaluate.loading import get_imports

    problems = []
    for file in sorted(folder.glob("*.py")):
        for kind, name, _, _ in get_imports(str(file)):
            if kind == "internal" and not (folder / f"{name}.py").is_file():
                location = f"{METRIC_NAME}/{file.name}"
                expected = f"`from .{name} import ...` in {METRIC_NAME}.py too"
                hint = "import it there: `evaluate` copies the modules that the script names, and no others"
                problems.append(Problem(location, expected, "it imported here alone", hint))
    if problems:
        raise InputError(problems)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
