"""Markdown: publishable as it stands. Figures are named with what they show; `--out` puts their PNGs beside."""

from __future__ import annotations

from pathlib import Path

from probes.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Replays, Table
from probes.report.compose import compose
from probes.report.definitions import DEFINITIONS
from probes.result import Result

__all__ = ["markdown"]


def markdown(result: Result, *, definitions: bool = False, pictures: bool = False, folder: Path | None = None) -> str:
    """The report. `pictures`: link CHART.png files, which the caller writes. `folder`: where it is kept, to be named in it."""
    parts = [_block(block, pictures) for block in compose(result, folder)]
    if definitions:
        rows = [f"- **{name}**: {text}" for name, text in DEFINITIONS.items()]
        parts.append("## Definitions\n\n" + "\n".join(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, pictures: bool) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text, strong):
            return f"**{_escape(text)}**" if strong else _escape(text)
        case Bullets(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Table():
            return _table(block)
        case Figure():
            return f"![{_escape(block.alt)}]({block.chart}.png)" if pictures else ""
        case Replays():
            return ""


def _table(table: Table) -> str:
    lines = [f"| {' | '.join(map(_cell, table.head))} |", f"|{'|'.join('---' for _ in table.head)}|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in table.rows]
    return (f"*{_escape(table.caption)}*\n\n" if table.caption else "") + "\n".join(lines)


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|").replace("\n", " ")


def _escape(text: str) -> str:
    """Names come from a server: they must not become markup."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("`", "\\`")
