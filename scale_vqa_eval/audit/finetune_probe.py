"""A causal language model that is fine-tuned on text and answers of other clusters' questions.

Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) are trained to give the letter of the gold option. The order
of the options changes in every epoch, so that only their text can be learned. Each question is scored by a model that
was not trained on its cluster, averaged over ``ROTATIONS`` rotations of its options.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from tqdm import tqdm

from scale_vqa_eval.audit.clusters import IntArray, clusters_of, folds_of
from scale_vqa_eval.audit.fitted_probes import Votes
from scale_vqa_eval.audit.language_model import CausalLM, load_causal_lm
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeScores
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.store import Journal

RANK: Final = 16
LEARNING_RATE: Final = 5e-4
BATCH: Final = 8
ROTATIONS: Final = 2


def finetune_probe(
    questions: Sequence[Question],
    spec: str,
    seed: int = 0,
    epochs: int = 3,
    folds: int = 5,
    cache_path: str | Path | None = None,
    progress: bool = True,
) -> ProbeScores:
    """Fine-tunes a model and scores each question, cross-fitted by cluster with one partition.

    The p-value is based on sequential scores: each fold is scored by a model that was trained on the folds before it.

    Args:
        questions: the questions.
        spec: see ``language_model.load_causal_lm``.
        seed: seed of folds, orders and adapters.
        epochs: number of passes over the training questions.
        folds: maximum number of folds.
        cache_path: file of finished folds, from which an interrupted run resumes.
        progress: whether to show a progress bar.

    Raises:
        InputError: if the model cannot be loaded.
    """
    lm = load_causal_lm(spec, "--finetune")
    layout = OptionLayout.of_questions(questions)
    fold_of = folds_of(clusters_of(questions), seed, 1, folds)[0]
    count = int(fold_of.max()) + 1
    settings = [lm.identity, seed, epochs, RANK, LEARNING_RATE, BATCH, ROTATIONS]
    texts = [[q.question, q.options, q.answer, int(fold)] for q, fold in zip(questions, fold_of, strict=True)]
    identity = sha256_json([settings, texts])
    votes = Votes(np.zeros(len(layout.owner)), np.full(len(layout.owner), np.nan))
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(cache_path)) if cache_path else None
        known = {record["key"]: record["votes"] for record in journal.records} if journal else {}
        title = f"fine-tuning ({lm.name})"
        for fold in tqdm(range(count), title, unit=" folds", disable=not progress, leave=False):
            scored = np.flatnonzero(fold_of == fold)
            for kind, chosen in (("crossed", fold_of != fold), ("sequential", fold_of < fold)):
                key = f"{identity} {kind} {fold}"
                if key not in known and chosen.any():
                    tuned = _tuned(
                        lm, [questions[row] for row in np.flatnonzero(chosen).tolist()], seed + fold, epochs
                    )
                    known[key] = _letter_votes(lm, tuned, [questions[row] for row in scored.tolist()]).tolist()
                    tuned.unload()
                    if journal:
                        journal.append({"key": key, "votes": known[key]})
                if key in known:
                    getattr(votes, kind)[layout.rows_of(scored)] = known[key]
        even = 1.0 / layout.counts[layout.owner]
        crossed = np.where(layout.sums(votes.crossed)[layout.owner] > 0, votes.crossed, even)
    return Votes(crossed, votes.sequential).scores(f"fine-tuned ({lm.name})", "language model", layout)


@cache
def _template() -> dict[str, str]:
    path = files("scale_vqa_eval.audit") / "templates/option_letter.yaml"
    template: dict[str, str] = yaml.safe_load(path.read_text("utf-8"))
    return template


def _prompt(question: Question, order: IntArray) -> str:
    """Returns the prompt of a question, with its options in a given order, up to the letter."""
    template = _template()
    options = [
        template["option"].format(letter=LETTERS[place], text=question.options[index])
        for place, index in enumerate(order)
    ]
    return template["prompt"].format(question=question.question.strip(), options="\n".join(options))


def _tuned(lm: CausalLM, questions: Sequence[Question], seed: int, epochs: int) -> Any:
    """Returns the model with adapters trained on these questions; the base model is not changed."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 10])
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(lm.model, config)
    model.train()
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    for _ in range(epochs):
        rows = rng.permutation(len(questions))
        for start in range(0, len(rows), BATCH):
            batch = [questions[row] for row in rows[start : start + BATCH]]
            orders = [rng.permutation(len(question.options)) for question in batch]
            gold = torch.tensor([int(np.flatnonzero(o == q.answer)[0]) for o, q in zip(orders, batch, strict=True)])
            logits = _letter_logits(lm, model, batch, orders)
            loss = torch.nn.functional.cross_entropy(logits, gold.to(logits.device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def _letter_votes(lm: CausalLM, model: Any, questions: Sequence[Question]) -> FloatArray:
    """Returns (N,): the probability of each option, averaged over rotations of the options."""
    import torch

    votes = []
    with torch.inference_mode():
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            shares = [np.zeros(len(question.options)) for question in batch]
            for turn in range(ROTATIONS):
                orders = [np.roll(np.arange(len(q.options)), turn * len(q.options) // ROTATIONS) for q in batch]
                chances = _letter_logits(lm, model, batch, orders).softmax(-1).double().cpu().numpy()
                for share, order, chance in zip(shares, orders, chances, strict=True):
                    share[order] += chance[: len(order)] / ROTATIONS
            votes += shares
    return np.concatenate(votes)


def _letter_logits(lm: CausalLM, model: Any, questions: Sequence[Question], orders: Sequence[IntArray]) -> Any:
    """Returns (n, width): logits of the letters after each prompt, -inf for letters without an option."""
    import torch

    tokens = [
        [*lm.start, *lm.tokenizer(_prompt(q, order), add_special_tokens=False, verbose=False)["input_ids"]]
        for q, order in zip(questions, orders, strict=True)
    ]
    tokens = [ids[-lm.positions :] for ids in tokens]
    width = max(map(len, tokens))
    ids = torch.zeros((len(tokens), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, known in enumerate(tokens):
        ids[row, : len(known)], mask[row, : len(known)] = torch.tensor(known), 1
    device = lm.model.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    last = logits[torch.arange(len(tokens)), mask.sum(1).to(device) - 1].float()
    most = max(len(order) for order in orders)
    letters = [lm.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in LETTERS[:most]]
    counts = torch.tensor([len(order) for order in orders], device=device)
    absent = torch.arange(most, device=device)[None, :] >= counts[:, None]
    return last[:, letters].masked_fill(absent, -torch.inf)
