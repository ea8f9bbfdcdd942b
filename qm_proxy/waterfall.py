"""One exchange drawn in the terminal: phases as a bar, every chunk on a time line, stalls marked. Fits a bug report.

The time line has one cell for each slice of the exchange's time. A cell's height is how many chunks came in it (▁ to █, relative
to the busiest cell); a cell in which nothing came is `·` before the first chunk and a blank after it; `!` is where a stall
ended. Below stands what was said: thinking, text, tool call.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any

from qm_proxy.terminal import seconds

__all__ = ["draw", "stall_chunks"]

Json = dict[str, Any]
_HEIGHTS = "▁▂▃▄▅▆▇█"
_KINDS = {"text": "─", "thinking": "~", "tool": "■"}
_PHASES = (
    ("client_wait_s", "client", "c"),
    ("queue_s", "queue", "q"),
    ("load_s", "load", "l"),
    ("prefill_s", "prefill", "p"),
    ("decode_s", "decode", "d"),
    ("unexplained_s", "unexplained", "?"),
)


def draw(exchange: Json, chunks: Json | None, width: int = 100) -> list[str]:
    """The lines. `exchange` and `chunks` are CONTRACT's JSON; `chunks` may be `None` (no stream, or not kept)."""
    lines = _head(exchange)
    lines += _phases(exchange, width)
    if chunks is not None and chunks["arrival_ns"]:
        lines += ["", *_time_line(exchange, chunks, width)]
    lines += _calls(exchange)
    lines += _findings(exchange)
    return lines


def _head(x: Json) -> list[str]:
    tokens = f"{_count(x['input_tokens'])} → {_count(x['output_tokens'])} tokens"
    rate = "–" if x["tokens_per_s"] is None else f"{x['tokens_per_s']:.1f} tok/s ({x['rate_source']})"
    window = "" if x["context_window_tokens"] is None else f" · window {x['context_window_tokens']}"
    how = x["ending"] or "in flight"
    if x["finish_reason"]:
        how += f" ({x['finish_reason']})"
    status = "" if x["http_status"] in (200, None) else f" · HTTP {x['http_status']}"
    session = "" if x["session_id"] is None else f"session {x['session_id']} turn {x['turn']} · "
    lines = [
        f"{x['id']}  {x['started_at']}",
        f"{x['client']} → {x['model'] or '–'} · {x['dialect']} {x['route']} · {how}{status}",
        f"{session}ttft {seconds(x['ttft_s'])} · {rate} · {tokens}{window} · {seconds(x['total_s'])}",
    ]
    if x["slow_because"]:
        lines.append(x["slow_because"])
    return lines


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _phases(x: Json, width: int) -> list[str]:
    """The bar: each known phase with its share of the total, in the order in which they happen."""
    known = [(label, letter, x[name]) for name, label, letter in _PHASES if x.get(name)]
    total = x["total_s"]
    if not known or not total:
        return []
    bar, used = "", 0.0
    for _, letter, spent in known:
        used += spent
        end = min(width, round(used / total * width))
        bar += letter * (end - len(bar))
    text = " · ".join(f"{letter}={label} {seconds(spent)}" for label, letter, spent in known)
    return ["", bar, text]


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
    lines = [f"each cell {seconds(cell_s)}, at most {top} chunks; ─ text  ~ thinking  ■ tool call  ! stall", line, said]
    left_out = set(chunks["coalesced"])
    gaps = sorted(((b - a) / 1e9, i) for i, (a, b) in enumerate(pairwise(arrivals), 1) if i not in left_out)
    if x["itl"] and gaps:
        itl = x["itl"]
        longest = ", ".join(f"{seconds(gap)} before chunk {i}" for gap, i in reversed(gaps[-3:]))
        lines.append(
            f"gaps p50 {seconds(itl['p50_s'])} · p90 {seconds(itl['p90_s'])} · p99 {seconds(itl['p99_s'])} · n={itl['n']};"
            f" longest: {longest}"
        )
    return lines


def _starts(kinds: list[list[Any]]) -> tuple[list[int], list[str]]:
    """Run lengths → (first index of each run, its kind)."""
    starts, names, at = [], [], 0
    for kind, n in kinds:
        starts.append(at)
        names.append(kind)
        at += n
    return starts, names


def _calls(x: Json) -> list[str]:
    lines = [""] if x["tool_calls"] else []
    for call in x["tool_calls"]:
        verdict = {True: "valid", False: "invalid", None: "not judged"}[call["valid"]]
        problems = f": {'; '.join(map(str, call['problems']))}" if call["problems"] else ""
        lines.append(f"call {call['name']} at {seconds(call['t_s'])}, {call['argument_bytes']} bytes, {verdict}{problems}")
    return lines


def _findings(x: Json) -> list[str]:
    found = x.get("findings") or []
    lines = [""] if found else []
    for finding in found:
        at = "" if finding.get("t_s") is None else f" at {seconds(finding['t_s'])}"
        lines.append(f"{finding['severity']} {finding['kind']}{at}{': ' + finding['summary'] if finding.get('summary') else ''}")
    return lines
