"""The Agent Report's part of the document: tiers side by side, safety, failures with their evidence, every run, replays.

`streak_k` (k fresh instances all pass) and `pass_hat_k` (repeats of one instance) are two rows and never one number. Beside
each Pass^k as it was seen stands what it allows to say of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from probes.report.blocks import Block, Bullets, Heading, Paragraph, Replays, Table, number
from probes.report.figures import agent_figures
from probes.report.replays import spoken_run
from probes.result import FAILURE_CLASSES, ORIGIN_LABELS, AgentSection, Statistic, Tier

__all__ = ["agent_blocks"]

_WHY_SAFE: Final = {
    "TrapTriggered": "used a forbidden tool",
    "HallucinatedCompletion": "said done when it was not",
    "CollateralDamage": "changed protected state",
}
_MANY: Final = 24
"""So many runs are listed; the rest stand in result.json."""


def agent_blocks(section: AgentSection, saved: str | None = None) -> list[Block]:
    """`saved`: the folder in which the answers of its runs are recorded, so that each of them can be walked."""
    blocks: list[Block] = [Paragraph(f"{section.verdict}: {section.sentence}", strong=True)]
    blocks.append(_tiers(section))
    blocks += agent_figures(section)
    blocks += [Paragraph(text) for text in (_words(section), _made(section)) if text]
    if section.safety:
        blocks += [Heading(3, "Safety"), _safety(section)]
    if section.reasons:
        blocks += [Heading(3, "Why this verdict"), Bullets(tuple(section.reasons))]
    if section.advice:
        blocks += [Heading(3, "Advice"), Bullets(tuple(section.advice))]
    if any(tier.n or tier.excluded for tier in section.tiers):
        blocks += [Heading(3, "Failures"), *_failures(section)]
    if section.runs or section.replays:
        blocks += [Heading(3, "Runs and replays"), *_runs(section, saved)]
    if (other := section.other_path) is not None:
        blocks += [Heading(3, f"The same by the other way of calling tools: {other.path}")]
        blocks += [Paragraph(f"{other.verdict}: {other.sentence}", strong=True), _tiers(other)]
        blocks += _failures(other)
        blocks += _runs(other, saved)
    if section.hardware_class:
        tail = f"; recommended tier to test: {section.recommended_tier}" if section.recommended_tier else ""
        blocks.append(Paragraph(f"Hardware class: {section.hardware_class}{tail}. Advice only, no part of the verdict."))
    if rest := section.unmeasured.get("rest"):
        blocks.append(Paragraph(f"Not measured: the rest, {rest}.", strong=True))
    return blocks


# --- tiers side by side -----------------------------------------------------------------------------------------------


def _tiers(section: AgentSection) -> Table:
    tiers = section.tiers
    path = f", {section.path} tool calls" if section.path else ""
    caption = f"Tiers ({section.generator_version}{path}); intervals are 95 %, n is the runs counted"
    table = Table(("", *(tier.tier.capitalize() for tier in tiers)), caption=caption)

    def row(name: str, cell: Callable[[Tier], str]) -> None:
        cells = [cell(tier) for tier in tiers]
        if any(text not in ("", "–") for text in cells):
            table.rows.append((name, *(text or "–" for text in cells)))

    row("Status", lambda tier: tier.status)
    row("Runs passed", lambda tier: f"{tier.passed} of {tier.n}" if tier.n else "")
    row("Pass^k as seen", _badge)
    row("One run passes at least (95 %)", lambda tier: "" if tier.per_run_at_least is None else f"{tier.per_run_at_least:.0%}")
    row("Pass rate", lambda tier: _share(tier.rate, tier.n))
    row("streak_k: k fresh all pass", _streak)
    row("pass_hat_k: k repeats pass", lambda tier: _share(tier.pass_hat_k, tier.n))
    row("n_eff", lambda tier: str(tier.n_effective) if tier.n_effective else "")
    row("Chance floor (95 %)", lambda tier: f"at most {tier.chance_floor:.1%}" if tier.chance_floor is not None else "")
    row("Progress to the goal", lambda tier: _share(tier.progress, tier.n))
    row("Steps", lambda tier: _value(tier.steps, tier.n))
    row("Oracle's steps", lambda tier: _value(tier.oracle_steps, tier.n, interval=False))
    row("Shortest with full knowledge", lambda tier: _value(tier.optimum_steps, tier.n, interval=False))
    row("Horizon, steps", lambda tier: str(tier.horizon) if tier.horizon else "")
    row("Output tokens a run", lambda tier: _value(tier.tokens, tier.n))
    row("Minutes per task", lambda tier: _value(tier.minutes_per_task, tier.n))
    row(
        "Longest transcript, tokens",
        lambda tier: "" if tier.transcript_tokens is None else f"{tier.transcript_tokens.value:,.0f}",
    )
    row("Lost to infrastructure", _lost)
    row("Loops let go on: passed after all", _false_stops)
    return table


def _badge(tier: Tier) -> str:
    if tier.k is None or not tier.n:
        return ""
    if tier.n >= tier.k:
        return f"Pass^{tier.k}: {tier.passed}/{tier.n}"
    return f"Pass^{tier.k}: {'failed' if tier.passed < tier.n else 'open'}, {tier.passed}/{tier.n}"


def _streak(tier: Tier) -> str:
    if tier.streak_k is not None:
        return f"k={tier.k}: {_share(tier.streak_k, tier.n)}"
    return f"k={tier.k}: not with {tier.n} runs" if tier.n else ""


def _lost(tier: Tier) -> str:
    if not tier.n and not tier.excluded:
        return ""
    return f"{tier.excluded}" + (f" ({tier.reruns} played again)" if tier.reruns else "")


def _false_stops(tier: Tier) -> str:
    if (found := tier.false_stops) is not None:
        return f"{round(found.value * found.n)} of {found.n}{_ends(found, percent=True)}"
    return "none let go on" if "false_stops" in tier.unmeasured else ""


def _share(found: Statistic | None, n: int) -> str:
    if found is None:
        return ""
    value = f"{found.value:.0%}" if found.value in (0, 1) else f"{found.value:.1%}"
    return value + _ends(found, percent=True) + _other_n(found, n)


def _value(found: Statistic | None, n: int, *, interval: bool = True) -> str:
    if found is None:
        return ""
    return number(found.value) + (_ends(found, percent=False) if interval else "") + (_other_n(found, n) if interval else "")


def _ends(found: Statistic, *, percent: bool) -> str:
    if found.ci is None:
        return ""
    lo, hi = ("∞" if end is None else f"{end:.0%}" if percent else number(end) for end in found.ci)
    return f" [{lo}, {hi}]"


def _other_n(found: Statistic, n: int) -> str:
    return "" if found.n == n else f" (n {found.n})"


def _words(section: AgentSection) -> str:
    """The two k's, once, and why one of them is absent."""
    missing = next((t.unmeasured["pass_hat_k"] for t in section.tiers if t.n and "pass_hat_k" in t.unmeasured), None)
    why = f" pass_hat_k is not measured: {missing}." if missing else ""
    stopped = [tier.tier for tier in section.tiers if tier.rate is not None and "conditional on stopping" in tier.rate.method]
    rule = f" {', '.join(stopped).capitalize()} stopped by rule: intervals are conditional on stopping." if stopped else ""
    return f"streak_k is the chance that k fresh instances all pass.{why}{rule}" if any(tier.n for tier in section.tiers) else ""


def _made(section: AgentSection) -> str:
    how = section.conduct
    if not how:
        return ""
    windows = ", ".join(f"{tokens:,} ({tier})" for tier, tokens in how.get("window_tokens", {}).items())
    thinking = "thinking off" if how.get("thinking") is False else "no thinking"
    if how.get("thinking"):
        thinking = f"thinking up to {how.get('thinking_tokens'):,} tokens more"
    return (
        f"Each run is a fresh instance drawn from seed {how.get('seed')} by {section.generator_version}. Turns of at most "
        f"{how.get('turn_tokens')} tokens and {number(float(how.get('turn_limit_s') or 0))} s, {thinking}, temperature "
        f"{how.get('temperature'):g}; windows {windows} tokens, nothing truncated."
    )


# --- safety, failures, runs -------------------------------------------------------------------------------------------


def _safety(section: AgentSection) -> Table:
    table = Table(("What", "Seen", "Rate at most (95 %)", "Allowed for READY", "Holds"))
    for limit in section.safety:
        allowed = limit.get("allowed")
        table.rows.append(
            (
                f"{limit['what']}: {_WHY_SAFE.get(limit['what'], '')}".rstrip(": "),
                f"{limit['seen']} of {limit['n']} runs",
                f"{limit['upper_limit']:.1%}",
                f"{allowed:.0%}" if allowed is not None else "fails its run",
                _holds(limit),
            )
        )
    return table


def _holds(limit: dict[str, Any]) -> str:
    if limit.get("allowed") is None:
        return "–"
    return "yes" if limit["holds"] else "no" if limit["seen"] else "not shown: too few runs"


def _failures(section: AgentSection) -> list[Block]:
    """Every class that occurred, with one run that proves it; then those of the fourteen that did not."""
    tested = [tier for tier in section.tiers if tier.n or tier.excluded]
    total = sum(tier.n + tier.excluded for tier in tested)
    counts = {name: [tier.failures.get(name, 0) for tier in tested] for name in FAILURE_CLASSES}
    blocks: list[Block] = []
    if any(any(found) for found in counts.values()):
        head = ("Class", *(tier.tier.capitalize() for tier in tested), "The post's label", "Evidence")
        table = Table(head)
        for name, found in counts.items():
            if any(found):
                cells = [_count(tier, name, count) for tier, count in zip(tested, found, strict=True)]
                table.rows.append((name, *cells, ORIGIN_LABELS.get(name, "–"), _evidence(section.runs, name)))
        blocks.append(table)
    absent = [name for name, found in counts.items() if not any(found)]
    if total and absent:
        blocks.append(Paragraph(f"Not seen in {total} runs: {', '.join(absent)}."))
    if section.origin_labels:
        labels = ", ".join(f"{name} {count}" for name, count in section.origin_labels.items())
        blocks.append(
            Paragraph(f"Under the post's two labels, roughly: {labels}. Its InfiniteLoop includes a spent turn budget.")
        )
    sub = {name: count for tier in tested for name, count in tier.sub_labels.items()}
    if sub:
        merged = {name: sum(tier.sub_labels.get(name, 0) for tier in tested) for name in sub}
        blocks.append(Paragraph(f"In detail: {', '.join(f'{name} {count}' for name, count in merged.items())}."))
    apart = {name: sum(tier.apart.get(name, 0) for tier in tested) for tier in tested for name in tier.apart}
    if apart:
        listed = ", ".join(f"{name} {count}" for name, count in apart.items())
        blocks.append(Paragraph(f"A template or a budget is to blame before the model is: {listed}."))
    blocks += [Paragraph(text) for text in _loops(section) if text]
    return blocks


def _count(tier: Tier, name: str, count: int) -> str:
    if not count:
        return "–"
    shared = tier.failure_shares.get(name)
    return f"{count}" if shared is None else f"{count}: {shared.value:.0%}{_ends(shared, percent=True)}"


def _evidence(runs: Sequence[dict[str, Any]], name: str) -> str:
    run = next((run for run in runs if run["outcome"] == name), None)
    if run is None:
        return "–"
    steps = ", ".join(map(str, run.get("evidence_steps") or ())) or "–"
    why = str(run.get("why") or "")
    return f"{spoken_run(run['run'])}, step {steps}: {why[:160]}{'…' if len(why) > 160 else ''}"


def _loops(section: AgentSection) -> list[str]:
    said: list[str] = []
    cost, live = section.loop_cost, section.live_detector
    if cost:
        said.append(
            f"Proven loops: {cost['runs']} runs spent {cost.get('repeating_tokens', 0):,} output tokens on the repeated calls; "
            f"`--guard cut` would have acted in {cost.get('caught_by_guard', 0)} of them and saved "
            f"{cost.get('saved_measured_tokens', 0):,} tokens as measured and {cost.get('saved_estimated_tokens', 0):,} by "
            "estimate to the horizon."
        )
    if live and (live.get("proven_loops") or live.get("passed_runs")):
        why = ""
        if thirds := live.get("thirds", 0):
            why = (
                f"; {thirds} more ended at the third copy of a call that succeeds, where it, seeing no state, waits for a fourth"
            )
        if section.path == "prompt-json" and live["false_alarms"]:
            why += "; to it a call in the text is only words, and the same words with the same answer three times are a loop"
        said.append(
            f"The detector of live traffic, on the same runs: found {live['found']} of {live['proven_loops']} proven loops{why}; "
            f"{live['false_alarms']} alarms in {live['passed_runs']} runs that passed."
        )
    stops = [tier.false_stops for tier in section.tiers if tier.false_stops is not None]
    if stops:
        n = sum(found.n for found in stops)
        passed = sum(round(found.value * found.n) for found in stops)
        said.append(f"False-stop rate: of the tenth of looping runs that were let go on, {passed} of {n} passed after all.")
    elif any("false_stops" in tier.unmeasured for tier in section.tiers):
        said.append("False-stop rate: not measured here, no looping run was among the tenth that is let go on.")
    return said


def _runs(section: AgentSection, saved: str | None) -> list[Block]:
    blocks: list[Block] = []
    if section.runs:
        table = Table(("Run", "Outcome", "Steps", "Progress", "Progress stopped at"))
        shown = {str(walk["run"]) for walk in section.replays}
        failed = [run for run in section.runs if run["outcome"] != "PASS" or run["run"] in shown]
        for run in failed[:_MANY]:
            table.rows.append(
                (
                    spoken_run(run["run"]),
                    run["outcome"] + (f"/{run['sub']}" if run.get("sub") else ""),
                    f"{run['steps']} (oracle {run['oracle_steps']})",
                    f"{run['progress']:.0%}",
                    "–" if run["outcome"] == "PASS" else f"step {run['stopped_at']}" if run.get("stopped_at") else "the start",
                )
            )
        more = len(section.runs) - min(len(failed), _MANY)
        tail = f"; {more} more in result.json" if more else ""
        table.caption = f"{len(section.runs)} runs, those that failed and one that passed of each tier{tail}"
        blocks.append(table)
    if saved:
        named = "" if saved != "FOLDER" else " with the folder of --out"
        blocks.append(Paragraph(f"Walk any of them: qm-proxy replay {saved} RUN{named}, or replays.html in that folder."))
    elif section.replays:
        kept = ", ".join(spoken_run(str(walk["run"])) for walk in section.replays)
        blocks.append(Paragraph(f"Kept step by step in the JSON result: {kept}. With --out FOLDER any run can be walked."))
    if section.replays:
        blocks.append(Replays(list(section.replays), "replays.html" if saved else None))
    return blocks
