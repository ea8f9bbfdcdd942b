"""Rows for the charts, from a Result. What was not measured gives no figure."""

from __future__ import annotations

from typing import Any

from probes.report.blocks import Figure
from probes.result import AgentSection, AuditSection, InspectorSection

__all__ = ["agent_figures", "all_figures", "audit_figures", "inspector_figures"]


def inspector_figures(section: InspectorSection) -> list[Figure]:
    made = [_waterfall(section), _histogram(section), _by_depth(section), _prefill(section), _memory(section)]
    return [figure for figure in made if figure is not None]


def all_figures(inspector: InspectorSection | None, audit: AuditSection | None, agent: AgentSection | None) -> list[Figure]:
    """Every figure of a document, in its order."""
    return [
        *(inspector_figures(inspector) if inspector is not None else []),
        *(audit_figures(audit) if audit is not None else []),
        *(agent_figures(agent) if agent is not None else []),
    ]


def _waterfall(section: InspectorSection) -> Figure | None:
    found = section.waterfall
    if found is None or not found.t_ms:
        return None
    rows = [
        {"t_ms": t, "gap_ms": gap, "kind": kind, "spike": spike}
        for t, gap, kind, spike in zip(found.t_ms, found.gap_ms, found.kind, found.spike, strict=True)
    ]
    spikes = sum(found.spike)
    alt = f"{len(rows)} chunks over {found.t_ms[-1]:.0f} ms, {spikes} spike{'s' if spikes != 1 else ''} marked red"
    return Figure("waterfall", rows, f"Token waterfall of {found.request}", alt)


def _histogram(section: InspectorSection) -> Figure | None:
    rows: list[dict[str, Any]] = []
    for cell in section.gaps.histogram:
        if cell.n - cell.spikes:
            rows.append({"lo_ms": cell.lo_ms, "hi_ms": cell.hi_ms, "n": cell.n - cell.spikes, "kind": "gap"})
        if cell.spikes:
            rows.append({"lo_ms": cell.lo_ms, "hi_ms": cell.hi_ms, "n": cell.spikes, "kind": "spike"})
    return Figure("gap_histogram", rows, "Gaps between tokens", f"{section.gaps.n} gaps in {len(rows)} bins") if rows else None


def _by_depth(section: InspectorSection) -> Figure | None:
    rows = [
        {"depth_tokens": cell.depth_tokens, "ms": value, "which": which}
        for cell in section.gaps.by_depth
        for which, value in (("p50", cell.p50_ms), ("p95", cell.p95_ms), ("max", cell.max_ms))
    ]
    if len(section.gaps.by_depth) < 2:
        return None
    return Figure("gaps_by_depth", rows, "Gaps by depth of context", f"gaps at {len(section.gaps.by_depth)} depths")


def _prefill(section: InspectorSection) -> Figure | None:
    found = section.prefill
    if not found.points:
        return None
    rows: list[dict[str, Any]] = []
    for point in found.points:
        lo, hi = point.time.ci if point.time.ci is not None else (None, None)
        rows.append({"tokens": point.tokens, "ms": point.time.value, "lo": lo, "hi": hi, "which": "measured"})
    if found.fixed is not None and found.slope is not None:
        last = found.points[-1].tokens
        curve = found.curvature.value if found.curvature is not None else 0.0
        for part in range(33):
            n = last * part / 32
            rows.append({"tokens": n, "ms": found.fixed.value + found.slope.value * n + curve * n * n, "which": "fit"})
    return Figure(
        "prefill", rows, "Prefill over prompt length", f"{len(found.points)} lengths to {found.points[-1].tokens:,} tokens"
    )


def _memory(section: InspectorSection) -> Figure | None:
    found = section.memory
    if found.measured_bytes_per_token is None or found.intercept_bytes is None:
        return None
    gib = 1024**3
    held = {point["held_tokens"] for point in found.points}
    axis = "held_tokens" if len({point["window_tokens"] for point in found.points}) < 2 and len(held) > 1 else "window_tokens"
    rows: list[dict[str, Any]] = [
        {"tokens": point[axis], "gib": point["size_bytes"] / gib, "which": "measured"} for point in found.points
    ]
    ceilings = found.ceilings
    marks = [
        ("advertised", ceilings.advertised_tokens),
        ("spill", ceilings.spill_tokens.value if ceilings.spill_tokens else None),
        ("out of memory", ceilings.oom_tokens.value if ceilings.oom_tokens else None),
        ("usable", ceilings.usable_tokens),
    ]
    known = [(name, float(value)) for name, value in marks if value is not None]
    furthest = max([*(value for _, value in known), *(float(row["tokens"]) for row in rows)])
    for tokens in (0.0, furthest):
        rows.append(
            {
                "tokens": tokens,
                "gib": (found.intercept_bytes + found.measured_bytes_per_token.value * tokens) / gib,
                "which": "projected",
            }
        )
    if found.budget_bytes is not None:
        rows.append({"tokens": 0, "gib": found.budget_bytes / gib, "which": "budget"})
    rows += [{"tokens": value, "gib": 0.0, "which": name, "ceiling": True} for name, value in known]
    alt = ", ".join(f"{name} {value:,.0f} tokens" for name, value in known)
    return Figure("memory", rows, "Memory over context", alt)


def audit_figures(section: AuditSection) -> list[Figure]:
    rows: list[dict[str, Any]] = []
    for rung in section.rungs:
        if rung.accuracy is None:
            continue
        lo, hi = rung.accuracy.ci if rung.accuracy.ci is not None else (None, None)
        rows.append(
            {
                "tokens": rung.measured_tokens or rung.target_tokens,
                "accuracy": rung.accuracy.value,
                "lo": lo,
                "hi": hi,
                "verdict": rung.verdict,
                "n": rung.n,
            }
        )
    if not rows:
        return []
    first = rows[0]["tokens"]
    rows += [
        {"tokens": first, "threshold": value} for value in (section.threshold_good, section.threshold_bad) if value is not None
    ]
    if section.cliff_between is not None:
        rows.append({"tokens": section.cliff_between[0], "band_to": section.cliff_between[1]})
    return [Figure("cliff", rows, "Accuracy over prompt length", section.sentence)]


def agent_figures(section: AgentSection) -> list[Figure]:
    rows: list[dict[str, Any]] = []
    for tier in section.tiers:
        lo, hi = tier.rate.ci if tier.rate is not None and tier.rate.ci is not None else (None, None)
        rate = tier.rate.value if tier.rate is not None else None
        rows.append({"tier": tier.tier, "rate": rate, "lo": lo, "hi": hi, "floor": tier.chance_floor, "status": tier.status})
    return [Figure("tiers", rows, "Agent tiers", section.sentence)] if rows else []
