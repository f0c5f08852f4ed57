"""Fixtures that several tests share: where the real data lies, and a fresh process with a fresh HF_HOME."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from paths import ROOT

# the same examples in every run; make fuzz draws new ones
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("default" if "SCALE_VQA_FUZZ" in os.environ else "repeatable")

SLOW = (
    "tests/dataset_script/curate/test_curate_pipeline.py",  # kills, limits, a small language model
    "tests/dataset_script/phantom/test_phantom_build.py",
    "tests/dataset_script/phantom/test_phantom_visible.py",
    "tests/dataset_script/release/test_release_hub.py",  # each layout downloaded and built
    "tests/dataset_script/review/test_review_page.py",  # a browser
    "tests/dataset_script/slides/test_export_fields.py",
    "tests/dataset_script/slides/test_slides_build.py",  # the whole of a build, several times
    "tests/dataset_script/slides/test_slides_ray.py",
    "tests/dataset_script/slides/test_slides_real.py",
    "tests/model_card/hub/test_publish_faults.py",
    "tests/model_card/hub/test_publish_hub.py",
    "tests/model_card/hub/test_publish_model.py",
    "tests/model_card/test_card_dataset.py",
    "tests/model_card/test_card_model.py",  # runs the snippets of a card
    "tests/model_card/test_spaces.py",  # a browser
    "tests/model_card/test_weights.py",  # two gigabytes
    "tests/package/test_notebook.py",
    "tests/package/test_package.py",  # builds a wheel
    "tests/scale_vqa_eval/audit/test_audit_language_model.py",
    "tests/scale_vqa_eval/plugins/",
    "tests/scale_vqa_eval/predict/test_predict_transformers.py",
    "tests/scale_vqa_eval/predict/test_predict_vllm.py",
    "tests/scale_vqa_eval/release_folder/test_loading_prepared.py",  # many new processes
    "tests/scale_vqa_eval/zoom/test_zoom_exam.py",
    "tests/scale_vqa_eval/zoom/test_zoom_inspect.py",
    "tests/scale_vqa_eval/zoom/test_zoom_transformers.py",
    "tests/tools/",
    "tests/training_recipes/test_export_loaders.py",  # other environments
    "tests/training_recipes/test_families.py",
    "tests/training_recipes/test_grpo_zoom.py",
    "tests/training_recipes/test_learn.py",
    "tests/training_recipes/test_merge_vllm.py",
    "tests/training_recipes/test_run.py",
    "tests/training_recipes/test_verl.py",
)
"""Files and folders whose tests ``make test`` leaves out: browsers, other engines, trainings, wheels, large files."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the files of ``SLOW`` unread where their tests are not asked for: their imports take half a minute."""
    asked = config.option.markexpr != "not slow"
    return None if asked or not collection_path.relative_to(ROOT).as_posix().startswith(SLOW) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of ``SLOW``; a single slow test of another file has the marker itself."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real slides and questions; the test is skipped where there is none."""
    folder = Path(os.environ.get("SCALE_VQA_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"real data is absent: {folder} (set SCALE_VQA_SHARED)")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, the more so where other tests or a server run beside them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a new process, offline, with an HF_HOME and a working directory of its own."""

    def run(code: str, cwd: Path | None = None, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "hf_home"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SCALE_VQA_"))}
        clean |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **env}
        clean.pop("PYTHONPATH", None)
        location = cwd or tmp_path / "elsewhere"
        location.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", code], cwd=location, env=clean, capture_output=True, text=True, timeout=timeout
        )

    return run
