"""What repeats in one growing text: cycles followed step by step, the same with its numbers folded, and text without news.

Rules that hold here:

- The text is looked at in steps of `STEP` characters counted from its beginning, so the verdict and its offset are the same
  however the stream was cut into chunks.
- A *cycle* is a distance p at which the text equals itself; it is found by searching the recent text for its own last
  characters, extended backwards once, and then followed step by step (one slice comparison each) until it breaks. So cost per
  token is small and constant and memory is a window of text, not a table per token.
- How long a cycle may go on depends on what repeats and where (the bars below, measured in benchmarks/detect).
  Only the bars rise in code, tables and lists: nothing is exempt.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from qm_proxy.detect.shape import Context, Unit, context_of, encoded, fence_after, letter_share, machine_made, symbols, unit_of
from qm_proxy.events import Channel
from qm_proxy.findings import EXCERPT_CHARACTERS, Finding

__all__ = ["STEP", "Bar", "Repetition", "Told", "Verdict"]

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
_PER_CHANNEL = 3  # findings of one channel, so that a mad stream gives no mad list
_REST = 2_048  # characters after a loop before the next one of its channel is worth another finding

_DIGITS = re.compile(r"\d+")


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


class _Cycle:
    """Text that equals itself `period` characters before, from `start` (of the first copy) until now."""

    __slots__ = ("due", "judged", "period", "start")

    def __init__(self, period: int, start: int) -> None:
        self.period = period
        self.start = start
        self.due = _FIRST_LOOK  # judge when so many characters are covered
        self.judged: Verdict | None = None  # it stands above its bar


class Verdict(NamedTuple):
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


class Told:
    """A loop that a finding tells of, and how far it was seen to go."""

    __slots__ = ("finding", "until", "verdict")

    def __init__(self, finding: Finding, verdict: Verdict, until: int) -> None:
        self.finding = finding
        self.verdict = verdict
        self.until = until


class Repetition:
    """The recent text of one channel, the cycles that hold in it, and what was told of it."""

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
        self.told: list[Told] = []
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

    def step(self, block: str) -> Verdict | None:
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

    def _judge(self, cycle: _Cycle) -> Verdict | None:
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
        elif context == "prose" and machine_made(unit):
            context = "code"  # records joined into a paragraph are still records
        bar = _bar(kind, unit, context)
        needed = max(bar.characters, bar.copies * period)
        if covered < needed:
            cycle.due = needed
            return None
        cycle.due = 2 * needed
        cycle.judged = Verdict("exact", context, kind, period, covered, needed, cycle.start, unit, new=period)
        return cycle.judged

    def probable(self) -> Verdict | None:
        """The best running cycle that is past half its bar, in prose only."""
        best: Verdict | None = None
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
                best = Verdict("exact", "prose", kind, period, covered, needed, cycle.start, unit, new=period)
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

    def _counter(self) -> Verdict | None:
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
        return Verdict("counter", context, "words", period, covered, needed, self.seen - covered, raw, new=period)

    # --- nearly nothing new

    def _near(self) -> Verdict | None:
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
        return Verdict("near", context, "words", 0, window, window, self.seen - window, recent[-EXCERPT_CHARACTERS:], new=new)

    # --- fences

    def _lines(self, block: str) -> None:
        """Keep track of Markdown code fences; only the first characters of a line are kept."""
        ended, _, self._line = (self._line + block).rpartition("\n")
        if "`" in ended or "~" in ended:
            self.fence = fence_after(ended, self.fence)
        self._line = self._line[:16]

    # --- what was told

    def is_news(self, verdict: Verdict) -> bool:
        """Is this another loop than the one already told? While that one goes on, with small breaks, it is the same."""
        if self.told and verdict.offset < self.told[-1].until + _REST:
            self.told[-1].until = self.seen
            return False
        return len(self.told) < _PER_CHANNEL

    def settle(self, tokens_per_character: float, cut_ns: int | None, t_ns: int) -> None:
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
        if cut_ns is not None and self.cut_at is not None:
            saved = round((self.seen - self.cut_at) * tokens_per_character)
            finding.evidence["saved"] = {"tokens": saved, "seconds": round((t_ns - cut_ns) / 1e9, 3)}


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
