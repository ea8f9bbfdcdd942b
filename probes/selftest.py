"""The ruler measured: probes run against simulated models whose truth is known; expected stands beside found, with the error.

Everything goes over real sockets through the same client, runner and decoders as against Ollama. Expected values come from
the persona's stated laws and from the simulation's own log of what it did, never from the code under test.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from probes.audit.ladder import Design
from probes.audit.simulated import LOSS, RUNGS, coverage, false_loss
from probes.checks import FLOOR_MS, Check, SelfTest
from probes.commands import Options, audit_context, inspect_model
from probes.inspector.spikes import DROPPED
from probes.result import InspectorSection, Result
from probes.sim.personas import Persona, load_file
from probes.sim.server import SimulatedOllama
from probes.stats.intervals import clopper_pearson, wilson
from qm_proxy.errors import QmError, SettingsError

__all__ = ["cliffs_over_sockets", "selftest"]


async def selftest(
    *, seed: int = 1, full: bool = False, personas: Path | None = None, on_check: Callable[[str], None] | None = None
) -> SelfTest:
    """Run it. `personas`: also inspect and audit the personas of a file. `seed` draws the random persona. ≤ 3 minutes.

    Raises SettingsError for a file that cannot be read, before anything is measured."""
    others = load_file(personas) if personas is not None else []
    if personas is not None and not others:
        raise SettingsError(f"{personas} holds no persona.", remedy="`qm-proxy sim --schema` prints what one may contain.")
    test = SelfTest(seed=seed)
    started = time.monotonic()
    say = on_check or (lambda text: None)
    for name, work in (
        ("speed, memory and stalls", _steady),
        ("jitter, coalesced reads and bursts", _shapes),
        ("a persona drawn at random", _drawn),
        ("answers by length", _audits),
        ("answers of every class", _classes),
        ("servers that lie or die", _faults),
    ):
        say(name)
        await work(test, seed)
    for persona in others:
        say(f"{persona.name}, from the file")
        try:
            await _persona(test, persona, seed, say)
        except QmError as error:  # one that cannot be measured is a finding, not the end of the others
            test.word(f"{persona.name}: can be measured", "yes", error.message)
    if full:
        say("ten cliffs and ten flat models over sockets")
        await _over_sockets(test, seed, 10)
    say("error rates")
    _rates(test, seed, runs=5000 if full else 300)
    test.seconds = time.monotonic() - started
    return test


# --- the inspector --------------------------------------------------------------------------------------------------


def _quick_persona(name: str, **laws: Any) -> Persona:
    """A model of 5 ms a token and 8 000 tokens/s prefill, so that a whole inspection takes some ten seconds."""
    base: dict[str, Any] = {
        "name": name,
        "load": {"cold_ms": 640, "warm_ms": 0.9},
        "prefill": {"fixed_ms": 14, "tokens_per_s": 8000},
        "decode": {"token_ms": 5.0},
        "tokenizer": {"rule": "characters", "per_token": 4.0},
        "answer_tokens": 400,
    }
    return Persona.model_validate({**base, **laws})


async def _inspect(persona: Persona, seed: int) -> tuple[Result, SimulatedOllama]:
    sim = SimulatedOllama([persona], seed=seed)
    async with sim:
        result = await inspect_model(Options(persona.name, sim.url, hardware="cpu:64GiB", quick=True, seed=seed))
    return result, sim


async def _steady(test: SelfTest, seed: int) -> None:
    laws = {"decode": {"token_ms": 5.0, "per_1k_depth_ms": 0.25, "stalls": {"at": [40, 120], "ms": 60}}}
    persona = _quick_persona("selftest-steady", **laws)
    result, sim = await _inspect(persona, seed)
    _compare_inspection(test, "steady", persona, result, sim)


def _compare_inspection(test: SelfTest, label: str, persona: Persona, result: Result, sim: SimulatedOllama) -> None:
    """Every quantity that the persona states against what the inspection found."""
    found = result.inspector
    if found is None:
        test.word(f"{label}: inspection", "complete", result.run.reason or result.run.state)
        return
    law = persona.prefill
    mlx = persona.mode == "mlx"
    logged = [request.load_ns / 1e6 for request in sim.truth.requests if request.load_ns]
    loads = [load for load in logged if load > 0.5 * persona.load.cold_ms]
    cold = next((start for start in found.cold if start.state == "C1"), None)
    load = loads[0] if loads else persona.load.cold_ms
    test.number(f"{label}: load", load, _value(cold.load if cold else None), "ms", floor=FLOOR_MS)
    if not law.curve_ms_per_kilotoken2 and not law.jitter:
        test.number(f"{label}: prefill slope", 1000 / law.tokens_per_s, _value(found.prefill.slope), "ms/token")
        test.number(f"{label}: prefill fixed cost", law.fixed_ms, _value(found.prefill.fixed), "ms", floor=2 * FLOOR_MS)
    decode = persona.decode
    cell = found.decode.cells[0] if found.decode.cells else None
    planted = _planted_pace(sim)
    if planted is None:
        test.word(f"{label}: decode", "answers of two tokens and more", "none")
    else:
        pace = cell.client_ms_per_token.value if cell else None
        test.number(f"{label}: decode", planted, pace, "ms/token", floor=FLOOR_MS)
    if decode.per_1k_depth_ms and not decode.spread:
        slowing = decode.per_1k_depth_ms * 1000
        test.number(f"{label}: slowing with depth", slowing, _value(found.decode.slope), "µs per 1 000 tokens", share=0.10)
    stalls, false = _stalls(found, sim)
    test.number(f"{label}: stalls of 50 ms and more", float(stalls[0]), float(stalls[1]), "stalls", share=0)
    by_chance = (found.spikes.expected_false or 0.0) if found.spikes else 0.0
    test.bound(f"{label}: stalls that were none", math.ceil(1 + by_chance), float(false), "stalls")
    memory = persona.memory
    if mlx:
        slope = float(memory.kv_bytes_per_token)
    else:
        slope = float(persona.slots * memory.kv_bytes_per_token + (2 * 512 if memory.mask_bytes else 0))
    if not memory.window_tokens:
        test.number(f"{label}: memory slope", slope, _value(found.memory.measured_bytes_per_token), "bytes/token", share=0.01)


def _value(found: Any) -> float | None:
    return found.value if found is not None else None


def _planted_pace(sim: SimulatedOllama) -> float | None:
    """Median over the shallow decode requests of the mean planned gap, by the simulation's log. A decode request is one that
    was answered about as long as any: a persona may say less than it was asked for."""
    shallow = [request.planned_ns for request in sim.truth.requests if (request.prompt_tokens or 0) < 200]
    longest = max(map(len, shallow), default=0)
    answers = [planned for planned in shallow if len(planned) >= max(2, 0.75 * longest)]
    paces = sorted((planned[-1] - planned[0]) / 1e6 / (len(planned) - 1) for planned in answers)
    return paces[len(paces) // 2] if paces else None


_STREAMS = ("P6/shallow/0", "P6/shallow/1", "P6/shallow/2", "P6/2048/0", "P7/shallow")
"""The decode requests of a quick inspection, in their order; the last ones of the simulation's log with `_STREAM` tokens."""
_STREAM = 8


def _stalls(found: InspectorSection, sim: SimulatedOllama) -> tuple[tuple[int, int], int]:
    """(planted, found), and flags where none was planted. A stall inside the first gaps is outside of the rule."""
    streams = [request for request in sim.truth.requests if len(request.planned_ns) >= _STREAM][-len(_STREAMS) :]
    spikes: dict[str, list[int]] = {}
    for item in found.spikes.items if found.spikes else []:
        if item.counted:  # what is set aside as our own pause is claimed of nobody
            spikes.setdefault(item.request, []).append(item.chunk)
    planted = seen = false = 0
    for name, request in zip(_STREAMS, streams, strict=False):  # a persona that answers briefly gives fewer
        hits = spikes.get(name, [])
        places = [token for token, ns in request.stalls if ns >= 50_000_000 and token - 1 >= DROPPED]
        planted += len(places)
        seen += sum(any(abs(chunk - place) <= 1 for chunk in hits) for place in places)
        false += sum(all(abs(chunk - token) > 1 for token, _ in request.stalls) for chunk in hits)
    return (planted, seen), false


async def _shapes(test: SelfTest, seed: int) -> None:
    jitter = {"token_ms": 5.0, "jitter": "lognormal", "spread": 0.15, "coalesce": {"share": 0.15, "most": 3}}
    persona = _quick_persona("selftest-coalesced", decode=jitter)
    result, sim = await _inspect(persona, seed)
    _compare_inspection(test, "coalesced, jitter 15 %", persona, result, sim)
    bursty = _quick_persona("selftest-bursts", decode={"token_ms": 5.0, "speculative": {"drafted": 4, "accepted": 0.7}})
    result, sim = await _inspect(bursty, seed)
    burst = result.inspector.spikes.bursts if result.inspector is not None and result.inspector.spikes is not None else None
    test.word("speculative: reported as bursts, not stalls", "yes", "yes" if burst is not None else "no")
    planted = bursty.decode.tokens_per_step()
    test.number("speculative: tokens per burst", planted, burst["tokens_per_burst"] if burst else None, "tokens", share=0.15)
    _compare_inspection(test, "speculative", bursty, result, sim)


async def _drawn(test: SelfTest, seed: int) -> None:
    """Nothing about it is known beforehand but the seed."""
    draw = random.Random(f"selftest/{seed}")
    at = sorted(draw.sample(range(12, 180), 3))
    persona = _quick_persona(
        "selftest-drawn",
        load={"cold_ms": draw.uniform(200, 1500), "warm_ms": 1.0},
        prefill={"fixed_ms": draw.uniform(2, 40), "tokens_per_s": draw.uniform(2500, 9000)},
        decode={
            "token_ms": draw.uniform(3.5, 9),
            "jitter": "lognormal",
            "spread": draw.uniform(0.01, 0.08),
            "stalls": {"at": at, "ms": draw.uniform(55, 160)},
        },
        tokenizer={"rule": "characters", "per_token": draw.uniform(3.2, 5.5)},
        memory={"kv_bytes_per_token": draw.randrange(20_000, 400_000, 1024)},
    )
    result, sim = await _inspect(persona, seed)
    _compare_inspection(test, f"drawn by seed {seed}", persona, result, sim)
    cliff = draw.randrange(1500, 6000)
    reader = _reader("selftest-drawn-cliff", law="cliff", base=1.0, floor=draw.uniform(0.0, 0.3), at=cliff)
    _cliff_check(test, f"drawn cliff at {cliff}", cliff, await _audit(reader, seed))


async def _persona(test: SelfTest, persona: Persona, seed: int, say: Callable[[str], None]) -> None:
    """A persona of the user's: inspected, and audited where it states an accuracy law that a quick audit can judge."""
    result, sim = await _inspect(persona, seed)
    _compare_inspection(test, persona.name, persona, result, sim)
    law = persona.accuracy
    if law is None:
        return
    if law.law == "cliff" and law.at < 8192:
        _cliff_check(test, f"{persona.name}: cliff", law.at, await _audit(persona, seed))
    elif law.law == "flat" and law.base >= 0.95:
        _word_of(test, f"{persona.name}: verdict", "limit not reached", await _audit(persona, seed))
    else:
        say(f"{persona.name}: not audited; a quick audit judges cliffs below 8 192 tokens and flat accuracy from 0.95")


# --- the audit ------------------------------------------------------------------------------------------------------


def _reader(name: str, **accuracy: Any) -> Persona:
    """A model that reads 40 000 tokens/s and answers by an accuracy law."""
    return _quick_persona(
        name, prefill={"fixed_ms": 1, "tokens_per_s": 40_000}, decode={"token_ms": 1.0}, load={"cold_ms": 50}, accuracy=accuracy
    )


async def _audit(persona: Persona, seed: int, **more: Any) -> Result:
    async with SimulatedOllama([persona], seed=seed) as sim:
        options = Options(persona.name, sim.url, hardware="cpu:64GiB", quick=True, seed=seed, max_tokens=8192, **more)
        return await audit_context(options)


def _word_of(test: SelfTest, name: str, planted: str, result: Result) -> None:
    found = result.audit.verdict if result.audit is not None else result.run.reason
    test.word(name, planted, found)


def _holds(at: int, between: tuple[int, int]) -> bool:
    """± 1 %: lengths are hit to that."""
    return between[0] * 0.99 <= at <= between[1] * 1.01


def _cliff_check(test: SelfTest, name: str, at: int, result: Result) -> None:
    """The claimed interval must hold the planted place (± 1 %: lengths are hit to that)."""
    between = result.audit.cliff_between if result.audit is not None else None
    if between is None:
        test.word(name, f"between A and B around {at}", result.audit.sentence if result.audit else result.run.reason)
        return
    low, high = between
    holds = _holds(at, between)
    test.checks.append(
        Check(name, float(at), f"{low}-{high}", 0.0 if holds else min(abs(at - low), abs(at - high)), "tokens", holds)
    )


async def _audits(test: SelfTest, seed: int) -> None:
    _word_of(test, "flat 1.0: verdict", "limit not reached", await _audit(_reader("selftest-flat", base=1.0), seed))
    cliff = _reader("selftest-cliff", law="cliff", base=1.0, floor=0.1, at=3000)
    _cliff_check(test, "cliff at 3 000", 3000, await _audit(cliff, seed))
    liar = _quick_persona(
        "selftest-cached-liar",
        prefill={"fixed_ms": 1, "tokens_per_s": 40_000},
        decode={"token_ms": 1.0},
        accuracy={"base": 1.0},
        count_cached=False,
    )
    _word_of(test, "server that leaves cached tokens out: verdict", "limit not reached", await _audit(liar, seed))
    cutter = _quick_persona(
        "selftest-cutter",
        prefill={"fixed_ms": 1, "tokens_per_s": 40_000},
        decode={"token_ms": 1.0},
        accuracy={"base": 1.0},
        context={"reads": 3000},
    )
    _word_of(test, "server that silently reads 3 000 tokens: verdict", "invalid", await _audit(cutter, seed))


async def _classes(test: SelfTest, seed: int) -> None:
    """Beyond 600 tokens each persona answers wrongly in its own way; the class of those answers must be that way."""
    for wrong, named in (
        ("confabulate", "confabulated"),
        ("refuse", "refused"),
        ("malformed", "malformed"),
        ("empty", "no_answer"),
    ):
        persona = _reader(f"selftest-{wrong}", law="cliff", base=1.0, floor=0.0, at=600, wrong=wrong)
        result = await _audit(persona, seed)
        rungs = result.audit.rungs if result.audit is not None else []
        counted: dict[str, int] = {}
        for rung in rungs:
            if rung.target_tokens > 1000:
                for name, count in rung.classes.items():
                    counted[name] = counted.get(name, 0) + count
        most = max(counted, key=lambda name: counted[name], default=None)
        only = most if most is not None and counted[most] == sum(counted.values()) else f"mixed {counted}"
        test.word(f"{wrong}: class of its wrong answers", named, only)
    thinking = {"capabilities": ("completion", "thinking"), "thinking": {"tokens": 60}}
    stated = _reader("selftest-thinker", base=1.0).model_dump(exclude_defaults=True)
    thinker = Persona.model_validate({**stated, **thinking})
    _word_of(test, "thinker: verdict", "limit not reached", await _audit(thinker, seed))
    never = {"name": "selftest-endless", "thinking": {"endless": True}, "decode": {"token_ms": 0.05}}
    endless = Persona.model_validate({**stated, **thinking, **never})
    result = await _audit(endless, seed)
    classes = result.audit.rungs[0].classes if result.audit is not None and result.audit.rungs else {}
    test.word("endless thinker: class", "exhausted", "exhausted" if set(classes) == {"exhausted"} else str(classes))


# --- faults and rates -----------------------------------------------------------------------------------------------


async def _faults(test: SelfTest, seed: int) -> None:
    """What cannot be measured ends with the right exit code, not with a number."""
    for name, wrong in (("no terminal record", {"no_done_after": 3}), ("runner dies", {"error_after": 3})):
        persona = _quick_persona("selftest-fault", misbehaviour=wrong)
        result, _ = await _inspect(persona, seed)
        test.word(f"{name}: exit code", "5", str(result.run.exit_code))
    await _refused(test, "unknown model", "2", Options("selftest-fualt", quick=True), seed)
    embedder = _quick_persona("selftest-embedder", capabilities=("embedding",))
    await _refused(test, "embedding-only model", "2", Options("selftest-embedder", quick=True), seed, embedder)


async def _refused(test: SelfTest, name: str, code: str, options: Options, seed: int, persona: Persona | None = None) -> None:
    async with SimulatedOllama([persona or _quick_persona("selftest-fault")], seed=seed) as sim:
        options.upstream = sim.url
        found = await _exit_of(inspect_model(options))
    test.word(f"{name}: exit code", code, found)


async def _exit_of(work: Awaitable[Result]) -> str:
    try:
        return str((await work).run.exit_code)
    except QmError as error:
        return str(error.exit_code)


def _rates(test: SelfTest, seed: int, runs: int) -> None:
    """False cliffs and coverage of the sequential design, in process; a bound holds unless the runs contradict it."""
    for rate in (0.90, 0.95, 1.0):
        share = false_loss(Design.standard(RUNGS), rate, runs, seed)
        test.bound(f"false cliffs, flat {rate:.2f}, {runs} runs", 0.02 if runs >= 2000 else 0.03, share, "share")
    test.share("cliff intervals that hold the planted cliff", 0.95, *coverage(200, seed))
    covered = min(_coverage(clopper_pearson, n, p / 50) for n in (8, 16, 48) for p in range(1, 50))
    short = min(0.0, covered - 0.95)
    test.checks.append(
        Check("Clopper-Pearson, least coverage", 0.95, covered, short, "share of the time", covered >= 0.95, "at least")
    )
    mean = sum(_coverage(wilson, 20, p / 50) for p in range(1, 50)) / 49
    test.number("Wilson, mean coverage at n 20", 0.95, mean, "share of the time", share=0.0, floor=0.03)


async def cliffs_over_sockets(n: int, seed: int) -> list[tuple[int, tuple[int, int] | None]]:
    """(planted, claimed between) of `n` quick audits as against a real server, place and height of each cliff drawn."""
    found = []
    for run in range(n):
        draw = random.Random(f"{seed}/sockets/{run}")
        at = round(2 ** draw.uniform(10.2, 12.8))
        reader = _reader("selftest-cliff", law="cliff", base=draw.uniform(0.95, 1.0), floor=draw.uniform(0.0, 0.3), at=at)
        result = await _audit(reader, seed * 1000 + run)
        found.append((at, result.audit.cliff_between if result.audit is not None else None))
    return found


async def _over_sockets(test: SelfTest, seed: int, n: int) -> None:
    cliffs = await cliffs_over_sockets(n, seed)
    claimed = [(at, between) for at, between in cliffs if between is not None]
    held = sum(_holds(at, between) for at, between in claimed)
    test.share("cliff intervals over sockets that hold the planted cliff", 0.95, held, len(claimed))
    lost = 0
    for run in range(n):
        rate = random.Random(f"{seed}/sockets/flat/{run}").uniform(0.9, 1.0)
        result = await _audit(_reader("selftest-flat", base=rate), seed * 1000 + run)
        lost += result.audit is None or result.audit.verdict in LOSS
    test.bound(f"false cliffs over sockets, {n} flat models of 0.90 to 1.00", 1.0, float(lost), "models")


def _coverage(interval: Callable[[int, int], Any], n: int, p: float) -> float:
    """Exact, by the binomial masses of the outcomes whose interval holds p."""
    total = 0.0
    for c in range(n + 1):
        found = interval(c, n)
        if found.lo - 1e-12 <= p <= found.hi + 1e-12:
            total += math.comb(n, c) * p**c * (1 - p) ** (n - c)
    return total
