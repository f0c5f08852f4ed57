"""Speed and memory of the metric on a million responses, beside a plain per-response loop with ``re``.

    python benchmarks/metric.py [--responses 1000000]

Everything is timed in one run on the same responses, in turns, and the best of three is kept. Three peers:

- ``loop``: one response after the other with the regular expressions of the published reward, plus the reason where
  there is no letter: the same results as the metric's parser, and they are compared;
- ``evaluate``: the same loop as an ordinary ``evaluate`` metric, against ``compute`` of ours (accuracy, intervals and
  all), from Python lists to the dictionary, on a tenth of the responses (it is slow);
- ``search``: a bare ``re.search`` and a comparison, which yields the accuracy and nothing else.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np

from scale_vqa_eval.scale_vqa_acc.parsing import REASONS, parse_batch
from scale_vqa_eval.scale_vqa_acc.scale_vqa_acc import ScaleVqaAcc

WORDS = re.findall(
    r"\w+",
    "the glands show irregular contours with pleomorphic nuclei and a desmoplastic stroma at high magnification which "
    "supports infiltration while necrosis is not clearly seen there",
)
SHAPES = (
    ("<think>{}</think> <answer>{}</answer>", 85),
    ("<think>{}</think>\n<answer> {}\n</answer>\n", 5),
    ("<think>{}</think><answer>({})</answer>", 3),
    ("<think>{}</think> <answer>{}</answer> as seen at 40x", 2),
    ("<think>{} so {}", 4),
    ("{} The answer is {}.", 1),
)
ANSWER = re.compile(r"<answer>\s*([A-Za-z])\s*</answer>")
THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
BLOCK = re.compile(r"<answer>.*?</answer>", re.DOTALL)


def make_responses(count: int, words: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Makes responses of about ``words`` words and their gold letters; one in five has characters beyond ASCII."""
    generator = random.Random(seed)
    bodies = [
        " ".join(generator.choices(WORDS, k=max(1, round(generator.gauss(words, words / 4))))) for _ in range(999)
    ]
    bodies += [f"{body} \u2013 \u201cmarked\u201d at 0.5 \u00b5m" for body in bodies[:250]]
    shapes = generator.choices([shape for shape, _ in SHAPES], [weight for _, weight in SHAPES], k=count)
    responses = [
        shape.format(f"{generator.choice(bodies)} {number}", generator.choice("ABCD"))
        for number, shape in enumerate(shapes)
    ]
    return responses, generator.choices("ABCD", k=count)


def loop(responses: list[str]) -> list[tuple[str | None, str, bool]]:
    """Letter, reason and format of each response, one after the other."""
    found = []
    for text in responses:
        letters = list(ANSWER.finditer(text))
        kept = (
            THINK.search(text) is not None
            and len(BLOCK.findall(text)) == 1
            and len(letters) == 1
            and not text[letters[0].end() :].strip()
        )
        if letters:
            found.append((letters[0].group(1).upper(), "parsed", kept))
        elif "<answer>" in text:
            closed = "</answer>" in text[text.index("<answer>") :]
            found.append((None, "not_one_letter" if closed else "unclosed_answer", kept))
        else:
            found.append((None, "no_answer" if text.strip() else "blank", kept))
    return found


def search(responses: list[str], gold: list[str]) -> float:
    """Accuracy by a bare search."""
    right = 0
    for text, letter in zip(responses, gold, strict=True):
        match = ANSWER.search(text)
        right += match is not None and match.group(1).upper() == letter
    return right / len(gold)


class PlainMetric(evaluate.Metric):  # type: ignore[misc]
    """The loop as a metric of the ordinary kind."""

    def _info(self) -> Any:
        features = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        found = loop(predictions)
        return {"accuracy": float(np.mean([own[0] == gold for own, gold in zip(found, references, strict=True)]))}


def best_of_three(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of processor time of each work, best of three turns: other processes on the machine count little."""
    seconds = {name: float("inf") for name in works}
    for _ in range(3):
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def peak_memory(work: Callable[[], Any]) -> float:
    """MiB that Python and numpy allocate at most during the work, beyond what they held before."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def assert_same(responses: list[str]) -> None:
    """Stops where the parser and the loop differ on any response."""
    parsed = parse_batch(responses)
    letters = [chr(code) if code else None for code in parsed.letters]
    reasons = [REASONS[code] for code in parsed.reasons]
    assert list(zip(letters, reasons, parsed.formats.tolist(), strict=True)) == loop(responses)


def main() -> None:
    """Prints one block for each length of response."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--responses", type=int, default=1_000_000)
    count = parser.parse_args().responses
    with tempfile.TemporaryDirectory() as cache:
        for words, share in ((5, 1), (25, 1), (75, 1), (350, 4)):
            report(count // share, words, cache)


def report(count: int, words: int, cache: str) -> None:
    """Times one length of response and prints the ratios."""
    responses, gold = make_responses(count, words)
    assert_same(responses)
    few, few_gold = responses[: count // 10], gold[: count // 10]
    seconds = best_of_three(
        {
            "ours": lambda: parse_batch(responses),
            "loop": lambda: loop(responses),
            "search": lambda: search(responses, gold),
            "score": lambda: ScaleVqaAcc(cache_dir=cache).compute(predictions=responses, references=gold),
        }
    )
    whole = best_of_three(
        {
            "ours": lambda: ScaleVqaAcc(cache_dir=cache).compute(predictions=few, references=few_gold),
            "evaluate": lambda: PlainMetric(cache_dir=cache).compute(predictions=few, references=few_gold),
        }
    )
    memory = [peak_memory(lambda part=part: parse_batch(part)) for part in (responses[: count // 4], responses)]
    size = sum(map(len, responses)) / count
    print(f"{count:,} responses of {size:.0f} characters on average")
    print(f"  parser          {seconds['ours']:7.2f} s   {count / seconds['ours'] / 1e6:.2f} M/s")
    for name, label in (("loop", "loop with re    "), ("search", "bare search     ")):
        ratio, what = seconds[name] / seconds["ours"], "the same results" if name == "loop" else "accuracy only"
        print(f"  {label}{seconds[name]:7.2f} s   {ratio:.1f}x the parser, {what}")
    print(f"  compute()       {seconds['score']:7.2f} s   with intervals")
    ratio = whole["evaluate"] / whole["ours"]
    print(f"  plain evaluate metric, {len(few):,} responses: {ratio:.1f}x the time of compute()")
    print(f"  memory beyond the input: {memory[0]:.1f} MiB for a quarter, {memory[1]:.1f} MiB for all", flush=True)


if __name__ == "__main__":
    main()
