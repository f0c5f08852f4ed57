"""Builds of grounding questions for tests, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_script.slides.build import build_slides
from dataset_script.slides.build_report import BuildReport
from dataset_script.slides.plan import GroundingSettings
from scale_vqa_eval.schema import patient_of

SMALL = GroundingSettings(paths_per_slide=8, sizes=(("high_mag", 64), ("low_mag", 64), ("mid_mag", 64)))


def build(
    slides: list[Path], out: Path, settings: GroundingSettings = SMALL, processes: int = 1
) -> tuple[BuildReport, list[str]]:
    told: list[str] = []
    patients = {slide.stem: patient_of(slide.stem) for slide in slides}
    return build_slides(slides, patients, settings, out, processes, told.append), told


def rows_of(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq
    from datasets import Features

    rows = []
    for path in sorted((out / "grounding").glob("*.parquet")):
        file = pq.ParquetFile(path)
        kinds = Features.from_arrow_schema(file.schema_arrow)["dimension"].names
        for row in file.read().to_pylist():
            rows.append(row | {"dimension": kinds[row["dimension"]], "split": path.name.split("-")[0]})
    return rows
