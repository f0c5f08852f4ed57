"""Makes the bare names resolve in a process that imports this package: "scale-vqa" and "scale_vqa_acc".

``datasets`` and ``evaluate`` know folders, Hub ids and their own caches; neither has a door for names of other
packages. So the function by which each of them resolves a name is wrapped, once it is imported: any other name passes
through untouched. ``load_dataset("scale-vqa")`` is the first of

1. the release folder ``./scale-vqa``, as for ``datasets`` itself;
2. the release folder named by ``$SCALE_VQA_PATH``;
3. what ``scale-vqa prepare`` has put into the cache;
4. the Hub id named by ``$SCALE_VQA_HUB_ID``;
5. a folder ``./scale-vqa`` that is no release folder, left to ``datasets``.

There is no Hub id by default: the authors' repository has JSON files under columns of its own, and would load as
something else under this name. ``evaluate.load("scale_vqa_acc")`` is a folder of that name in the working directory,
as for ``evaluate`` itself, else the metric of this package.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from wrapt import register_post_import_hook

from scale_vqa_eval.schema import CONFIGS

DATASET_NAME: Final = "scale-vqa"
METRIC_NAME: Final = "scale_vqa_acc"
METRIC_FOLDER: Final = Path(__file__).parents[1] / METRIC_NAME
FOLDER_VARIABLE: Final = "SCALE_VQA_PATH"
HUB_VARIABLE: Final = "SCALE_VQA_HUB_ID"
LEDGER: Final = "prepared.json"
"""File in the cache folder of the dataset in which ``scale-vqa prepare`` says what it prepared."""

HOW_TO_MAKE_ONE: Final = (
    "run `scale-vqa build release --json test=FILE --out scale-vqa` (the authors' files) or `scale-vqa build phantom "
    "--slides 24 --out scale-vqa` (procedural slides), then `scale-vqa prepare --data scale-vqa`; or name a release "
    f"folder in ${FOLDER_VARIABLE} or a Hub id in ${HUB_VARIABLE}"
)


def install() -> None:
    """Wraps the name resolution of ``datasets`` and ``evaluate``, now or as soon as they are imported."""
    register_post_import_hook(_wrap_datasets, "datasets.load")
    register_post_import_hook(_wrap_datasets, "datasets.inspect")
    register_post_import_hook(_wrap_evaluate, "evaluate.loading")


def named_folder() -> Path | None:
    """Returns the folder of ``$SCALE_VQA_PATH``, else ``./scale-vqa`` where that is a release folder, else None.

    Raises:
        InputError: where the variable names something that is no release folder.
    """
    return _folder_of_variable() or _folder_here()


def _wrap_datasets(module: ModuleType) -> None:
    _wrap(module, "dataset_module_factory", _dataset_module)


def _wrap_evaluate(module: ModuleType) -> None:
    _wrap(module, "evaluation_module_factory", _evaluation_module)


def _wrap(module: ModuleType, name: str, resolve: Callable[..., Any]) -> None:
    """Puts ``resolve`` before a module's function, once: a module may have got the wrapped one from another."""
    factory = getattr(module, name)
    if getattr(factory, "by_scale_vqa", False):
        return

    @functools.wraps(factory)
    def resolved(path: str, *args: Any, **kwargs: Any) -> Any:
        return resolve(factory, path, *args, **kwargs)

    resolved.by_scale_vqa = True  # type: ignore[attr-defined]
    setattr(module, name, resolved)


def _evaluation_module(factory: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
    if path == METRIC_NAME and not Path(METRIC_NAME, f"{METRIC_NAME}.py").is_file():
        path = str(METRIC_FOLDER)
    return factory(path, *args, **kwargs)


def _dataset_module(factory: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
    if path != DATASET_NAME:
        return factory(path, *args, **kwargs)
    folder = _folder_here() or _folder_of_variable()
    if folder is not None:
        if kwargs.get("data_dir") or kwargs.get("data_files"):
            return factory(str(folder), *args, **kwargs)
        return _folder_module(folder)
    prepared = _prepared_module(kwargs.get("cache_dir"))
    if prepared is not None:
        return prepared
    hub_id = os.environ.get(HUB_VARIABLE)
    if hub_id:
        return factory(hub_id, *args, **kwargs)
    if Path(DATASET_NAME).is_dir():
        return factory(path, *args, **kwargs)
    from datasets.exceptions import DatasetNotFoundError

    raise DatasetNotFoundError(
        f"there is no dataset {DATASET_NAME!r} here: no folder ./{DATASET_NAME}, no ${FOLDER_VARIABLE}, nothing "
        f"prepared in the cache of `datasets`, no ${HUB_VARIABLE}. How to fix: {HOW_TO_MAKE_ONE}"
    )


def _folder_module(folder: Path) -> Any:
    """Returns a release folder as ``datasets`` passes it on to its builder, here ``dataset_script.ScaleVQA``."""
    from datasets.load import BuilderConfigsParameters, DatasetModule, import_main_class

    from scale_vqa_eval.question_files import release_configs

    module = "dataset_script.builder"  # by name: the ground floor imports no other room
    configs = release_configs(folder)
    views = [view for view in import_main_class(module).BUILDER_CONFIGS if view.name in configs]
    parameters = BuilderConfigsParameters(builder_configs=views, default_config_name=next(iter(configs)))
    origin = {"data_dir": str(folder.absolute()), "dataset_name": DATASET_NAME}
    # without a hash the builder makes one of the files it reads
    return DatasetModule(module, hash="", builder_kwargs=origin, builder_configs_parameters=parameters)


def _prepared_module(cache_dir: str | None) -> Any:
    """Returns what lies in the cache under the bare name, None where nothing does."""
    import datasets
    from datasets.load import BuilderConfigsParameters, DatasetModule

    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / DATASET_NAME
    names = [name for name in CONFIGS if any(root.glob(f"{name}/*/*/dataset_info.json"))]
    if not names:
        return None
    ledger = root / LEDGER
    default = json.loads(ledger.read_text(encoding="utf-8"))["default"] if ledger.is_file() else None
    if default not in names:
        default = "default" if "default" in names else names[0]
    origin = {"repo_id": DATASET_NAME, "dataset_name": DATASET_NAME, "version": "auto"}
    views = [datasets.BuilderConfig(name=name) for name in names]
    parameters = BuilderConfigsParameters(builder_configs=views, default_config_name=default)
    module = "datasets.packaged_modules.cache.cache"
    return DatasetModule(module, hash="auto", builder_kwargs=origin, builder_configs_parameters=parameters)


def _folder_of_variable() -> Path | None:
    value = os.environ.get(FOLDER_VARIABLE)
    if not value:
        return None
    from scale_vqa_eval.errors import InputError, Problem
    from scale_vqa_eval.question_files import release_configs

    folder = Path(value).expanduser()
    try:
        release_configs(folder)
    except InputError as error:
        location = f"${FOLDER_VARIABLE}"
        raise InputError(
            [
                Problem(f"{location}: {problem.location}", problem.expected, problem.found, problem.hint)
                for problem in error.problems
            ]
        ) from error
    return folder


def _folder_here() -> Path | None:
    """Returns ``./scale-vqa`` where its README.md is a card with configs: a checkout of the code has the same name."""
    card = Path(DATASET_NAME, "README.md")
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    return card.parent if text.startswith("---") and "\nconfigs:" in text else None
