"""Coverage of the metric's 95% intervals under clustering, by simulation.

    python benchmarks/coverage.py [--runs 2000] [--only accuracy other groups]

Each patient has an own accuracy, drawn from a beta distribution with mean p and the given intra-class correlation
(ICC). Printed for each design and p: the coverage, the mean width in points, and in brackets the coverage of the
interval p +- t * SE.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import special

from scale_vqa_eval.scale_vqa_acc.clustered import (
    clustered_interval,
    clustered_standard_error,
    overlapping_interval,
)
from scale_vqa_eval.scale_vqa_acc.parsing import ParsedBatch
from scale_vqa_eval.scale_vqa_acc.summary import summarise

SHARES = (0.3, 0.5, 0.7, 0.9, 0.95, 0.97)
ICCS = (0.0, 0.1, 0.3)
DESIGNS = {
    "17 patients": [26] * 17,
    "17, uneven": [5, 10, 15, 15, 20, 20, 25, 25, 25, 30, 30, 35, 35, 40, 40, 40, 40],
    "37 patients": [27] * 37,
    "37, uneven": [5 + 3 * (number % 19) for number in range(37)],
    "5, uneven": [10, 20, 40, 100, 160],
}


def patient_accuracies(generator: np.random.Generator, share: float, icc: float, count: int) -> np.ndarray:
    """Draws the accuracy of each patient."""
    if icc == 0.0:
        return np.full(count, share)
    scale = (1.0 - icc) / icc
    return generator.beta(share * scale, (1.0 - share) * scale, count)


def single_mean(runs: int) -> None:
    """Prints the coverage of the interval of an accuracy."""
    print("accuracy: coverage at p = " + ", ".join(map(str, SHARES)) + " (width, points); plain t in brackets")
    for name, sizes in DESIGNS.items():
        codes = np.repeat(np.arange(len(sizes)), sizes)
        for icc in ICCS:
            cells = []
            for share in SHARES:
                generator = np.random.default_rng([len(sizes), round(100 * icc), round(100 * share)])
                held, plain, width = 0, 0, 0.0
                for _ in range(runs):
                    accuracies = patient_accuracies(generator, share, icc, len(sizes))
                    values = (generator.random(codes.size) < accuracies[codes]).astype(float)
                    interval = clustered_interval(values, codes)
                    held += interval.ci_low <= share <= interval.ci_high
                    width += interval.ci_high - interval.ci_low
                    error = clustered_standard_error(values, codes, len(sizes))
                    plain += abs(values.mean() - share) <= special.stdtrit(len(sizes) - 1, 0.975) * error
                cells.append(f"{100 * held / runs:.1f} ({100 * width / runs:.0f}) [{100 * plain / runs:.0f}]")
            print(f"  {name:12} ICC {icc:.1f}  " + "  ".join(cells), flush=True)


def answers(right: np.ndarray) -> ParsedBatch:
    """Returns answers of which the gold letter is A."""
    letters = np.where(right, ord("A"), ord("B")).astype(np.uint8)
    return ParsedBatch(letters, np.zeros(right.size, np.uint8), np.ones(right.size, np.bool_))


def whole_score(runs: int) -> None:
    """Prints the coverage of the macro, leakage-adjusted and leak-weighted accuracy."""
    print("other figures, 37 patients of 27 questions: coverage of macro, adjusted, leak-weighted")
    codes = np.repeat(np.arange(37), 27)
    dimension = np.arange(codes.size) % 5
    gold = np.full(codes.size, ord("A"), np.uint8)
    for share, blind_share in ((0.4, 0.3), (0.6, 0.4), (0.85, 0.5)):
        for icc in ICCS:
            generator = np.random.default_rng([round(100 * share), round(100 * icc)])
            held = np.zeros(3)
            hardness = np.linspace(-0.1, 0.1, 5)[dimension]
            weights = generator.beta(0.6, 1.2, codes.size) + 0.01
            tilt = (weights - weights.mean()) * 0.3  # questions that leak less are harder
            truth = expected(share, icc, hardness)
            adjusted = (truth - blind_share) / (1 - blind_share)
            target = expected(share, icc, -tilt, weights)
            for _ in range(runs):
                seeing = patient_accuracies(generator, share, icc, 37)[codes]
                without = patient_accuracies(generator, blind_share, icc, 37)[codes]
                right = generator.random(codes.size) < np.clip(seeing + hardness, 0, 1)
                blind = generator.random(codes.size) < without
                figures = summarise(answers(right), gold, dimension=dimension, cluster=codes, blind=answers(blind))
                low, high = figures["macro_interval"]
                held[0] += low <= truth <= high
                low, high = figures["leakage_adjusted_interval"]
                held[1] += low <= adjusted <= high
                weighted = generator.random(codes.size) < np.clip(seeing - tilt, 0, 1)
                interval = clustered_interval(weighted.astype(float), codes, weights=weights)
                held[2] += interval.ci_low <= target <= interval.ci_high
            shown = "  ".join(f"{100 * one / runs:.1f}" for one in held)
            print(f"  p {share:.2f}, blind {blind_share:.2f}, ICC {icc:.1f}   {shown}", flush=True)


def expected(share: float, icc: float, shift: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Returns the expected (weighted) accuracy of questions that are shifted in difficulty and cut at 0 and 1."""
    draws = patient_accuracies(np.random.default_rng(0), share, icc, 4000)
    parts, place = np.unique(np.round(shift, 3), return_inverse=True)
    means = np.array([np.clip(draws + part, 0, 1).mean() for part in parts])
    return float(np.average(means[place], weights=weights))


def group_accuracy(runs: int) -> None:
    """Prints the coverage of the group accuracy where a patient is in many groups."""
    print("group accuracy, groups of four patients out of C, right with p by the mean effect of its patients")
    for patients, groups in ((37, 125), (17, 49), (37, 85)):
        for share in (0.3, 0.6, 0.9):
            for spread in (0.0, 0.6, 1.2):
                generator = np.random.default_rng([patients, groups, round(100 * share), round(10 * spread)])
                effects = np.random.default_rng(0).normal(size=(20000, 4)).mean(axis=1) * 2 * spread
                centre = _centre(share, effects)
                held = alone = 0
                for _ in range(runs):
                    skill = generator.normal(size=patients) * 2 * spread
                    members = generator.random((groups, patients)).argsort(axis=1)[:, :4]
                    chance = special.expit(centre + skill[members].mean(axis=1))
                    right = (generator.random(groups) < chance).astype(float)
                    low, high = overlapping_interval(right, list(members))
                    held += low <= share <= high
                    error = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / groups)
                    alone += abs(right.mean() - share) <= error
                shown = f"{100 * held / runs:.1f}, groups as independent {100 * alone / runs:.1f}"
                print(f"  C {patients}, {groups} groups, p {share}, spread {spread}: {shown}", flush=True)


def _centre(share: float, effects: np.ndarray) -> float:
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if special.expit(middle + effects).mean() < share else (low, middle)
    return middle


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", choices=["accuracy", "other", "groups"], nargs="*", help="some of the tables")
    options = parser.parse_args()
    tables = {"accuracy": single_mean, "other": whole_score, "groups": group_accuracy}
    for name in options.only or tables:
        tables[name](options.runs)


if __name__ == "__main__":
    main()
