"""From a few observations to a Statistic: what the parts of the conclusion share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from probes.inspector.phases import Sample
from probes.result import Statistic
from probes.stats.fits import Coefficient
from probes.stats.intervals import bootstrap, mean_t
from probes.stats.robust import median

__all__ = ["client_pace", "coefficient", "known", "middle"]


def middle(values: Sequence[float], unit: str, seed: int) -> Statistic:
    """Median with a bootstrap interval over requests; one request has no interval."""
    if len(values) == 1:
        return Statistic(value=values[0], method="single observation", n=1, unit=unit)
    interval = bootstrap(values, median, seed=seed) if len(values) >= 5 else mean_t(values)
    centre = median(values) if len(values) >= 5 else math.fsum(values) / len(values)
    if interval.lo < 0 and min(values) >= 0:  # a time or a rate below nothing is no possibility to be left open
        interval = interval._replace(lo=0.0)
    return Statistic.of(centre, interval, n=len(values), unit=unit)


def known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def coefficient(found: Coefficient, n: int, unit: str, factor: float) -> Statistic:
    return Statistic.of(found.value, found.interval, n=n, unit=unit).scaled(factor, unit)


def client_pace(sample: Sample) -> float | None:
    """(last - first) / (n - 1) over chunks, seconds; `None` below two."""
    chunks = sample.answer.chunks
    return (chunks[-1].t_ns - chunks[0].t_ns) / 1e9 / (len(chunks) - 1) if len(chunks) >= 2 else None
