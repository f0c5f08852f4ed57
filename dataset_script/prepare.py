"""``scale-vqa prepare``: fills the caches of ``datasets`` and ``evaluate`` so that the bare names work in any process.

Everything is made in a hidden sibling folder and renamed into place, so that a cache has only complete data. After an
interrupted run, the next one continues config by config.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.release_folder.read import (
    FOLDER_VARIABLE,
    HOW_TO_MAKE_ONE,
    HUB_ID,
    HUB_VARIABLE,
    named_folder,
)
from scale_vqa_eval.schema import DATASET_NAME, METRIC_FOLDER, METRIC_NAME

_MARK: Final = "prepared-"
_AHEAD_S: Final = 3650 * 86400
_CACHED_METRIC: Final = f"evaluate-metric/{METRIC_NAME}"


@dataclass(frozen=True)
class PreparedData:
    """The data in the cache of ``datasets`` under the bare name.

    Attributes:
        folder: the release folder.
        default: the config that ``load_dataset("scale-vqa")`` returns.
        rows: config -> split -> number of rows.
        kept: configs that were in the cache already, with the same content.
    """

    folder: str
    default: str
    rows: dict[str, dict[str, int]]
    kept: tuple[str, ...]


@click.command()
@click.option(
    "--data",
    metavar="DIR",
    help="Release folder, or Hub id of one or of the authors' data set. "
    f"[default: ${FOLDER_VARIABLE}, else ./{DATASET_NAME}, else ${HUB_VARIABLE}]",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
def prepare(data: str | None, workers: int) -> None:
    """Make load_dataset("scale-vqa") and evaluate.load("scale_vqa_acc") work by their bare names.

    Every config of the release folder is written into the cache of `datasets`, replacing earlier data, and the metric
    into the cache of `evaluate`. Both then load in any process and directory, offline, without importing this package.
    Repeated runs are cheap, because unchanged configs are kept. Without data, only the metric is prepared.
    """
    folder = _source(data)
    if folder is not None:
        click.echo(f"preparing {folder}", err=True)
        prepared = prepare_dataset(folder, workers)
        spare_the_network()
        click.echo(f"{DATASET_NAME} from {prepared.folder}")
        for name, splits in prepared.rows.items():
            counts = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
            notes = ["default"] * (name == prepared.default) + ["was there already"] * (name in prepared.kept)
            click.echo(f"  {name:<10} {counts}" + (f"  ({', '.join(notes)})" if notes else ""))
    click.echo(f"metric in {prepare_metric()}")
    if folder is None:
        click.echo(f"no data was prepared: none was given and none is here. To get some, {HOW_TO_MAKE_ONE}", err=True)
    loaded = [f'load_dataset("{DATASET_NAME}")'] * (folder is not None) + [f'evaluate.load("{METRIC_NAME}")']
    click.echo("Now, in any process:\n  from datasets import load_dataset; import evaluate\n  " + ", ".join(loaded))
    click.echo("Without a network, set HF_HUB_OFFLINE=1 and HF_EVALUATE_OFFLINE=1 to avoid all requests.")


def _source(data: str | None) -> Path | None:
    """Returns the folder to prepare, downloaded if it is given by a Hub id, or None if there is none."""
    if data is not None:
        if Path(data).expanduser().is_dir():
            return Path(data).expanduser()
        if HUB_ID.fullmatch(data) and not Path(data).exists():
            return _snapshot(data)
        raise click.BadParameter(f"{data!r} is neither a folder nor a Hub id org/name", param_hint="--data")
    folder, here = named_folder(), Path(DATASET_NAME)
    if folder is not None and here.is_dir() and not folder.samefile(here):
        click.echo(f"note: in this directory load_dataset({DATASET_NAME!r}) loads ./{DATASET_NAME}", err=True)
    hub_id = os.environ.get(HUB_VARIABLE)
    return _snapshot(hub_id) if folder is None and hub_id else folder


def _snapshot(hub_id: str) -> Path:
    """Returns a release folder: downloaded, or built from a data set in the authors' layout.

    The latter is kept in ``$HF_HOME/scale-vqa/releases`` by commit, so that it is built only once.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HOME

    from dataset_script.authors_release import build_from_hub
    from dataset_script.hub_release import HubFolder, hub_errors

    built = Path(HF_HOME) / "scale-vqa" / "releases"
    try:
        hub = HubFolder.read(hub_id)
    except InputError:
        here = sorted(built.glob(f"{hub_id.replace('/', '--')}-*"), key=lambda path: path.stat().st_mtime)
        with contextlib.suppress(OSError, ValueError):
            snapshot = Path(snapshot_download(hub_id, repo_type="dataset", local_files_only=True))
            here += [snapshot] * any(snapshot.glob("*/*.parquet"))
        if not here:
            raise
        click.echo(f"the Hub cannot be reached; using the earlier download of {hub_id}", err=True)
        return here[-1]
    if hub.is_release_folder:
        patterns = ["README.md", "*.parquet"]
        with hub_errors(hub_id):
            return Path(snapshot_download(hub_id, repo_type="dataset", revision=hub.commit, allow_patterns=patterns))
    folder = built / f"{hub_id.replace('/', '--')}-{hub.commit[:16]}"
    if not folder.is_dir():
        click.echo(f"{hub_id} is not a release folder: building one from its JSON files and images", err=True)
        built.mkdir(parents=True, exist_ok=True)
        build_from_hub(hub, folder)
    return folder


def prepare_dataset(folder: Path, workers: int = 1) -> PreparedData:
    """Writes every config of a release folder into the cache, replacing earlier data.

    Args:
        folder: the release folder.
        workers: number of processes; more than one helps if a split has several shards.

    Raises:
        InputError: if the folder cannot be loaded; the cache is then unchanged.
    """
    from datasets import DatasetInfo
    from datasets.config import HF_DATASETS_CACHE
    from filelock import FileLock

    from scale_vqa_eval.release_folder.verify import content_hash, release_shards

    cache = Path(HF_DATASETS_CACHE).expanduser()
    root, staging = cache / DATASET_NAME, cache / f".{DATASET_NAME}.partial"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{DATASET_NAME}.lock"):  # a second run waits and then finds everything prepared
        configs = release_shards(folder)
        versions = {name: _MARK + content_hash(name, shards)[:32] for name, shards in configs.items()}
        places = {name: root / name / "0.0.0" / version for name, version in versions.items()}
        kept = tuple(name for name, place in places.items() if place.is_dir())
        made = {
            name: _generated(staging, folder, name, versions[name], workers) for name in places if name not in kept
        }
        for name, generated in made.items():
            places[name].parent.mkdir(parents=True, exist_ok=True)
            generated.rename(places[name])
        default = next(iter(configs))
        # `datasets` resolves the bare name to the folder that changed last. `map` writes into the folder of its
        # config, and a ./scale-vqa that is loaded later is stored beside it, so the default gets a time in the future
        for name, place in places.items():
            os.utime(place, (time.time(), time.time() + _AHEAD_S * (name == default)))
        splits = {name: DatasetInfo.from_directory(str(place)).splits or {} for name, place in places.items()}
        rows = {name: {str(key): one.num_examples for key, one in parts.items()} for name, parts in splits.items()}
        for old in set(root.glob(f"*/*/{_MARK}*")) - set(places.values()):
            shutil.rmtree(old)
        shutil.rmtree(staging, ignore_errors=True)
    return PreparedData(str(folder.absolute()), default, rows, kept)


def _generated(staging: Path, folder: Path, config: str, version: str, workers: int) -> Path:
    """Generates one config in ``staging`` and returns its folder; a complete one of an interrupted run is kept."""
    from datasets.exceptions import DatasetGenerationError

    from dataset_script.builder import RefusedRow, ScaleVQA

    for half in staging.glob(f"*/{config}/*/*.incomplete"):
        shutil.rmtree(half)
    builder = ScaleVQA(cache_dir=str(staging), config_name=config, hash=version, data_dir=str(folder))
    try:
        builder.download_and_prepare(num_proc=workers if workers > 1 else None)
    except RefusedRow:
        raise
    except DatasetGenerationError as error:
        location, found = f"{folder}, config {config}", preview(str(error.__cause__ or error), 200)
        hint = "build or download the folder again, or free some disk space"
        raise InputError(Problem(location, "files that can be read into the cache", found, hint)) from error
    return Path(builder.cache_dir)


def prepare_metric(folder: Path = METRIC_FOLDER) -> Path:
    """Writes the metric's script and the modules that it imports into the cache of ``evaluate``; returns its path.

    Args:
        folder: the metric folder, with ``<name>.py`` and its modules.

    Raises:
        InputError: if a module imports one that the script does not import. ``evaluate`` copies only the imports of
            the script, so the metric would not load from its cache, a path or a Space.
    """
    from evaluate.loading import LocalEvaluationModuleFactory, get_imports, init_dynamic_modules  # slow: seconds
    from filelock import FileLock

    modules = Path(init_dynamic_modules())
    staging, namespace = modules / f".{METRIC_NAME}.partial", modules / "metrics"
    place = namespace / _CACHED_METRIC.replace("/", "--")
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(namespace / f".{METRIC_NAME}.lock"):
        shutil.rmtree(staging, ignore_errors=True)
        factory = LocalEvaluationModuleFactory(str(folder / f"{METRIC_NAME}.py"), dynamic_modules_path=str(staging))
        factory.name = _CACHED_METRIC  # the name under which `evaluate` looks for what it has loaded from the Hub
        version = factory.get_module().hash
        made = staging / "metrics" / place.name / version
        hint = "import it there: `evaluate` copies only the modules that the script imports"
        expected = f"`from .{{}} import ...` in {METRIC_NAME}.py too"
        problems = [
            Problem(f"{METRIC_NAME}/{file.name}", expected.format(name), "it is imported only here", hint)
            for file in sorted(made.glob("*.py"))
            for kind, name, _, _ in get_imports(str(file))
            if kind == "internal" and not (made / f"{name}.py").is_file()
        ]
        if problems:
            raise InputError(problems)
        for package in (namespace, place):
            (package / "__init__.py").touch()
        if (place / version).exists():
            shutil.rmtree(place / version)
        made.rename(place / version)
        (place / version / f"{METRIC_NAME}.py").touch()  # `evaluate` takes the newest
        shutil.rmtree(staging, ignore_errors=True)
    return place / version


def spare_the_network() -> None:
    """Writes a placeholder for a data set "scale-vqa" into the cache of the Hub client.

    ``datasets`` looks up a bare name on the Hub before it reads its own cache, and without a network it retries for
    24 s. A card in the client's cache ends this at the first failure; a "loading script" beside the card makes
    ``datasets`` skip the Hub without a request and use its cache.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    text = f"Placeholder of `scale-vqa prepare`: {DATASET_NAME} is prepared in the cache of `datasets`.\n"
    revision = hashlib.sha1(text.encode()).hexdigest()
    repository = Path(HF_HUB_CACHE) / f"datasets--{DATASET_NAME}"
    for name in (f"snapshots/{revision}/README.md", f"snapshots/{revision}/{DATASET_NAME}.py"):
        atomic_write(repository / name, f"# {text}")
    atomic_write(repository / "refs" / "main", revision)
