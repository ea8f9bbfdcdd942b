"""The report in a terminal: tables by rich, the waterfall as bars with spikes in red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from probes.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Replays, Table
from probes.report.compose import compose
from probes.result import Result, Waterfall

__all__ = ["terminal", "waterfall"]

_BARS = " ▁▂▃▄▅▆▇█"


def terminal(result: Result, folder: Path | None = None) -> Group:
    """To be printed by a rich Console (which knows about colour and NO_COLOR). `folder`: where it is kept, to be named in it."""
    return Group(*(_block(block, result) for block in compose(result, folder)))


def waterfall(found: Waterfall, width: int = 100) -> Text:
    """One bar a column: the longest gap of the chunks that fall into it; red where one is a spike."""
    text = Text()
    if not found.t_ms:
        return text
    start, end = found.t_ms[0], found.t_ms[-1]
    span = max(end - start, 1e-9)
    columns: list[tuple[float, bool]] = [(0.0, False)] * width
    for t, gap, spike in zip(found.t_ms, found.gap_ms, found.spike, strict=True):
        place = min(width - 1, int((t - start) / span * width))
        longest, red = columns[place]
        columns[place] = (max(longest, gap or 0.0), red or spike)
    top = max(gap for gap, _ in columns) or 1.0
    for gap, red in columns:
        height = min(len(_BARS) - 1, max(1 if gap else 0, round(gap / top * (len(_BARS) - 1))))
        text.append(_BARS[height], style="bold red" if red else "blue")
    text.append(f"\n{start:.0f} ms … {end:.0f} ms, tallest bar {top:.1f} ms, {sum(found.spike)} spikes")
    return text


def _block(block: Block, result: Result) -> RenderableType:
    match block:
        case Heading(level, text):
            return Padding(Text(text, style="bold" if level > 1 else "bold underline"), (1 if level < 3 else 0, 0, 0, 0))
        case Paragraph(text, strong):
            return Text(text, style="bold" if strong else "")
        case Bullets(items):
            return Group(*(Text(f" • {item}") for item in items))
        case Table():
            return _table(block)
        case Figure():
            if block.chart == "waterfall" and result.inspector is not None and result.inspector.waterfall is not None:
                return _Fitting(result.inspector.waterfall)
            return Text(f"{block.title}: {block.alt}", style="dim")
        case Replays():
            return Text("", end="")


class _Fitting:
    """A waterfall as wide as the terminal, up to 100 columns."""

    def __init__(self, found: Waterfall) -> None:
        self._found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield waterfall(self._found, min(100, options.max_width))


def _table(table: Table) -> RichTable:
    made = RichTable(title=table.caption, title_justify="left", show_header=any(table.head), box=None, pad_edge=False)
    for name in table.head:
        made.add_column(name, overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def printed(parts: Sequence[RenderableType] | Group, width: int = 120) -> str:
    """The same as plain text, for logs and tests."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as caught:
        console.print(parts if isinstance(parts, Group) else Group(*parts))
    return caught.get()
