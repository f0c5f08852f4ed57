"""Exchange groups: how many, how near to the bound, how long; beside a first-come greedy peer in the same run.

    python benchmarks/control.py [--released val.json] [--sizes 1000 10000] [--screened 5000] [--json OUT]
    python benchmarks/control.py --attack val.json [--json OUT]

The peer takes the rows in their order and puts each into the first open group of its question text that it is
compatible with (the same limits); a group closes at four. Generated corpora repeat a few question texts over patients
with unequal numbers of rows; in ``crowded`` ones most right answers come from few findings, so that many pairs are
too alike. Ratios are ours over the peer's.

``--screened N`` prunes N generated questions instead, of which 60% have the right option at the centre of the four;
the medoid's 70% then leave four times 10% of them, which is what a perfect reader would have to keep.

``--attack FILE`` makes exchange and block exchange, with several limits on ambiguity, with contradicted options
alone, and with shared images, and prints for each: groups and bound, the estimated ambiguity, the share of wrong
options above 0.3, the strongest reasons to be wrong, the Diagnosis groups of four organs, and what the joint reader of
``tests/helpers`` gets by slide, path and image, one letter each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scale_vqa_eval.controls.exchange import PairRules, ValidityLimits, compatible, exchange, gold_problem
from scale_vqa_eval.controls.findings import REASONS
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.text import same_text

DIMENSIONS = ("Confirmation", "Correspondence", "Diagnosis", "Explanation", "Localization")


def corpus(rows: int, findings: int, seed: int = 0) -> list[Question]:
    """Questions of two templates a dimension; patients have 5 to 75 rows, as slides of a release do."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(rows), rng.integers(1, 16, rows) * 5)[:rows]
    vocabulary = [f"finding{number}" for number in range(findings)]
    questions = []
    for row in range(rows):
        dimension = DIMENSIONS[row % 5]
        options = tuple(" ".join(rng.choice(vocabulary, 7, replace=False)) for _ in range(4))
        stem = f"Template {rng.integers(2)} of {dimension}?"
        slide = f"patient{patients[row]}"
        gold = int(rng.integers(4))
        questions.append(Question(f"q{row}", stem, options, gold, dimension, slide, slide, f"{slide}-{row // 5}"))
    return questions


def first_come(questions: Sequence[Question], limits: ValidityLimits) -> int:
    """Number of groups that the peer makes."""
    by_text: dict[tuple[str | None, str | None, str], list[Question]] = defaultdict(list)
    for question in questions:
        if gold_problem(question) is None:
            by_text[question.split, question.dimension, same_text(question.question)].append(question)
    closed = 0
    for rows in by_text.values():
        golds = [question.options[question.answer] for question in rows]
        graph = compatible(golds, [()] * len(rows), [question.cluster for question in rows], limits)
        open_groups: list[list[int]] = []
        for row in range(len(rows)):
            group = next((group for group in open_groups if graph[row, group].all()), None)
            if group is None:
                open_groups.append([row])
                continue
            group.append(row)
            if len(group) == 4:
                closed += 1
                open_groups.remove(group)
    return closed


def measured(name: str, questions: Sequence[Question]) -> dict[str, Any]:
    """Runs both on the same questions."""
    limits = ValidityLimits()
    start = time.perf_counter()
    peer = first_come(questions, limits)
    middle = time.perf_counter()
    found = exchange(PairRules(questions, limits))
    end = time.perf_counter()
    return {
        "corpus": name,
        "rows": len(questions),
        "groups": len(found.groups),
        "bound": found.bound,
        "first_come": peer,
        "of_bound": len(found.groups) / max(1, found.bound),
        "of_first_come": len(found.groups) / max(1, peer),
        "seconds": end - middle,
        "first_come_seconds": middle - start,
    }


def screened(rows: int, leak: float = 0.6) -> dict[str, Any]:
    """Prunes generated questions with the whole battery and audits what stays."""
    from audit import generated_questions

    from scale_vqa_eval.controls.output import figures
    from scale_vqa_eval.controls.screened import Readers, fresh_audit, prune

    rng = np.random.default_rng(0)
    questions = [
        question if rng.random() < leak else replace(question, answer=int(rng.integers(4)))
        for question in generated_questions(rows)
    ]
    start = time.perf_counter()
    readers = Readers(questions, 42)
    pruned = prune(readers, np.arange(rows))
    after = figures(fresh_audit(readers, pruned.rows))
    return {
        "rows": rows,
        "kept": len(pruned.rows),
        "at_chance": pruned.at_chance and not after["off_chance"],
        "rounds": len(pruned.rounds),
        "strongest": after["strongest"],
        "ceiling": after["ceiling"],
        "seconds": time.perf_counter() - start,
    }


def attacked(file: Path) -> list[dict[str, Any]]:
    """Makes every design of the same file and lets the joint reader answer it; prints a line each."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
    from joint_reader import accuracy, assigned, joint_votes

    from scale_vqa_eval.controls.block_exchange import block_exchange
    from scale_vqa_eval.controls.output import exchange_edits

    questions = read_questions(file)
    links = {
        "slide": lambda q: q.slide,
        "path": lambda q: (q.slide, q.path_id),
        "image": lambda q: sorted(path for _, path in q.images),
    }
    designs = [("exchange", exchange, {}), ("block exchange", block_exchange, {}),
               ("block exchange, shared images", block_exchange, {"allow_shared_images": True})]  # fmt: skip
    lines = []
    limits = [ValidityLimits(max_ambiguity=limit) for limit in (1.0, 0.5, 0.4, 0.3, 0.2)]
    for limit in (*limits, ValidityLimits(require_contradiction=True)):
        pairs = PairRules(questions, limit)
        for name, build, options in designs:
            start = time.process_time()
            found = build(pairs, 42, **options)
            seconds = time.process_time() - start
            edits = exchange_edits(questions, found.groups)
            rows = [replace(questions[row], question=edit.question, options=edit.options, answer=edit.answer,
                            group=edit.group) for row, edit in sorted(edits.items())]  # fmt: skip
            diagnosis = [group for group in found.groups if questions[group.members[0]].dimension == "Diagnosis"]
            line = {
                "design": name,
                "contradiction_required": limit.require_contradiction,
                "max_ambiguity": limit.max_ambiguity,
                "groups": len(found.groups),
                "bound": found.bound,
                "ambiguity": float(np.mean([group.ambiguity for group in found.groups])) if found.groups else None,
                "above_0.3": float(np.mean([pairs.ambiguity_model.directed(np.array(group.members)) > 0.3
                                            for group in found.groups])) * 16 / 12 if found.groups else None,
                "reasons": {name: sum(group.reasons.get(name, 0) for group in found.groups) for name in REASONS},
                "four_organs": [sum(group.four_organs for group in diagnosis), len(diagnosis)],
                "reader": {kind: accuracy(rows, assigned(rows, joint_votes(rows, link))) if rows else None
                           for kind, link in links.items()},
                "seconds": seconds,
            }  # fmt: skip
            lines.append(line)
            print(json.dumps(line), flush=True)
    return lines


def main() -> None:
    """Prints one line a corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 3000, 10000])
    parser.add_argument("--released", type=Path, help="a released split, such as val.json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--screened", type=int, metavar="N", help="prune N generated questions instead")
    parser.add_argument("--attack", type=Path, metavar="FILE", help="make every exchange of a file and attack it")
    arguments = parser.parse_args()
    if arguments.attack:
        lines = attacked(arguments.attack)
        if arguments.json:
            arguments.json.write_text(json.dumps(lines, indent=2) + "\n")
        return
    if arguments.screened:
        print(json.dumps(screened(arguments.screened), indent=2))
        return
    corpora = [(f"{name} {rows}", corpus(rows, findings)) for rows in arguments.sizes
               for name, findings in (("sparse", 200), ("crowded", 24))]  # fmt: skip
    if arguments.released:
        corpora.insert(0, (arguments.released.name, read_questions(arguments.released)))
    results = []
    print(f"{'corpus':>15} {'rows':>6} {'groups':>7} {'bound':>6} {'first come':>10} {'ratio':>6} {'seconds':>8}")
    for name, questions in corpora:
        line = measured(name, questions)
        results.append(line)
        print(
            f"{name:>15} {line['rows']:>6} {line['groups']:>7} {line['bound']:>6} {line['first_come']:>10} "
            f"{line['of_first_come']:>6.2f} {line['seconds']:>8.1f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
