"""The text-only chat adversary: a model behind an endpoint answers the questions without their images.

Repeats rotate the options (in repeat r, option r comes first), so that a preference for a letter averages out, and
repeats differ even at temperature 0. The pick for a question is the option with the most votes.
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

from scale_vqa_eval.audit.probe import OptionLayout, ProbeScores, gold_of
from scale_vqa_eval.llm import ChatReply, ChatRequest, ChatSettings, LLMClient
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS


@dataclass(frozen=True)
class ChatAudit:
    """The result of one chat model.

    Attributes:
        result: votes, or None if the run stopped before all questions were asked.
        report: values for the report: model, endpoint, prompt id, sampling, repeats, calls and their cost, accuracy of
            each repeat, unparsed answers and failed calls by reason, and why the run stopped, or None.
        responses: responses to each question by repeat; None for a failed call.
    """

    result: ProbeScores | None
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
    """Runs ``chat_probe`` with one model after another, within a common budget."""
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
    """Asks a model every question ``repeats`` times without images; cached answers are reused.

    An answer without a valid letter and a call that fails in every attempt are counted and vote for no option. With
    one repeat, they are wrong answers.

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
    unparsed: Counter[str] = Counter()
    for index, reply in enumerate(replies):
        row, repeat = divmod(index, repeats)
        picks[row, repeat], reason = _pick(reply, questions[row])
        unparsed[reason] += reason not in ("parsed", "failed")
    report = _report(chat, replies, picks, questions, prompt["id"]) | {"unparsed": dict(sorted((+unparsed).items()))}
    texts = [reply.text for reply in replies]
    responses = tuple(tuple(texts[start : start + repeats]) for start in range(0, len(texts), repeats))
    return ChatAudit(None if chat.stopped else _votes(model, picks, questions, report), report, responses)


def _messages(question: Question, prompt: Mapping[str, str], repeat: int) -> tuple[Mapping[str, str], ...]:
    options = [
        prompt["option"].format(letter=LETTERS[index], text=question.options[(index + repeat) % len(question.options)])
        for index in range(len(question.options))
    ]
    asked = prompt["user"].format(question=question.question, options="\n".join(options))
    return {"role": "system", "content": prompt["system"]}, {"role": "user", "content": asked}


def _pick(reply: ChatReply, question: Question) -> tuple[int, str]:
    """Returns the index of the picked option in the question's own order (-1 for none), and the parse outcome."""
    if reply.failure is not None:
        return -1, "failed"
    count = len(question.options)
    letter, reason = parse_response(reply.text, "strict", count)
    return (-1 if letter is None else (LETTERS.index(letter) + reply.request.repeat) % count), reason


def _votes(
    model: str, picks: np.typing.NDArray[np.int64], questions: Sequence[Question], report: Mapping[str, Any]
) -> ProbeScores:
    """Converts picks (n, repeats) to votes per option; a question without a vote is unanswered."""
    layout = OptionLayout.of_questions(questions)
    scores = layout.padded(np.zeros(len(layout.owner)))
    rows, repeats = np.nonzero(picks >= 0)
    np.add.at(scores, (rows, picks[rows, repeats]), 1.0)
    answered = np.asarray((picks >= 0).any(axis=1))
    lost = sum(report["unparsed"].values()) + sum(report["failed"].values())
    note = f"{lost} of {picks.size} answers are missing or unparsed: they vote for no option" if lost else ""
    return ProbeScores(f"chat ({model})", "chat", False, scores, votes=True, answered=answered, note=note)


def _report(
    chat: LLMClient,
    replies: Sequence[ChatReply],
    picks: np.typing.NDArray[np.int64],
    questions: Sequence[Question],
    prompt_id: str,
) -> dict[str, Any]:
    gold = gold_of(questions)
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
