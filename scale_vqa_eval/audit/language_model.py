"""Option likelihood under a causal language model that sees no image: raw, per token, and as PMI.

For a question q and an option o of tokens t_1..t_m, log P(o | q) = sum_i log P(t_i | q, t_1..t_{i-1}). The score per
token divides by m; PMI subtracts log P(o | neutral question), so that an option gains nothing by being likely in
itself (domain-conditional PMI: Holtzman et al. 2021, arXiv:2104.08315).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from tqdm import tqdm

from scale_vqa_eval.audit.probe import ProbeResult, option_counts, padded
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.questions import Question
from scale_vqa_eval.store import Journal

Likelihoods = list[tuple[float, int]]
"""Per option: log-likelihood in nats, and the number of tokens it is a sum over."""

_LOGITS_BYTES: Final = 256_000_000
_QUESTIONS_A_ROUND: Final = 16


@dataclass(frozen=True)
class CausalLM:
    """A causal language model with its tokeniser.

    Attributes:
        name: short name for tables.
        identity: what a cached score depends on: files, their sizes and times, dtype; no absolute path.
        model: a transformers causal model in evaluation mode.
        tokenizer: its tokeniser.
        positions: longest input in tokens.
        start: the start mark that the tokeniser puts first by itself, if any.
    """

    name: str
    identity: str
    model: Any
    tokenizer: Any
    positions: int
    start: tuple[int, ...]


def load_causal_lm(spec: str) -> CausalLM:
    """Loads a model: float32 on a CPU, bfloat16 on a GPU where there is one.

    Args:
        spec: Hub id or folder, with ``#FILE.gguf`` for a GGUF file in it.

    Raises:
        InputError: where there is no such model, or it is no causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, _, gguf = spec.partition("#")
    options = {"gguf_file": gguf} if gguf else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a Hub id or a folder, with #FILE.gguf where the weights are a GGUF file"
        raise InputError(
            Problem("--lm", "a causal language model", f"{preview(spec)}: {preview(error, 200)}", hint)
        ) from error
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    name = (Path(gguf).stem if gguf else Path(place).name) or place
    mark = tokenizer.bos_token_id
    start = (mark,) if mark is not None and tokenizer("a")["input_ids"][0] == mark else ()
    identity = f"{_fingerprint(place, gguf)} {dtype}"
    return CausalLM(name, identity, model.to(device).eval(), tokenizer, positions, start)


def language_model_probes(
    questions: Sequence[Question], spec: str, cache_path: str | Path | None = None, progress: bool = True
) -> list[ProbeResult]:
    """Returns three probes of one model: option likelihood, likelihood per token, and PMI.

    Args:
        questions: the questions.
        spec: see ``load_causal_lm``.
        cache_path: journal of scores: an interrupted run goes on from it.
        progress: show a bar on standard error.

    Raises:
        InputError: where the model cannot be loaded, or an option alone is longer than the model reads.
    """
    lm = load_causal_lm(spec)
    prompts = yaml.safe_load((files("scale_vqa_eval.audit") / "templates/option_likelihood.yaml").read_text("utf-8"))
    contexts = [prompts["question"].format(question=question.question.strip()) for question in questions]
    cut = sum(_is_cut(lm, context, question.options) for context, question in zip(contexts, questions, strict=True))
    groups = [(context, question.options) for context, question in zip(contexts, questions, strict=True)]
    neutral = [(prompts["neutral"], question.options) for question in questions]
    found = _scored(lm, [*groups, *neutral], f"{prompts['id']} {lm.identity}", cache_path, progress)
    asked = np.array([pair for group in groups for pair in found[group]])
    alone = np.array([pair for group in neutral for pair in found[group]])
    note = f"{cut} questions were longer than the model reads and were cut on the left" if cut else ""
    counts = option_counts(questions)
    scores = {"": asked[:, 0], " per token": asked[:, 0] / asked[:, 1], " PMI": asked[:, 0] - alone[:, 0]}
    return [
        ProbeResult(f"likelihood{kind} ({lm.name})", "language model", False, padded(values, counts), note=note)
        for kind, values in scores.items()
    ]


def option_likelihoods(lm: CausalLM, groups: Sequence[tuple[str, tuple[str, ...]]]) -> list[Likelihoods]:
    """Returns log P(option | context) of every option of every (context, options) group; padded batches.

    Context and option are tokenised together, as the model would read them. Where a token straddles the boundary, the
    sums of all options of the group start after the last token that the context shares with all of them, so that they
    stay comparable.
    """
    rows: list[tuple[list[int], int]] = [row for context, options in groups for row in _rows(lm, context, options)]
    sums = np.empty(len(rows))
    for batch in _batches(lm, [len(ids) for ids, _ in rows]):
        sums[batch] = _batch_sums(lm, [rows[index] for index in batch])
    pairs = iter([(float(total), len(ids) - start) for total, (ids, start) in zip(sums, rows, strict=True)])
    return [[next(pairs) for _ in options] for _, options in groups]


def _rows(lm: CausalLM, context: str, options: Sequence[str]) -> list[tuple[list[int], int]]:
    """Returns per option the token ids of context and option, and the position that its own tokens start at."""
    before = _tokens(lm, context)
    both = [_tokens(lm, f"{context} {option.strip()}") for option in options]
    start = max(1, min(_shared(before, ids) for ids in both))
    rows = []
    for ids, option in zip(both, options, strict=True):
        excess = max(0, len(ids) - lm.positions)
        if excess >= start:
            found = f"{len(ids) - start} tokens: {preview(option)}"
            hint = "use a model with a longer context"
            raise InputError(Problem("option", f"fewer than {lm.positions} tokens for {lm.name}", found, hint))
        rows.append((ids[excess:], start - excess))
    return rows


def _is_cut(lm: CausalLM, context: str, options: Sequence[str]) -> bool:
    texts = [f"{context} {option.strip()}" for option in options]
    return any(len(text.encode()) >= lm.positions and len(_tokens(lm, text)) > lm.positions for text in texts)


def _tokens(lm: CausalLM, text: str) -> list[int]:
    """Returns the token ids of a text after the model's start mark, without an end mark."""
    return [*lm.start, *lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Returns the length of the common prefix; the last token of the longer is never part of it."""
    limit = min(len(left), len(right) - 1)
    return next((index for index in range(limit) if left[index] != right[index]), limit)


def _batches(lm: CausalLM, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields row numbers, longest first, so that a padded batch keeps its logits within ``_LOGITS_BYTES``."""
    room = max(1, _LOGITS_BYTES // (4 * lm.model.config.get_text_config().vocab_size))
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, room // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _batch_sums(lm: CausalLM, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Returns the summed log-probabilities of the tokens from each row's start on; right-padded, padding masked."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, (tokens, _) in enumerate(rows):
        ids[index, : len(tokens)] = torch.tensor(tokens)
        mask[index, : len(tokens)] = 1
    device = lm.model.device
    with torch.inference_mode():
        logits = lm.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        sums = []
        for index, (tokens, start) in enumerate(rows):
            targets = ids[index, start : len(tokens)].to(device)
            chances = logits[index, start - 1 : len(tokens) - 1].float().log_softmax(-1)
            sums.append(float(chances.gather(1, targets[:, None]).double().sum()))
    return sums


def _scored(
    lm: CausalLM,
    groups: Sequence[tuple[str, tuple[str, ...]]],
    identity: str,
    cache_path: str | Path | None,
    progress: bool,
) -> dict[tuple[str, tuple[str, ...]], Likelihoods]:
    """Scores every distinct group once, taking from the journal what it has and adding the rest to it."""
    keys = {group: hashlib.sha256(json.dumps([identity, *group]).encode()).hexdigest() for group in groups}
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(cache_path)) if cache_path else None
        known = {record["key"]: record["likelihoods"] for record in journal.records} if journal else {}
        found = {group: [(total, count) for total, count in known[key]] for group, key in keys.items() if key in known}
        todo = [group for group in keys if group not in found]
        with tqdm(total=len(todo), desc=f"likelihood ({lm.name})", unit="group", disable=not progress) as bar:
            for start in range(0, len(todo), _QUESTIONS_A_ROUND):
                part = todo[start : start + _QUESTIONS_A_ROUND]
                for group, likelihoods in zip(part, option_likelihoods(lm, part), strict=True):
                    found[group] = likelihoods
                    if journal:
                        journal.append({"key": keys[group], "likelihoods": likelihoods})
                bar.update(len(part))
    return found


def _fingerprint(place: str, gguf: str) -> str:
    """Returns what tells one set of weights from another: a folder's file names, sizes and times, or the Hub id."""
    folder = Path(place)
    if not folder.is_dir():
        return f"{place}#{gguf}"
    parts = [folder / gguf] if gguf else sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()
