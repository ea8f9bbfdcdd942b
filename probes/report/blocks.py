"""What a report consists of, before it is Markdown, HTML or a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from probes.result import Statistic

__all__ = ["Block", "Bullets", "Figure", "Heading", "Paragraph", "Replays", "Table", "number", "show"]


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(slots=True)
class Table:
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    caption: str | None = None


@dataclass(slots=True)
class Figure:
    """A chart by name with its rows; `alt` says in words what it shows."""

    chart: str
    rows: list[dict[str, Any]]
    title: str
    alt: str


@dataclass(frozen=True, slots=True)
class Replays:
    """Runs of an agent, each to be walked step by step where there is room for it: a page, not a table."""

    items: list[dict[str, Any]]
    all_at: str | None = None  # the file that holds every run, if one is written beside


Block: TypeAlias = Heading | Paragraph | Bullets | Table | Figure | Replays


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
