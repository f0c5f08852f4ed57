"""The text-only chat adversary: a model behind an endpoint answers the questions without their images.

Repeats rotate the options (repeat r shows option r first), so that a preference for a letter averages out and a repeat
says something even at temperature 0. A question's pick is the option with most votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scale_vqa_eval.audit.probe import ProbeResult, option_counts, padded
from scale_vqa_eval.llm import ChatReply, ChatRequest, ChatSettings, LLMClient
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS


@dataclass(frozen=True)
class ChatAudit:
    """What one chat model did.

    Attributes:
        result: its votes; None where the run was stopped before every question was asked.
        report: plain values for the report: model, endpoint, prompt id, sampling, repeats, calls and what they cost,
            accuracy of each repeat, answers that could not be read and calls that failed, by reason, and why the run
            was stopped (None where it was not).
        responses: what it said to each question, repeat by repeat; None where a call failed.
    """

    result: ProbeResult | None
    report: dict[str, Any]
    responses: tuple[tuple[str | None, ...], ...] = ()


def chat_probes(
    questions: Sequence[Question],
    endpoint: str,
    models: Sequence[str],
    cache_path: str | Path,
    settings: ChatSettings | None = None,
    repeats: int = 1,
    progress: bool = True,
) -> list[ChatAudit]:
    """Runs ``chat_probe`` with one model after another, within one budget for all of them."""
    settings = settings or ChatSettings()
    audits = []
    for model in models:
        audits.append(chat_probe(questions, endpoint, model, cache_path, settings, repeats, progress))
        if settings.budget is not None:
            spent = audits[-1].report["spending"]["cost"]
            settings = replace(settings, budget=max(0.0, settings.budget - spent))
    return audits


def chat_probe(
    questions: Sequence[Question],
    endpoint: str,
    model: str,
    cache_path: str | Path,
    settings: ChatSettings | None = None,
    repeats: int = 1,
    progress: bool = True,
) -> ChatAudit:
    """Asks a model every question ``repeats`` times without images; what the cache holds is not asked again.

    An answer that names no letter of the question is counted and votes for no option, and so is a call that failed at
    every try: with one repeat it is a wrong answer.

    Raises:
        InputError: see ``LLMClient.complete``.
    """
    prompt = yaml.safe_load((files("scale_vqa_eval.audit") / "templates/blind_chat.yaml").read_text("utf-8"))
    chat = LLMClient(endpoint, model, cache_path, settings)
    requests = [
        ChatRequest(_messages(question, prompt, repeat), question.id, repeat)
        for question in questions
        for repeat in range(repeats)
    ]
    replies = chat.complete(requests, progress)
    picks = np.full((len(questions), repeats), -1)
    unread: Counter[str] = Counter()
    for place, reply in enumerate(replies):
        row, repeat = divmod(place, repeats)
        picks[row, repeat], reason = _pick(reply, questions[row])
        unread[reason] += reason not in ("parsed", "failed")
    report = _report(chat, replies, picks, questions, prompt["id"]) | {"unparsed": dict(sorted((+unread).items()))}
    said = [reply.text for reply in replies]
    responses = tuple(tuple(said[start : start + repeats]) for start in range(0, len(said), repeats))
    return ChatAudit(None if chat.stopped else _votes(model, picks, questions, report), report, responses)


def _messages(question: Question, prompt: Mapping[str, str], repeat: int) -> tuple[Mapping[str, str], ...]:
    options = [
        prompt["option"].format(letter=LETTERS[place], text=question.options[(place + repeat) % len(question.options)])
        for place in range(len(question.options))
    ]
    asked = prompt["user"].format(question=question.question, options="\n".join(options))
    return {"role": "system", "content": prompt["system"]}, {"role": "user", "content": asked}


def _pick(reply: ChatReply, question: Question) -> tuple[int, str]:
    """Returns the index of the picked option in the question's own order (-1 for none), and what became of it."""
    if reply.failure is not None:
        return -1, "failed"
    count = len(question.options)
    letter, reason = parse_response(reply.text, "strict", count)
    return (-1 if letter is None else (LETTERS.index(letter) + reply.request.repeat) % count), reason


def _votes(
    model: str, picks: np.typing.NDArray[np.int64], questions: Sequence[Question], report: Mapping[str, Any]
) -> ProbeResult:
    """Turns picks (n, repeats) into the share of votes per option; a question without a vote is not answered."""
    counts = option_counts(questions)
    votes = np.zeros((len(questions), int(counts.max(initial=0))))
    rows, repeats = np.nonzero(picks >= 0)
    np.add.at(votes, (rows, picks[rows, repeats]), 1.0)
    total = votes.sum(axis=1, keepdims=True)
    there = padded(np.zeros(int(counts.sum())), counts) > -np.inf
    scores = np.where(there & (total > 0), votes, -np.inf)
    probability = np.where(total > 0, votes / np.maximum(total, 1), there / counts[:, None])
    lost = sum(report["unparsed"].values()) + sum(report["failed"].values())
    note = f"{lost} of {picks.size} answers could not be read or had: they are votes for no option" if lost else ""
    return ProbeResult(f"chat ({model})", "chat", False, scores, probability, note=note)


def _report(
    chat: LLMClient,
    replies: Sequence[ChatReply],
    picks: np.typing.NDArray[np.int64],
    questions: Sequence[Question],
    prompt_id: str,
) -> dict[str, Any]:
    gold = np.array([question.answer for question in questions])
    failed = Counter(reply.failure for reply in replies if reply.failure is not None)
    return {
        "model": chat.model,
        "endpoint": chat.name,
        "prompt": prompt_id,
        "sampling": dict(chat.settings.sampling),
        "repeats": picks.shape[1],
        "asked": len(replies),
        "cached": sum(reply.cached for reply in replies),
        "truncated": sum(reply.finish == "length" for reply in replies),
        "failed": dict(sorted(failed.items())),
        "accuracy_by_repeat": []
        if chat.stopped
        else [float(value) for value in (picks == gold[:, None]).mean(axis=0)],
        "spending": asdict(chat.spending),
        "http_requests": chat.sent,
        "stopped": chat.stopped,
    }
