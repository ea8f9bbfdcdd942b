"""One exchange, or one session, drawn in the terminal. Plain text that fits a bug report.

An exchange: its phases as a bar, every chunk on a time line. The time line has one cell for each slice of the exchange's time. A
cell's height is how many chunks came in it (▁ to █, relative to the busiest cell); a cell in which nothing came is `·` before the
first chunk and a blank after it; `!` is where a stall ended. Below stands what was said: thinking, text, tool call.

A session: a line for each request on one time line, its phases as letters, what was found below it.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from qm_proxy.measure.wall_clock import unix_ns_of_iso
from qm_proxy.terminal import ending, seconds

__all__ = ["cut", "draw", "draw_session", "many", "short", "stall_chunks", "wrapped"]

Json = dict[str, Any]
_HEIGHTS = "▁▂▃▄▅▆▇█"
_KINDS = {"text": "─", "thinking": "~", "tool": "■"}
_SIGNS = (("─", "text"), ("~", "thinking"), ("■", "tool call"), ("!", "stall"))
_PHASES = (
    ("client_wait_s", "client", "c"),
    ("queue_s", "queue", "q"),
    ("load_s", "load", "l"),
    ("prefill_s", "prefill", "p"),
    ("decode_s", "decode", "d"),
    ("unexplained_s", "unexplained", "?"),
)
_FINDINGS_OF_A_TURN = 3
_WAIT_SHARE = 0.15  # the longest wait for a user that is drawn, as a share of the time in which something happened


class _Phase(NamedTuple):
    name: str
    letter: str
    spent_s: float


def draw(exchange: Json, chunks: Json | None, width: int = 100) -> list[str]:
    """The lines. `exchange` and `chunks` are CONTRACT's JSON, findings as a whole where they are known. `chunks` is `None` where
    there was no stream, or it was not kept."""
    lines = _head(exchange, width)
    lines += _phase_lines(exchange, width)
    if chunks is not None and chunks["arrival_ns"]:
        lines += ["", *_time_line(exchange, chunks, width)]
    lines += _calls(exchange, width)
    if found := exchange.get("findings"):
        lines += ["", *(line for finding in found for line in _finding(finding, width))]
    return lines


def draw_session(session: Json, width: int = 100) -> list[str]:
    """The lines. `session` is CONTRACT's JSON with its exchanges as `items`, oldest first."""
    turns: list[Json] = session["items"]
    reused = session.get("prefix_reused")
    parts = [
        f"{session['client']} → {', '.join(session['models']) or '–'}",
        many(session["exchanges"], "request"),
        f"{_count(session['input_tokens'])} → {_count(session['output_tokens'])} tokens",
        many(session["tool_calls"], "tool call") if session["tool_calls"] else "",
        f"{reused:.0%} of the prompts reused" if reused is not None else "",
    ]
    spent = [f"{name} {seconds(session[f'{name}_s'])}" for name in ("model", "tools", "user") if session.get(f"{name}_s")]
    lines = [f"{session['id']}  {session['started_at']}", *wrapped(filter(None, parts), width)]
    if spent:
        lines += wrapped(["time: " + spent[0], *spent[1:]], width)
    if not turns:
        return lines
    drawn = _Story(turns, max(20, width - 44))
    lines += ["", *drawn.legend(width)]
    for turn in turns:
        lines.append(drawn.line(turn, width))
        found = turn.get("findings") or []
        for finding in found[:_FINDINGS_OF_A_TURN]:
            lines += ["     " + line for line in _finding(finding, width - 5)]
        if len(found) > _FINDINGS_OF_A_TURN:
            lines.append(f"     and {len(found) - _FINDINGS_OF_A_TURN} more findings")
    lines.append("     " + drawn.axis())
    return lines


class _Story:
    """The exchanges of a session on one time line. A user's long waits are drawn shorter."""

    def __init__(self, turns: list[Json], width: int) -> None:
        self.width = width
        began = unix_ns_of_iso(turns[0]["started_at"])
        spans = [((unix_ns_of_iso(t["started_at"]) - began) / 1e9, t["total_s"] or 0.0) for t in turns]
        busy = sum(total for _, total in spans) or 1e-9
        self.longest_wait_s = busy * _WAIT_SHARE
        self.shortened = False
        self.tools = any((turn.get("place") or {}).get("waited_for") == "tools" for turn in turns)
        self._start: dict[str, float] = {}
        self._waited: dict[str, float] = {}
        taken_out = end = 0.0
        for turn, (start, total) in zip(turns, spans, strict=True):
            wait = start - end
            if wait > self.longest_wait_s and (turn.get("place") or {}).get("waited_for") != "tools":
                taken_out += wait - self.longest_wait_s
                self.shortened = True
            self._waited[turn["id"]] = max(0.0, wait) if end else 0.0
            self._start[turn["id"]] = max(0.0, start - taken_out)
            end = max(end, start + total)
        self.total_s = max(end - taken_out, 1e-9)
        self._phases = {turn["id"]: _phases(turn) for turn in turns}

    def legend(self, width: int) -> list[str]:
        letters = {phase.letter: phase.name for phases in self._phases.values() for phase in phases}
        said = [f"{letter} {name}" for letter, name in letters.items()]
        said += ["· tools at work"] if self.tools else []
        parts = [f"each column {seconds(self.total_s / self.width)}: {'  '.join(said)}"]
        if self.shortened:
            parts.append(f"waits for the user are drawn as {seconds(self.longest_wait_s)} at most")
        return wrapped(parts, width)

    def line(self, turn: Json, width: int) -> str:
        start = min(self.width - 1, int(self._start[turn["id"]] / self.total_s * self.width))
        total = turn["total_s"] or 0.0
        n = max(1, min(self.width - start, round(total / self.total_s * self.width)))
        place = turn.get("place") or {}
        waited = 0
        if place.get("waited_for") == "tools":
            waited = min(start, max(1, round(self._waited[turn["id"]] / self.total_s * self.width)))
        bar = " " * (start - waited) + "·" * waited + _bar(self._phases[turn["id"]], total, n)
        number = f"{place['trajectory']}.{turn['turn']}" if place.get("trajectory") else _count(turn["turn"])
        notes = [] if turn["ending"] == "complete" else [ending(turn["ending"])]
        notes += [place["relation"]] if place.get("relation") not in (None, "start", "next") else []
        calls = [call["name"] for call in turn["tool_calls"]]
        notes += ["→ " + ", ".join(calls)] if calls else []
        tokens = f"{short(turn['input_tokens'])}→{short(turn['output_tokens'])}"
        text = f"{number:>4} {bar:<{self.width}} {seconds(total):>7} {tokens:>11}  {' '.join(notes)}".rstrip()
        return cut(text, width)

    def axis(self) -> str:
        return _axis(self.total_s, self.width)[0]


def _head(x: Json, width: int) -> list[str]:
    rate = "–" if x["tokens_per_s"] is None else f"{x['tokens_per_s']:.1f} tok/s ({x['rate_source']})"
    how = "in flight" if x["ending"] is None else ending(x["ending"])
    if x["finish_reason"]:
        how += f" ({x['finish_reason']})"
    who = [f"{x['client']} → {x['model'] or '–'}", f"{x['dialect']} {x['route']}", how]
    if x["http_status"] not in (200, None):
        who.append(f"HTTP {x['http_status']}")
    what = [f"ttft {seconds(x['ttft_s'])}", rate, f"{_count(x['input_tokens'])} → {_count(x['output_tokens'])} tokens"]
    if x["context_window_tokens"] is not None:
        what.append(f"window {x['context_window_tokens']}")
    lines = [f"{x['id']}  {x['started_at']}", *wrapped(who, width), *wrapped([*what, seconds(x["total_s"])], width)]
    if x["session_id"] is not None:
        lines.append(f"session {x['session_id']} turn {x['turn']}")
    for text in (x["slow_because"], x.get("error")):
        if text:
            lines += textwrap.wrap(text, width)
    return lines


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def short(value: int | None) -> str:
    """`940`, `12.4k`, `1.2M`: fits five characters."""
    if value is None or value < 10_000:
        return _count(value)
    return f"{value / 1e3:.1f}k" if value < 1e5 else f"{value / 1e3:.0f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def wrapped(parts: Iterable[str], width: int) -> list[str]:
    """The parts with ` · ` between them, in as many lines as they need; a part is torn only where it is longer than a line."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines += textwrap.wrap(part, width) or [part]
    return lines


def cut(text: str, size: int) -> str:
    """At most `size` characters; `…` says that some are missing."""
    return text if len(text) <= size else text[: size - 1] + "…"


def many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _phases(x: Json) -> list[_Phase]:
    """The known phases in the order in which they happen. Where the server tells no prefill, what is unexplained before the first
    token is the wait for it; of the rest nobody knows where it lies: last."""
    known = {letter: _Phase(name, letter, x[key]) for key, name, letter in _PHASES if x.get(key)}
    rest = known.pop("?", None)
    if rest is not None and not x.get("prefill_s") and x.get("ttft_s"):
        before = sum(known[letter].spent_s for letter in "ql" if letter in known)
        wait_s = max(0.0, min(rest.spent_s, x["ttft_s"] - before))
        known["w"] = _Phase("wait for the first token", "w", wait_s)
        rest = _Phase(rest.name, rest.letter, rest.spent_s - wait_s)
    found = [known[letter] for letter in "cqlpwd" if letter in known]
    return [phase for phase in (*found, rest) if phase is not None and phase.spent_s > 0]


def _bar(phases: list[_Phase], total: float, width: int) -> str:
    """Each phase with its share of the total; `?` is also what no phase accounts for."""
    bar, used = "", 0.0
    for phase in phases:
        used += phase.spent_s
        end = round(min(1.0, used / total) * width) if used < total else width
        bar += phase.letter * (end - len(bar))
    return bar + "?" * (width - len(bar))


def _phase_lines(x: Json, width: int) -> list[str]:
    known = _phases(x)
    if not known or not x["total_s"]:
        return []
    return ["", _bar(known, x["total_s"], width), *wrapped([f"{p.letter}={p.name} {seconds(p.spent_s)}" for p in known], width)]


def _axis(total_s: float, width: int) -> list[str]:
    """Where the time line begins, its quarters, and its end."""
    quarters = (1, 2, 3, 4) if width >= 50 else (2, 4)
    marks = {0: "0"} | {round(width * quarter / 4): seconds(total_s * quarter / 4) for quarter in quarters}
    line = ""
    for at, text in marks.items():
        place = max(0, min(at, width - len(text)))
        if place >= len(line) + (2 if line else 0):
            line += " " * (place - len(line)) + text
    return [line]


def stall_chunks(exchange: Json) -> dict[int, float | None]:
    """Chunk index → gap in seconds (`None`: not said) of each stall found."""
    found: dict[int, float | None] = {}
    for finding in exchange.get("findings", []):
        if finding["kind"] == "stall" and finding.get("chunk") is not None:
            evidence = finding.get("evidence") or {}
            found[finding["chunk"]] = evidence.get("gap_s")
    return found


def _time_line(x: Json, chunks: Json, width: int) -> list[str]:
    arrivals = chunks["arrival_ns"]
    total = max(x["total_s"] or 0.0, arrivals[-1] / 1e9, 1e-9)
    cell_s = total / width
    counts = [0] * width
    kinds = [""] * width
    starts, names = _starts(chunks["kinds"])
    for index, at in enumerate(arrivals):
        cell = min(width - 1, int(at / 1e9 / cell_s))
        counts[cell] += 1
        kinds[cell] = names[bisect_right(starts, index) - 1] if names else ""
    stalls = {min(width - 1, int(arrivals[i] / 1e9 / cell_s)) for i in stall_chunks(x) if 0 <= i < len(arrivals)}
    top, first = max(counts), next(i for i, n in enumerate(counts) if n)
    line = "".join(
        "!" if i in stalls else _HEIGHTS[min(7, (n * 8 - 1) // top)] if n else ("·" if i < first else " ")
        for i, n in enumerate(counts)
    )
    said = "".join(_KINDS.get(kind, " ") for kind in kinds)
    signs = [f"{sign} {name}" for sign, name in _SIGNS if sign in said or (sign == "!" and stalls)]
    most = f"at most {top} chunk{'s' * (top > 1)}"
    lines = [f"each cell {seconds(cell_s)}, {most}; {'  '.join(signs)}", line.rstrip(), said.rstrip(), *_axis(total, width)]
    left_out = set(chunks["coalesced"])
    gaps = sorted(((b - a) / 1e9, i) for i, (a, b) in enumerate(pairwise(arrivals), 1) if i not in left_out)
    if x["itl"] and gaps:
        itl = x["itl"]
        longest = ", ".join(f"{seconds(gap)} before chunk {i}" for gap, i in reversed(gaps[-3:]))
        spread = [f"{name} {seconds(itl[f'{name}_s'])}" for name in ("p50", "p90", "p99")]
        lines += wrapped([f"gaps {spread[0]}", *spread[1:], f"n={itl['n']}", f"longest: {longest}"], width)
    return lines


def _starts(kinds: list[list[Any]]) -> tuple[list[int], list[str]]:
    """Run lengths → (first index of each run, its kind)."""
    starts, names, at = [], [], 0
    for kind, n in kinds:
        starts.append(at)
        names.append(kind)
        at += n
    return starts, names


def _calls(x: Json, width: int) -> list[str]:
    lines = [""] if x["tool_calls"] else []
    for call in x["tool_calls"]:
        verdict = {True: "valid", False: "invalid", None: "not judged"}[call["valid"]]
        problems = f": {'; '.join(map(str, call['problems']))}" if call["problems"] else ""
        text = f"call {call['name']} at {seconds(call['t_s'])}, {call['argument_bytes']} bytes, {verdict}{problems}"
        if call.get("turnaround_s") is not None:
            text += f", its result came after {seconds(call['turnaround_s'])}"
        lines += textwrap.wrap(text, width, subsequent_indent="  ")
    return lines


def _finding(finding: Json, width: int) -> list[str]:
    at = "" if finding.get("t_s") is None else f" at {seconds(finding['t_s'])}"
    text = f"{finding['severity']} {finding['kind']}{at}{': ' + finding['summary'] if finding.get('summary') else ''}"
    return textwrap.wrap(text, width, subsequent_indent="  ")
