"""A data set in the authors' format, and the layouts in which its images may lie on the Hub."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from scale_vqa_eval.schema import QUESTION_TYPES, VIEWS

SLIDES = {"val": ["01K46JNMVW0MT1HZQ89SNSKBSH"], "test": ["TCGA-AA-0001-01Z-00-DX1", "TCGA-AA-0002-01Z-00-DX1"]}
MAGNIFICATIONS = dict(zip(VIEWS, (10, 40, 200), strict=True))
Images = dict[str, bytes]


def jpeg(seed: int) -> bytes:
    """Returns a picture of its own for each number."""
    file = io.BytesIO()
    Image.effect_noise((40, 40), 20 + seed).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def questions() -> tuple[dict[str, list[dict[str, Any]]], Images]:
    """Returns split -> rows with names as the authors write them, and name -> bytes of every image."""
    images: Images = {}
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SLIDES}
    for split, slides in SLIDES.items():
        for slide in slides:
            for path in range(2):
                names: dict[str, str | None] = {}
                for view, total in MAGNIFICATIONS.items():
                    name = f"{slide}/rois/{total}_{100 * path}_{7 * total}.jpg"
                    names[view] = None if (view, path) == ("high_mag", 1) else name
                    if names[view]:
                        images[name] = jpeg(len(images))
                for number, kind in enumerate(QUESTION_TYPES):
                    rows[split].append(
                        {
                            "question": f"Which finding of {slide}, path {path}, holds for {kind}?",
                            "options": {letter: f"finding {letter} {number}" for letter in "ABCD"},
                            "answer": "ABCD"[(path + number) % 4],
                            "rationale": "It is seen.",
                            "image_path": names,
                            "extra_info": {"wsi_name": slide, "path_id": f"p{path}", "question_type": kind},
                            "No": len(rows[split]) + 1,
                        }
                    )
    return rows, images


def write_questions(root: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the JSON files, and others that are not questions, as a data set on the Hub has them."""
    root.mkdir(parents=True, exist_ok=True)
    for split, members in rows.items():
        (root / f"Scale-VQA_{split}.json").write_text(json.dumps(members))
    chats = [{"messages": [], "images": []}]
    (root / "sft_test.json").write_text(json.dumps(chats))
    (root / "dataset_infos.json").write_text("{}")
    (root / "README.md").write_text("---\nlicense: unknown\n---\n# Scale-VQA\n")


def loose(root: Path, images: Images) -> None:
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def zipped(file: Path, images: Images, above: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in images.items():
            archive.writestr(above + name, content)


def tarred(file: Path, images: Images, mode: str, above: str = "./") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, f"w:{mode}") as archive:
        for name, content in images.items():
            info = tarfile.TarInfo(above + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def by_slide(images: Images) -> dict[str, Images]:
    slides: dict[str, Images] = {}
    for name, content in images.items():
        slides.setdefault(name.split("/")[0], {})[name] = content
    return slides


def batches(root: Path, images: Images) -> None:
    for number, members in enumerate(by_slide(images).values()):
        loose(root / f"Triplet/TCGA_BRCA_batch{number // 2 + 1}", members)


def slide_archives(root: Path, images: Images, write: Callable[[Path, Images], None], suffix: str) -> None:
    for slide, members in by_slide(images).items():
        write(root / f"slides/{slide}{suffix}", {name.removeprefix(f"{slide}/"): one for name, one in members.items()})


LAYOUTS: dict[str, Callable[[Path, Images], None]] = {
    "loose in the repository": loose,
    "data": lambda root, images: loose(root / "data", images),
    "images": lambda root, images: loose(root / "images", images),
    "one batch": lambda root, images: loose(root / "Triplet/TCGA_BRCA_batch1", images),
    "several batches": batches,
    "one zip": lambda root, images: zipped(root / "images.zip", images),
    "one zip with a folder inside": lambda root, images: zipped(root / "data/all.zip", images, "all/images/"),
    "a zip a batch": lambda root, images: (
        [
            zipped(root / f"Triplet/batch{number}.zip", members)
            for number, members in enumerate(by_slide(images).values())
        ]
        and None
    ),
    "a zip a slide": lambda root, images: slide_archives(root, images, zipped, ".zip"),
    "one tar.gz": lambda root, images: tarred(root / "images.tar.gz", images, "gz"),
    "a tar a slide": lambda root, images: slide_archives(
        root, images, lambda file, part: tarred(file, part, "", ""), ".tar"
    ),
    "a tar.xz below another name": lambda root, images: tarred(root / "Triplet.tar.xz", images, "xz", "Triplet/b1/"),
}


def authors_data_set(root: Path, layout: str) -> Images:
    """Writes a data set in a layout; returns name -> bytes of its images."""
    rows, images = questions()
    shutil.rmtree(root, ignore_errors=True)
    write_questions(root, rows)
    LAYOUTS[layout](root, images)
    return images
