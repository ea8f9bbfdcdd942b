"""Flags a generation that repeats itself: exactly, with only its numbers changing, or nearly.

Rules that hold here:

- Text, thinking and each streamed tool argument are separate channels; what repeats is found within one of them.
- What repeats is found by `repetition`, independent of how the stream was cut.
- *counter*: the same with every run of digits folded into one "0" (for "Attempt 17 …"). *near*: prose that compresses too well.

For the guard: `cut` says since when an exact loop stands at twice its bar (never in tool arguments, never where the user
asked for repetition). Findings stay alive: when the answer ends, `tokens_wasted` and `evidence["copies"]` of the finding already
given are brought up to date, and `evidence["saved"]` says what a cut would have spared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from qm_proxy.detect.repetition import STEP, Repetition, Told, Verdict
from qm_proxy.events import (
    Asked,
    Channel,
    Cut,
    Deltas,
    EmptyRecord,
    Event,
    Failed,
    Finished,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.findings import EXCERPT_CHARACTERS, Finding

__all__ = ["CutPoint", "TokenLoop"]

_MAX_CHANNELS = 64  # tool calls followed at once in one answer
_TOKEN_CHARACTERS = 3.4
_WANTS_REPETITION = re.compile(
    r"\b(?:repeat\w*|over and over|again and again|\d{2,} times|(?:hundred|thousand|million) times"
    r"|forever|endless\w*|infinite\w*)\b",
    re.I,
)


class CutPoint(NamedTuple):
    """Since when an exact loop stands at twice its bar."""

    t_ns: int
    channel: Channel
    ratio: float


class TokenLoop:
    """One exchange's watch over all its channels. `asked` only tells whether the user wanted repetition."""

    def __init__(self, asked: Asked | None = None) -> None:
        self.cut: CutPoint | None = None
        self._wanted = asked is not None and _asks_for_repetition(asked)
        self._text = Repetition("text")
        self._thinking = Repetition("thinking")
        self._tools: dict[int, Repetition] = {}
        self._chunks = 0
        self._output_tokens: int | None = None

    def see(self, event: Event) -> Iterable[Finding]:
        kind = type(event)
        if kind is TextDelta:
            channel = self._text
            text: str = event.text  # type: ignore[union-attr]
        elif kind is ThinkingDelta:
            channel = self._thinking
            text = event.text  # type: ignore[union-attr]
        elif kind is EmptyRecord:
            return ()
        else:
            return self._other(event)
        self._chunks += 1
        pending = channel.pending + text
        if len(pending) < STEP:
            channel.pending = pending
            return ()
        return self._advance(channel, pending, event.t_ns)

    def deltas(self, deltas: Deltas) -> Iterable[Finding]:
        """`see` for each."""
        channel = self._text if deltas.kind is TextDelta else self._thinking
        self._chunks += len(deltas)
        pending = channel.pending
        found: list[Finding] = []
        for i, text in enumerate(deltas.texts):
            pending += text
            if len(pending) >= STEP:
                found += self._advance(channel, pending, deltas.t_ns[i])
                pending = channel.pending
        channel.pending = pending
        return found

    def _other(self, event: Event) -> Iterable[Finding]:
        match event:
            case ToolArguments():
                channel = self._tool(event.index)
                self._chunks += 1
                return self._advance(channel, channel.pending + event.fragment, event.t_ns) if channel else ()
            case ToolCall() if event.whole:
                channel = self._tool(event.index)
                self._chunks += 1
                if channel is None:
                    return ()
                found = [
                    *self._advance(channel, channel.pending + event.arguments, event.t_ns),
                    *self._flush(channel, event.t_ns),
                ]
                self._end_tool(event.index)
                return found
            case ToolCall():
                channel = self._tools.get(event.index)
                if channel is None:
                    return ()
                found = self._flush(channel, event.t_ns)
                self._end_tool(event.index)
                return found
            case Usage():
                if event.output_tokens is not None and not event.estimated:
                    self._output_tokens = event.output_tokens
            case Failed() if "repeat limit" in event.message:
                return (
                    Finding(
                        "loop.token",
                        "violation",
                        "Ollama stopped the answer itself because one token kept repeating.",
                        event.t_ns,
                        {"form": "exact", "channel": "text", "source": "server"},
                    ),
                )
            case Finished() | Cut():
                return self._end(event)
        return ()

    # --- channels

    def _tool(self, index: int) -> Repetition | None:
        channel = self._tools.get(index)
        if channel is None and len(self._tools) < _MAX_CHANNELS:
            channel = self._tools[index] = Repetition("tool")
        return channel

    def _end_tool(self, index: int) -> None:
        self._tools.pop(index).settle(self._per_character(), None, 0)

    def _advance(self, channel: Repetition, pending: str, t_ns: int) -> list[Finding]:
        found: list[Finding] = []
        at, end = 0, len(pending) - STEP
        while at <= end:
            verdict = channel.step(pending[at : at + STEP])
            at += STEP
            if verdict is not None:
                found += self._judged(channel, verdict, t_ns)
        channel.pending = pending[at:]
        return found

    def _flush(self, channel: Repetition, t_ns: int) -> list[Finding]:
        if not channel.pending:
            return []
        verdict = channel.step(channel.pending)
        channel.pending = ""
        return self._judged(channel, verdict, t_ns) if verdict is not None else []

    def _judged(self, channel: Repetition, verdict: Verdict, t_ns: int) -> list[Finding]:
        exact = verdict.form == "exact"
        if exact and self.cut is None and verdict.ratio >= 2 and channel.name != "tool" and not self._wanted:
            self.cut = CutPoint(t_ns, channel.name, round(verdict.ratio, 2))
            channel.cut_at = channel.seen
        if not channel.is_news(verdict):
            return []
        finding = self._finding(channel, verdict, t_ns, probable=False)
        channel.told.append(Told(finding, verdict, channel.seen))
        return [finding]

    def _finding(self, channel: Repetition, verdict: Verdict, t_ns: int, *, probable: bool) -> Finding:
        copies = verdict.characters / verdict.period if verdict.period else None
        evidence: dict[str, object] = {
            "form": verdict.form,
            "channel": channel.name,
            "context": verdict.context,
            "unit": verdict.unit,
            "offset_characters": verdict.offset,
            "characters": verdict.characters,
            "times_the_bar": round(verdict.ratio, 2),
            "excerpt": verdict.excerpt[:EXCERPT_CHARACTERS],
        }
        if copies is not None:
            evidence["period_characters"] = verdict.period
            evidence["copies"] = round(copies, 1)
        if probable:
            evidence["probable"] = True
        if self._wanted:
            evidence["asked_for"] = True
        severity = "violation" if verdict.form == "exact" and not self._wanted and not probable else "suspect"
        where = {"text": "The answer", "thinking": "The thinking", "tool": "A tool call's arguments"}[channel.name]
        if verdict.form == "near":
            says = f"{where} keeps saying nearly the same: its last {verdict.characters} characters hold hardly anything new."
        else:
            how = "with only the numbers changing" if verdict.form == "counter" else "word for word"
            says = f"{where} repeats a unit of {verdict.period} characters {how}, {int(copies or 0)} times so far."
            if probable:
                says = f"{where} was probably in a loop when it reached its length limit ({int(copies or 0)} equal copies)."
        wasted = round((verdict.characters - verdict.new) * self._per_character())
        return Finding("loop.token", severity, says, t_ns, evidence, tokens_wasted=wasted)  # type: ignore[arg-type]

    # --- the end

    def _end(self, event: Finished | Cut) -> list[Finding]:
        found: list[Finding] = []
        limited = type(event) is Finished and event.reason in ("length", "max_tokens", "max_output_tokens", "incomplete")
        rate = self._per_character()
        for channel in (self._text, self._thinking, *self._tools.values()):
            found += self._flush(channel, event.t_ns)
            if limited and not channel.told and (verdict := channel.probable()) is not None:
                finding = self._finding(channel, verdict, event.t_ns, probable=True)
                channel.told.append(Told(finding, verdict, channel.seen))
                found.append(finding)
            channel.settle(rate, self.cut.t_ns if self.cut is not None else None, event.t_ns)
        return found

    def _per_character(self) -> float:
        """Tokens per character of this stream: the server's count, else one per chunk if they are token-sized, else typical."""
        seen = self._text.total() + self._thinking.total() + sum(c.total() for c in self._tools.values())
        if seen:
            tokens = self._output_tokens if self._output_tokens else self._chunks
            if 1 <= seen / max(tokens, 1) <= 12 and (self._output_tokens or self._chunks >= 16):
                return tokens / seen
        return 1 / _TOKEN_CHARACTERS


def _asks_for_repetition(asked: Asked) -> bool:
    for message in reversed(asked.messages):
        if message.role == "user" and message.text:
            return _WANTS_REPETITION.search(message.text[-4096:]) is not None
    return False
