"""Observations → the Inspector's section: statistics, fits, cross-checks, spikes, memory. No asking, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from probes.inspector import memory as mem
from probes.inspector.phases import Sample, Seen
from probes.inspector.plan import Plan
from probes.inspector.spikes import RULE, Stream, bursts, expected_false, explain, flagged, spread, stream_of
from probes.result import (
    Bin,
    Ceilings,
    Check,
    ColdStart,
    DecodeCell,
    DecodeSection,
    GapDepth,
    Gaps,
    InspectorSection,
    Memory,
    PrefillPoint,
    PrefillSection,
    Spikes,
    Statistic,
    Waterfall,
)
from probes.stats.fits import Coefficient, Fit, line, prefill_law
from probes.stats.intervals import Interval, bootstrap, mean_t, order_statistic, poisson_rate
from probes.stats.robust import median, quantile

__all__ = ["conclude"]

_DISK_GB_S = 7.5  # a fast NVMe drive reads about this; more came from the page cache or was mapped lazily
_COLD_STATES: tuple[tuple[Literal["C0", "C1"], str], ...] = (("C1", "cold"), ("C0", "disk-cold"))
_COLD_LABELS: dict[Literal["C0", "C1", "C2", "C3"], str] = {
    "C0": "disk-cold: weights not in the page cache",
    "C1": "runner-cold: unloaded, page cache warm or unknown",
    "C2": "runner-warm, prompt new",
    "C3": "prompt cached",
}


def conclude(plan: Plan, seen: Seen) -> InspectorSection:
    """Everything that the observations support; the rest is named in `unmeasured` with its reason."""
    section = InspectorSection()
    why = f"the run ended before it ({seen.stopped.detail})" if seen.stopped else "no request of this kind succeeded"
    warm = [sample for sample in (*seen.decode, *seen.again) if sample.answer.chunks]
    streams = [stream_of(sample.answer, sample.prompt_tokens or sample.target_tokens) for sample in (*warm, *seen.deep)]
    section.prefill = _prefill(seen, why)
    section.decode = _decode(plan, seen, why)
    section.cold = _cold(plan, seen, section, warm)
    if not section.cold:
        section.unmeasured["cold"] = why
    any_ms = [1000 * value for value in _known([sample.answer.ttft_any_s for sample in seen.decode])]
    content_ms = [1000 * value for value in _known([sample.answer.ttft_content_s for sample in seen.decode])]
    if any_ms:
        section.ttft_any = _middle(any_ms, "ms", plan.seed)
    else:
        section.unmeasured["ttft_any"] = why
    if content_ms:
        section.ttft_content = _middle(content_ms, "ms", plan.seed)
    else:
        section.unmeasured["ttft_content"] = why
    section.gaps = _gaps(streams, why)
    section.spikes = _spikes(streams, plan.seed)
    if section.spikes is None:
        section.unmeasured["spikes"] = why
    section.waterfall = _waterfall(seen, streams)
    section.memory = _memory(plan, seen, why)
    section.checks = _checks(plan, seen, section)
    section.valid = not any(check.agree is False and check.quantity == "window" for check in section.checks)
    return section


def _middle(values: Sequence[float], unit: str, seed: int) -> Statistic:
    """Median with a bootstrap interval over requests; one request has no interval."""
    if len(values) == 1:
        return Statistic(value=values[0], method="single observation", n=1, unit=unit)
    interval = bootstrap(values, median, seed=seed) if len(values) >= 5 else mean_t(values)
    centre = median(values) if len(values) >= 5 else math.fsum(values) / len(values)
    return Statistic.of(centre, interval, n=len(values), unit=unit)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# --- cold -----------------------------------------------------------------------------------------------------------


def _cold(plan: Plan, seen: Seen, section: InspectorSection, warm: list[Sample]) -> list[ColdStart]:
    found: list[ColdStart] = []
    for state, purpose in _COLD_STATES:
        samples = [(s, r) for s, r in zip(seen.cold, seen.cold_resident, strict=True) if s.purpose == purpose]
        loads = _known([sample.load_s for sample, _ in samples])
        if loads:
            found.append(_cold_start(plan, seen, section, warm, state, samples))
    shortest = min((sample.target_tokens for sample in seen.prefill), default=None)
    fresh = _known([s.answer.ttft_any_s for s in seen.prefill if s.target_tokens == shortest])
    if fresh:
        total = _middle([value * 1000 for value in fresh], "ms", plan.seed)
        load = _middle([v * 1000 for v in _known([s.load_s for s in seen.prefill])], "ms", plan.seed)
        found.append(
            ColdStart(state="C2", label=_COLD_LABELS["C2"], load=load, total=total, prompt_tokens=shortest, verified=True)
        )
    if seen.cached is not None and (seconds := seen.cached.answer.ttft_any_s) is not None:
        total = _middle([seconds * 1000], "ms", plan.seed)
        tokens = seen.cached.prompt_tokens
        found.append(ColdStart(state="C3", label=_COLD_LABELS["C3"], total=total, prompt_tokens=tokens, verified=True))
    return found


def _cold_start(
    plan: Plan,
    seen: Seen,
    section: InspectorSection,
    warm: list[Sample],
    state: Literal["C0", "C1"],
    samples: list[tuple[Sample, float | None]],
) -> ColdStart:
    start = ColdStart(state=state, label=_COLD_LABELS[state], verified=all(seen.cold_verified))
    loads = _known([sample.load_s for sample, _ in samples])
    start.samples_ms = [value * 1000 for value in loads]
    start.load = _middle(start.samples_ms, "ms", plan.seed)
    start.prompt_tokens = samples[-1][0].prompt_tokens
    if first := _known([sample.prefill_s for sample, _ in samples]):
        start.prefill = _middle([value * 1000 for value in first], "ms", plan.seed)
    if totals := _known([_cold_total(sample, section.prefill, warm) for sample, _ in samples]):
        start.total = _middle([value * 1000 for value in totals], "ms", plan.seed)
    else:
        start.unmeasured["total"] = "needs the warm prefill fit and a warm decode"
    if resident := _known([share for _, share in samples]):
        start.page_cache_resident = median(resident)
        start.label += f" ({start.page_cache_resident:.0%} of the weights in it)" if state == "C1" else ""
    else:
        start.unmeasured["page_cache_resident"] = "the weights' file cannot be read from here"
    weights = seen.survey.target.weights_bytes if seen.survey else None
    if weights:
        start.read_gb_s = _middle([weights / value / 1e9 for value in loads], "GB/s", plan.seed)
        if start.read_gb_s.value > _DISK_GB_S:
            start.note = (
                f"{start.read_gb_s.value:.1f} GB/s is more than a drive reads: "
                "served from the page cache, or mapped lazily and paid for in the first prefill"
            )
    else:
        start.unmeasured["read_gb_s"] = "the server does not say how large the weights are"
    return start


def _cold_total(sample: Sample, prefill: PrefillSection, warm: list[Sample]) -> float | None:
    """load + (cold prefill - warm fit) + (first gap - median gap): what being cold costs in all, in seconds."""
    load, first, tokens = sample.load_s, sample.prefill_s, sample.prompt_tokens
    if load is None or first is None or tokens is None or prefill.fixed is None or prefill.slope is None:
        return None
    fitted = (prefill.fixed.value + prefill.slope.value * tokens) / 1000
    if prefill.curvature is not None:
        fitted += prefill.curvature.value * tokens * tokens / 1000
    gaps = stream_of(sample.answer).gaps_ms
    ordinary = [gap for other in warm for gap in stream_of(other.answer).gaps_ms]
    excess = (gaps[0] - median(ordinary)) / 1000 if gaps and ordinary else 0.0
    return load + max(0.0, first - fitted) + max(0.0, excess)


# --- prefill and decode ---------------------------------------------------------------------------------------------


def _prefill(seen: Seen, why: str) -> PrefillSection:
    section = PrefillSection(discarded=seen.discarded)
    samples = [sample for sample in seen.prefill if sample.prefill_s and sample.prompt_tokens]
    for length in sorted({sample.target_tokens for sample in samples}):
        alike = [sample for sample in samples if sample.target_tokens == length]
        times = [1000 * (sample.prefill_s or 0.0) for sample in alike]
        rates = [(sample.prompt_tokens or 0) / (sample.prefill_s or 1.0) for sample in alike]
        tokens = round(math.fsum(sample.prompt_tokens or 0 for sample in alike) / len(alike))
        time, rate = _middle(times, "ms", length), _middle(rates, "tokens/s", length)
        section.points.append(PrefillPoint(tokens=tokens, time=time, rate=rate, samples_ms=times))
    fit = prefill_law([sample.prompt_tokens or 0 for sample in samples], [sample.prefill_s or 0.0 for sample in samples])
    if fit is None:
        for name in ("fixed", "slope", "curvature"):
            section.unmeasured[name] = why if not samples else "needs three different lengths"
        return section
    section.fixed = _coefficient(fit.fixed, fit.n, "ms", 1000)
    section.slope = _coefficient(fit.slope, fit.n, "ms/token", 1000)
    section.largest_residual = max(abs(value) for value in fit.residuals)
    longest = max(sample.prompt_tokens or 0 for sample in samples)
    if fit.curvature is not None and longest >= 8000:
        section.curvature = _coefficient(fit.curvature, fit.n, "ms/token^2", 1000)
        section.doubling_tokens = _doubling(fit)
    elif fit.curvature is not None:
        section.curvature = _coefficient(fit.curvature, fit.n, "ms/token^2", 1000)
        section.unmeasured["doubling_tokens"] = "needs prompts of 8 000 tokens and more to be meant seriously"
    else:
        section.unmeasured["curvature"] = f"a straight line explains the times up to {longest} tokens as well"
    return section


def _coefficient(found: Coefficient, n: int, unit: str, factor: float) -> Statistic:
    return Statistic.of(found.value, found.interval, n=n, unit=unit).scaled(factor, unit)


def _doubling(fit: Fit) -> Statistic | None:
    if fit.curvature is None or fit.curvature.value <= 0:
        return None
    value = fit.slope.value / fit.curvature.value
    low, high = fit.curvature.interval.lo, fit.curvature.interval.hi
    interval = Interval(
        fit.slope.value / high,
        fit.slope.value / low if low > 0 else math.inf,
        fit.curvature.interval.level,
        "from curvature's interval",
    )
    return Statistic.of(value, interval, n=fit.n, unit="tokens")


def _client_pace(sample: Sample) -> float | None:
    """(last - first) / (n - 1) over chunks, seconds; `None` below two."""
    chunks = sample.answer.chunks
    return (chunks[-1].t_ns - chunks[0].t_ns) / 1e9 / (len(chunks) - 1) if len(chunks) >= 2 else None


def _steady_pace(sample: Sample) -> float:
    """Median gap in ms: the pace between stalls, so that a stall more or less is not taken for the depth's doing."""
    return median(spread(stream_of(sample.answer).judged_ms))


def _decode(plan: Plan, seen: Seen, why: str) -> DecodeSection:
    section = DecodeSection(warm_up_requests=len(seen.warm_up))
    groups: dict[int, list[Sample]] = {}
    for sample in (*seen.decode, *seen.deep):
        if sample.decode_s_per_token is not None and _client_pace(sample) is not None:
            groups.setdefault(sample.target_tokens, []).append(sample)
    for target, samples in sorted(groups.items()):
        server = [1000 * (sample.decode_s_per_token or 0.0) for sample in samples]
        client = [1000 * (_client_pace(sample) or 0.0) for sample in samples]
        asked = plan.decode_tokens if target == 32 else 128
        depth = round(math.fsum((s.prompt_tokens or target) + (s.answer.output_tokens or 0) / 2 for s in samples) / len(samples))
        section.cells.append(
            DecodeCell(
                depth_tokens=depth,
                server_ms_per_token=_middle(server, "ms/token", plan.seed),
                client_ms_per_token=_middle(client, "ms/token", plan.seed),
                rate=_middle([1000 / value for value in server], "tokens/s", plan.seed),
                short=sum((sample.answer.output_tokens or 0) < asked for sample in samples),
                samples_ms=server,
                paces_ms=[_steady_pace(sample) for sample in samples],
            )
        )
    if not section.cells:
        section.unmeasured["cells"] = why
        return section
    every = [sample for samples in groups.values() for sample in samples]
    depths = [(sample.prompt_tokens or 0) + (sample.answer.output_tokens or 0) / 2 for sample in every]
    fit = line(depths, [_steady_pace(sample) for sample in every]) if len(groups) > 1 else None
    if fit is not None:
        section.fixed = _coefficient(fit.fixed, fit.n, "ms/token", 1)
        section.slope = _coefficient(fit.slope, fit.n, "µs/token per 1 000 tokens", 1e6)
        if fit.slope.interval.lo > 0:
            half = Interval(
                fit.fixed.value / fit.slope.interval.hi,
                fit.fixed.value / fit.slope.interval.lo,
                fit.slope.interval.level,
                "ratio",
            )
            section.half_speed_tokens = Statistic.of(fit.fixed.value / fit.slope.value, half, n=fit.n, unit="tokens")
        else:
            section.unmeasured["half_speed_tokens"] = "no slowing with depth was detected over the depths measured"
    else:
        section.unmeasured["slope"] = "only one depth was measured"
    first = _known([sample.decode_s_per_token for sample in seen.decode])
    last = _known([sample.decode_s_per_token for sample in seen.again])
    if first and last:
        drift = median(last) / median(first) - 1
        section.drift = Statistic(value=drift, method="repeat of the first cell", n=len(last), unit="share")
    else:
        section.unmeasured["drift"] = why
    ratio = [s.answer.output_tokens / len(s.answer.chunks) for s in every if s.answer.output_tokens and s.answer.chunks]
    if ratio:
        section.tokens_per_chunk = _middle(ratio, "tokens/chunk", plan.seed)
    return section


# --- gaps and spikes ------------------------------------------------------------------------------------------------


def _gaps(streams: list[Stream], why: str) -> Gaps:
    section = Gaps()
    pooled = [gap for stream in streams for gap in spread(stream.judged_ms)]
    section.coalesced = sum(stream.coalesced for stream in streams)
    section.n = len(pooled)
    if not pooled:
        section.unmeasured["p50"] = why
        return section
    section.p50 = Statistic.of(quantile(pooled, 0.5), order_statistic(pooled, 0.5), n=len(pooled), unit="ms")
    section.p95 = Statistic.of(quantile(pooled, 0.95), order_statistic(pooled, 0.95), n=len(pooled), unit="ms")
    if len(pooled) >= 500:
        section.p99 = Statistic.of(quantile(pooled, 0.99), order_statistic(pooled, 0.99), n=len(pooled), unit="ms")
    else:
        section.unmeasured["p99"] = f"{len(pooled)} gaps cannot bound it from above; 500 can"
    section.max_ms = max(pooled)
    section.histogram = _histogram(streams)
    for depth in sorted({_rounded(stream.depth_tokens) for stream in streams}):
        gaps = [gap for stream in streams if _rounded(stream.depth_tokens) == depth for gap in spread(stream.judged_ms)]
        if gaps:
            section.by_depth.append(
                GapDepth(
                    depth_tokens=depth, n=len(gaps), p50_ms=quantile(gaps, 0.5), p95_ms=quantile(gaps, 0.95), max_ms=max(gaps)
                )
            )
    return section


def _rounded(tokens: int) -> int:
    """Depths of repeats differ by a few tokens: one cell each."""
    return tokens if tokens < 16 else round(tokens, -max(0, len(str(tokens)) - 2))


def _histogram(streams: list[Stream]) -> list[Bin]:
    """Quarter-octave bins: the shape near the pace and a stall of a second fit one axis."""
    counted: dict[int, list[int]] = {}
    for stream in streams:
        hit = {index for index, _ in flagged(stream.judged_ms)}
        for index, gap in enumerate(stream.judged_ms):
            place = math.floor(4 * math.log2(max(gap, 0.001)))
            cell = counted.setdefault(place, [0, 0])
            cell[0] += 1
            cell[1] += index in hit
    if not counted:
        return []
    return [
        Bin(
            lo_ms=2 ** (place / 4),
            hi_ms=2 ** ((place + 1) / 4),
            n=counted.get(place, [0, 0])[0],
            spikes=counted.get(place, [0, 0])[1],
        )
        for place in range(max(min(counted), -16), max(counted) + 1)
    ]


def _spikes(streams: list[Stream], seed: int) -> Spikes | None:
    if not streams:
        return None
    section = Spikes(rule=RULE)
    bursty = [found for stream in streams if (found := bursts(stream.judged_ms)) is not None]
    if bursty and len(bursty) * 2 >= len(streams):
        section.bursts = {name: median([found[name] for found in bursty]) for name in bursty[0]}
        section.rule += "; this stream comes in bursts, so the gaps between bursts are judged"
    section.items = explain(streams)
    section.count = len(section.items)
    gaps = sum(len(stream.gaps_ms) for stream in streams)
    if gaps:
        interval = poisson_rate(section.count, gaps / 1000)
        section.per_1000 = Statistic.of(1000 * section.count / gaps, interval, n=gaps, unit="per 1 000 gaps")
    if section.bursts is None:
        section.expected_false = expected_false(streams, seed)
        section.expected_false_source = "the same gaps without the flagged ones, shuffled 20 times"
    else:
        section.unmeasured["expected_false"] = "gaps of a stream that comes in bursts cannot be shuffled"
    total = math.fsum(gap for stream in streams for gap in stream.judged_ms)
    if section.items and total:
        section.worst_ms = max(item.gap_ms for item in section.items)
        pace = median([gap for stream in streams for gap in spread(stream.judged_ms)])
        section.share_of_time = math.fsum(item.gap_ms - pace for item in section.items) / total
    return section


def _waterfall(seen: Seen, streams: list[Stream]) -> Waterfall | None:
    """The stream with the most to show: the one with most spikes, the longest of these."""
    candidates = [stream_of(sample.answer) for sample in seen.cold if sample.answer.chunks] or []
    best = max([*candidates, *streams], key=lambda s: (len(flagged(s.judged_ms)), len(s.chunks)), default=None)
    if best is None:
        return None
    hit = {index for index, _ in flagged(best.judged_ms)}
    usage = best.answer.usage
    return Waterfall(
        request=best.request,
        load_ms=usage.load_ns / 1e6 if usage and usage.load_ns is not None else None,
        prefill_ms=usage.prefill_ns / 1e6 if usage and usage.prefill_ns is not None else None,
        t_ms=[round((chunk.t_ns - best.answer.started_ns) / 1e6, 3) for chunk in best.chunks],
        gap_ms=[None, *(round(gap, 3) for gap in best.judged_ms)],
        kind=[chunk.kind for chunk in best.chunks],
        spike=[False, *(index in hit for index in range(len(best.judged_ms)))],
    )


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory(plan: Plan, seen: Seen, why: str) -> Memory:
    section = Memory()
    host, found = plan.host, seen.survey
    mine = seen.resident
    if mine is None or found is None:
        section.unmeasured["size_bytes"] = why
        return section
    section.size_bytes, section.vram_bytes = mine.size, mine.size_vram
    window, held, _ = seen.memory[0] if seen.memory else (plan.window_tokens, None, mine)
    section.window_tokens, section.at_tokens = window, held
    device = next((gpu.memory_bytes for gpu in host.gpus if gpu.memory_bytes), None) or host.memory_bytes
    if host.unified:
        device = host.memory_bytes
    used = mine.size_vram if mine.size_vram else mine.size
    if device and used:
        section.device_bytes, section.share = device, used / device
    else:
        section.unmeasured["share"] = "the machine's memory is not known; describe it with --hardware"
    cache = mem.cache_of(found.model_info)
    if cache is not None:
        section.predicted_bytes_per_token = {name: cache.slope(size) for name, size in mem.CACHE_TYPES.items()}
        section.predicted_from = cache.described
    else:
        section.unmeasured["predicted_bytes_per_token"] = "/api/show does not give the layers' shapes"
    lazy = found.target.runner == "mlx"
    section.points = [
        {"window_tokens": w, "held_tokens": h, "size_bytes": float(r.size or 0), "vram_bytes": float(r.size_vram or 0)}
        for w, h, r in seen.memory
    ]
    fit = _slope(section, seen, lazy)
    if fit is not None:
        section.measured_bytes_per_token = _coefficient(fit.slope, fit.n, "bytes/token", 1)
        section.intercept_bytes = fit.fixed.value
        mask = 0 if lazy else 2 * plan.num_batch
        net = fit.slope.value - mask
        section.cache_bytes_per_token = section.measured_bytes_per_token.model_copy(
            update={"value": net, "ci": None, "level": None}
        )
        section.cache_bytes_per_token.method = "slope - 2 x num_batch" if mask else "slope"
        section.agreement = _agreement(cache, net)
    _ceilings(section, plan, seen, fit)
    return section


def _slope(section: Memory, seen: Seen, lazy: bool) -> Fit | None:
    usable = [(window, held, r) for window, held, r in seen.memory if r.size]
    spilled = any(r.size_vram is not None and r.size and 0 < r.size_vram < r.size for _, _, r in usable)
    x = [float(held if lazy else window) for window, held, _ in usable]
    if spilled:
        reason = "part of the model lies outside the device at one of the points"
    elif len(set(x)) < 2:
        reason = "needs two different " + ("fillings" if lazy else "windows")
    elif len({r.size for _, _, r in usable}) < 2:
        reason = "the server reported the same size for every window: it fell back to the file's size"
    else:
        return line(x, [float(r.size or 0) for _, _, r in usable])
    section.unmeasured["measured_bytes_per_token"] = reason
    return None


def _agreement(cache: mem.Cache | None, net: float) -> str | None:
    if cache is None or cache.full <= 0:
        return None
    for slots in (1, 2, 4, 8):
        for name, element in mem.CACHE_TYPES.items():
            if abs(net / (cache.slope(element) * slots) - 1) <= 0.10:
                times = "" if slots == 1 else f", {slots} parallel slots"
                wanted = cache.slope(element) * slots
                return f"confirmed: {name} cache{times}, within 10 % of the architecture's {wanted:.0f} bytes/token"
    return f"not confirmed: measured {net:.0f}, predicted {cache.slope():.0f} bytes/token (f16, one slot); trust the measured one"


def _ceilings(section: Memory, plan: Plan, seen: Seen, fit: Fit | None) -> None:
    found, ceilings = seen.survey, Ceilings()
    section.ceilings = ceilings
    assert found is not None
    ceilings.advertised_tokens = found.target.advertised_context_tokens
    ceilings.allocated_tokens = seen.resident.context_tokens if seen.resident else None
    ceilings.unmeasured["usable_tokens"] = "the audit measures it"
    allowed = mem.budget(plan.host)
    if allowed is None:
        ceilings.unmeasured["spill_tokens"] = ceilings.unmeasured["oom_tokens"] = (
            "the machine's memory is not known; use --hardware"
        )
        return
    section.budget_bytes, section.budget_from = allowed.bytes, allowed.source
    if fit is None:
        reason = section.unmeasured.get("measured_bytes_per_token", "no slope")
        ceilings.unmeasured["spill_tokens"] = ceilings.unmeasured["oom_tokens"] = reason
        return
    everything = (plan.host.memory_bytes or 0) + sum(gpu.memory_bytes or 0 for gpu in plan.host.gpus if not plan.host.unified)
    spill = _ceiling(fit, allowed.bytes, ceilings.advertised_tokens)
    oom = _ceiling(fit, int(everything * 0.9), ceilings.advertised_tokens)
    if spill is not None and plan.host.gpus:
        ceilings.spill_tokens = spill
    else:
        ceilings.unmeasured["spill_tokens"] = (
            "no device to spill from" if not plan.host.gpus else "the model alone exceeds the budget"
        )
    if oom is not None:
        ceilings.oom_tokens = oom
    else:
        ceilings.unmeasured["oom_tokens"] = "the model alone exceeds the memory"
    memory_bound = ceilings.spill_tokens or ceilings.oom_tokens
    if memory_bound is not None and ceilings.advertised_tokens:
        ceilings.binding = "memory" if memory_bound.value < ceilings.advertised_tokens else "advertised window"


def _ceiling(fit: Fit, budget_bytes: int, advertised: int | None) -> Statistic | None:
    value = mem.ceiling(budget_bytes, fit.fixed.value, fit.slope.value)
    if value is None:
        return None
    ends: list[Callable[[], float | None]] = [
        lambda: mem.ceiling(budget_bytes, fit.fixed.value, fit.slope.interval.hi),
        lambda: mem.ceiling(budget_bytes, fit.fixed.value, fit.slope.interval.lo),
    ]
    low, high = (end() if math.isfinite(fit.slope.interval.hi) else None for end in ends)
    if low is None:
        return Statistic(value=value, method="(budget - intercept) / slope, two points", n=fit.n, unit="tokens")
    interval = Interval(low, high if high is not None else math.inf, fit.slope.interval.level, "(budget - intercept) / slope")
    return Statistic.of(value, interval, n=fit.n, unit="tokens")


# --- cross-checks ---------------------------------------------------------------------------------------------------


def _checks(plan: Plan, seen: Seen, section: InspectorSection) -> list[Check]:
    made = []
    if seen.resident is not None and seen.resident.context_tokens is not None and seen.survey is not None:
        soft = seen.survey.target.runner == "mlx"
        agree = None if soft else seen.resident.context_tokens == plan.window_tokens
        made.append(
            Check(
                quantity="window",
                ours=float(plan.window_tokens),
                theirs=float(seen.resident.context_tokens),
                unit="tokens",
                tolerance="equal",
                agree=agree,
                note="num_ctx as asked, /api/ps as allocated" + ("; this runner does not limit by num_ctx" if soft else ""),
            )
        )
    ttft, load, prefill = [], [], []
    for sample in (*seen.decode, *seen.prefill):
        if sample.answer.ttft_any_s is not None and sample.load_s is not None and sample.prefill_s is not None:
            ttft.append(1000 * sample.answer.ttft_any_s)
            load.append(1000 * sample.load_s)
            prefill.append(1000 * sample.prefill_s)
    step = section.decode.cells[0].server_ms_per_token.value if section.decode.cells else 0.0
    if ttft:
        off = [t - lo - p for t, lo, p in zip(ttft, load, prefill, strict=True)]
        worst = max(zip(off, prefill, strict=True), key=lambda pair: abs(pair[0]) - 0.05 * pair[1])
        agree = all(-5 <= difference <= 50 + 0.05 * p + step for difference, p in zip(off, prefill, strict=True))
        made.append(
            Check(
                quantity="prefill",
                ours=median([t - lo for t, lo in zip(ttft, load, strict=True)]),
                theirs=median(prefill),
                unit="ms",
                tolerance="50 ms + 5 % + one decode step",
                agree=agree,
                note=f"client TTFT - load against the server's prefill; largest difference {worst[0]:.1f} ms",
            )
        )
    for sample_set, quantity in ((seen.decode, "decode"), (seen.deep, "decode at depth")):
        both = [(c, s) for x in sample_set if (c := _client_pace(x)) is not None and (s := _span_pace(x)) is not None]
        if both:
            ours, theirs = median([1000 * c for c, _ in both]), median([1000 * s for _, s in both])
            made.append(
                Check(
                    quantity=quantity,
                    ours=ours,
                    theirs=theirs,
                    unit="ms/token",
                    tolerance="3 %",
                    agree=abs(ours / theirs - 1) <= 0.03 if theirs else None,
                    note="client (last - first)/(n - 1) against the server's eval_duration over its intervals; "
                    "a difference is streaming overhead or merged tokens",
                )
            )
    counts = [(len(s.answer.chunks), s.answer.output_tokens) for s in seen.decode if s.answer.output_tokens]
    if counts:
        ours_n, theirs_n = sum(c for c, _ in counts), sum(n or 0 for _, n in counts)
        made.append(
            Check(
                quantity="tokens",
                ours=float(ours_n),
                theirs=float(theirs_n),
                unit="tokens",
                tolerance="1 per answer (end of sequence)",
                agree=0 <= theirs_n - ours_n <= len(counts),
                note="chunks against eval_count; fewer chunks: text was withheld or merged",
            )
        )
    for name in ("total",):
        rest = [r for s in seen.decode if (r := _unexplained(s)) is not None]
        if rest:
            made.append(
                Check(
                    quantity=name,
                    ours=None,
                    theirs=median(rest),
                    unit="ms",
                    tolerance="50 ms",
                    agree=median(rest) <= 50,
                    note="wall time that no phase explains (queue, tokenising, network)",
                )
            )
    return made


def _span_pace(sample: Sample) -> float | None:
    """The server's decode time over n - 1 intervals where it counts from the first token, as llama-server does."""
    usage = sample.answer.usage
    if usage is None or not usage.decode_ns or not usage.output_tokens or usage.output_tokens < 2:
        return None
    return usage.decode_ns / 1e9 / usage.output_tokens


def _unexplained(sample: Sample) -> float | None:
    usage = sample.answer.usage
    if usage is None or usage.prefill_ns is None or usage.decode_ns is None:
        return None
    return 1000 * sample.answer.total_s - ((usage.load_ns or 0) + usage.prefill_ns + usage.decode_ns) / 1e6
