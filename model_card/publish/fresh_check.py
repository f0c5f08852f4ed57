"""Run as a process of its own: is what the Hub gives what was published, and does it load by its id?

Reads a request (JSON) on stdin, writes a report (JSON) on stdout. It imports nothing of this project but the
comparison of logits: what it does, any reader with the Hugging Face libraries can do.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

BATCH = 8


class NotTheSame(Exception):
    """What was downloaded is not what was published; ``wrong`` names the files."""

    def __init__(self, message: str, wrong: list[str] | None = None) -> None:
        super().__init__(message)
        self.wrong = wrong or []


def main() -> None:
    """Prints the report; exit 1 where anything differs or does not load."""
    request = json.loads(sys.stdin.read())
    try:
        report = check(request)
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line] or [type(error).__name__]
        kind = "" if isinstance(error, NotTheSame) else f"{type(error).__name__}: "
        wrong = getattr(error, "wrong", [])
        print(json.dumps({"error": kind + " ".join(lines)[:600], "wrong": wrong}))
        sys.exit(1)
    print(json.dumps(report))


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Downloads, compares the hashes, loads by id, scores a batch."""
    folder = download(request)
    loads = {"dataset": load_data, "metric": load_metric, "space": load_space, "model": load_weights}
    loaded, scored = loads[request["kind"]](request, folder)
    total = sum(size for size, _ in request["files"].values())
    return {"files": len(request["files"]), "bytes": total, "loaded": loaded, "scored": scored}


def download(request: dict[str, Any]) -> Path:
    """Returns the downloaded folder.

    Raises:
        NotTheSame: naming the files whose size or SHA-256 is another.
    """
    from huggingface_hub import snapshot_download

    files = list(request["files"])
    location = {"repo_type": request["repo_type"], "revision": request["commit"]}
    try:
        place = Path(snapshot_download(request["repo"], allow_patterns=files, **location))
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        # the client found another size than the Hub lists, and does not say of which file
        raise NotTheSame(str(error).split(" This is usually")[0], files) from None
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
        preview = "; ".join(list(wrong.values())[:3])
        raise NotTheSame(
            f"{len(wrong)} of {len(request['files'])} files came back as others: {preview}", sorted(wrong)
        )
    return place


def load_data(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads every config by id; right answers must score 1 and wrong ones 0."""
    import evaluate
    from datasets import get_dataset_config_names, load_dataset

    repo, revision = request["repo"], request["revision"]
    configs = get_dataset_config_names(repo, revision=revision)
    rows = 0
    first: list[int] = []
    for config in configs:
        splits = load_dataset(repo, config, revision=revision, streaming=not request["whole"])
        for data in splits.values():
            batch = list(data.select_columns(["id", "answer"]).take(BATCH))
            if not batch:
                raise NotTheSame(f"config {config} has a split without rows")
            rows += len(data) if request["whole"] else len(batch)
            first = first or [row["answer"] for row in batch]
            next(iter(data))  # decodes the images of a row
    metric = evaluate.load(request["metric"])
    right, wrong = (
        metric.compute(predictions=[f"<answer>{'ABCD'[(gold + by) % 4]}</answer>" for gold in first], references=first)
        for by in (0, 1)
    )
    if (right["accuracy"], wrong["accuracy"]) != (1.0, 0.0):
        raise NotTheSame("right answers to a batch do not score 1, or wrong ones not 0")
    how = "load_dataset" if request["whole"] else "load_dataset(streaming=True)"
    scored = {"n": len(first), "accuracy of right answers": right["accuracy"], "of wrong ones": wrong["accuracy"]}
    return f"{how} of {len(configs)} configs by id, {rows} rows", scored


def load_metric(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads the metric by id; it must score a batch as the folder's does."""
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
        raise NotTheSame("the metric loaded by id scores a batch otherwise than the folder's")
    return "evaluate.load by id", {"n": len(responses), "accuracy": theirs["accuracy"], "as the folder's": True}


def load_space(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Compiles the app of a Space; it runs on the Hub, not here."""
    scripts = sorted(folder.rglob("*.py"))
    for script in scripts:
        compile(script.read_text(encoding="utf-8"), script.name, "exec")
    return f"{len(scripts)} scripts compile (the app itself was not started)", {"n": 0}


def load_weights(request: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Loads the model by id; its logits must be those of the folder's, and it must answer a batch."""
    from model_card.tensors import same_logits

    adapter = (folder / "adapter_config.json").is_file()
    by_id = not adapter and not request["pull_request"]
    there = request["repo"] if by_id else str(folder)
    found = same_logits(request["folder"], there)
    if not found.same:
        raise NotTheSame(
            f"logits differ from the folder's by {found.difference:.3g} standard deviations"
            + (f", and so do the inputs {', '.join(found.inputs)}" if found.inputs else "")
        )
    scored = _answered(there, request["metric"])
    how = "from_pretrained by id" if by_id else "from_pretrained of the downloaded folder"
    return f"{how}: logits of {found.tokens} tokens equal to the folder's", scored


def _answered(place: str, metric: str) -> dict[str, Any]:
    """Asks two questions without images and scores them: whether it answers at all, not how well."""
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
        made = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    responses = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    score = evaluate.load(metric).compute(predictions=responses, references=["B", "A"])
    return {"n": score["n"], "answers that can be read": score["n"] - score["unparsed"]["n"]}


if __name__ == "__main__":
    main()
