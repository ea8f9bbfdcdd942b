"""What a person at the terminal of `serve` sees: a line for each exchange, a line for each finding. A sink."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Record
from qm_proxy.sinks import unheard

__all__ = ["Terminal", "ending", "line", "printable", "seconds"]

_ENDINGS = {
    "client_disconnect": "client left",
    "upstream_error": "error",
    "upstream_truncated": "cut short",
    "upstream_unreachable": "unreachable",
    "guard_cut": "cut by guard",
    "shutdown": "shut down",
}
_COLOURS = {"dim": "2", "red": "31", "yellow": "33", "green": "32", "bold": "1"}


class Terminal:
    """Prints closed generations and findings; polling and other routes only when they fail."""

    def __init__(self, out: TextIO | None = None, *, colour: bool | None = None) -> None:
        self.out = out or sys.stdout
        self.colour = self.out.isatty() and "NO_COLOR" not in os.environ if colour is None else colour

    def opened(self, opened: Opened) -> None:
        """A request alone is no line: its answer will be."""

    progress = unheard  # a stream in flight is shown on the page, not here: lines must stay greppable

    def found(self, finding: Finding) -> None:
        mark = {"info": "·", "suspect": "?", "violation": "!"}[finding.severity]
        tone = {"info": "dim", "suspect": "yellow", "violation": "red"}[finding.severity]
        self._print(self._paint(f"         {mark} {finding.kind}: {printable(finding.summary)}", tone))

    def closed(self, record: Record) -> None:
        if record.operation is None and record.ending == "complete":
            return
        self._print(line(record, self._paint))

    def _paint(self, text: str, tone: str) -> str:
        return f"\033[{_COLOURS[tone]}m{text}\033[0m" if self.colour else text

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def line(record: Record, paint: Callable[[str, str], str] | None = None) -> str:
    """One exchange: UTC time, client, model, TTFT, rate, tokens, total, how it ended; why it was slow on a second line."""
    colour = paint or _plain
    clock = record.started_at[11:19]
    rate = "–" if record.tokens_per_s is None else f"{record.tokens_per_s:.1f}"
    tokens = "–" if record.output_tokens is None else str(record.output_tokens)
    asked = "–" if record.input_tokens is None else str(record.input_tokens)
    how = printable(_ENDINGS.get(record.ending, record.finish_reason or "ok"))
    model, client = printable(record.model or record.route), printable(record.client)
    if record.ending == "upstream_error" and record.http_status is not None and record.http_status >= 400:
        how = f"error {record.http_status}"
    tone = "green" if record.ending == "complete" else "yellow" if record.ending == "client_disconnect" else "red"
    calls = f"  {len(record.tool_calls)} call{'s' if len(record.tool_calls) != 1 else ''}" if record.tool_calls else ""
    text = (
        f"{clock} {colour(f'{client:<13.13}', 'bold')} {model:<28.28}"
        f" ttft {seconds(record.ttft_s):>7}  {rate:>6} tok/s  {asked:>6}→{tokens:<6} {seconds(record.total_s):>7}"
        f"  {colour(how, tone)}{calls}"
    )
    if record.error and record.ending != "complete":
        text += f"\n         {printable(record.error)}"
    if record.slow_because:
        text += "\n" + colour(f"         {printable(record.slow_because)}", "dim")
    return text


def ending(word: str) -> str:
    """How an exchange ended, in a reader's words: `client left`, `cut short`, … and `complete` as it is."""
    return _ENDINGS.get(word, word)


def _plain(text: str, tone: str) -> str:
    return text


def printable(text: str) -> str:
    """What others wrote (a model's name, an error's text) as it may stand in a line: without control characters, which could
    break the line or command the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def seconds(value: float | None) -> str:
    """A duration at a glance: `–`, `812 ms`, `3.21 s`, `4m07s`."""
    if value is None:
        return "–"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{int(value) // 60}m{int(value) % 60:02d}s"
