"""Is A really different from B? Paired where the questions were the same; says what could have been seen when nothing was.

Success: exact McNemar on the pairs, the difference with Newcombe's interval. Speed: ratio of medians, bootstrap over
requests, equivalence within ± 5 %. Several metrics: Holm. Refuses to compare what is not comparable unless forced.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from probes.result import Model, Result, Statistic
from probes.stats.intervals import Interval
from probes.stats.paired import Pairs, difference_paired, holm, mcnemar, minimum_detectable
from probes.stats.robust import median
from qm_proxy.errors import InvalidMeasurement

__all__ = ["Comparison", "Metric", "compare", "incomparable"]

SAME_WITHIN = 0.05
_ALPHA = 0.05


class Metric(Model):
    """One quantity under A and B."""

    name: str
    unit: str
    a: float
    b: float
    difference: Statistic | None = None  # B against A: share points for success, share for speed and memory
    p_value: float | None = None
    p_adjusted: float | None = None
    verdict: Literal["B better", "B worse", "same", "no difference detected", "different"]
    could_have_seen: float | None = None  # smallest difference that would have shown with 80 % power
    words: str


class Comparison(Model):
    """A against B. `worse` lists the metrics in which B is shown to be worse: a gate's reason to fail."""

    schema_: Literal["qm-compare/1"] = Field(default="qm-compare/1", alias="schema")
    a: dict[str, Any]
    b: dict[str, Any]
    order: str
    metrics: list[Metric] = Field(default_factory=list)
    cliffs: dict[str, Any] = Field(default_factory=dict)
    worse: list[str] = Field(default_factory=list)
    better: list[str] = Field(default_factory=list)
    sentence: str = ""
    warnings: list[str] = Field(default_factory=list)
    exit_code: int = 0


def compare(a: Result, b: Result, *, order: str = "as measured", force: bool = False) -> Comparison:
    """B against A. Raises InvalidMeasurement for what cannot be compared, unless `force`."""
    against = incomparable(a, b)
    if against and not force:
        raise InvalidMeasurement(
            f"These two cannot be compared: {'; '.join(against)}.", remedy="Use --force to do it all the same."
        )
    made = Comparison(a=_who(a), b=_who(b), order=order, warnings=against)
    made.metrics += _success(a, b)
    made.metrics += _speeds(a, b)
    made.metrics += _memory(a, b)
    _adjust(made.metrics)
    made.worse = [metric.name for metric in made.metrics if metric.verdict == "B worse"]
    made.better = [metric.name for metric in made.metrics if metric.verdict == "B better"]
    made.cliffs = _cliffs(a, b)
    made.sentence = _sentence(made)
    made.exit_code = 1 if made.worse else 0
    return made


def incomparable(a: Result, b: Result) -> list[str]:
    """Reasons why their numbers do not stand on one ground."""
    found = []
    if a.tool.get("grammar") != b.tool.get("grammar"):
        found.append(f"padding grammars {a.tool.get('grammar')} and {b.tool.get('grammar')} differ")
    if a.target.thinking != b.target.thinking and a.audit is not None and b.audit is not None:
        found.append("one was audited thinking, the other not")
    machines = [(host.described, host.cpu, host.memory_bytes) for host in (a.host, b.host)]
    if machines[0] != machines[1] and a.inspector is not None and b.inspector is not None:
        found.append("they ran on different machines")
    if a.audit is not None and b.audit is not None and a.run.seed != b.run.seed:
        found.append("different seeds asked different questions: nothing is paired")
    if a.target.family and b.target.family and a.target.family != b.target.family:
        found.append("different model families count tokens differently: equal lengths are not equal texts")
    return found


def _who(result: Result) -> dict[str, Any]:
    return {
        "name": result.target.name,
        "digest": result.target.digest,
        "quantization": result.target.quantization,
        "run": result.run.id,
        "seed": result.run.seed,
    }


# --- success --------------------------------------------------------------------------------------------------------


def _success(a: Result, b: Result) -> list[Metric]:
    if a.audit is None or b.audit is None or a.run.seed != b.run.seed:
        return []
    first = {(row.target_tokens, row.index): row.outcome for row in a.audit.trials}
    second = {(row.target_tokens, row.index): row.outcome for row in b.audit.trials}
    excluded = ("invalid", "infra")
    shared = [key for key in first if key in second and first[key] not in excluded and second[key] not in excluded]
    made = []
    for target in sorted({target for target, _ in shared}):
        pairs = _pairs([(first[key] == "correct", second[key] == "correct") for key in shared if key[0] == target])
        made.append(_accuracy(f"accuracy at {target} tokens", pairs))
    if len(made) > 1:
        pairs = _pairs([(first[key] == "correct", second[key] == "correct") for key in shared])
        made.append(_accuracy("accuracy, all lengths", pairs))
    return made


def _pairs(outcomes: Sequence[tuple[bool, bool]]) -> Pairs:
    return Pairs(
        sum(x and y for x, y in outcomes),
        sum(x and not y for x, y in outcomes),
        sum(y and not x for x, y in outcomes),
        sum(not x and not y for x, y in outcomes),
    )


def _accuracy(name: str, pairs: Pairs) -> Metric:
    n = pairs.n
    rate_a, rate_b = (pairs.both + pairs.only_a) / n, (pairs.both + pairs.only_b) / n
    swapped = difference_paired(Pairs(pairs.both, pairs.only_b, pairs.only_a, pairs.neither))
    counter = max(0.02, min(pairs.only_a, pairs.only_b) / n)
    return Metric(
        name=name,
        unit="share",
        a=rate_a,
        b=rate_b,
        difference=Statistic.of(rate_b - rate_a, swapped, n=n, unit="share"),
        p_value=mcnemar(pairs),
        verdict="no difference detected",
        could_have_seen=minimum_detectable(n, counter=counter),
        words="",
    )


# --- speed and memory -----------------------------------------------------------------------------------------------


def _speeds(a: Result, b: Result) -> list[Metric]:
    if a.inspector is None or b.inspector is None:
        return []
    made = []
    first, second = a.inspector, b.inspector
    for place, (cell_a, cell_b) in enumerate(zip(first.decode.cells, second.decode.cells, strict=False)):
        name = "decode, ms per token" if place == 0 else f"decode at {cell_a.depth_tokens} tokens, ms per token"
        made.append(_slower(name, cell_a.samples_ms, cell_b.samples_ms, "ms/token", a.run.seed))
    points_b = {point.tokens: point for point in second.prefill.points}
    for point in first.prefill.points:
        near = min(points_b, key=lambda tokens: abs(tokens - point.tokens), default=None)
        if near is not None and abs(near / point.tokens - 1) <= 0.03:
            name = f"prefill of {point.tokens} tokens"
            made.append(_slower(name, point.samples_ms, points_b[near].samples_ms, "ms", a.run.seed))
    cold_a = next((start for start in first.cold if start.state in ("C0", "C1")), None)
    cold_b = next((start for start in second.cold if start.state in ("C0", "C1")), None)
    if cold_a is not None and cold_b is not None:
        made.append(_slower("cold load", cold_a.samples_ms, cold_b.samples_ms, "ms", a.run.seed))
    return [metric for metric in made if metric is not None]


def _slower(name: str, a: Sequence[float], b: Sequence[float], unit: str, seed: int) -> Metric | None:
    """Times: B better is B shorter. The ratio's interval by bootstrap; below two values each there is none."""
    if not a or not b or median(a) <= 0:
        return None
    share = median(b) / median(a) - 1
    interval = _ratio_interval(a, b, seed)
    p_value = None
    could = None
    if interval is not None:
        p_value = _p_of(a, b, seed)
        could = max(1e-6, (interval.hi - interval.lo) / 2 * (1.96 + 0.84) / 1.96)
    return Metric(
        name=name,
        unit=unit,
        a=median(a),
        b=median(b),
        difference=Statistic.of(share, interval, n=len(a) + len(b), unit="share"),
        p_value=p_value,
        verdict="no difference detected",
        could_have_seen=could,
        words="",
    )


def _resampled(a: Sequence[float], b: Sequence[float], seed: int, rounds: int = 2000) -> list[float]:
    draw = random.Random(seed)
    return sorted(median(draw.choices(b, k=len(b))) / median(draw.choices(a, k=len(a))) - 1 for _ in range(rounds))


def _ratio_interval(a: Sequence[float], b: Sequence[float], seed: int) -> Interval | None:
    """Percentile bootstrap of the ratio of medians, widened for few values as a t interval is against a normal one."""
    if len(a) < 2 or len(b) < 2:
        return None
    found = _resampled(a, b, seed)
    low, high = found[int(0.025 * len(found))], found[int(0.975 * len(found)) - 1]
    centre = median(b) / median(a) - 1
    from scipy.special import stdtrit

    free = len(a) + len(b) - 2
    widen = float(stdtrit(free, 0.975)) / 1.96 * math.sqrt((free + 2) / free)
    return Interval(centre - (centre - low) * widen, centre + (high - centre) * widen, 0.95, "bootstrap-ratio")


def _p_of(a: Sequence[float], b: Sequence[float], seed: int) -> float:
    """Permutation test of the difference of medians (exact up to 5 000 arrangements, else sampled)."""
    pooled = [*a, *b]
    observed = abs(median(a) - median(b))
    if math.comb(len(pooled), len(a)) <= 5000:
        from itertools import combinations

        arrangements = list(combinations(range(len(pooled)), len(a)))
    else:
        draw = random.Random(seed)
        arrangements = [tuple(draw.sample(range(len(pooled)), len(a))) for _ in range(2000)]
    hits = 0
    for chosen in arrangements:
        inside = set(chosen)
        one = [pooled[index] for index in chosen]
        other = [value for index, value in enumerate(pooled) if index not in inside]
        hits += abs(median(one) - median(other)) >= observed - 1e-12
    return hits / len(arrangements)


def _memory(a: Result, b: Result) -> list[Metric]:
    if a.inspector is None or b.inspector is None:
        return []
    size_a, size_b = a.inspector.memory.size_bytes, b.inspector.memory.size_bytes
    if not size_a or not size_b:
        return []
    gib = 1024**3
    share = size_b / size_a - 1
    verdict: Literal["same", "B better", "B worse"] = "same" if abs(share) < 0.01 else "B better" if share < 0 else "B worse"
    return [
        Metric(
            name="memory",
            unit="GiB",
            a=size_a / gib,
            b=size_b / gib,
            difference=Statistic(value=share, method="read from /api/ps: no sampling error", n=2, unit="share"),
            verdict=verdict,
            words=f"memory: {size_a / gib:.1f} → {size_b / gib:.1f} GiB ({share:+.0%})",
        )
    ]


# --- verdicts -------------------------------------------------------------------------------------------------------


def _adjust(metrics: list[Metric]) -> None:
    tested = [metric for metric in metrics if metric.p_value is not None and metric.name != "accuracy, all lengths"]
    for metric, adjusted in zip(tested, holm([metric.p_value or 0.0 for metric in tested]), strict=True):
        metric.p_adjusted = adjusted
    for metric in metrics:
        if metric.name == "accuracy, all lengths":
            metric.p_adjusted = metric.p_value
        if metric.name != "memory":
            _judge(metric)


def _judge(metric: Metric) -> None:
    """Accuracy by its adjusted test; times by their interval, because a permutation of 2 x 3 values can reach p = 0.1 at best."""
    difference = metric.difference
    assert difference is not None
    lo, hi = difference.ci if difference.ci is not None else (None, None)
    accuracy = metric.unit == "share"
    if accuracy:
        shown = metric.p_adjusted is not None and metric.p_adjusted <= _ALPHA
        if shown:
            metric.verdict = "B better" if difference.value > 0 else "B worse"
        text = f"{metric.name}: {metric.a:.0%} → {metric.b:.0%}"
        doubt = (
            f" ({difference.value:+.0%} [{lo:+.0%}, {hi:+.0%}], n {difference.n} pairs)"
            if lo is not None and hi is not None
            else ""
        )
    else:
        if lo is not None and hi is not None:
            if lo > -SAME_WITHIN and hi < SAME_WITHIN:
                metric.verdict = "same"
            elif lo > 0 or hi < 0:
                metric.verdict = "B worse" if difference.value > 0 else "B better"
        text = f"{metric.name}: {metric.a:,.4g} → {metric.b:,.4g} {metric.unit}"
        doubt = (
            f" ({difference.value:+.1%} [{lo:+.1%}, {hi:+.1%}])"
            if lo is not None and hi is not None
            else f" ({difference.value:+.1%}, n too small)"
        )
    tail = ""
    if metric.verdict == "no difference detected":
        could = f"could have seen ≥ {metric.could_have_seen:.0%}" if metric.could_have_seen is not None else "too few to see any"
        apart = accuracy and lo is not None and hi is not None and (lo > 0 or hi < 0)
        why = " (the interval stands alone; Holm's correction for all that was tested does not bear it)" if apart else ""
        tail = f": no difference detected{why}; {could}"
    elif metric.verdict == "same":
        tail = f": the same within ± {SAME_WITHIN:.0%}"
    else:
        tail = f": {metric.verdict}"
    metric.words = text + doubt + tail


def _cliffs(a: Result, b: Result) -> dict[str, Any]:
    """The two audits' verdicts; they differ only where their intervals do not overlap."""
    if a.audit is None or b.audit is None:
        return {}
    spans: list[tuple[float, float]] = []
    for section in (a.audit, b.audit):
        if section.cliff_between is not None:
            spans.append((float(section.cliff_between[0]), float(section.cliff_between[1])))
        else:
            spans.append((float(section.maintained_tokens or 0), math.inf))
    first, second = spans
    apart = first[1] <= second[0] or second[1] <= first[0]
    words = "cliffs not shown to differ: their intervals overlap"
    if apart:
        words = f"B loses context {'earlier' if second[1] <= first[0] else 'later'} than A"
    return {"a": a.audit.sentence, "b": b.audit.sentence, "differ": apart, "words": words}


def _sentence(made: Comparison) -> str:
    """The answer in one or two sentences; for quantisations, the post's own question."""
    by_name = {metric.name: metric for metric in made.metrics}
    memory = by_name.get("memory")
    parts = []
    if memory is not None and memory.difference is not None and memory.verdict != "same":
        parts.append(f"B takes {abs(memory.difference.value):.0%} {'less' if memory.difference.value < 0 else 'more'} memory")
    context = [metric for metric in made.metrics if metric.unit == "share"]
    lost = [metric for metric in context if metric.verdict == "B worse"]
    gained = [metric for metric in context if metric.verdict == "B better"]
    if lost:
        worst = min(lost, key=lambda metric: metric.difference.value if metric.difference else 0.0)
        parts.append(f"B keeps less of its context ({worst.words})")
    elif gained:
        parts.append(f"B keeps more of its context ({gained[0].words})")
    elif context:
        best = min((m.could_have_seen for m in context if m.could_have_seen is not None), default=None)
        seen = f"; could have seen ≥ {best:.0%}" if best is not None else ""
        parts.append(f"no difference in context retention detected{seen}")
    if made.cliffs.get("differ"):
        parts.append(str(made.cliffs["words"]))
    faster = [m for m in made.metrics if m.unit != "share" and m.name != "memory" and m.verdict in ("B better", "B worse")]
    if faster:
        parts.append(", ".join(f"{m.name} {m.difference.value:+.0%}" for m in faster if m.difference is not None))
    elif any(m.name.startswith("decode") for m in made.metrics):
        parts.append("no difference in speed detected")
    answer = "; ".join(parts) if parts else "nothing in common was measured"
    if memory is not None and memory.verdict == "B better" and (lost or made.cliffs.get("differ")):
        answer = f"Yes, B trades context retention for headroom: {answer}"
    elif memory is not None and memory.verdict == "B better" and context:
        answer = f"No trade of context retention for headroom was detected: {answer}"
    return answer[0].upper() + answer[1:] + "."
