"""Flags a generation that repeats itself: exactly, with only its numbers changing, or nearly.

Rules that hold here:

- Text, thinking and each streamed tool argument are separate channels; what repeats is found within one of them.
- The text is looked at in steps of `STEP` characters counted from the channel's beginning, so the verdict and its offset are
  the same however the stream was cut into chunks.
- A *cycle* is a distance p at which the text equals itself; it is found by searching the recent text for its own last
  characters, extended backwards once, and then followed step by step (one slice comparison each) until it breaks. So cost per
  token is small and constant and memory is a window of text, not a table per token.
- How long a cycle may go on depends on what repeats and where (`_BARS`; measured on two halves of a corpus, benchmarks/detect).
  Only the bars rise in code, tables and lists: nothing is exempt.
- *counter*: the same with every run of digits folded into one "0" (for "Attempt 17 …"). *near*: prose that compresses too well.

For the guard: `cut` says since when an exact loop stands at twice its bar (never in tool arguments, never where the user
asked for repetition). Findings stay alive: when the answer ends, `tokens_wasted` and `evidence["copies"]` of the finding already
given are brought up to date, and `evidence["saved"]` says what a cut would have spared.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from qm_proxy.detect.shape import Context, Unit, context_of, encoded, fence_after, letter_share, symbols, unit_of
from qm_proxy.events import (
    Asked,
    Channel,
    Cut,
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

__all__ = ["STEP", "CutPoint", "TokenLoop"]

STEP = 31
"""Characters between two looks at the text. Odd and prime, so that looks wander through every phase of a period."""

_KEEP, _LIMIT = 8_192, 12_288  # characters of recent text: trimmed to the first when past the second
_CLOSE_BY, _CLOSE_TAIL = 512, 24  # at each step: this far back, for this many last characters
_FAR_EVERY, _FAR_TAIL = 8, 64  # at each eighth step: as far back as there is text
_CYCLES = 4  # followed at once
_FOLD_EVERY, _FOLD_TAIL = 4, 24
_UNFOLDED = 256  # steps
_NEAR_EVERY, _NEAR_WINDOW = 16, 2_048
_FIRST_LOOK = 64  # no bar is lower
_MAX_CHANNELS = 64  # tool calls followed at once in one answer
_PER_CHANNEL = 3  # findings of one channel, so that a mad stream gives no mad list
_REST = 2_048  # characters after a loop before the next one of its channel is worth another finding
_TOKEN_CHARACTERS = 3.4

_DIGITS = re.compile(r"\d+")
_WANTS_REPETITION = re.compile(
    r"\b(?:repeat\w*|over and over|again and again|\d{2,} times|(?:hundred|thousand|million) times"
    r"|forever|endless\w*|infinite\w*)\b",
    re.I,
)


class Bar(NamedTuple):
    """At least this many characters and copies, both."""

    characters: int
    copies: int


_Row = tuple[Bar, Bar, Bar, Bar]  # prose, list, table, code
_COLUMN: dict[Context, int] = {"prose": 0, "list": 1, "table": 2, "code": 3}
_WORDS: tuple[tuple[int, _Row], ...] = (  # up to so many symbols in the unit
    (3, (Bar(64, 12), Bar(160, 20), Bar(240, 24), Bar(400, 30))),
    (15, (Bar(120, 5), Bar(200, 7), Bar(360, 10), Bar(500, 10))),
    (63, (Bar(160, 4), Bar(300, 5), Bar(500, 6), Bar(800, 6))),
    (1 << 30, (Bar(0, 3), Bar(0, 4), Bar(0, 4), Bar(0, 4))),
)
_OTHERS: dict[Unit, _Row] = {
    "glyphs": (Bar(160, 3), Bar(160, 3), Bar(400, 3), Bar(800, 3)),
    "separators": (Bar(600, 3), Bar(600, 3), Bar(1200, 3), Bar(1500, 3)),
    "numbers": (Bar(400, 16), Bar(400, 16), Bar(1000, 30), Bar(2000, 60)),
}
_COUNTER: dict[Context, tuple[int, int]] = {"prose": (5, 4), "list": (8, 6)}  # times the bar of equal copies; elsewhere never
_NEAR: dict[Context, tuple[int, float]] = {
    "prose": (_NEAR_WINDOW, 7.0),
    "list": (2 * _NEAR_WINDOW, 12.0),
    "table": (2 * _NEAR_WINDOW, 16.0),
    "code": (2 * _NEAR_WINDOW, 16.0),
}
"""So many last characters compress so many times. Clean prose of 2 KiB: 99 % below 4.4; near loops: 98 % above 7."""
_NEAR_LETTERS = 0.40


class CutPoint(NamedTuple):
    """Since when an exact loop stands at twice its bar."""

    t_ns: int
    channel: Channel
    ratio: float


class _Cycle:
    """Text that equals itself `period` characters before, from `start` (of the first copy) until now."""

    __slots__ = ("due", "judged", "period", "start")

    def __init__(self, period: int, start: int) -> None:
        self.period = period
        self.start = start
        self.due = _FIRST_LOOK  # judge when so many characters are covered
        self.judged: _Verdict | None = None  # it stands above its bar


class _Verdict(NamedTuple):
    form: str
    context: Context
    unit: Unit
    period: int
    characters: int
    needed: int
    offset: int
    excerpt: str
    new: int = 0  # of `characters`, how many were not repetition

    @property
    def ratio(self) -> float:
        return self.characters / self.needed


class TokenLoop:
    """One exchange's watch over all its channels. `asked` only tells whether the user wanted repetition."""

    def __init__(self, asked: Asked | None = None) -> None:
        self.cut: CutPoint | None = None
        self._wanted = asked is not None and _asks_for_repetition(asked)
        self._text = _Channel("text")
        self._thinking = _Channel("thinking")
        self._tools: dict[int, _Channel] = {}
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

    def _tool(self, index: int) -> _Channel | None:
        channel = self._tools.get(index)
        if channel is None and len(self._tools) < _MAX_CHANNELS:
            channel = self._tools[index] = _Channel("tool")
        return channel

    def _end_tool(self, index: int) -> None:
        self._tools.pop(index).settle(self._per_character(), None, 0)

    def _advance(self, channel: _Channel, pending: str, t_ns: int) -> list[Finding]:
        found: list[Finding] = []
        at, end = 0, len(pending) - STEP
        while at <= end:
            verdict = channel.step(pending[at : at + STEP])
            at += STEP
            if verdict is not None:
                found += self._judged(channel, verdict, t_ns)
        channel.pending = pending[at:]
        return found

    def _flush(self, channel: _Channel, t_ns: int) -> list[Finding]:
        if not channel.pending:
            return []
        verdict = channel.step(channel.pending)
        channel.pending = ""
        return self._judged(channel, verdict, t_ns) if verdict is not None else []

    def _judged(self, channel: _Channel, verdict: _Verdict, t_ns: int) -> list[Finding]:
        exact = verdict.form == "exact"
        if exact and self.cut is None and verdict.ratio >= 2 and channel.name != "tool" and not self._wanted:
            self.cut = CutPoint(t_ns, channel.name, round(verdict.ratio, 2))
            channel.cut_at = channel.seen
        if not channel.is_news(verdict):
            return []
        finding = self._finding(channel, verdict, t_ns, probable=False)
        channel.told.append(_Told(finding, verdict, channel.seen))
        return [finding]

    def _finding(self, channel: _Channel, verdict: _Verdict, t_ns: int, *, probable: bool) -> Finding:
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
                channel.told.append(_Told(finding, verdict, channel.seen))
                found.append(finding)
            channel.settle(rate, self.cut, event.t_ns)
        return found

    def _per_character(self) -> float:
        """Tokens per character of this stream: the server's count, else one per chunk if they are token-sized, else typical."""
        seen = self._text.total() + self._thinking.total() + sum(c.total() for c in self._tools.values())
        if seen:
            tokens = self._output_tokens if self._output_tokens else self._chunks
            if 1 <= seen / max(tokens, 1) <= 12 and (self._output_tokens or self._chunks >= 16):
                return tokens / seen
        return 1 / _TOKEN_CHARACTERS


class _Told:
    """A loop that a finding tells of, and how far it was seen to go."""

    __slots__ = ("finding", "until", "verdict")

    def __init__(self, finding: Finding, verdict: _Verdict, until: int) -> None:
        self.finding = finding
        self.verdict = verdict
        self.until = until


class _Channel:
    """The recent text of one channel, and the cycles that hold in it."""

    __slots__ = (
        "_folded",
        "_last_digit",
        "_last_folded",
        "_line",
        "_steps",
        "_text",
        "_unfolded",
        "cut_at",
        "cycles",
        "fence",
        "name",
        "pending",
        "seen",
        "told",
    )

    def __init__(self, name: Channel) -> None:
        self.name = name
        self.pending = ""  # less than a step, not looked at yet
        self.seen = 0  # characters looked at
        self.cycles: list[_Cycle] = []
        self.fence = ""  # the marks that opened the code fence we are in
        self.told: list[_Told] = []
        self.cut_at: int | None = None
        self._text = ""
        self._folded = ""
        self._unfolded: list[str] = []  # steps that are not in it yet
        self._last_folded = False  # the folded text ends inside a run of digits
        self._last_digit = -(1 << 30)
        self._line = ""  # beginning of the unfinished line, for fences
        self._steps = 0

    def total(self) -> int:
        return self.seen + len(self.pending)

    # --- one step

    def step(self, block: str) -> _Verdict | None:
        """Take the next `STEP` characters (fewer only at the end)."""
        n = len(block)
        text = self._text + block
        if len(text) > _LIMIT:
            text = text[-_KEEP:]
        self._text = text
        self.seen += n
        self._steps = steps = self._steps + 1
        size = len(text)
        if "\n" in block:
            self._lines(block)
        elif len(self._line) < 16:
            self._line += block
        cycles = self.cycles
        if cycles:
            dead = False
            for cycle in cycles:
                period = cycle.period
                if period + n > size or text[-n:] != text[-n - period : -period]:
                    cycle.period = 0
                    dead = True
            if dead:
                if self.told and any(cycle.judged and not cycle.period for cycle in cycles):
                    self.told[-1].until = self.seen
                self.cycles = [cycle for cycle in cycles if cycle.period]
        if size > _CLOSE_TAIL:
            at = text.rfind(text[-_CLOSE_TAIL:], max(size - _CLOSE_TAIL - _CLOSE_BY, 0), size - 1)
            if at >= 0:
                self._follow(size - _CLOSE_TAIL - at)
            if steps % _FAR_EVERY == 0 and size > _FAR_TAIL:
                at = text.rfind(text[-_FAR_TAIL:], 0, size - 1)
                if at >= 0:
                    self._follow(size - _FAR_TAIL - at)
        verdict = None
        for cycle in self.cycles:
            if self.seen - cycle.start >= cycle.due and (verdict := self._judge(cycle)) is not None:
                break
        if self.name != "tool":
            unfolded = self._unfolded
            unfolded.append(block)
            if len(unfolded) >= _UNFOLDED:
                self._fold(unfolded)
            if _DIGITS.search(block):
                self._last_digit = self.seen
            if self.told and self.seen - self.told[-1].until < _REST:
                return verdict
            if verdict is None and steps % _FOLD_EVERY == 0 and self.seen - self._last_digit < 1024:
                verdict = self._counter()
            if verdict is None and steps % _NEAR_EVERY == 0 and size >= _NEAR_WINDOW:
                verdict = self._near()
        return verdict

    def _follow(self, period: int) -> None:
        cycles = self.cycles
        for cycle in cycles:
            if period % cycle.period == 0:
                return
        start = self.seen - _covered(self._text, period)
        if len(cycles) >= _CYCLES:
            latest = max(cycles, key=_started)
            if latest.start <= start:
                return
            cycles.remove(latest)
        cycles.append(_Cycle(period, start))

    def _judge(self, cycle: _Cycle) -> _Verdict | None:
        period = cycle.period
        covered = self.seen - cycle.start
        if cycle.judged is not None:
            cycle.due = 1 << 62  # told, and past twice the bar: nothing more to learn from it
            return cycle.judged._replace(characters=covered)
        unit = self._text[-period:]
        kind = unit_of(unit)
        context: Context = "code" if self.name == "tool" else context_of(self._text[-4096:], fenced=bool(self.fence))
        if period == 1 and encoded(self._text[: max(len(self._text) - covered, 0)][-64:]):
            kind, context = "numbers", "code"
        bar = _bar(kind, unit, context)
        needed = max(bar.characters, bar.copies * period)
        if covered < needed:
            cycle.due = needed
            return None
        cycle.due = 2 * needed
        cycle.judged = _Verdict("exact", context, kind, period, covered, needed, cycle.start, unit, new=period)
        return cycle.judged

    def probable(self) -> _Verdict | None:
        """The best running cycle that is past half its bar, in prose only."""
        best: _Verdict | None = None
        for cycle in self.cycles:
            period, covered = cycle.period, self.seen - cycle.start
            unit = self._text[-period:]
            kind = unit_of(unit)
            if covered < 2 * period or kind not in ("words", "glyphs") or self.name == "tool":
                continue
            if context_of(self._text[-4096:], fenced=bool(self.fence)) != "prose":
                continue
            bar = _bar(kind, unit, "prose")
            needed = max(bar.characters, bar.copies * period)
            if covered * 2 >= needed and (best is None or covered > best.characters):
                best = _Verdict("exact", "prose", kind, period, covered, needed, cycle.start, unit, new=period)
        return best

    # --- only numbers change

    def _fold(self, blocks: list[str]) -> str:
        """The folded text with the next steps; where no digit was seen, folding changes nothing and only joins."""
        text = "".join(blocks)
        if not text:
            return self._folded
        blocks.clear()
        if self._last_folded and text[0].isdecimal():
            text = text.lstrip("0123456789") if text.isascii() else _DIGITS.sub("", text, count=1)
        self._last_folded = (bool(text) and text[-1].isdecimal()) or (not text and self._last_folded)
        text = self._folded + _DIGITS.sub("0", text)
        self._folded = text if len(text) <= _LIMIT else text[-_KEEP:]
        return self._folded

    def _counter(self) -> _Verdict | None:
        text = self._fold(self._unfolded)
        size = len(text)
        if size <= _FOLD_TAIL:
            return None
        at = text.rfind(text[-_FOLD_TAIL:], max(size - _FOLD_TAIL - _CLOSE_BY, 0), size - 1)
        if at < 0:
            return None
        period = size - _FOLD_TAIL - at
        covered = _covered(text, period)
        if covered < 8 * period or covered < 5 * _FIRST_LOOK:
            return None
        unit = text[-period:]
        if "0" not in unit or unit_of(unit) != "words":
            return None
        context = context_of(self._text[-4096:], fenced=bool(self.fence))
        factors = _COUNTER.get(context)
        if factors is None:
            return None
        bar = _bar("words", unit, context)
        needed = max(bar.characters * factors[0], bar.copies * period * factors[1])
        if covered < needed:
            return None
        raw = self._text[-period:]
        return _Verdict("counter", context, "words", period, covered, needed, self.seen - covered, raw, new=period)

    # --- nearly nothing new

    def _near(self) -> _Verdict | None:
        recent = self._text[-_NEAR_WINDOW:]
        words = recent.split()
        if len(words) > 64 and len(set(words)) * 4 > len(words):
            return None
        context = context_of(self._text[-4096:], fenced=bool(self.fence))
        window, ratio = _NEAR[context]
        recent = self._text[-window:]
        raw = recent.encode("utf-8", "replace")
        packed = len(zlib.compress(raw, 6))
        size = (len(raw) + len(recent)) / 2  # between bytes and characters: scripts of three bytes are not three times as dull
        if len(recent) < window or size < ratio * packed:
            return None
        if letter_share(recent) < _NEAR_LETTERS or max(map(recent.count, set(recent))) * 5 > window * 2:
            return None  # numbers and fills are not talk
        new = round(window * packed / size)
        return _Verdict("near", context, "words", 0, window, window, self.seen - window, recent[-EXCERPT_CHARACTERS:], new=new)

    # --- fences

    def _lines(self, block: str) -> None:
        """Keep track of Markdown code fences; only the first characters of a line are kept."""
        ended, _, self._line = (self._line + block).rpartition("\n")
        if "`" in ended or "~" in ended:
            self.fence = fence_after(ended, self.fence)
        self._line = self._line[:16]

    # --- what was told

    def is_news(self, verdict: _Verdict) -> bool:
        """Is this another loop than the one already told? While that one goes on, with small breaks, it is the same."""
        if self.told and verdict.offset < self.told[-1].until + _REST:
            self.told[-1].until = self.seen
            return False
        return len(self.told) < _PER_CHANNEL

    def settle(self, tokens_per_character: float, cut: CutPoint | None, t_ns: int) -> None:
        """The answer is over: bring the last finding up to how far its loop went, and say what a cut would have spared."""
        if not self.told:
            return
        finding, verdict, until = (last := self.told[-1]).finding, last.verdict, last.until
        if any(cycle.judged for cycle in self.cycles):
            until = self.seen
        characters = max(until - verdict.offset, verdict.characters)
        finding.evidence["characters"] = characters
        new = verdict.new
        if verdict.period:
            finding.evidence["copies"] = round(characters / verdict.period, 1)
        else:
            new = characters * verdict.new // verdict.characters
        finding.tokens_wasted = round((characters - new) * tokens_per_character)
        if cut is not None and self.cut_at is not None:
            saved = round((self.seen - self.cut_at) * tokens_per_character)
            finding.evidence["saved"] = {"tokens": saved, "seconds": round((t_ns - cut.t_ns) / 1e9, 3)}


def _started(cycle: _Cycle) -> int:
    return cycle.start


def _covered(text: str, period: int) -> int:
    """How many last characters of `text` lie in copies `period` apart, the first copy included."""
    size = len(text)
    low, high = 0, size - period
    if text[period:] == text[:-period]:
        return size
    while low < high - 1:
        middle = (low + high) // 2
        if text[-middle:] == text[-middle - period : -period]:
            low = middle
        else:
            high = middle
    return low + period


def _bar(kind: Unit, unit: str, context: Context) -> Bar:
    column = _COLUMN[context]
    if kind != "words":
        return _OTHERS[kind][column]
    n = symbols(unit) if len(unit) <= 1024 else 1 << 29
    for most, row in _WORDS:
        if n <= most:
            return row[column]
    return _WORDS[-1][1][column]


def _asks_for_repetition(asked: Asked) -> bool:
    for message in reversed(asked.messages):
        if message.role == "user" and message.text:
            return _WANTS_REPETITION.search(message.text[-4096:]) is not None
    return False
