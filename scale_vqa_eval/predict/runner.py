"""Runs a job: what is left to ask, asked, every answer kept as it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from scale_vqa_eval.predict.items import Ask
from scale_vqa_eval.predict.job import Answer, Backend, Job
from scale_vqa_eval.predict.run_file import Key, RunFile
from scale_vqa_eval.predict.sampling import voted

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Plan:
    """What a run asks and what it may do about questions that failed.

    Attributes:
        paths: one list a path of all that is to be answered in the end.
        provenance: everything that an answer depends on.
        versions: of the packages at work.
        retry_failed: ask the failed ones again, and nothing else.
        give_up: write failed ones as empty answers, once nothing else is left.
        limit: ask at most so many now; None for all.
    """

    paths: Sequence[Sequence[Ask]]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]
    retry_failed: bool = False
    give_up: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run stands at its end: answered, failed with their reasons, and not asked yet.

    Attributes:
        prompt_tokens: of the questions asked now whose cached tokens are known, the first sample of each.
        cached_tokens: those of them that came out of a prefix cache.
    """

    answered: int
    failures: Mapping[Key, str]
    left: int
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class _Keeper:
    """The sink of a run: votes, writes, counts."""

    file: RunFile
    bar: Any
    failed: int = field(default=0)
    prompt_tokens: int = field(default=0)
    cached_tokens: int = field(default=0)

    def keep(self, ask: Ask, answer: Answer) -> None:
        # half a surrogate pair is no text: no reader of UTF-8 takes a file with one
        texts = [_SURROGATE.sub("\ufffd", text) for text in answer.responses]
        fields: dict[str, Any] = {"response": voted(texts, len(ask.options)), "images": ask.pictures}
        if len(texts) > 1:
            fields["responses"] = texts
        for name in ("finish", "prompt_tokens", "completion_tokens"):
            if getattr(answer, name) is not None:
                fields[name] = getattr(answer, name)
        # not in the file: what a cache holds depends on the moment, and the same run gives the same bytes
        if answer.prompt_tokens is not None and answer.cached_tokens is not None:
            self.prompt_tokens += answer.prompt_tokens
            self.cached_tokens += answer.cached_tokens
        self.file.keep(ask.key, fields)
        self.bar.update()

    def fail(self, ask: Ask, reason: str) -> None:
        self.file.fail(ask.key, reason)
        self.failed += 1
        self.bar.set_postfix(failed=self.failed)
        self.bar.update()


def run(backend: Backend, job: Job, out: Path, plan: Plan) -> Outcome:
    """Asks what the predictions file does not hold yet; returns once everything that can be asked is.

    Raises:
        InputError: where the file holds another run, or the model cannot be asked; nothing is asked then.
    """
    asks = [ask for path in plan.paths for ask in path]
    with RunFile(out, plan.provenance, plan.versions, asks) as file:
        for note in _notes(file):
            click.echo(note, err=True)
        paths = _left(plan, file)
        count = sum(map(len, paths))
        counted = (0, 0)
        if count:
            for note in backend.check(job, paths):
                click.echo(f"warning: {note}", err=True)
            with tqdm(total=count, desc=f"{job.model} ({len(file.answered)} done)", unit="question") as bar:
                keeper = _Keeper(file, bar)
                backend.run(job, paths, keeper)
            counted = (keeper.prompt_tokens, keeper.cached_tokens)
        left = len(asks) - len(file.answered) - len(file.failures)
        if plan.give_up and not left:
            file.give_up()
        if len(file.answered) == len(asks):
            file.settle()
        return Outcome(len(file.answered), dict(file.failures), left, *counted)


def _notes(file: RunFile) -> list[str]:
    notes = list(file.notes)
    if file.repaired:
        notes.append(
            f"{file.path}: a torn last line of {file.repaired} bytes was cut off; its question is asked again"
        )
    if file.answered:
        notes.append(f"{file.path}: going on after {len(file.answered)} of {len(file.keys)} answers")
    return notes


def _left(plan: Plan, file: RunFile) -> list[list[Ask]]:
    """Returns what is to be asked now, by path."""
    paths, room = [], plan.limit
    for path in plan.paths:
        chosen = [
            ask for ask in path if ask.key not in file.answered and (ask.key in file.failures) == plan.retry_failed
        ]
        if room is not None:
            chosen = chosen[:room]
            room -= len(chosen)
        if chosen:
            paths.append(chosen)
    return paths
