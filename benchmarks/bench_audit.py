"""Error rates of the Audit's sequential design, without a model: trials are drawn from a known accuracy.

    python benchmarks/bench_audit.py [--runs 5000] [--seed 1] [--design standard|brief|quick] [--flat]

Prints for each truth how often each verdict came out, the trials and the prompt tokens it took. A "false cliff" is any
verdict that claims a loss (cliff, gradual decline, non-monotone) on a persona whose accuracy does not change with length.
Baseline of comparison: worst of 3 depths x 5 tasks, a drop of 0.2 under a one-shot baseline.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence

from probes.audit.ladder import Design
from probes.audit.simulated import LOSS, RUNGS, Truth, cliff, climb, coverage, dip, flat, slope
from probes.stats.intervals import Interval, clopper_pearson

TRUTHS: tuple[tuple[str, Truth], ...] = (
    *((f"flat {p:.2f}", flat(p)) for p in (0.90, 0.92, 0.94, 0.97, 1.0)),
    ("cliff 0.97>0.30 after 16 k", cliff(0.97, 0.30, 16384)),
    ("cliff 1.00>0.60 after 12 k", cliff(1.0, 0.60, 12000)),
    ("slope 0.97>0.10, 2 k to 64 k", slope(0.97, 0.10, 2048, 65536)),
    ("dip 0.97>0.30 at 8 k", dip(0.97, 0.30, 6000, 12000)),
)


def worst_of_depths(truth: Truth, draw: random.Random) -> int | None:
    """The rule of comparison: first rung whose worst depth lies 0.2 under the baseline; `None` if there is none."""

    def cell(target: int) -> float:
        return sum(1 for _ in range(5) if draw.random() < truth(target)) / 5

    base = cell(512)
    return next((target for target in RUNGS if min(cell(target) for _ in range(3)) <= base - 0.2), None)


DESIGNS = {"standard": Design.standard(RUNGS), "brief": Design.brief(RUNGS), "quick": Design.quick(RUNGS)}


def table(runs: int, seed: int, names: Sequence[str], *, flat_only: bool) -> dict[str, tuple[int, Interval]]:
    """Print the table; return how many false cliffs there were, by name, with Clopper and Pearson's interval."""
    false: dict[str, tuple[int, Interval]] = {}
    for name in names:
        design = DESIGNS[name]
        print(f"\n{name}: {runs} runs each, 8 rungs to 128 k")
        for label, truth in TRUTHS:
            if flat_only and not label.startswith("flat"):
                continue
            draw = random.Random(f"{seed}/{name}/{label}")
            made = [climb(design, truth, draw) for _ in range(runs)]
            counts: Counter[str] = Counter(one.verdict.kind for one in made)
            shares = ", ".join(f"{kind} {count / runs:.1%}" for kind, count in counts.most_common())
            trials, tokens = sum(one.trials for one in made) / runs, sum(one.tokens for one in made) / runs / 1e6
            print(f"  {label:30} {shares}; {trials:.0f} trials, {tokens:.2f} M tokens", flush=True)
            if label.startswith("flat"):
                wrong = sum(counts[kind] for kind in LOSS)
                false[f"{name} {label}"] = (wrong, clopper_pearson(wrong, runs))
    print("\nworst of 3 depths, drop of 0.2 (5 tasks):")
    for p in (0.90, 0.97):
        draw = random.Random(f"{seed}/origin/{p}")
        found = sum(worst_of_depths(flat(p), draw) is not None for _ in range(runs)) / runs
        print(f"  flat {p:.2f}                      false cliff {found:.1%}")
    return false


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--design", choices=tuple(DESIGNS), help="only this one")
    parser.add_argument("--flat", action="store_true", help="only the personas without a loss")
    arguments = parser.parse_args()
    chosen = (arguments.design,) if arguments.design else tuple(DESIGNS)
    rates = table(arguments.runs, arguments.seed, chosen, flat_only=arguments.flat)
    print("\nfalse cliffs (95 %, Clopper and Pearson):")
    for name, (count, limits) in rates.items():
        share = count / arguments.runs
        print(f"  {name:22} {count:4} of {arguments.runs} = {share:.2%} [{limits.lo:.2%}, {limits.hi:.2%}]")
    hits, claimed = coverage(200, arguments.seed)
    doubt = clopper_pearson(hits, claimed)
    print(f"cliff intervals: {hits} of {claimed} claimed in 200 runs hold the planted cliff [{doubt.lo:.1%}, {doubt.hi:.1%}]")
