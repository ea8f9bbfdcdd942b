"""The origin's definitions, beside ours and never instead: `--compat quantamind`.

Restated from its public source (snapshot d070476), with what each number leaves out. Its Audit hides the *task* in padding
at 10, 50 and 90 % depth, sizes by bytes with one proportional re-pad beyond ± 5 %, scores one call per position and reports
the worst position; its token rate divides N chunks by the span of N - 1 gaps; its spikes come from whole-millisecond gaps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from probes.ask import Answer, Ask, Note, Probe, Stopped
from probes.audit.facts import make_trial
from probes.audit.scoring import tool_call
from probes.inspector.phases import Sample, Seen
from probes.inspector.spikes import legacy_threshold, spread, stream_of
from probes.padding import fill
from probes.result import AuditSection, CompatRow, CompatSection, Host, InspectorSection
from probes.spoken import show
from probes.survey import Survey

__all__ = ["MAX_TOKENS", "Legacy", "LegacyRung", "compat_audit", "compat_section", "ladder_cost", "legacy_stream"]

POSITIONS = (0.1, 0.5, 0.9)
STEPS = 5
MAX_TOKENS = 8192
_FIRST_BYTES_PER_TOKEN = 4.0
_TOLERANCE = 0.05
_DOUBT = 0.01
_BASE_CHARACTERS = 4659  # its coding task, tools and mandate together have about this length


@dataclass(frozen=True, slots=True)
class LegacyRung:
    target: int
    tokens: float  # mean prompt_eval_count
    accuracy: float  # worst position
    passed: bool  # accuracy >= 0.50
    sweeps: int


@dataclass(slots=True)
class Legacy:
    """The origin's Audit of a model."""

    rungs: list[LegacyRung] = field(default_factory=list)
    collapsed_at: float | None = None
    broken: bool = False
    stopped: str | None = None

    @property
    def maintained(self) -> int | None:
        """Its headline: the deepest rung measured, to the nearest thousand."""
        return round(self.rungs[-1].tokens, -3).__int__() if self.rungs and not self.broken else None


def compat_audit(model: str, seed: int, found: Survey, *, max_tokens: int = MAX_TOKENS, steps: int = STEPS) -> Probe[Legacy]:
    """Its ladder: targets i x max/(steps - 1), bytes = rate x target, one re-pad beyond ± 5 %; rate = bytes / all tokens.

    A sweep that is re-padded is thrown away: of its three positions, which hold one text, one is asked when its count alone
    shows that."""
    legacy = Legacy()
    asker = _Asker(model, seed, max_tokens + 2048)
    rate = _FIRST_BYTES_PER_TOKEN
    try:
        for step in range(steps):
            target = max_tokens * step // (steps - 1)
            yield Note(f"compat ladder, {target} tokens", step, steps)
            if step == 0:
                tokens, accuracy = yield from asker.sweep("base", 0, (0.5,))
                sweeps = 1
            else:
                n_bytes = round(rate * target)
                tokens, accuracy = yield from asker.sweep(f"{target}/0", n_bytes, POSITIONS, target)
                sweeps = 1
                if tokens and abs(tokens / target - 1) > _TOLERANCE:
                    n_bytes = round(n_bytes * target / tokens)
                    tokens, accuracy = yield from asker.sweep(f"{target}/1", n_bytes, POSITIONS)
                    sweeps = 2
                if tokens:
                    rate = n_bytes / tokens
            legacy.rungs.append(LegacyRung(target, tokens, accuracy, accuracy >= 0.50, sweeps))
            if step == 0 and accuracy < 0.50:
                legacy.broken = True
                break
            if step and accuracy <= legacy.rungs[0].accuracy - 0.20:
                legacy.collapsed_at = tokens
                break
    except Stopped as stop:
        legacy.stopped = stop.detail
    return legacy


def ladder_cost(max_tokens: int = MAX_TOKENS, steps: int = STEPS) -> tuple[int, int]:
    """(requests, prompt tokens sent) when every rung but the last is re-padded; a prefix cache makes it less."""
    targets = [max_tokens * step // (steps - 1) for step in range(1, steps)]
    asked = [len(POSITIONS) + 1] * (len(targets) - 1) + [len(POSITIONS)]
    tokens = sum(n * target for n, target in zip(asked, targets, strict=True))
    return 1 + sum(asked), _BASE_CHARACTERS // 5 + tokens


class _Asker:
    """One task, one generation for each position; greedy, repetition penalty 1.1, 256 tokens: as it asks."""

    def __init__(self, model: str, seed: int, window: int) -> None:
        self.model = model
        self.seed = seed
        self.window = window
        self.trial = make_trial("instruction", f"{seed}/compat")
        task = self.trial.needles[0].text
        self.system = _system(_BASE_CHARACTERS - len(task))
        self.task = task

    def sweep(self, name: str, n_bytes: int, positions: Sequence[float], target: int | None = None) -> Probe[tuple[float, float]]:
        """(mean tokens, worst score). With a `target`, ends after the first position whose count is off beyond doubt."""
        counts: list[int] = []
        scores: list[float] = []
        padding = "".join(fill("policy", f"{self.seed}/compat", n_bytes))  # one text, cut longer: as it cycles its own
        for position in positions:
            at = int(len(padding) * position)
            prompt = f"{padding[:at]}{self.task}{padding[at:]}" if n_bytes else self.task
            body: dict[str, object] = {
                "model": self.model,
                "system": self.system,
                "prompt": prompt,
                "stream": True,
                "think": False,
                "truncate": False,
                "shift": False,
                "keep_alive": "10m",
                "options": {
                    "num_ctx": self.window,
                    "num_batch": 512,
                    "temperature": 0,
                    "repeat_penalty": 1.1,
                    "num_predict": 256,
                    "seed": self.seed % 2**31,
                },
            }
            answer = yield Ask(f"compat/{name}/{position}", "/api/generate", body)
            if answer.failed is not None and "think" in answer.failed.message:  # a model that cannot think refuses the flag
                body = {key: value for key, value in body.items() if key != "think"}
                answer = yield Ask(f"compat/{name}/{position}/plain", "/api/generate", body)
            if answer.input_tokens is not None:
                counts.append(answer.input_tokens)
            scores.append(self._score(answer))
            if target is not None and counts and abs(counts[0] / target - 1) > _TOLERANCE + _DOUBT:
                break  # the positions differ by a few tokens where the task was put in: too few to bring the mean back
        return (math.fsum(counts) / len(counts) if counts else 0.0), (min(scores) if scores else 0.0)

    def _score(self, answer: Answer) -> float:
        """Its composite for one call task: the mean of parsed, right tool, right arguments, as far as each applies."""
        call = tool_call(answer.text)
        if call is None:
            return 0.0
        if call.get("name") != "restart_service":
            return 0.5  # parsed 1, tool 0, arguments not reached
        arguments = call.get("args", call.get("arguments"))
        right = isinstance(arguments, dict) and arguments.get("ticket") == self.trial.answer
        return 1.0 if right else 2 / 3


def _system(n_characters: int) -> str:
    """Tool schemas and the mandate, as long as the origin's for its coding tasks."""
    head = "You are an agent. Available tools, as JSON:\n"
    tools: list[str] = []
    number = 0
    mandate = '\nReply with one bare JSON object {"name": "<tool>", "args": {}}. Actions are the answer; do not explain.'
    names = [
        "restart_service",
        "list_services",
        "archive_ticket",
        "read_file",
        "write_file",
        "run_tests",
        "search_symbol",
        "open_ticket",
    ]
    while len(head) + sum(map(len, tools)) + len(mandate) < n_characters:
        name = names[number] if number < len(names) else f"extra_tool_{number}"
        tools.append(
            f'{{"name": "{name}", "description": "Agent tool \'{name}\'.", "parameters": {{"type": "object", '
            '"properties": {"service": {"type": "string"}, "ticket": {"type": "string"}}}}\n'
        )
        number += 1
    text = head + "".join(tools)
    return text[: n_characters - len(mandate)] + mandate


# --- inspector ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LegacyStream:
    tokens: int
    mean_gap_ms: float
    rate: float
    flagged: int  # by its rule on our clock
    spikes: int  # of these, the gaps that the model or its server made


def legacy_stream(answer: Answer) -> _LegacyStream | None:
    """Its reading of one answer: chunk times in whole ms since the start; N / span; the global spike rule.

    Its rule takes every late read for a stall of the model. What it flags is held against two kinds of evidence: the time
    in which this probe was not let run, and the server's own stamps, in which a late hand-over is made up by the gaps
    behind it (a token that was really late delays all that follow)."""
    times = [int((chunk.t_ns - answer.started_ns) / 1e6) for chunk in answer.chunks]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    gaps = [after - before for before, after in itertools.pairwise(times)]
    threshold = legacy_threshold(gaps)
    stream = stream_of(answer)
    made = spread(stream.gaps_ms if stream.server_gaps_ms is None else stream.server_gaps_ms)
    hit = [index for index, gap in enumerate(gaps) if gap > threshold]
    real = [index for index in hit if made[index] > threshold and gaps[index] - stream.paused_ms(index) > threshold]
    rate = len(times) / ((times[-1] - times[0]) / 1000)
    return _LegacyStream(len(times), sum(gaps) / len(gaps), rate, len(hit), len(real))


def compat_section(
    host: Host, seen: Seen, inspected: InspectorSection | None, legacy: Legacy | None, audited: AuditSection | None = None
) -> CompatSection:
    """The rows of the post by its own definitions, with our reading where theirs misleads: each number with its doubt."""
    section = CompatSection()
    if seen.cold:
        _cold_rows(section, seen.cold[-1], inspected)
    _memory_rows(section, host, seen, inspected)
    if legacy is not None:
        _audit_rows(section, legacy, audited)
    return section


def _cold_rows(section: CompatSection, sample: Sample, ours: InspectorSection | None) -> None:
    values, rows = section.values, section.inspector
    load, prefill, tokens = sample.load_s, sample.prefill_s, sample.prompt_tokens
    cold = ours.cold[0] if ours is not None and ours.cold else None
    if load is not None:
        values["load_ms"] = int(load * 1000)
        mine = f"load {show(cold.load)}" if cold is not None and cold.load is not None else None
        total = f"cold start in all {show(cold.total)}" if cold is not None and cold.total is not None else None
        rate = f"implied read {show(cold.read_gb_s)}" if cold is not None and cold.read_gb_s is not None else None
        rows.append(
            CompatRow(
                name="Cold load",
                theirs=f"{int(load * 1000):,} ms",
                ours="; ".join(part for part in (mine, total, rate) if part) or None,
                note=cold.note if cold is not None else None,
            )
        )
    if prefill is not None and tokens:
        values["prefill_ms"], values["prefill_tokens"] = int(prefill * 1000), tokens
        warm = None
        if ours is not None and ours.prefill.slope is not None and ours.prefill.fixed is not None:
            warm = f"warm: {show(ours.prefill.fixed)} + {show(ours.prefill.slope)}"
            if ours.prefill.slope.value > 0:
                warm += f", that is {1000 / ours.prefill.slope.value:,.0f} tokens/s"
        rows.append(
            CompatRow(
                name="Prompt prefill",
                theirs=f"{int(prefill * 1000):,} ms for {tokens} tokens ({tokens / prefill:,.0f} tokens/s)",
                ours=warm,
                note="one cold point: the first touch of the weights is in it; it is not the prefill speed",
            )
        )
    stream = legacy_stream(sample.answer)
    if stream is None:
        return
    values |= {
        "inter_token_ms": stream.mean_gap_ms,
        "tokens_per_s": stream.rate,
        "spikes": stream.spikes,
        "spikes_flagged": stream.flagged,
        "chunks": stream.tokens,
    }
    cell = ours.decode.cells[0] if ours is not None and ours.decode.cells else None
    rows.append(
        CompatRow(
            name="Inter-token latency",
            theirs=f"{stream.mean_gap_ms:.1f} ms",
            ours=f"client {show(cell.client_ms_per_token)}; server {show(cell.server_ms_per_token)}" if cell else None,
        )
    )
    rows.append(
        CompatRow(
            name="Throughput",
            theirs=f"{stream.rate:.1f} tok/s",
            ours=f"server {show(cell.rate)}" if cell else None,
            note="N chunks over the span of N - 1 gaps: high by N/(N - 1)",
        )
    )
    spikes = ours.spikes if ours is not None else None
    reading = None
    if spikes is not None and spikes.per_1000 is not None:
        chance = f"{spikes.expected_false:.1f} expected by chance" if spikes.expected_false is not None else None
        reading = "; ".join(part for part in (f"{spikes.count} in all, {show(spikes.per_1000)}", chance) if part)
    late = stream.flagged - stream.spikes
    set_aside = f" (of {stream.flagged} flagged; {late} only handed over or read late)" if late else ""
    rows.append(
        CompatRow(
            name="Latency spikes",
            theirs=f"{stream.spikes}{set_aside}",
            ours=reading,
            note="global rule on whole-ms gaps: flags up to 24 of 1 000 ordinary gaps by itself",
        )
    )


def _memory_rows(section: CompatSection, host: Host, seen: Seen, ours: InspectorSection | None) -> None:
    mine = seen.resident
    if mine is None or not (mine.size_vram or mine.size):
        return
    size = min(mine.size_vram or mine.size or 0, mine.size or mine.size_vram or 0)
    total = host.memory_bytes if host.unified else next((g.memory_bytes for g in host.gpus if g.memory_bytes), host.memory_bytes)
    gib = size / 1024**3
    section.values["memory_gib"] = gib
    if not total:
        return
    share = size / total
    section.values["memory_share"] = share
    memory = ours.memory if ours is not None else None
    held = None
    if memory is not None and memory.at_tokens:
        held = f"the server's own number, read once (n 1) with {memory.at_tokens:,} tokens in the cache"
    spill = memory.ceilings.spill_tokens if memory is not None else None
    reading = f"leaves the device at {show(spill)}, by the slope over {spill.n} fillings" if spill is not None else None
    if spill is not None and memory is not None and spill.ci is None:
        reading = f"{reading}; two points bound nothing"
    section.inspector.append(
        CompatRow(
            name="Memory",
            theirs=f"{gib:.1f} GB of {total / 1024**3:.0f} GB ({share:.0%})",
            ours="; ".join(part for part in (held, reading) if part) or None,
            note="GB here is GiB; their OOM marker is painted at 85 % and computed from nothing",
        )
    )
    ceiling = memory.ceilings.allocated_tokens if memory is not None else None
    advertised = memory.ceilings.advertised_tokens if memory is not None else None
    if advertised or ceiling:
        section.values["context_ceiling"] = advertised or ceiling or 0
        section.inspector.append(
            CompatRow(
                name="Context ceiling",
                theirs=f"{advertised or ceiling:,}",
                ours=f"advertised {advertised:,}, allocated here {ceiling:,}: both as the server states them, nothing measured"
                if advertised and ceiling
                else None,
                note="an advertised number; see the four ceilings",
            )
        )


def _beside(audited: AuditSection | None, tokens: float) -> str | None:
    """What our Audit found at about that length; `None` where it asked nothing there."""
    for rung in audited.rungs if audited is not None else ():
        if rung.accuracy is not None and rung.measured_tokens and abs(rung.measured_tokens / tokens - 1) <= _TOLERANCE:
            return f"{show(rung.accuracy, percent=True)} at {rung.measured_tokens:,.0f} tokens"
    return None


def _audit_rows(section: CompatSection, legacy: Legacy, audited: AuditSection | None) -> None:
    for rung in legacy.rungs:
        section.audit_rungs.append(
            {
                "target_tokens": rung.target,
                "tokens": round(rung.tokens),
                "accuracy": rung.accuracy,
                "status": "Pass" if rung.passed else "Failure",
                "sweeps": rung.sweeps,
                "ours": _beside(audited, rung.tokens) if rung.tokens else None,
            }
        )
    if legacy.broken:
        text = "Broken: fails from the start"
    elif legacy.collapsed_at is not None:
        before = next((rung for rung in reversed(legacy.rungs) if rung.tokens < (legacy.collapsed_at or 0)), legacy.rungs[0])
        text = f"Collapsed at {legacy.collapsed_at:,.0f}; last good {before.tokens:,.0f}"
    elif legacy.maintained:
        text = f"Accuracy maintained up to ≈ {legacy.maintained:,} tokens"
        section.values["maintained_tokens"] = legacy.maintained
    else:
        text = f"Not measured: {legacy.stopped or 'no rung answered'}"
    section.audit.append(
        CompatRow(
            name="Context cliff",
            theirs=text,
            ours=audited.sentence.rstrip(".") if audited is not None else None,
            note="one task, one generation for each of three depths, no interval: 0.2 under a one-shot baseline is its cliff",
        )
    )
