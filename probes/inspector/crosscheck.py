"""The same thing by two ways: our clock and the server's, what was asked and what was given. A disagreement is a finding."""

from __future__ import annotations

from probes.inspector.phases import Sample, Seen
from probes.inspector.plan import Plan
from probes.inspector.summaries import client_pace
from probes.result import Check, InspectorSection
from probes.stats.robust import median

__all__ = ["crosscheck"]


def crosscheck(plan: Plan, seen: Seen, section: InspectorSection) -> list[Check]:
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
            started, waited = sample.answer.started_ns, sample.answer.ttft_any_s
            paused = sample.answer.paused_ms(started, started + round(waited * 1e9))  # ours, not the server's
            over = 1000 * (waited - sample.load_s - sample.prefill_s)
            ttft.append(1000 * waited - min(paused, max(0.0, over)))  # a pause while the server works costs nothing
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
                note="client TTFT - load - own pauses that delayed it against the server's prefill; "
                f"largest difference {worst[0]:.1f} ms",
            )
        )
    for sample_set, quantity in ((seen.decode, "decode"), (seen.deep, "decode at depth")):
        both = [(c, s) for x in sample_set if (c := client_pace(x)) is not None and (s := _span_pace(x)) is not None]
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
