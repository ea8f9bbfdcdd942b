"""Observations → the Inspector's section: statistics, fits, cross-checks, spikes, memory. No asking, no clock."""

from __future__ import annotations

import math
from typing import Literal

from probes.inspector.crosscheck import crosscheck
from probes.inspector.footprint import footprint
from probes.inspector.phases import Sample, Seen
from probes.inspector.plan import Plan
from probes.inspector.spikes import RULE, Stream, bursts, counted, expected_false, explain, spread, stream_of
from probes.inspector.summaries import client_pace, coefficient, known, middle
from probes.result import (
    Bin,
    ColdStart,
    DecodeCell,
    DecodeSection,
    GapDepth,
    Gaps,
    InspectorSection,
    PrefillPoint,
    PrefillSection,
    Spikes,
    Statistic,
    Waterfall,
)
from probes.stats.fits import Fit, line, prefill_law
from probes.stats.intervals import Interval, order_statistic, poisson_rate
from probes.stats.robust import median, quantile

__all__ = ["conclude"]

_DISK_GB_S = 7.5  # a fast NVMe drive reads about this; more came from the page cache or was mapped lazily
_BENT = 0.005  # of the linear cost at the longest prompt: less curvature than that is rounding, whatever its interval
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
    answered = [sample for sample in (*seen.cold, *seen.decode, *seen.again, *seen.deep) if sample.answer.ok]
    silent = bool(answered) and not any(sample.answer.chunks for sample in answered)
    if silent:
        made = sum(sample.answer.output_tokens or 0 for sample in answered)
        why = f"{len(answered)} answers came without any text ({made} tokens counted by the server, none sent)"
    warm = [sample for sample in (*seen.decode, *seen.again) if sample.answer.chunks]
    streams = [stream_of(sample.answer, sample.prompt_tokens or sample.target_tokens) for sample in (*warm, *seen.deep)]
    section.prefill = _prefill(seen, why)
    section.decode = _decode(plan, seen, why)
    section.cold = _cold(plan, seen, section, warm)
    if not section.cold:
        section.unmeasured["cold"] = why
    any_ms = [1000 * value for value in known([sample.answer.ttft_any_s for sample in seen.decode])]
    content_ms = [1000 * value for value in known([sample.answer.ttft_content_s for sample in seen.decode])]
    if any_ms:
        section.ttft_any = middle(any_ms, "ms", plan.seed)
    else:
        section.unmeasured["ttft_any"] = why
    if content_ms:
        section.ttft_content = middle(content_ms, "ms", plan.seed)
    else:
        section.unmeasured["ttft_content"] = why
    here = plan.same_machine
    section.gaps = _gaps(streams, why, here)
    section.spikes = _spikes(streams, plan)
    if section.spikes is None:
        section.unmeasured["spikes"] = why
    section.waterfall = _waterfall(seen, streams, here)
    section.memory = footprint(plan, seen, why)
    section.checks = crosscheck(plan, seen, section)
    section.valid = not silent and not any(check.agree is False and check.quantity == "window" for check in section.checks)
    return section


# --- cold -----------------------------------------------------------------------------------------------------------


def _cold(plan: Plan, seen: Seen, section: InspectorSection, warm: list[Sample]) -> list[ColdStart]:
    found: list[ColdStart] = []
    for state, purpose in _COLD_STATES:
        samples = [(s, r) for s, r in zip(seen.cold, seen.cold_resident, strict=True) if s.purpose == purpose]
        loads = known([sample.load_s for sample, _ in samples])
        if loads:
            filled = seen.filled if state == "C1" else []
            found.append(_cold_start(plan, seen, section, warm, state, samples, filled))
    shortest = min((sample.target_tokens for sample in seen.prefill), default=None)
    fresh = known([s.answer.ttft_any_s for s in seen.prefill if s.target_tokens == shortest])
    if fresh:
        total = middle([value * 1000 for value in fresh], "ms", plan.seed)
        load = middle([v * 1000 for v in known([s.load_s for s in seen.prefill])], "ms", plan.seed)
        found.append(
            ColdStart(state="C2", label=_COLD_LABELS["C2"], load=load, total=total, prompt_tokens=shortest, verified=True)
        )
    if seen.cached is not None and (seconds := seen.cached.answer.ttft_any_s) is not None:
        total = middle([seconds * 1000], "ms", plan.seed)
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
    filled: list[Sample],
) -> ColdStart:
    """`filled`: cold starts with a long prompt. They load like the others, and what being cold cost them in all is what is
    over the warm fit at their own length; only the time of the short first prefill is not theirs to say."""
    start = ColdStart(state=state, label=_COLD_LABELS[state], verified=all(seen.cold_verified))
    every = [*(sample for sample, _ in samples), *filled]
    loads = known([sample.load_s for sample in every])
    start.samples_ms = [value * 1000 for value in loads]
    start.load = middle(start.samples_ms, "ms", plan.seed)
    start.prompt_tokens = samples[-1][0].prompt_tokens
    if first := known([sample.prefill_s for sample, _ in samples]):
        start.prefill = middle([value * 1000 for value in first], "ms", plan.seed)
    if totals := known([_cold_total(sample, section.prefill, warm) for sample in every]):
        start.total = middle([value * 1000 for value in totals], "ms", plan.seed)
    else:
        start.unmeasured["total"] = "needs the warm prefill fit and a warm decode"
    if resident := known([share for _, share in samples]):
        start.page_cache_resident = median(resident)
        start.label += f" ({start.page_cache_resident:.0%} of the weights in it)" if state == "C1" else ""
    else:
        start.unmeasured["page_cache_resident"] = "the weights' file cannot be read from here"
    weights = seen.survey.target.weights_bytes if seen.survey else None
    if weights:
        start.read_gb_s = middle([weights / value / 1e9 for value in loads], "GB/s", plan.seed)
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
    # a decode at depth began with the prefill of a fresh prompt of that length, on the warm runner: a sample like any other
    deep = [sample for sample in seen.deep if not (sample.answer.usage and (sample.answer.usage.cached_tokens or 0) > 8)]
    samples = [sample for sample in (*seen.prefill, *deep) if sample.prefill_s and sample.prompt_tokens]
    for length in sorted({sample.target_tokens for sample in samples}):
        alike = [sample for sample in samples if sample.target_tokens == length]
        times = [1000 * (sample.prefill_s or 0.0) for sample in alike]
        rates = [(sample.prompt_tokens or 0) / (sample.prefill_s or 1.0) for sample in alike]
        tokens = round(math.fsum(sample.prompt_tokens or 0 for sample in alike) / len(alike))
        time, rate = middle(times, "ms", length), middle(rates, "tokens/s", length)
        section.points.append(PrefillPoint(tokens=tokens, time=time, rate=rate, samples_ms=times))
    fit = prefill_law([sample.prompt_tokens or 0 for sample in samples], [sample.prefill_s or 0.0 for sample in samples])
    if fit is None:
        for name in ("fixed", "slope", "curvature"):
            section.unmeasured[name] = why if not samples else "needs three different lengths"
        return section
    section.fixed = coefficient(fit.fixed, fit.n, "ms", 1000)
    section.slope = coefficient(fit.slope, fit.n, "ms/token", 1000)
    section.largest_residual = max(abs(value) for value in fit.residuals)
    longest = max(sample.prompt_tokens or 0 for sample in samples)
    bent = fit.curvature is not None and fit.curvature.value * longest > _BENT * fit.slope.value
    if fit.curvature is not None and bent and longest >= 8000:
        section.curvature = coefficient(fit.curvature, fit.n, "ms/token^2", 1000)
        section.doubling_tokens = _doubling(fit)
    elif fit.curvature is not None and bent:
        section.curvature = coefficient(fit.curvature, fit.n, "ms/token^2", 1000)
        section.unmeasured["doubling_tokens"] = "needs prompts of 8 000 tokens and more to be meant seriously"
    else:
        section.unmeasured["curvature"] = f"a straight line explains the times up to {longest} tokens as well"
    return section


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


def _steady_pace(sample: Sample) -> float:
    """Median gap in ms: the pace between stalls, so that a stall more or less is not taken for the depth's doing."""
    return median(spread(stream_of(sample.answer).judged_ms))


def _decode(plan: Plan, seen: Seen, why: str) -> DecodeSection:
    section = DecodeSection(warm_up_requests=len(seen.warm_up))
    groups: dict[int, list[Sample]] = {}
    for sample in (*seen.decode, *seen.deep):
        if sample.decode_s_per_token is not None and client_pace(sample) is not None:
            groups.setdefault(sample.target_tokens, []).append(sample)
    for target, samples in sorted(groups.items()):
        server = [1000 * (sample.decode_s_per_token or 0.0) for sample in samples]
        client = [1000 * (client_pace(sample) or 0.0) for sample in samples]
        asked = plan.decode_tokens if target == 32 else plan.depth_tokens
        depth = round(math.fsum((s.prompt_tokens or target) + (s.answer.output_tokens or 0) / 2 for s in samples) / len(samples))
        section.cells.append(
            DecodeCell(
                depth_tokens=depth,
                server_ms_per_token=middle(server, "ms/token", plan.seed),
                client_ms_per_token=middle(client, "ms/token", plan.seed),
                rate=middle([1000 / value for value in server], "tokens/s", plan.seed),
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
        section.fixed = coefficient(fit.fixed, fit.n, "ms/token", 1)
        section.slope = coefficient(fit.slope, fit.n, "µs/token per 1 000 tokens", 1e6)
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
    first = known([sample.decode_s_per_token for sample in seen.decode])
    last = known([sample.decode_s_per_token for sample in seen.again])
    if first and last:
        drift = median(last) / median(first) - 1
        section.drift = Statistic(value=drift, method="repeat of the first cell", n=len(last), unit="share")
    else:
        section.unmeasured["drift"] = why
    ratio = [s.answer.output_tokens / len(s.answer.chunks) for s in every if s.answer.output_tokens and s.answer.chunks]
    if ratio:
        section.tokens_per_chunk = middle(ratio, "tokens/chunk", plan.seed)
    return section


# --- gaps and spikes ------------------------------------------------------------------------------------------------


def _gaps(streams: list[Stream], why: str, here: bool) -> Gaps:
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
    section.histogram = _histogram(streams, here)
    for depth, alike in _by_depth(streams):
        gaps = [gap for stream in alike for gap in spread(stream.judged_ms)]
        if gaps:
            section.by_depth.append(
                GapDepth(
                    depth_tokens=depth, n=len(gaps), p50_ms=quantile(gaps, 0.5), p95_ms=quantile(gaps, 0.95), max_ms=max(gaps)
                )
            )
    return section


def _by_depth(streams: list[Stream]) -> list[tuple[int, list[Stream]]]:
    """Depths of repeats differ by a few tokens: those within a quarter of the shallowest are one cell, at their mean."""
    cells: list[list[Stream]] = []
    for stream in sorted(streams, key=lambda stream: stream.depth_tokens):
        if cells and stream.depth_tokens <= 1.25 * cells[-1][0].depth_tokens:
            cells[-1].append(stream)
        else:
            cells.append([stream])
    return [(round(sum(stream.depth_tokens for stream in cell) / len(cell)), cell) for cell in cells]


def _histogram(streams: list[Stream], here: bool) -> list[Bin]:
    """Quarter-octave bins: the shape near the pace and a stall of a second fit one axis."""
    bins: dict[int, list[int]] = {}
    for stream in streams:
        hit = counted(stream, same_machine=here)
        for index, gap in enumerate(stream.judged_ms):
            place = math.floor(4 * math.log2(max(gap, 0.001)))
            cell = bins.setdefault(place, [0, 0])
            cell[0] += 1
            cell[1] += index in hit
    if not bins:
        return []
    return [
        Bin(
            lo_ms=2 ** (place / 4),
            hi_ms=2 ** ((place + 1) / 4),
            n=bins.get(place, [0, 0])[0],
            spikes=bins.get(place, [0, 0])[1],
        )
        for place in range(max(min(bins), -16), max(bins) + 1)
    ]


def _spikes(streams: list[Stream], plan: Plan) -> Spikes | None:
    if not any(stream.gaps_ms for stream in streams):
        return None
    section = Spikes(rule=RULE)
    bursty = [found for stream in streams if (found := bursts(stream.judged_ms)) is not None]
    if bursty and len(bursty) * 2 >= len(streams):
        section.bursts = {name: median([found[name] for found in bursty]) for name in bursty[0]}
        section.rule += "; this stream comes in bursts, so the gaps between bursts are judged"
    section.items = explain(streams, same_machine=plan.same_machine)
    real = [item for item in section.items if item.counted]
    section.count, section.set_aside = len(real), len(section.items) - len(real)
    gaps = sum(len(stream.gaps_ms) for stream in streams)
    if gaps:
        interval = poisson_rate(section.count, gaps / 1000)
        section.per_1000 = Statistic.of(1000 * section.count / gaps, interval, n=gaps, unit="per 1 000 gaps")
    if section.bursts is None:
        section.expected_false = expected_false(streams, plan.seed)
        section.expected_false_source = "the same gaps without the flagged ones, shuffled 20 times"
    else:
        section.unmeasured["expected_false"] = "gaps of a stream that comes in bursts cannot be shuffled"
    total = math.fsum(gap for stream in streams for gap in stream.judged_ms)
    if real and total:
        section.worst_ms = max(item.gap_ms for item in real)
        pace = median([gap for stream in streams for gap in spread(stream.judged_ms)])
        section.share_of_time = math.fsum(item.gap_ms - pace for item in real) / total
    return section


def _waterfall(seen: Seen, streams: list[Stream], here: bool) -> Waterfall | None:
    """The stream with the most to show: the one with most spikes, the longest of these."""
    candidates = [stream_of(sample.answer) for sample in seen.cold if sample.answer.chunks] or []
    best = max([*candidates, *streams], key=lambda s: (len(counted(s, same_machine=here)), len(s.chunks)), default=None)
    if best is None:
        return None
    hit = counted(best, same_machine=here)
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
