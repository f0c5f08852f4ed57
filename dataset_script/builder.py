"""``ScaleVQA``: the benchmark as a ``datasets`` builder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.release_folder.read import HOW_TO_MAKE_ONE, named_folder
from scale_vqa_eval.release_folder.verify import (
    check_columns,
    declared_features,
    file_stamp,
    release_shards,
    unembedded_rows,
)
from scale_vqa_eval.schema import CONFIGS, DATASET_NAME


class RefusedRow(InputError, DatasetGenerationError):
    """A row that must not be loaded; both base classes are needed so that ``datasets`` does not wrap the error."""


@dataclass
class ScaleVQAConfig(ParquetConfig):
    """A config of the data; ``columns``, ``filters`` and ``batch_size`` are those of the Parquet builder."""


class ScaleVQA(Parquet):
    """Reads one config of a release folder: ``ScaleVQA(config_name="text", data_dir="scale-vqa")``.

    After ``download_and_prepare()``, ``load_dataset("scale-vqa")`` finds the prepared configs by the bare name in any
    process; ``scale-vqa prepare`` prepares all configs. ``as_streaming_dataset()`` needs no preparation.

    Args:
        cache_dir: root of the ``datasets`` cache, or None for the library's default.
        dataset_name: name of the dataset in the cache.
        config_name: a config, or None for the default of the folder's card.
        hash: version of the data in the cache, or None to derive it from paths, sizes and times of the files.
        data_dir: the release folder, or None for ``$SCALE_VQA_PATH``, else ``./scale-vqa``.
        **kwargs: further arguments of ``datasets`` builders.

    Raises:
        InputError: if there is no release folder or no such config, or the columns are not those of Scale-VQA; also
            while rows are read, if an image is a path without bytes (``RefusedRow``).
    """

    BUILDER_CONFIG_CLASS = ScaleVQAConfig
    BUILDER_CONFIGS = [  # noqa: RUF012  (required by the library)
        ScaleVQAConfig(name=name, description=text) for name, text in CONFIGS.items()
    ]
    DEFAULT_CONFIG_NAME = "default"

    def __init__(
        self,
        cache_dir: str | None = None,
        dataset_name: str | None = DATASET_NAME,
        config_name: str | None = None,
        hash: str | None = None,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        folder = named_folder() if data_dir is None else Path(data_dir).expanduser()
        if folder is None:
            raise InputError(Problem("data_dir", "a release folder", "none given and none here", HOW_TO_MAKE_ONE))
        self.folder = folder.absolute()
        configs = release_shards(self.folder)
        name = config_name or next(iter(configs))
        if name not in configs:
            expected = f"a config that it has ({', '.join(configs)})"
            raise InputError(Problem(str(self.folder), expected, preview(name), "name one of those"))
        self.shards = configs[name]
        self.declared = declared_features(name, self.shards)
        super().__init__(
            cache_dir=cache_dir,
            dataset_name=dataset_name or DATASET_NAME,
            config_name=name,
            hash=hash or file_stamp(name, self.shards),
            **kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        info = super()._info()
        info.description = self.config.description
        info.homepage = "https://arxiv.org/abs/2606.17412"
        if info.features is None:
            chosen = self.config.columns or list(self.declared)
            unknown = sorted(set(chosen) - set(self.declared))
            if unknown:
                location, expected = f"columns of config {self.config.name}", f"some of {', '.join(self.declared)}"
                raise InputError(Problem(location, expected, ", ".join(unknown), "correct the name"))
            info.features = datasets.Features({name: self.declared[name] for name in chosen})
        return info

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        check_columns(self.shards, self.declared)
        files = {
            split: DataFilesList([str(file) for file in shards], [()] * len(shards))
            for split, shards in self.shards.items()
        }
        self.config = replace(self.config, data_files=DataFilesDict(files))
        splits: list[datasets.SplitGenerator] = super()._split_generators(dl_manager)
        for split in splits:  # the total of the progress bar
            counts = (pq.read_metadata(file).num_rows for file in self.shards[str(split.name)])
            split.split_info.num_examples = sum(counts)
        return splits

    def _generate_tables(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, pa.Table]]:
        for key, table in super()._generate_tables(*args, **kwargs):
            problems = [self._problem(table, *refused) for refused in unembedded_rows(table)]
            if problems:
                raise RefusedRow(problems)
            yield key, table

    def _problem(self, table: pa.Table, row: int, column: str, path: str) -> Problem:
        named = f"row {table['id'][row].as_py()}" if "id" in table.column_names else "a row (load `id` to see which)"
        return Problem(
            f"{self.folder}, config {self.config.name}, {named}, column {column}",
            "an image inside of the Parquet file",
            f"the path {preview(path, 400)} without bytes",
            "embed the image; paths are never opened",
        )
