"""Checks in a new process with empty caches that the published files equal the local ones and load by id.

``verify`` runs this module as a process, which reads a request (JSON) from stdin and writes a report (JSON) to
stdout. Of this project, that process imports only the comparison of logits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from model_card.hub.plan import PublishPlan

MAX_PREPARED: Final = 2 * 10**9
"""Size in bytes up to which a dataset is loaded completely; larger ones are streamed."""
_BATCH: Final = 8
_DROPPED: Final = frozenset(
    {
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_EVALUATE_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TRANSFORMERS_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "PYTHONPATH",
    }
)
"""Environment variables that the new process does not get, in addition to caches and this project's own."""


class NotVerified(Exception):
    """Verification failed; ``wrong`` lists the files that differ."""

    def __init__(self, message: str, wrong: list[str] | None = None) -> None:
        super().__init__(message)
        self.wrong = wrong or []


@dataclass(frozen=True)
class Sent:
    """The commit on the Hub, and the revision of the pull request or None."""

    commit: str
    pull_request: str | None


def verify(plan: PublishPlan, sent: Sent, token: str) -> dict[str, Any]:
    """Downloads the release, compares it, loads it by id and scores one batch, in a new process.

    Returns:
        ``files`` and ``bytes`` with equal hashes, what was ``loaded``, and the scores of the batch (``scored``).

    Raises:
        NotVerified: if a step fails.
    """
    from scale_vqa_eval.schema import METRIC_FOLDER

    request = {
        "kind": plan.request.kind.name,
        "repo": plan.request.repo,
        "repo_type": plan.request.kind.repo_type,
        "commit": sent.commit,
        "revision": sent.pull_request or sent.commit,
        "pull_request": sent.pull_request is not None,
        "files": {file.path: [file.size, file.sha256] for file in plan.files},
        "folder": str(plan.request.folder.resolve()),
        "metric": str(METRIC_FOLDER),
        "prepare": sum(file.size for file in plan.files) <= MAX_PREPARED,
    }
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith("SCALE_VQA_") and not ("CACHE" in name and "HF" in name)
    }
    with tempfile.TemporaryDirectory(prefix="scale-vqa-verify-") as home:
        environment |= {"HF_HOME": home, "HF_TOKEN": token, "PYTHONDONTWRITEBYTECODE": "1"}
        status, answer, stderr = _run(request, home, environment)
    if status == 0 and answer and "error" not in answer:
        return answer
    found = answer["error"] if "error" in answer else "".join(stderr[-3:]).strip() or f"exit status {status}"
    raise NotVerified(
        f"published to {plan.request.repo}, but NOT verified: {found}\n"
        "run the same command again: it sends missing or wrong files again, and verifies again",
        answer.get("wrong"),
    )


def _run(request: dict[str, Any], home: str, environment: dict[str, str]) -> tuple[int, dict[str, Any], list[str]]:
    """Runs this module; returns exit status, answer and lines of stderr, which are also shown (masked)."""
    # -P: do not import from the working directory
    command = [sys.executable, "-P", "-m", "model_card.hub.verify"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        command, cwd=home, env=environment, text=True, encoding="utf-8", errors="replace", **pipes
    )
    stderr: list[str] = []

    def relay() -> None:
        for line in process.stderr or ():
            stderr.append(line)
            print(line, end="", file=sys.stderr)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        lines = [line for line in process.stdout.read().splitlines() if line.startswith("{")]
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    thread.join()
    try:
        return status, dict(json.loads(lines[-1])) if lines else {}, stderr
    except ValueError:
        return status, {}, stderr


def main() -> None:
    """Prints the report; exits with 1 if a file differs or does not load."""
    request = json.loads(sys.stdin.read())
    try:
        report = check(request)
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line] or [type(error).__name__]
        kind = "" if isinstance(error, NotVerified) else f"{type(error).__name__}: "
        print(json.dumps({"error": kind + " ".join(lines)[:600], "wrong": getattr(error, "wrong", [])}))
        sys.exit(1)
    print(json.dumps(report))


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Downloads the release, compares hashes, loads it by id and scores a batch."""
    folder = download(request)
    loads = {"dataset": load_data, "metric": load_metric, "space": load_space, "model": load_weights}
    loaded, scored = loads[request["kind"]](request, folder)
    total = sum(size for size, _ in request["files"].values())
    return {"files": len(request["files"]), "bytes": total, "loaded": loaded, "scored": scored}


def download(request: dict[str, Any]) -> Path:
    """Returns the downloaded folder; raises NotVerified if the SHA-256 of files differs."""
    from huggingface_hub import snapshot_download

    files = list(request["files"])
    location = {"repo_type": request["repo_type"], "revision": request["commit"]}
    try:
        place = Path(snapshot_download(request["repo"], allow_patterns=files, **location))
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        # the size of a file differs from the Hub's list; the client does not say which file
        raise NotVerified(str(error).split(" This is usually")[0], files) from None
    wrong: dict[str, str] = {}
    for name, (size, sha256) in sorted(request["files"].items()):
        path = place / name
        if not path.is_file():
            wrong[name] = f"{name} is not there"
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            there = path.stat().st_size
            wrong[name] = f"{name}: SHA-256 {found[:12]} and {there} bytes, not {sha256[:12]} and {size}"
    if wrong:
        first = "; ".join(list(wrong.values())[:3])
        raise NotVerified(f"{len(wrong)} of {len(request['files'])} files differ: {first}", sorted(wrong))
    return place


def load_data(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads every config by id; right answers must score 1, wrong answers 0."""
    import evaluate
    from datasets import get_dataset_config_names, load_dataset

    repo, revision = request["repo"], request["revision"]
    configs = get_dataset_config_names(repo, revision=revision)
    rows = 0
    first: list[int] = []
    for config in configs:
        splits = load_dataset(repo, config, revision=revision, streaming=not request["prepare"])
        for data in splits.values():
            batch = list(data.select_columns(["id", "answer"]).take(_BATCH))
            if not batch:
                raise NotVerified(f"config {config} has a split without rows")
            rows += len(data) if request["prepare"] else len(batch)
            first = first or [row["answer"] for row in batch]
            next(iter(data))  # decodes the images of a row
    metric = evaluate.load(request["metric"])
    right, wrong = (
        metric.compute(predictions=[f"<answer>{'ABCD'[(gold + by) % 4]}</answer>" for gold in first], references=first)
        for by in (0, 1)
    )
    if (right["accuracy"], wrong["accuracy"]) != (1.0, 0.0):
        raise NotVerified("right answers to a batch do not score 1, or wrong ones not 0")
    how = "load_dataset" if request["prepare"] else "load_dataset(streaming=True)"
    scored = {"n": len(first), "accuracy of right answers": right["accuracy"], "of wrong ones": wrong["accuracy"]}
    return f"{how} of {len(configs)} configs by id, {rows} rows", scored


def load_metric(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads the metric by id; its scores of a batch must equal those of the folder's metric."""
    import datasets
    import evaluate

    responses = ["<think>x</think> <answer>A</answer>", "<answer>C</answer>", "It is B.", None]
    given = {"predictions": responses, "references": ["A", "B", "B", "D"], "cluster": ["P1", "P1", "P2", "P3"]}
    theirs = evaluate.load(
        request["repo"], revision=request["revision"], download_config=datasets.DownloadConfig()
    ).compute(**given)
    name = request["repo"].split("/")[-1]
    ours = evaluate.load(str(Path(request["folder"]) / f"{name}.py")).compute(**given)
    if json.dumps(theirs, sort_keys=True) != json.dumps(ours, sort_keys=True):
        raise NotVerified("the metric loaded by id scores a batch differently from the folder's")
    return "evaluate.load by id", {"n": len(responses), "accuracy": theirs["accuracy"], "as the folder's": True}


def load_space(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Compiles the scripts of a Space; the app is not started."""
    scripts = sorted(folder.rglob("*.py"))
    for script in scripts:
        compile(script.read_text(encoding="utf-8"), script.name, "exec")
    return f"{len(scripts)} scripts compile (the app itself was not started)", {"n": 0}


def load_weights(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads the model by id; its logits must equal those of the local model, and it must answer a batch."""
    from model_card.tensors import same_logits

    adapter = (folder / "adapter_config.json").is_file()
    by_id = not adapter and not request["pull_request"]
    there = request["repo"] if by_id else str(folder)
    found = same_logits(request["folder"], there)
    if not found.same:
        raise NotVerified(
            f"logits differ from the folder's by {found.difference:.3g} standard deviations"
            + (f", and so do the inputs {', '.join(found.inputs)}" if found.inputs else "")
        )
    scored = _answered(there, request["metric"])
    how = "from_pretrained by id" if by_id else "from_pretrained of the downloaded folder"
    return f"{how}: logits of {found.tokens} tokens equal to the folder's", scored


def _answered(place: str, metric: str) -> dict[str, Any]:
    """Asks two questions without images and scores them, to check that the model can answer."""
    import evaluate
    import torch
    from transformers import AutoProcessor

    from model_card.tensors import load_model

    model, processor = load_model(place), AutoProcessor.from_pretrained(place)
    processor.tokenizer.padding_side = "left"
    texts = ["Which organ is shown? A. liver B. colon C. skin D. lung", "Is a gland seen? A. yes B. no C. one D. two"]
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    ).to(model.device)
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    responses = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    score = evaluate.load(metric).compute(predictions=responses, references=["B", "A"])
    return {"n": score["n"], "answers that can be read": score["n"] - score["unparsed"]["n"]}


if __name__ == "__main__":
    main()
