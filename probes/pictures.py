"""Charts as base64 PNG for MCP, from the same Vega-Lite specs as page and report. A picture that fails is no answer lost."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from probes.report.figures import all_figures
from probes.result import Result
from qm_proxy.charts.render import chart, png

__all__ = ["of_result", "waterfall"]

_WANTED = ("waterfall", "cliff", "tiers")
_CHUNKS_MAX = 5000


def waterfall(exchange: Mapping[str, Any], chunks: Mapping[str, Any] | None) -> list[str]:
    """The token waterfall of one exchange, or nothing where there were no chunks."""
    if chunks is None or not 1 < len(chunks["arrival_ns"]) <= _CHUNKS_MAX:
        return []
    times = chunks["arrival_ns"]
    starts: list[int] = []
    kinds: list[str] = []
    at = 0
    for kind, n in chunks["kinds"]:
        starts.append(at)
        kinds.append(kind)
        at += n
    stalls = {f.get("chunk") for f in exchange.get("findings") or [] if f["kind"] == "stall"}
    gaps = [0.0, *((b - a) / 1e6 for a, b in pairwise(times))]
    rows = [
        {"t_ms": t / 1e6, "gap_ms": gap, "kind": kinds[bisect_right(starts, i) - 1] if kinds else "text", "spike": i in stalls}
        for i, (t, gap) in enumerate(zip(times, gaps, strict=True))
    ]
    return _drawn("waterfall", rows, f"{exchange['model'] or exchange['route']}, {len(rows)} chunks")


def of_result(result: Mapping[str, Any]) -> list[str]:
    """The pictures that say most about a probe's result: waterfall, cliff curve, tiers."""
    try:
        found = Result.model_validate(result)
        figures = all_figures(found.inspector, found.audit, found.agent)
    except ValueError:
        return []
    return [png for f in figures if f.chart in _WANTED for png in _drawn(f.chart, f.rows, f.title)]


def _drawn(name: str, rows: list[dict[str, Any]], title: str) -> list[str]:
    try:
        return [base64.b64encode(png(chart(name, rows, title=title), 1.0)).decode()]
    except Exception:  # the renderer's own errors are of no known type; the numbers are in the text
        return []
