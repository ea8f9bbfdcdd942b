"""Error rates of the Audit's sequential design, without a model: trials are drawn from a known accuracy.

    python benchmarks/bench_audit.py [--runs 5000] [--seed 1]

Prints for each truth how often each verdict came out, the trials and the prompt tokens it took. A "false cliff" is any
verdict that claims a loss (cliff, gradual decline, non-monotone) on a persona whose accuracy does not change with length.
Baseline of comparison: worst of 3 depths x 5 tasks, a drop of 0.2 under a one-shot baseline.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from probes.audit.ladder import AskHeader, Design, Ladder, Verdict

RUNGS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
Truth = Callable[[int], float]


@dataclass
class Climb:
    verdict: Verdict
    trials: int
    tokens: int


def climb(design: Design, truth: Truth, draw: random.Random) -> Climb:
    """One run of the ladder against a known accuracy curve."""
    ladder = Ladder(design)
    steps = ladder.run()
    trials = tokens = 0
    try:
        step = next(steps)
        while True:
            tokens += step.target
            trials += 1
            kept = isinstance(step, AskHeader) or draw.random() < truth(step.target)
            step = steps.send(kept)
    except StopIteration:
        return Climb(ladder.verdict(), trials, tokens)


def worst_of_depths(truth: Truth, draw: random.Random) -> int | None:
    """The rule of comparison: first rung whose worst depth lies 0.2 under the baseline; `None` if there is none."""

    def cell(target: int) -> float:
        return sum(1 for _ in range(5) if draw.random() < truth(target)) / 5

    base = cell(512)
    return next((target for target in RUNGS if min(cell(target) for _ in range(3)) <= base - 0.2), None)


def flat(p: float) -> Truth:
    return lambda n: p


def cliff(high: float, low: float, at: int) -> Truth:
    return lambda n: high if n <= at else low


def slope(high: float, low: float, start: int, end: int) -> Truth:
    def rate(n: int) -> float:
        return high + (low - high) * min(1.0, max(0.0, math.log(n / start) / math.log(end / start)))

    return rate


def dip(high: float, low: float, start: int, end: int) -> Truth:
    return lambda n: low if start <= n <= end else high


LOSS = ("cliff", "gradual decline", "non-monotone")


def table(runs: int, seed: int) -> dict[str, float]:
    """Print the table; return the false-cliff rates by name."""
    false: dict[str, float] = {}
    for name, design in (("standard", Design.standard(RUNGS)), ("quick", Design.quick(RUNGS))):
        print(f"\n{name}: {runs} runs each, 8 rungs to 128 k")
        for label, truth in (
            *((f"flat {p:.2f}", flat(p)) for p in (0.90, 0.92, 0.94, 0.97, 1.0)),
            ("cliff 0.97>0.30 after 16 k", cliff(0.97, 0.30, 16384)),
            ("cliff 1.00>0.60 after 12 k", cliff(1.0, 0.60, 12000)),
            ("slope 0.97>0.10, 2 k to 64 k", slope(0.97, 0.10, 2048, 65536)),
            ("dip 0.97>0.30 at 8 k", dip(0.97, 0.30, 6000, 12000)),
        ):
            draw = random.Random(f"{seed}/{name}/{label}")
            made = [climb(design, truth, draw) for _ in range(runs)]
            counts: Counter[str] = Counter(one.verdict.kind for one in made)
            shares = ", ".join(f"{kind} {count / runs:.1%}" for kind, count in counts.most_common())
            print(
                f"  {label:30} {shares}; {sum(one.trials for one in made) / runs:.0f} trials, "
                f"{sum(one.tokens for one in made) / runs / 1e6:.2f} M tokens"
            )
            if label.startswith("flat"):
                false[f"{name} {label}"] = sum(counts[kind] for kind in LOSS) / runs
    print("\nworst of 3 depths, drop of 0.2 (5 tasks):")
    for p in (0.90, 0.97):
        draw = random.Random(f"{seed}/origin/{p}")
        wrong = sum(worst_of_depths(flat(p), draw) is not None for _ in range(runs)) / runs
        print(f"  flat {p:.2f}                      false cliff {wrong:.1%}")
    return false


def coverage(runs: int, seed: int) -> float:
    """Share of seeded runs whose cliff interval holds the planted cliff; places and depths drawn at random."""
    hits = claimed = 0
    for run in range(runs):
        draw = random.Random(f"{seed}/coverage/{run}")
        at = round(2 ** draw.uniform(10.2, 16.5))
        truth = cliff(draw.uniform(0.94, 1.0), draw.uniform(0.0, 0.4), at)
        verdict = climb(Design.standard(RUNGS), truth, draw).verdict
        if verdict.kind in ("cliff", "gradual decline") and verdict.between is not None:
            claimed += 1
            hits += verdict.between[0] <= at <= verdict.between[1]
    print(f"\ncliff intervals: {hits} of {claimed} claimed ({runs} runs) hold the planted cliff ({hits / claimed:.1%})")
    return hits / claimed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    worst = max(table(arguments.runs, arguments.seed).items(), key=lambda item: item[1])
    print(f"\nlargest false-cliff rate: {worst[1]:.2%} ({worst[0]})")
    coverage(200, arguments.seed)
