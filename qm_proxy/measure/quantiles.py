"""Quantiles and median absolute deviations: exact for few values, bounded in memory for many, sliding for detectors.

Rules that hold here:

- One definition everywhere: of n sorted values x₀ … xₙ₋₁ the q-quantile lies at h = (n − 1)·q, between two values by linear
  interpolation (Hyndman and Fan 1996, type 7; the default of NumPy and R). The median is the 0.5-quantile.
- MAD is the median of |x − median|, as it is, not scaled. `SIGMA` times it estimates the standard deviation of a normal law
  (Rousseeuw and Croux 1993).
- Values are counts or nanoseconds: integers ≥ 0 in `Running`, any numbers elsewhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["EXACT", "SIGMA", "Running", "Sampled", "Tail", "Trailing", "mad_of_sorted", "quantile_of_sorted"]

SIGMA = 1.4826
EXACT = 2048
"""So many values `Running` keeps as they are (8 KiB below 2³²); beyond, it counts them in bins of relative width 1/128."""

_SUB_BITS = 7


def quantile_of_sorted(values: Sequence[float], q: float) -> float:
    """The q-quantile of ascending values. Raises `ValueError` when there are none."""
    if not len(values):
        raise ValueError("Expected at least one value, found none.")
    place = (len(values) - 1) * q
    low = int(place)
    share = place - low
    return float(values[low]) if not share else values[low] + (values[low + 1] - values[low]) * share


def mad_of_sorted(values: Sequence[float], centre: float | None = None) -> float:
    """Median of |x − centre| of ascending values, in O(log n): the k nearest to a point of a sorted row are neighbours.
    `centre` is their median unless given. Raises `ValueError` when there are no values."""
    n = len(values)
    middle = quantile_of_sorted(values, 0.5) if centre is None else centre
    if n % 2:
        return _nearest(values, middle, n // 2)
    if not n:
        raise ValueError("Expected at least one value, found none.")
    return (_nearest(values, middle, n // 2 - 1) + _nearest(values, middle, n // 2)) / 2


def _nearest(values: Sequence[float], centre: float, k: int) -> float:
    """The k-th smallest (from 0) of |x − centre|. Of all windows of k + 1 neighbours, the one that reaches least far: its left
    end comes nearer to the centre as the window moves right, its right end goes farther, so the crossing is searched."""
    low, high, twice = 0, len(values) - 1 - k, centre + centre
    while low < high:
        middle = (low + high) // 2
        if values[middle + k] + values[middle] < twice:
            low = middle + 1
        else:
            high = middle
    reach = max(values[low + k] - centre, centre - values[low])
    return float(min(reach, max(values[low - 1 + k] - centre, centre - values[low - 1])) if low else reach)


class Tail(NamedTuple):
    """The values above a threshold."""

    n: int
    total: float


class Running:
    """Quantiles of an endless series of integers ≥ 0. Exact up to `exact` values; beyond, each quantile lies within 0.4 % of a
    value that exactly is one, and memory stays below 16 KiB of values and 60 KiB of bins. Count, sum and greatest are
    always exact."""

    __slots__ = ("_bins", "_exact", "_values", "greatest", "n", "total")

    def __init__(self, exact: int = EXACT) -> None:
        self._exact = exact
        self._values = array("I")  # in order of arrival, sorted when asked; "Q" once one needs it
        self._bins: array[int] | None = None
        self.n = 0
        self.total = 0
        self.greatest = 0

    def extend(self, values: Sequence[int]) -> None:
        """Take more values ≥ 0, in any order."""
        if not len(values):
            return
        high = max(values)
        self.greatest = max(self.greatest, high)
        self.n += len(values)
        self.total += sum(values)
        if self._bins is None:
            if high >> 32 and self._values.typecode == "I":
                self._values = array("Q", self._values)
            self._values.fromlist(values if type(values) is list else list(values))
            if self.n > self._exact:
                self._bins = array("L")
                self._count(self._values, self.greatest)
                self._values = array("I")
        else:
            self._count(values, high)

    def _count(self, values: Sequence[int], high: int) -> None:
        bins = self._bins
        assert bins is not None
        short = _bin(high) + 1 - len(bins)
        if short > 0:
            bins.extend([0] * short)
        for value in values:
            shift = value.bit_length() - _SUB_BITS - 1  # _bin, unrolled: a call would double the cost
            bins[(shift << _SUB_BITS) + (value >> shift) if shift > 0 else value] += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def quantile(self, q: float) -> float | None:
        """The q-quantile (0 ≤ q ≤ 1); `None` of an empty series."""
        found = self.quantiles(q)
        return found[0] if found else None

    def quantiles(self, *qs: float) -> list[float]:
        """Several at the price of one sort; empty of an empty series. `qs` ascending."""
        if not self.n:
            return []
        if self._bins is None:
            ordered = sorted(self._values)
            return [quantile_of_sorted(ordered, q) for q in qs]
        return [self._between((self.n - 1) * q) for q in qs]

    def mad(self) -> float | None:
        """Median absolute deviation; `None` of an empty series."""
        if not self.n:
            return None
        if self._bins is None:
            return mad_of_sorted(sorted(self._values))
        middle = self._between((self.n - 1) * 0.5)
        away = sorted((abs(value - middle), count) for value, count in self._counted())
        low, high = (self.n - 1) // 2, self.n // 2
        return (_ranked(away, low) + _ranked(away, high)) / 2

    def above(self, threshold: float) -> Tail:
        """How many values exceed `threshold`, and their sum; as exact as the quantiles."""
        if self._bins is None:
            over: list[tuple[float, int]] = [(value, 1) for value in self._values if value > threshold]
        else:
            over = [(value, count) for value, count in self._counted() if value > threshold]
        return Tail(sum(count for _, count in over), float(sum(value * count for value, count in over)))

    def _counted(self) -> Iterator[tuple[float, int]]:
        """Each bin in use, ascending: its middle, but not above the greatest value, and its count."""
        assert self._bins is not None
        for i, count in enumerate(self._bins):
            if count:
                yield min(_middle(i), self.greatest), count

    def _between(self, place: float) -> float:
        pairs, low = list(self._counted()), int(place)
        below = _ranked(pairs, low)
        share = place - low
        return below if not share else below + (_ranked(pairs, low + 1) - below) * share


def _bin(value: int) -> int:
    """Log-linear: 0 … 255 have a bin each, every doubling above has 128."""
    shift = value.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value >> shift) if shift > 0 else value


def _middle(place: int) -> float:
    shift = (place >> _SUB_BITS) - 1
    if shift <= 0:
        return float(place)
    return float(((place - (shift << _SUB_BITS)) << shift) + ((1 << shift) - 1) / 2)


def _ranked(pairs: Sequence[tuple[float, int]], rank: int) -> float:
    """The value of that rank, from 0; `pairs` are values with their counts, ascending."""
    at = 0
    while rank >= pairs[at][1] and at + 1 < len(pairs):
        rank -= pairs[at][1]
        at += 1
    return pairs[at][0]


class Sampled:
    """Quantiles of an endless series from an even sample of it: exact up to `limit` values; whenever they become more, every
    second is dropped, and from then on only every second is taken. For what is told as one typical number."""

    __slots__ = ("_every", "_limit", "_values", "n")

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._values = array("q")  # those whose number, from 0, is a multiple of `_every`
        self._every = 1
        self.n = 0

    def extend(self, values: Sequence[int]) -> None:
        """Take more values, in order."""
        self._values.extend(values[-self.n % self._every :: self._every])
        self.n += len(values)
        while len(self._values) > self._limit:
            self._values = self._values[::2]
            self._every *= 2

    def quantile(self, q: float) -> float | None:
        """The q-quantile; `None` of an empty series."""
        return quantile_of_sorted(sorted(self._values), q) if self._values else None


class Trailing:
    """Median and MAD of the last `size` values, for a detector. A step only keeps the value, in 8 bytes; whoever asks pays for
    sorting, once for all questions until the next step: ask now and then. The window is of values that have passed, never of
    those to come."""

    __slots__ = ("_at", "_in_order", "_values", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._values = array("d")
        self._at = 0  # where the next value goes, once the window is full
        self._in_order: list[float] | None = []

    def __len__(self) -> int:
        return len(self._values)

    def push(self, value: float) -> None:
        """Take the next value (not NaN); the oldest leaves when the window is full."""
        values, at = self._values, self._at
        if len(values) < self.size:
            values.append(value)
        else:
            values[at] = value
            self._at = at + 1 if at + 1 < self.size else 0
        self._in_order = None

    def extend(self, values: Sequence[float]) -> None:
        """`push` each; no more than the window holds."""
        end = self._at + len(values)
        if len(self._values) == self.size and end <= self.size:
            self._values[self._at : end] = array("d", values)
            self._at = end if end < self.size else 0
            self._in_order = None
        else:
            for value in values:
                self.push(value)

    def _sorted(self) -> list[float]:
        if self._in_order is None:
            self._in_order = sorted(self._values)
        return self._in_order

    def median(self) -> float | None:
        """`None` while the window is empty."""
        values = self._sorted()
        half = len(values) // 2
        if len(values) % 2:
            return values[half]
        return (values[half - 1] + values[half]) / 2 if values else None

    def mad(self, centre: float | None = None) -> float | None:
        """About `centre`, or about the median; `None` while the window is empty."""
        return mad_of_sorted(self._sorted(), centre) if self._values else None

    def quantile(self, q: float) -> float | None:
        """The q-quantile of the window; `None` while it is empty."""
        return quantile_of_sorted(self._sorted(), q) if self._values else None

    def clear(self) -> None:
        """Forget all: after a pause the old pace proves nothing."""
        del self._values[:]
        self._at, self._in_order = 0, []
