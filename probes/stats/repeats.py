"""Pass^k: the chance that k runs all succeed, and what n runs say about it.

Two quantities share that name elsewhere and are kept apart here: `streak` over fresh instances, `per_instance` over
repeats of each instance. They differ by Jensen's inequality and may never be printed one for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from probes.stats.intervals import LEVEL, Interval, clopper_pearson

__all__ = ["all_of_k", "per_instance", "streak_interval"]


def all_of_k(successes: int, n: int, k: int) -> float | None:
    """Unbiased estimate that k fresh runs all pass: C(c,k)/C(n,k). `None` with fewer than k runs.

    Source: Yao et al., tau-bench, arXiv 2406.12045, eq. 1; unbiased because it is the share of k-subsets that pass.
    """
    if k < 1 or n < k:
        return None
    return math.comb(successes, k) / math.comb(n, k)


def streak_interval(successes: int, n: int, k: int, level: float = LEVEL) -> Interval:
    """Exact interval of p^k: the Clopper-Pearson limits of p, raised. With n = k and all passed the lower end of a 95 %
    interval is 0.025 whatever k is."""
    base = clopper_pearson(successes, n, level)
    return Interval(base.lo**k, base.hi**k, level, "clopper-pearson^k")


def per_instance(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    """Mean over instances of C(c_i,k)/C(n_i,k); instances with fewer than k runs are left out, `None` if all are."""
    estimates = [value for successes, n in counts if (value := all_of_k(successes, n, k)) is not None]
    return math.fsum(estimates) / len(estimates) if estimates else None
