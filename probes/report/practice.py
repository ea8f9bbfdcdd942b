"""From numbers to what to do: each sentence names the number that it rests on, and nothing is said without one."""

from __future__ import annotations

from probes.report.blocks import number
from probes.result import Result

__all__ = ["best_fit", "meaning", "summary"]


def meaning(result: Result) -> list[str]:
    """What this means in practice."""
    said: list[str] = []
    inspected, audited, agent = result.inspector, result.audit, result.agent
    if inspected is not None:
        cold = next((start for start in inspected.cold if start.state in ("C0", "C1")), None)
        if cold is not None and cold.total is not None:
            advice = "keep it loaded (keep_alive) if you come back often" if cold.total.value > 3000 else "reloading it is cheap"
            said.append(f"A cold start costs {cold.total.value / 1000:.1f} s in all: {advice}.")
        slope = inspected.prefill.slope
        if slope is not None and slope.value > 0:
            speed = f"{1000 / slope.value:,.0f} tokens/s"
            long = min(10_000, inspected.memory.ceilings.advertised_tokens or 10_000)
            wait = number(long * slope.value / 1000)
            said.append(f"A fresh prompt of {long:,} tokens takes about {wait} s before the first word ({speed}).")
        if inspected.decode.cells:
            rate = inspected.decode.cells[0].rate.value
            reading = "faster than reading" if rate >= 15 else "about reading speed" if rate >= 6 else "slower than reading"
            said.append(f"It writes {number(rate)} tokens/s: {reading}.")
        spikes = inspected.spikes
        if spikes is not None:
            more = spikes.count - (spikes.expected_false or 0)
            if spikes.count and more >= 1:
                causes = sorted({item.cause for item in spikes.items})
                worst = f"worst {spikes.worst_ms:.0f} ms"
                said.append(f"{spikes.count} stalls stand out of the jitter ({worst}); evidence: {', '.join(causes)}.")
            else:
                said.append("No stall stands out of the jitter.")
        ceilings = inspected.memory.ceilings
        if ceilings.spill_tokens is not None and ceilings.advertised_tokens is not None:
            if ceilings.spill_tokens.value < ceilings.advertised_tokens:
                said.append(
                    f"Of the {ceilings.advertised_tokens:,} tokens advertised, about {ceilings.spill_tokens.value:,.0f} fit "
                    "this device; beyond that it slows down without an error."
                )
            else:
                said.append(f"Memory does not limit the advertised {ceilings.advertised_tokens:,} tokens on this device.")
    if audited is not None:
        said.append(audited.sentence)
    if agent is not None:
        said.append(agent.sentence)
        said += agent.advice[:3]
    if result.joint is not None:
        said.append(result.joint.sentence)
    return said or ["Nothing was measured."]


def summary(result: Result) -> list[tuple[str, ...]]:
    """The TL;DR table: speed, memory, context, simple work, agentic work."""
    rows: list[tuple[str, ...]] = []
    inspected, audited, agent = result.inspector, result.audit, result.agent
    gib = 1024**3
    if inspected is not None:
        if inspected.decode.cells:
            rate = inspected.decode.cells[0].rate.value
            rows.append(("Speed", f"{number(rate)} tokens/s", "✓" if rate >= 10 else "✗"))
        memory = inspected.memory
        if memory.size_bytes is not None:
            share = f", {memory.share:.0%} of the device" if memory.share is not None else ""
            fits = memory.share is None or memory.share <= 0.85
            rows.append(("Memory", f"{memory.size_bytes / gib:.1f} GiB{share}", "✓" if fits else "✗"))
    if audited is not None:
        good = audited.verdict in ("limit not reached", "maintained")
        kept = audited.maintained_tokens
        length = f"{kept:,} tokens kept ({audited.verdict})" if kept else audited.verdict
        rows.append(("Context", length, "✓" if good else "✗"))
    if agent is not None:
        for name, label in (("easy", "Simple tasks"), ("hard", "Agentic work")):
            tier = next((tier for tier in agent.tiers if tier.tier.lower() == name), None)
            if tier is not None:
                mark = {"CLEAR": "✓", "FAIL": "✗"}.get(tier.status, "?")
                passed = f", {tier.passed}/{tier.n}" if tier.n else ""
                rows.append((label, f"{tier.tier}: {tier.status}{passed}", mark))
    return rows or [("–", "nothing was measured", "?")]


def best_fit(result: Result) -> str:
    """One paragraph: for what to use it, by what was shown."""
    inspected, audited, agent = result.inspector, result.audit, result.agent
    kept = audited.maintained_tokens if audited is not None else None
    rate = inspected.decode.cells[0].rate.value if inspected is not None and inspected.decode.cells else None
    uses: list[str] = []
    open_ = False
    if agent is not None:
        clear = [tier.tier for tier in agent.tiers if tier.status == "CLEAR"]
        open_ = agent.verdict == "INSUFFICIENT DATA" and not clear
        if not open_:
            uses.append(f"agent work of the {' and '.join(clear)} kind" if clear else "no agent work without supervision")
    if kept:
        uses.append(f"questions about up to {kept:,} tokens of material")
    if rate is not None:
        uses.append("interactive use" if rate >= 10 else "work that may wait")
    if not uses:
        return "Not enough was measured to say."
    not_shown = " Agent work was not measured." if agent is None else " Of agent work too little was measured." if open_ else ""
    return f"Fit for {', '.join(uses)}.{not_shown}"
