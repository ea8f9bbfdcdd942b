"""What a report consists of, before it is Markdown, HTML or a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from probes.spoken import number, show

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
