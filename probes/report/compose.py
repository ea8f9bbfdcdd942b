"""What a report says, in the post's order: setup, 1 Inspector, 2 Audit, 3 Agent Report, what this means, TL;DR, best fit."""

from __future__ import annotations

from pathlib import Path

from probes.report.agent import agent_blocks
from probes.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Replays, Table, number, show
from probes.report.figures import audit_figures, inspector_figures
from probes.report.practice import best_fit, meaning, summary
from probes.result import AuditSection, CompatRow, CompatSection, InspectorSection, Memory, Result, Run

__all__ = ["compose", "title"]

_COLUMNS = ("Measure", "Value")
_BESIDE = (
    "The origin hides one task in padding and scores the tool call. Ours asks for fresh facts that stand in the text, many of "
    "them, as far as that ladder unless --max-tokens says more:"
)


def compose(result: Result, folder: Path | None = None) -> list[Block]:
    """The whole document as blocks. `folder`: where result and rows lie, if the reader is to be told."""
    saved = None if result.rows is None else str(folder or "FOLDER")
    blocks: list[Block] = [Heading(1, title(result))]
    blocks += _state(result)
    blocks += [Heading(2, "Setup"), _setup(result)]
    compat = result.compat
    blocks.append(Heading(2, "1 Inspector"))
    if result.inspector is not None:
        blocks += _inspector(result.inspector, compat)
    else:
        blocks.append(_not_measured(result, "inspector"))
    blocks.append(Heading(2, "2 Audit"))
    if compat is not None and compat.audit_rungs:
        blocks += _compat_audit(compat)
        if result.audit is not None:
            blocks.append(Paragraph(_BESIDE))
    if result.audit is not None:
        blocks += _audit(result.audit)
    else:
        blocks.append(_not_measured(result, "audit"))
    blocks.append(Heading(2, "3 Agent Report"))
    if compat is not None and compat.agent:
        blocks.append(_compat_table(compat.agent, "By the origin's sampling and definitions"))
        blocks += _compat_walks(compat, saved)
    if result.agent is not None:
        if compat is not None and compat.agent:
            blocks.append(Paragraph("By our own tiers, on fresh instances:"))
        blocks += agent_blocks(result.agent, saved)
    else:
        blocks.append(Paragraph(f"Not measured: {result.unmeasured.get('agent', 'not asked for')}."))
    blocks += [Heading(2, "What this means in practice"), Bullets(tuple(meaning(result)))]
    if result.joint is not None and result.joint.limits:
        limits: list[tuple[str, ...]] = [
            (str(limit["what"]), f"{number(float(limit['value']))} {limit['unit']}", str(limit["source"]))
            for limit in result.joint.limits
        ]
        blocks.append(Table(("Limit", "Value", "Source"), limits))
    blocks += [Heading(2, "TL;DR"), Table(("", "", ""), summary(result))]
    blocks += [Heading(2, "Best fit"), Paragraph(best_fit(result))]
    if result.warnings:
        blocks += [Heading(2, "Warnings"), Bullets(tuple(warned.text for warned in result.warnings))]
    return blocks


def title(result: Result) -> str:
    """The model, and how far it was measured."""
    parts = (result.inspector, result.audit, result.agent)
    measured = "not measured" if all(part is None for part in parts) else "measured"
    if measured == "measured" and result.run.state != "complete":
        measured = "measured in part"
    return f"{result.target.name}: {measured}"


def _state(result: Result) -> list[Block]:
    if result.run.state == "complete":
        return []
    state, reason = result.run.state, (result.run.reason or "").rstrip(".")
    said = state if state == "failed" else f"was {state}"
    if reason.startswith(state):  # "interrupted by the user"
        said += reason.removeprefix(state)
    elif reason:
        said += f": {reason}"
    nothing = result.inspector is None and result.audit is None and result.agent is None
    rest = "Nothing was measured." if nothing else "What follows is partial."
    return [Paragraph(f"This run {said}. {rest}", strong=True)]


def _not_measured(result: Result, part: str) -> Paragraph:
    return Paragraph(f"Not measured: {result.unmeasured.get(part, 'not asked for').rstrip('.')}.")


def _setup(result: Result) -> Table:
    target, host, run = result.target, result.host, result.run
    gib = 1024**3
    machine = host.described or ", ".join(part for part in (host.os, host.cpu) if part) or "unknown"
    memory = f"{host.memory_bytes / gib:.0f} GiB{' unified' if host.unified else ''}" if host.memory_bytes else "unknown"
    gpus = ", ".join(f"{gpu.name} {gpu.memory_bytes / gib:.0f} GiB" if gpu.memory_bytes else gpu.name for gpu in host.gpus) or (
        "none" if host.described else "none that can be read from here"
    )
    depth = "quick" if run.quick else "full"
    version = f"{result.tool.get('name', '?')} {result.tool.get('version', '?')}"
    options = ", ".join(f"{name} {value}" for name, value in target.options.items())
    rows = [
        ("Model", target.name),
        ("Digest", (target.digest or "unknown")[:19]),
        ("Kind", ", ".join(part for part in (target.family, target.parameter_size, target.quantization, target.runner) if part)),
        ("Ollama", target.ollama_version or "unknown"),
        ("Machine", machine),
        ("Machine memory", memory),
        ("GPU", gpus),
        ("Advertised window", f"{target.advertised_context_tokens:,} tokens" if target.advertised_context_tokens else "unknown"),
        ("Options sent", options or "the server's defaults"),
        (
            "Run",
            f"{run.started_at}, seed {run.seed}, {depth}, {run.requests} requests, "
            f"{run.model_time_s:.0f} s of model time{_planned(run)}",
        ),
        ("Tool", f"{version}, grammar {result.tool.get('grammar', '?')}"),
    ]
    return Table(_COLUMNS, [(name, value) for name, value in rows if value])


def _planned(run: Run) -> str:
    """What the dry run would have said, beside what it took."""
    most, least = run.cost.get("seconds"), run.cost.get("seconds_least")
    if not most:
        return ""
    return f" (planned: {least:.0f} to {most:.0f} s)" if least and round(least) != round(most) else f" (planned: {most:.0f} s)"


# --- 1 Inspector ----------------------------------------------------------------------------------------------------


def _inspector(section: InspectorSection, compat: CompatSection | None) -> list[Block]:
    blocks: list[Block] = []
    if compat is not None and compat.inspector:
        blocks.append(_compat_table(compat.inspector, "By the origin's definitions, our reading beside"))
    table = Table(_COLUMNS, caption="By ours" if compat is not None else None)
    add = table.rows.append
    for start in section.cold:
        if start.state in ("C0", "C1"):
            add(("Cold load", f"{show(start.load)}; {start.state}, {start.label}"))
            add(("Cold start in all", _or_why(show(start.total), start.unmeasured.get("total"))))
            if start.prefill is not None:
                add(("Prefill, first request", f"{show(start.prefill)} for {start.prompt_tokens} tokens"))
            if start.read_gb_s is not None:
                add(("Implied read rate", show(start.read_gb_s) + (f"; {start.note}" if start.note else "")))
        else:
            name = "Warm, new prompt" if start.state == "C2" else "Prompt cached"
            add((name, f"{show(start.total)} to the first chunk, {start.prompt_tokens} tokens; {start.state}"))
    if section.cold and all(start.state != "C0" for start in section.cold):
        add(("Disk-cold load", "not measured; C0: --evict starts once with the weights put out of the page cache"))
    prefill = section.prefill
    if prefill.slope is not None and prefill.fixed is not None:
        speed = 1000 / prefill.slope.value if prefill.slope.value > 0 else float("inf")
        add(("Prefill", f"{show(prefill.fixed)} + {show(prefill.slope)}: {number(speed)} tokens/s"))
    if prefill.doubling_tokens is not None:
        add(("Attention doubles cost", show(prefill.doubling_tokens)))
    add(("TTFT", _or_why(show(section.ttft_any), section.unmeasured.get("ttft_any"))))
    if not section.decode.cells:
        add(("Decode", _or_why("–", section.decode.unmeasured.get("cells"))))
    for cell in section.decode.cells:
        place = f"at {cell.depth_tokens:,} tokens"
        add(("Decode, server", f"{show(cell.server_ms_per_token)} {place}"))
        add(("Decode, client", f"{show(cell.client_ms_per_token)} {place}"))
        add(("Tokens per second", f"{show(cell.rate)} {place}"))
    decode = section.decode
    if decode.slope is not None:
        ends = decode.slope.ci or (None, None)
        none = "; none detected" if ends[0] is not None and ends[1] is not None and ends[0] <= 0 <= ends[1] else ""
        add(("Slowing with depth", show(decode.slope) + none))
    if decode.half_speed_tokens is not None:
        add(("Half speed at", show(decode.half_speed_tokens)))
    if decode.drift is not None:
        add(("Drift", f"{decode.drift.value:+.1%} (n {decode.drift.n})"))
    gaps = section.gaps
    if gaps.p50 is not None:
        add(("Gap p50", show(gaps.p50)))
        add(("Gap p95", show(gaps.p95)))
        add(("Gap p99", _or_why(show(gaps.p99), gaps.unmeasured.get("p99"))))
    add(("Latency spikes", _spikes(section)))
    blocks.append(table)
    figures = inspector_figures(section)
    blocks += [figure for figure in figures if figure.chart != "memory"]
    if section.spikes is not None and section.spikes.items:
        rows: list[tuple[str, ...]] = [
            (f"{s.request} #{s.chunk}", f"{s.gap_ms:.1f} ms", f"> {s.threshold_ms:.1f} ms", s.cause, s.evidence)
            for s in section.spikes.items[:10]
        ]
        blocks.append(Table(("Spike", "Gap", "Threshold", "Cause", "Evidence"), rows))
        if (more := len(section.spikes.items) - len(rows)) > 0:
            blocks.append(Paragraph(f"{more} more in result.json."))
    blocks += [Heading(3, "Memory"), _memory(section.memory)]
    blocks += [figure for figure in figures if figure.chart == "memory"]
    if section.checks:
        blocks.append(Heading(3, "Cross-checks"))
        checked: list[tuple[str, ...]] = [
            (
                check.quantity,
                "–" if check.ours is None else f"{number(check.ours)} {check.unit}",
                "–" if check.theirs is None else f"{number(check.theirs)} {check.unit}",
                {True: "agree", False: "DISAGREE", None: "cannot be told"}[check.agree],
                f"{check.note} (tolerance {check.tolerance})",
            )
            for check in section.checks
        ]
        blocks.append(Table(("Quantity", "Ours", "Server's", "", "How"), checked))
    return blocks


def _spikes(section: InspectorSection) -> str:
    spikes = section.spikes
    if spikes is None:
        return f"not measured: {section.unmeasured.get('spikes', 'no stream')}"
    bursts = ""
    if (burst := spikes.bursts) is not None:
        bursts = f"; in bursts of {burst['tokens_per_burst']:.1f} tokens every {burst['burst_period_ms']:.1f} ms"
    chance = f"{spikes.expected_false:.2f} expected by chance" if spikes.expected_false is not None else "chance unknown"
    worst = (
        f", worst {spikes.worst_ms:.0f} ms, {spikes.share_of_time:.1%} of the time"
        if spikes.worst_ms and spikes.share_of_time
        else ""
    )
    aside = f"; {spikes.set_aside} more only by pauses of this client, not counted" if spikes.set_aside else ""
    return f"{spikes.count} ({show(spikes.per_1000)}; {chance}){worst}{aside}{bursts}"


def _memory(memory: Memory) -> Table:
    gib = 1024**3
    table = Table(_COLUMNS)
    add = table.rows.append
    if memory.size_bytes is not None:
        vram = f", {memory.vram_bytes / gib:.1f} GiB of it on the device" if memory.vram_bytes is not None else ""
        share = f"; {memory.share:.0%} of {(memory.device_bytes or 0) / gib:.0f} GiB" if memory.share is not None else ""
        held = f", read with {memory.at_tokens:,} tokens in a window of {memory.window_tokens:,}" if memory.at_tokens else ""
        add(("Memory", f"{memory.size_bytes / gib:.1f} GiB ({memory.size_bytes / 1e9:.1f} GB){vram}{share}{held}"))
    predicted = ", ".join(f"{name} {value:,.0f}" for name, value in memory.predicted_bytes_per_token.items())
    if predicted:
        add(("KV per token, predicted", f"{predicted} bytes ({memory.predicted_from})"))
    else:
        add(("KV per token, predicted", _or_why("–", memory.unmeasured.get("predicted_bytes_per_token"))))
    reason = memory.unmeasured.get("measured_bytes_per_token")
    add(("KV per token, measured", _or_why(show(memory.cache_bytes_per_token), reason)))
    if memory.agreement:
        add(("Agreement", memory.agreement))
    ceilings = memory.ceilings
    add(("Advertised window", f"{ceilings.advertised_tokens:,} tokens" if ceilings.advertised_tokens else "unknown"))
    add(("Allocated window", f"{ceilings.allocated_tokens:,} tokens" if ceilings.allocated_tokens else "unknown"))
    add(("Spill ceiling", _or_why(show(ceilings.spill_tokens), ceilings.unmeasured.get("spill_tokens"))))
    add(("Out-of-memory ceiling", _or_why(show(ceilings.oom_tokens), ceilings.unmeasured.get("oom_tokens"))))
    if memory.budget_bytes is not None:
        add(("Budget", f"{memory.budget_bytes / gib:.1f} GiB: {memory.budget_from}"))
    usable = f"{ceilings.usable_tokens:,} tokens" if ceilings.usable_tokens else "–"
    add(("Usable context", _or_why(usable, ceilings.unmeasured.get("usable_tokens"))))
    return table


def _or_why(text: str, reason: str | None) -> str:
    return f"not measured: {reason}" if text == "–" and reason else text


# --- 2 Audit --------------------------------------------------------------------------------------------------------


def _audit(section: AuditSection) -> list[Block]:
    blocks: list[Block] = [Paragraph(section.sentence, strong=True)]
    table = Table(("Tokens", "Accuracy", "Verdict", "Answers", "Invalid"))
    for rung in section.rungs:
        classes = ", ".join(f"{name} {count}" for name, count in sorted(rung.classes.items(), key=lambda item: -item[1]))
        tokens = f"{round(rung.measured_tokens):,}" if rung.measured_tokens else f"({rung.target_tokens:,})"
        table.rows.append((tokens, show(rung.accuracy, percent=True), rung.verdict, classes, str(rung.invalid)))
    blocks.append(table)
    blocks += audit_figures(section)
    if section.threshold_good is not None and section.threshold_bad is not None:
        text = (
            f"Baseline {show(section.baseline, percent=True)}; a rung is good at {section.threshold_good:.0%}, "
            f"bad at {section.threshold_bad:.0%} (Wald's test, confirmed by fresh trials). "
            f"Window {section.window_tokens:,} tokens, truncation off; guard: "
            + ", ".join(f"{name} {count}" for name, count in section.guard.items())
            + f". Padding {', '.join(section.padding)}"
            + (f", 8-gram repetition {section.padding_repetition:.1%}" if section.padding_repetition is not None else "")
            + "."
        )
        blocks.append(Paragraph(text))
    head = [f"{target:,}" for target in _targets(section)]
    if section.families:
        table = Table(("Family", *head))
        for family in sorted({score.family for score in section.families}):
            known = {score.target_tokens: _cell(score.correct, score.n) for score in section.families if score.family == family}
            table.rows.append((family, *(known.get(target, "–") for target in _targets(section))))
        blocks.append(table)
    if section.depths:
        table = Table(("Depth", *head))
        for stratum in range(5):
            known = {depth.target_tokens: _cell(depth.correct, depth.n) for depth in section.depths if depth.stratum == stratum}
            table.rows.append(
                (f"{stratum * 20}–{stratum * 20 + 20} %", *(known.get(target, "–") for target in _targets(section)))
            )
        blocks.append(table)
    return blocks


def _cell(correct: int, n: int) -> str:
    return f"{correct}/{n}" if n else "–"


def _targets(section: AuditSection) -> list[int]:
    return sorted({rung.target_tokens for rung in section.rungs})


def _compat_audit(compat: CompatSection) -> list[Block]:
    rows: list[tuple[str, ...]] = [
        (
            f"{rung['tokens']:,}",
            f"{rung['accuracy']:.0%}",
            str(rung["status"]),
            str(rung.get("ours") or "–"),
            f"target {rung['target_tokens']:,}",
        )
        for rung in compat.audit_rungs
    ]
    table = Table(("Tokens", "Accuracy", "Status", "Our reading", ""), rows, caption="By the origin's ladder and definitions")
    blocks: list[Block] = [table]
    for row in compat.audit:
        blocks.append(Paragraph(f"{row.theirs}. ({row.note})" if row.note else row.theirs))
    return blocks


def _compat_table(rows: list[CompatRow], caption: str) -> Table:
    return Table(
        ("Measure", "Origin's definition", "Our reading", "Note"),
        [(row.name, row.theirs, row.ours or "–", row.note or "") for row in rows],
        caption=caption,
    )


def _compat_walks(compat: CompatSection, saved: str | None) -> list[Block]:
    """How its runs can be looked at, and the first of each outcome step by step. `saved`: in which folder."""
    if not compat.replays:
        return []
    kept = ", ".join(str(shown["run"]) for shown in compat.replays)
    text = f"Of these {len(compat.runs)} runs, kept step by step in the JSON result: {kept}."
    if saved:
        name = compat.replays[-1]["run"]
        text = f"Walk any of these {len(compat.runs)} runs: qm-proxy replay {saved} {name}, or replays.html in that folder."
    return [Paragraph(text), Replays(list(compat.replays), "replays.html" if saved else None)]


def figures(blocks: list[Block]) -> list[Figure]:
    return [block for block in blocks if isinstance(block, Figure)]
