"""A statistic in words: value, unit, interval, n: all that a reader needs to doubt it. The same words in every table."""

from __future__ import annotations

from probes.result import Statistic

__all__ = ["number", "show"]


def number(value: float) -> str:
    """Three to four significant digits; thousands separated; no trailing noise."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size >= 0.001 or size == 0:
        return f"{value:.3g}"
    return f"{value:.2e}"


def show(statistic: Statistic | None, *, percent: bool = False) -> str:
    """Value, unit, interval, n: all that a reader needs to doubt it. An absent one is a dash; the reason stands elsewhere."""
    if statistic is None:
        return "–"
    if percent:
        value = f"{statistic.value:.0%}" if statistic.value in (0, 1) else f"{statistic.value:.1%}"
    else:
        value = f"{number(statistic.value)} {statistic.unit}"
    if statistic.ci is None:
        return f"{value} (n {statistic.n:,})"
    lo, hi = (_end(end, percent) for end in statistic.ci)
    level = f"{statistic.level:.0%}" if statistic.level is not None else "?"
    return f"{value} [{lo}, {hi}] ({level}, n {statistic.n:,})"


def _end(value: float | None, percent: bool) -> str:
    if value is None:
        return "∞"
    return f"{value:.0%}" if percent else number(value)
