"""What /api/ps said at several windows → footprint, bytes per token, and the ceilings of a context."""

from __future__ import annotations

import math
from collections.abc import Callable

from probes.inspector import memory as mem
from probes.inspector.phases import Seen
from probes.inspector.plan import Plan
from probes.inspector.summaries import coefficient
from probes.result import Ceilings, Host, Memory, Statistic
from probes.stats.fits import Coefficient, Fit, line
from probes.stats.intervals import Interval
from probes.survey import Resident, Survey

__all__ = ["footprint"]

_HIDDEN = "the server uses a device whose memory cannot be read from here; describe it with --hardware"


def footprint(plan: Plan, seen: Seen, why: str) -> Memory:
    section = Memory()
    host, found = plan.host, seen.survey
    mine = seen.resident
    if mine is None or found is None:
        section.unmeasured["size_bytes"] = why
        return section
    section.size_bytes, section.vram_bytes = mine.size, mine.size_vram
    window, held, _ = seen.memory[0] if seen.memory else (plan.window_tokens, None, mine)
    section.window_tokens, section.at_tokens = window, held
    cards = sum(gpu.memory_bytes or 0 for gpu in host.gpus)
    device = host.memory_bytes if host.unified else cards or host.memory_bytes
    used = mine.size_vram if mine.size_vram else mine.size
    if _hidden_device(host, mine):
        section.unmeasured["share"] = _HIDDEN
    elif device and used:
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
    tokens = [float(held if lazy else window) for window, held, _ in seen.memory]
    if fit is not None:
        section.measured_bytes_per_token = coefficient(fit.slope, fit.n, "bytes/token", 1)
        section.intercept_bytes = fit.fixed.value
        mask = 0 if lazy else 2 * plan.num_batch
        net = fit.slope.value - mask
        section.cache_bytes_per_token = section.measured_bytes_per_token.model_copy(
            update={"value": net, "ci": None, "level": None}
        )
        section.cache_bytes_per_token.method = "slope - 2 x num_batch" if mask else "slope"
        section.agreement = _agreement(cache, net, (min(tokens), max(tokens)))
    _ceilings(section, plan, seen, _beyond_the_window(fit, cache, tokens) if fit is not None else None)
    return section


def _hidden_device(host: Host, mine: Resident) -> bool:
    """The server put the model on a device, and we can read none: its memory is not the RAM's."""
    return bool(mine.size_vram) and not host.gpus and not host.unified and host.described is None


def _taken(host: Host, found: Survey) -> tuple[int, int]:
    """Bytes on the devices that are held by no model, and bytes of RAM that our own model held when the machine was read."""
    used = [gpu.used_bytes for gpu in host.gpus if gpu.used_bytes is not None]
    elsewhere = max(0, sum(used) - sum(resident.size_vram or 0 for resident in found.loaded)) if used else 0
    mine = found.ours(found.loaded)
    return elsewhere, (mine.size or 0) - (mine.size_vram or 0) if mine is not None else 0


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


def _agreement(cache: mem.Cache | None, net: float, tokens: tuple[float, float]) -> str | None:
    """Which cache the measured slope is, among the types and numbers of slots that Ollama knows: the nearest within 10 %."""
    if cache is None or (wanted := cache.mean_slope(*tokens)) <= 0:
        return None
    fitting = [
        (abs(net / expected - 1), slots, name, expected)
        for slots in (1, 2, 4, 8)
        for name, element in mem.CACHE_TYPES.items()
        if abs(net / (expected := wanted * element / 2 * slots) - 1) <= 0.10
    ]
    if not fitting:
        return f"not confirmed: measured {net:.0f}, predicted {wanted:.0f} bytes/token (f16, one slot); trust the measured one"
    (off, slots, name, expected), *others = sorted(fitting)
    text = f"confirmed: {name} cache{_times(slots)}, {off:.1%} from the architecture's {expected:.0f} bytes/token"
    if others:
        text += f"; {' and '.join(f'{name}{_times(slots)} ({off:.0%} off)' for off, slots, name, _ in others)} cannot be excluded"
    return text


def _times(slots: int) -> str:
    return "" if slots == 1 else f", {slots} parallel slots"


def _beyond_the_window(fit: Fit, cache: mem.Cache | None, tokens: list[float]) -> Fit:
    """Sliding layers stop growing at their window: a line through points inside it is too steep for longer contexts. The
    architecture says by how much; the line is bent there, and goes on from there."""
    if cache is None or not cache.windowed or min(tokens) >= cache.window:
        return fit
    last = max(tokens)
    if (mean := cache.mean_slope(min(tokens), last)) <= 0:
        return fit
    share = cache.slope() / mean
    bend = max(last, float(cache.window))
    slope = fit.slope.value * share
    fixed = fit.fixed.value + fit.slope.value * bend - slope * bend
    interval = Interval(fit.slope.interval.lo * share, fit.slope.interval.hi * share, *fit.slope.interval[2:])
    return fit._replace(fixed=fit.fixed._replace(value=fixed), slope=Coefficient(slope, interval))


def _ceilings(section: Memory, plan: Plan, seen: Seen, fit: Fit | None) -> None:
    found, ceilings = seen.survey, Ceilings()
    section.ceilings = ceilings
    assert found is not None
    ceilings.advertised_tokens = found.target.advertised_context_tokens
    ceilings.allocated_tokens = seen.resident.context_tokens if seen.resident else None
    ceilings.unmeasured["usable_tokens"] = "the audit measures it"
    host = plan.host
    if seen.resident is not None and _hidden_device(host, seen.resident):
        ceilings.unmeasured["spill_tokens"] = ceilings.unmeasured["oom_tokens"] = _HIDDEN
        return
    allowed = mem.budget(host, *_taken(host, found))
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
    limit = allowed.bytes if host.gpus else 0
    spill = _ceiling(fit, limit, ceilings.advertised_tokens)
    if spill is not None:
        ceilings.spill_tokens = spill
    else:
        ceilings.unmeasured["spill_tokens"] = "the model alone exceeds the budget" if host.gpus else "no device to spill from"
    everything = mem.everything(host, allowed)
    oom = _ceiling(fit, everything, ceilings.advertised_tokens) if everything is not None else None
    if oom is not None:
        ceilings.oom_tokens = oom
    elif everything is None:
        ceilings.unmeasured["oom_tokens"] = (
            "what spills goes to RAM, and that is not known; write it behind a +, as in nvidia:24GiB+64GiB"
        )
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
        return Statistic(value=math.floor(value), method="(budget - intercept) / slope, two points", n=fit.n, unit="tokens")
    interval = Interval(low, high if high is not None else math.inf, fit.slope.interval.level, "(budget - intercept) / slope")
    return Statistic.of(value, interval, n=fit.n, unit="tokens")
