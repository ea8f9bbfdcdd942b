"""Planted beside found: what the simulated Ollama did, held against what the proxy measured and found.

A timing is good when it errs by no more than the direct clients of the same run did, plus 1 ms.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qm_proxy.demo.clients import Heard

__all__ = ["Pair", "Row", "compare", "faults_found", "nothing_else"]

MARGIN_S = 0.001


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the closing table: CONTRACT's `{name, planted, found, error, unit, within}`."""

    name: str
    planted: float | str | None
    found: float | str | None
    error: float | None
    unit: str
    within: bool
    tolerance: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "planted": self.planted,
            "found": self.found,
            "error": self.error,
            "unit": self.unit,
            "within": self.within,
        }


def payload_times(truth: dict[str, Any]) -> list[int]:
    """When the simulated Ollama wrote each record that carries payload, ns."""
    times: list[int] = []
    kinds = iter(truth["kinds"])
    for at, records in zip(truth["written_ns"], truth["written_records"], strict=True):
        for _ in range(records):
            if next(kinds, "") in ("text", "thinking", "tool"):
                times.append(at)
    return times


@dataclass(slots=True)
class Pair:
    """One exchange: what the simulated Ollama did, what the proxy measured, and its chunk times (ns since the request)."""

    truth: dict[str, Any]
    found: dict[str, Any]
    arrivals: list[int]


class Table:
    """Collects errors quantity by quantity; a row says the worst one and whether it is within the yardstick."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def series(
        self, name: str, planted: list[float], found: list[float | None], unit: str, tolerance: float, quantile: float = 0.99
    ) -> None:
        """One row for many pairs: their medians, and a high quantile of the error."""
        pairs = [(p, f) for p, f in zip(planted, found, strict=True) if f is not None]
        missing = len(planted) - len(pairs)
        if not pairs:
            self.rows.append(Row(f"{name} (n=0)", None, None, None, unit, False, tolerance))
            return
        errors = sorted(abs(f - p) for p, f in pairs)
        worst = errors[min(len(errors) - 1, int(len(errors) * quantile))]
        self.rows.append(
            Row(
                f"{name} (n={len(pairs)}{f', {missing} missing' if missing else ''})",
                statistics.median(p for p, _ in pairs),
                statistics.median(f for _, f in pairs),
                worst,
                unit,
                worst <= tolerance and not missing,
                tolerance,
            )
        )

    def exact(self, name: str, planted: float | str, found: float | str | None, unit: str = "") -> None:
        error = None
        if isinstance(planted, (int, float)) and isinstance(found, (int, float)):
            error = abs(found - planted)
        self.rows.append(Row(name, planted, found, error, unit, found == planted, 0.0 if error is not None else None))


def compare(pairs: list[Pair], direct: list[tuple[dict[str, Any], Heard]]) -> list[Row]:
    """The table: every timing of every stream, each judged against what the direct clients achieved in this run."""
    ttft_yard, gap_yard = _yardstick(direct)
    table = Table()
    streams = [p for p in pairs if p.arrivals and payload_times(p.truth) and p.truth["ending"] == "complete"]
    table.series(
        "time to first token, p90 of the error",
        [(payload_times(p.truth)[0] - p.truth["received_ns"]) / 1e6 for p in streams],
        [_ms(p.found["ttft_s"]) for p in streams],
        "ms",
        (ttft_yard + MARGIN_S) * 1e3,
        0.9,
    )
    planted_gaps: list[float] = []
    found_gaps: list[float | None] = []
    for p in streams:
        times = payload_times(p.truth)
        if len(times) == len(p.arrivals):
            planted_gaps += [(b - a) / 1e6 for a, b in pairwise(times)]
            found_gaps += [(b - a) / 1e6 for a, b in pairwise(p.arrivals)]
    table.series("inter-token gap, p99 of the error", planted_gaps, found_gaps, "ms", (gap_yard + MARGIN_S) * 1e3)
    table.exact("chunks", sum(len(payload_times(p.truth)) for p in streams), sum(p.found["chunks"] for p in streams))
    counted = [p for p in streams if p.found["output_tokens"] is not None]
    table.exact("output tokens", sum(p.truth["sampled_tokens"] for p in counted), sum(p.found["output_tokens"] for p in counted))
    table.exact("prompt tokens", sum(p.truth["prompt_tokens"] for p in counted), sum(p.found["input_tokens"] for p in counted))
    native = [p for p in streams if p.found["dialect"] == "ollama"]
    for phase in ("load", "prefill", "decode"):
        known = [p for p in native if p.truth[f"{phase}_ns"] and p.found[f"{phase}_s"] is not None]
        table.series(
            f"{phase} (native)",
            [p.truth[f"{phase}_ns"] / 1e6 for p in known],
            [_ms(p.found[f"{phase}_s"]) for p in known],
            "ms",
            max(MARGIN_S * 1e3, 0.02 * max((p.truth[f"{phase}_ns"] / 1e6 for p in known), default=0)),
        )
    stalls = [(p, index, ns) for p in streams for index, ns in p.truth["stalls"]]
    found_stalls: list[float | None] = []
    for p, index, _ in stalls:
        gaps = [b - a for a, b in pairwise(p.arrivals)]
        found_stalls.append(gaps[index - 1] / 1e6 if 0 < index <= len(gaps) else None)
    if stalls:
        every = [payload_times(p.truth) for p, _, _ in stalls]
        planted = [(t[i] - t[i - 1]) / 1e6 for t, (_, i, _) in zip(every, stalls, strict=True) if 0 < i < len(t)]
        table.series("stalls at their token", planted, found_stalls[: len(planted)], "ms", (gap_yard + MARGIN_S) * 1e3)
    calls = [p for p in streams if p.truth["tool_calls"]]
    planted_names = sorted(c["name"] for p in calls for c in p.truth["tool_calls"])
    table.exact("tool calls", " ".join(planted_names), " ".join(sorted(c["name"] for p in calls for c in p.found["tool_calls"])))
    left = [p for p in pairs if p.truth["ending"] == "client_left"]
    table.exact("clients that left", len(left), sum(p.found["ending"] == "client_disconnect" for p in left))
    dialects = {p.found["dialect"] for p in streams}
    table.exact("dialects understood", 5, len(dialects - {"other"}))
    sums = [p for p in pairs if _parts(p.found) is not None]
    table.series(
        "phases add up to the total",
        [p.found["total_s"] * 1e3 for p in sums],
        [(_parts(p.found) or 0) * 1e3 for p in sums],
        "ms",
        MARGIN_S * 1e3,
    )
    return table.rows


def _yardstick(direct: list[tuple[dict[str, Any], Heard]]) -> tuple[float, float]:
    """(worst TTFT error, worst gap error) of the direct clients, in seconds."""
    ttft, gaps = [0.0], [0.0]
    for truth, heard in direct:
        times = sorted(set(payload_times(truth)))
        if truth["ending"] != "complete" or not times or not heard.reads_ns:
            continue
        ttft.append(abs((heard.reads_ns[0] - heard.sent_ns) - (times[0] - truth["received_ns"])) / 1e9)
        if len(times) <= len(heard.reads_ns):
            seen = heard.reads_ns[: len(times)]
            gaps += [abs((b - a) - (d - c)) / 1e9 for (a, b), (c, d) in zip(pairwise(seen), pairwise(times), strict=True)]
    return max(ttft), max(gaps)


def _ms(value: float | None) -> float | None:
    return None if value is None else value * 1e3


def _parts(found: dict[str, Any]) -> float | None:
    names = ("queue_s", "load_s", "prefill_s", "decode_s", "client_wait_s", "unexplained_s")
    parts = [found[name] for name in names if found[name] is not None]
    return sum(parts) if parts else None


def faults_found(found: dict[str, dict[str, Any]], planted: dict[str, tuple[str, str]]) -> list[Row]:
    """One row for each planted fault: the kind that must name it beside the kinds that were found in its exchanges."""
    rows = []
    for name, (kind, prefix) in planted.items():
        kinds = {f["kind"] for label, row in found.items() if label.startswith(f"{prefix}.") for f in row["findings"]}
        named = sorted(k for k in kinds if k.startswith(kind))
        rows.append(Row(name, kind.rstrip("."), ", ".join(named) or None, None, "", bool(named)))
    return rows


def nothing_else(found: dict[str, dict[str, Any]], planted: dict[str, tuple[str, str]], pairs: list[Pair]) -> Row:
    """Findings where nothing was planted. A pause that the stream really had on its way (a busy machine makes them) is counted
    apart: it is no false finding."""
    faulty = tuple(f"{prefix}." for _, prefix in planted.values())
    of = {p.found["id"]: p for p in pairs}
    false, pauses = 0, 0
    for label, row in found.items():
        for finding in [] if label.startswith(faulty) else row["findings"]:
            pair = of.get(row["id"])
            paused = finding["kind"] == "stall" and pair is not None and _really_paused(pair)
            pauses += paused and pair is not None and not pair.truth["stalls"]
            false += not paused
    beside = f" (beside {pauses} pauses of this machine)" if pauses else ""
    return Row(f"findings where nothing was planted{beside}", 0, false, false, "", false == 0, 0.0)


def _really_paused(pair: Pair) -> bool:
    """Whether this stream, as written or as it arrived, had a pause of more than twice its usual gap and 10 ms."""
    for times in (payload_times(pair.truth), pair.arrivals):
        gaps = sorted((b - a) / 1e6 for a, b in pairwise(times))
        if gaps and gaps[-1] > 2 * gaps[len(gaps) // 2] + 10:
            return True
    return False
