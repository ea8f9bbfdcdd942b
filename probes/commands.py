"""The probes as the command line and the jobs call them: options in, a published Result out.

Each coroutine returns a Result whatever happened to the run: `run.state`, `run.exit_code` and the warnings say what. Only a
question that cannot be asked at all (unknown model, unreachable upstream before the start) raises a QmError.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from probes.agent import Seen as Played
from probes.agent import compat_kept, compat_rows
from probes.agent import cost as agent_cost
from probes.agent import plan_for as agent_plan
from probes.agent import report_agent as play
from probes.ask import Answer, Ask, Note, Probe, Stopped
from probes.audit import Trials, audit, audit_cost, audit_plan, conclude_audit
from probes.audit.ladder import Ladder
from probes.client import Client
from probes.hardware import describe, read_host
from probes.inspector import Plan, Seen, conclude, cost, inspect, plan_for
from probes.joint import joint_verdict
from probes.pace import Pace, pace_of_result, spell
from probes.padding import GRAMMAR_VERSION
from probes.quantamind import MAX_TOKENS, Legacy, compat_audit, compat_section, ladder_cost
from probes.result import AgentSection, AuditSection, Host, InspectorSection, Result, Run, Target
from probes.resume import keep, prepare, still_the_same, unfinished
from probes.rows import Rows
from probes.runner import Outcome, Progress, Runner
from probes.survey import Survey, restore, survey
from qm_proxy import __version__
from qm_proxy.errors import InvalidMeasurement, QmError, SettingsError, StoreError, UpstreamUnreachable
from qm_proxy.events import HostSample

__all__ = ["EXIT", "Estimate", "Options", "Session", "audit_context", "inspect_model", "report_agent", "report_model"]

Kind = Literal["inspect", "audit", "agent", "report"]
EXIT = {"inconclusive": 3, "invalid": 4, "unusable baseline": 3, "NOT READY": 1, "INSUFFICIENT DATA": 3}
"""Verdicts that are no good result; every other one exits 0."""
_SWAPPING = 1024**2  # bytes/s: less is some sleeping program's page, not the model's
_PRESSED = 0.05


@dataclass(slots=True)
class Options:
    """CONTRACT's flags of inspect, audit and report. `upstream` is a URL; tokens and seconds."""

    model: str
    upstream: str = "http://127.0.0.1:11434"
    hardware: str | None = None
    seed: int | None = None  # None: drawn, and recorded
    quick: bool = False
    deep: bool = False
    dry_run: bool = False
    compat: Literal["quantamind"] | None = None
    out: Path | None = None
    evict: bool = False  # inspect: one more cold start, with the weights put out of the page cache
    window_tokens: int | None = None  # inspect: num_ctx of the session
    max_tokens: int | None = None  # audit: longest prompt; None: by profile, under `compat` as far as the origin's ladder goes
    think: bool | None = None  # None: as the model does by itself
    paired: int | None = None  # audit: so many trials at fixed lengths instead of the sequential design
    tiers: str | None = None  # agent
    k: int | None = None
    strict_k: bool = False
    all_tiers: bool = False
    both: bool = False  # agent: native tools and prompt-JSON
    budget_s: float | None = None  # model time after which a run concludes
    resume: bool = True  # go on with an interrupted run of the same kind, model and seed found in `out`
    argv: list[str] = field(default_factory=list)
    on_progress: Callable[[Progress], None] | None = None
    other_traffic: Callable[[], Awaitable[int | None]] | None = None  # streams in flight through a proxy to this upstream
    traffic_since: Callable[[str], Awaitable[int | None]] | None = None  # what ran through it since that ISO instant


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask for: printed before it starts, and all that `dry_run` does."""

    lines: list[str]
    prompt_tokens: int
    output_tokens: int
    seconds: float
    seconds_least: float = 0.0


class Session:
    """One run from options to Result: rows, client, runner, host. `stop` may be called at any time, from a signal too."""

    def __init__(self, kind: Kind, options: Options, ask: Callable[[Ask], Awaitable[Answer]] | None = None) -> None:
        self.kind: Kind = kind
        self.options = options
        earlier = unfinished(kind, options)
        self.known = _known_pace(options)
        self.id = earlier.run.id if earlier else _uuid7()
        if options.seed is not None:
            self.seed = options.seed
        else:
            self.seed = earlier.run.seed if earlier else random.SystemRandom().randrange(1, 2**31)
        self.host = describe(options.hardware) if options.hardware else read_host(options.upstream)
        rows = Rows(options.out / "rows.jsonl" if options.out and not options.dry_run else None)
        if rows.path is not None:
            prepare(rows.path.parent)
        self.recorded = rows.load() if earlier is not None else 0
        if earlier is None and rows.path is not None:
            rows.path.unlink(missing_ok=True)
        self.started = datetime.now(UTC)
        self.client = Client(options.upstream, self.id)
        self.runner = Runner(ask or self.client.ask, rows, options.on_progress, _sampler(self.host), budget_s=options.budget_s)
        self.runner.quiet_s = lambda: self.client.quiet_s
        self.warnings: list[tuple[str, str]] = []
        self.estimate: Estimate | None = None
        self.survey: Survey | None = None
        self.trials: Trials | None = None

    def stop(self, reason: Literal["interrupted", "cancelled"] = "interrupted") -> None:
        """End at once; what was measured is concluded and kept."""
        self.runner.stop(reason, "interrupted by the user" if reason == "interrupted" else "cancelled")

    # --- parts of a run ---------------------------------------------------------------------------------------------

    def look(self) -> Probe[Survey]:
        """Survey once, and what the machine and others say against measuring now."""
        self.survey = yield from survey(self.options.model, self.options.upstream)
        yield from still_the_same(self.survey, self.recorded)
        self.warnings += self.survey.warnings
        self.warnings += _against(self.host)
        if not self.options.dry_run:
            begun = self.document(None)
            begun.run.state, begun.run.reason = "interrupted", "it is running, or it was killed"
            self.save(begun)  # so that what a kill or a power cut leaves can be resumed
        return self.survey

    def plan_inspect(self, found: Survey) -> Plan:
        return plan_for(
            self.options.model,
            self.options.upstream,
            seed=self.seed,
            quick=self.options.quick,
            window_tokens=self.options.window_tokens,
            advertised_tokens=found.target.advertised_context_tokens,
            compat=self.options.compat,
            evict_page_cache=self.options.evict,
            host=self.host,
        )

    def inspecting(self, found: Survey, seen: Seen) -> Probe[InspectorSection | None]:
        plan = self.plan_inspect(found)
        priced = cost(plan, self.known, lazy=found.lazy)
        self._priced("inspect", priced.requests, priced.prompt_tokens, priced.output_tokens, priced.seconds, priced.assumed)
        yield from self._say_cost()
        if self.options.dry_run:
            return None
        seen.survey = found
        try:
            section = yield from inspect(plan, seen)
        finally:
            self.warnings += seen.warnings
        return section

    def auditing(self, found: Survey, inspected: InspectorSection | None) -> Probe[AuditSection | None]:
        can_think = "thinking" in found.target.capabilities
        affordable = None
        if inspected is not None and inspected.memory.ceilings.spill_tokens is not None:
            affordable = int(inspected.memory.ceilings.spill_tokens.value)
        plan = audit_plan(
            self.options.model,
            self.options.upstream,
            seed=self.seed,
            profile="quick" if self.options.quick else "deep" if self.options.deep else "standard",
            max_tokens=self.options.max_tokens or (MAX_TOKENS if self.options.compat is not None else None),
            advertised_tokens=found.target.advertised_context_tokens,
            affordable_tokens=affordable,
            think=(self.options.think if self.options.think is not None else True) if can_think else None,
            paired=self.options.paired,
            brief=self.options.compat is not None and self.options.max_tokens is None,
            host=self.host,
        )
        priced = audit_cost(plan, _pace(inspected) or self.known)
        self._priced("audit", priced.requests, priced.prompt_tokens, priced.output_tokens, priced.seconds, priced.assumed)
        yield from self._say_cost()
        if self.options.dry_run:
            return None
        trials = self.trials = Trials(plan, Ladder(plan.design), survey=found)
        try:
            section = yield from audit(plan, trials)
        finally:
            self.warnings += trials.warnings
        return section

    def laddering(self, found: Survey, inspected: InspectorSection | None) -> Probe[Legacy | None]:
        """The origin's Audit, where `compat` asks for it."""
        if self.options.compat is None:
            return None
        requests, tokens = ladder_cost()
        pace = _pace(inspected) or self.known or Pace()
        seconds = pace.seconds(tokens, requests * 40)
        self._priced("audit, the origin's ladder", requests, tokens, requests * 40, seconds, pace.words())
        yield from self._say_cost()
        if self.options.dry_run:
            return None
        return (yield from compat_audit(self.options.model, self.seed, found))

    def playing(self, played: Played) -> Probe[AgentSection | None]:
        plan = agent_plan(
            self.options.model,
            self.options.upstream,
            seed=self.seed,
            tiers=self.options.tiers,
            k=self.options.k,
            strict_k=self.options.strict_k,
            all_tiers=self.options.all_tiers,
            both=self.options.both,
            quick=self.options.quick,
            compat=self.options.compat,
            think=self.options.think,
            window_tokens=self.options.window_tokens if self.kind == "agent" else None,
            host=self.host,
        )
        priced = agent_cost(plan)
        line = f"agent: {priced.runs_least} to {priced.runs_most} runs, at most {priced.turns_most} turns, "
        line += f"{spell(priced.seconds_least)} to {spell(priced.seconds_most)} ({priced.assumed})"
        self._add_cost(line, 0, 0, priced.seconds_most, priced.seconds_least)
        yield from self._say_cost()
        if self.options.dry_run:
            return None
        section = yield from play(plan, played)
        return section

    def _priced(self, what: str, requests: int, prompt: int, output: int, seconds: float, assumed: str) -> None:
        line = f"{what}: about {requests} requests, {prompt:,} prompt and {output:,} output tokens, {spell(seconds)} ({assumed})"
        self._add_cost(line, prompt, output, seconds)

    def _add_cost(self, line: str, prompt: int, output: int, seconds: float, least: float | None = None) -> None:
        before = self.estimate
        self.estimate = Estimate(
            [*(before.lines if before else []), line],
            prompt + (before.prompt_tokens if before else 0),
            output + (before.output_tokens if before else 0),
            seconds + (before.seconds if before else 0.0),
            (seconds if least is None else least) + (before.seconds_least if before else 0.0),
        )

    def _say_cost(self) -> Probe[None]:
        assert self.estimate is not None
        yield Note(self.estimate.lines[-1], lasting=True)

    # --- the document -----------------------------------------------------------------------------------------------

    def document(self, outcome: Outcome[Any] | None, failure: QmError | None = None) -> Result:
        """A Result with everything but the sections."""
        target = self.survey.target if self.survey else Target(endpoint=self.options.upstream, name=self.options.model)
        run = Run(
            id=self.id,
            kind=self.kind,
            started_at=_instant(self.started),
            ended_at=_instant(datetime.now(UTC)),
            seed=self.seed,
            argv=self.options.argv,
            quick=self.options.quick,
            compat=self.options.compat,
            requests=self.runner.requests,
            replayed=self.runner.replayed,
            model_time_s=self.runner.model_time_s,
        )
        if self.estimate is not None:
            run.cost = {
                "prompt_tokens": self.estimate.prompt_tokens,
                "output_tokens": self.estimate.output_tokens,
                "seconds": round(self.estimate.seconds, 1),
                "seconds_least": round(self.estimate.seconds_least, 1),
            }
            if self.trials is not None and self.trials.planned_s is not None:
                run.cost["audit_seconds_as_measured"] = round(self.trials.planned_s, 1)
        result = Result(
            tool={"name": "qm-proxy", "version": __version__, "grammar": GRAMMAR_VERSION}, run=run, target=target, host=self.host
        )
        if (returned := self.runner.returned) > 0:
            times = "once" if returned == 1 else f"{returned} times"
            result.warn(
                "upstream_returned", f"The server went away {times} and came back; the model was loaded anew, unmeasured."
            )
        for code, text in self.warnings:
            result.warn(code, text)
        if self.options.out is None:
            result.rows = None
        if outcome is not None and outcome.stopped is not None:
            run.reason = outcome.detail
            if outcome.stopped in ("interrupted", "cancelled"):
                run.state, run.exit_code = outcome.stopped, 130
            elif outcome.stopped == "upstream":
                run.state, run.exit_code = "failed", 5
            else:
                result.warn("budget", f"Stopped early: {outcome.detail}.")
        if failure is not None:
            run.state, run.exit_code, run.reason = "failed", failure.exit_code, failure.message
            result.warn("failed", str(failure))
        return result

    def save(self, result: Result) -> Result:
        """Write result.json beside the rows; the run is then resumable or complete. Raises StoreError."""
        if self.options.out is not None:
            keep(self.options.out, result)
        return result


async def inspect_model(options: Options, session: Session | None = None) -> Result:
    """How fast, how much memory."""
    session = session or Session("inspect", options)
    parts = _Parts()
    return await _drive(session, _inspect_only(session, parts), parts)


async def audit_context(options: Options, session: Session | None = None) -> Result:
    """Where context stops working."""
    session = session or Session("audit", options)
    parts = _Parts()
    return await _drive(session, _audit_only(session, parts), parts)


async def report_agent(options: Options, session: Session | None = None) -> Result:
    """Can it finish long work."""
    session = session or Session("agent", options)
    parts = _Parts()
    return await _drive(session, _agent_only(session, parts), parts)


async def report_model(options: Options, session: Session | None = None) -> Result:
    """All three probes and the joint verdict."""
    session = session or Session("report", options)
    parts = _Parts()
    return await _drive(session, _report(session, parts), parts)


@dataclass(slots=True)
class _Parts:
    """What a run has concluded so far; a later failure does not take it away."""

    inspector: InspectorSection | None = None
    audit: AuditSection | None = None
    agent: AgentSection | None = None
    seen: Seen = field(default_factory=Seen)
    played: Played = field(default_factory=Played)
    legacy: Legacy | None = None
    whole: bool = False  # all was measured; only then did the upstream go

    @property
    def stopped(self) -> Stopped | None:
        return self.seen.stopped or self.played.stopped


def _inspect_only(session: Session, parts: _Parts) -> Probe[None]:
    found = yield from session.look()
    parts.inspector = yield from session.inspecting(found, parts.seen)
    yield from _leave(session, parts, found)


def _audit_only(session: Session, parts: _Parts) -> Probe[None]:
    found = yield from session.look()
    parts.audit = yield from session.auditing(found, None)
    parts.legacy = yield from session.laddering(found, None)
    yield from _leave(session, parts, found)


def _agent_only(session: Session, parts: _Parts) -> Probe[None]:
    found = yield from session.look()
    parts.agent = yield from session.playing(parts.played)
    yield from _leave(session, parts, found)


def _report(session: Session, parts: _Parts) -> Probe[None]:
    found = yield from session.look()
    parts.inspector = yield from session.inspecting(found, parts.seen)
    parts.legacy = yield from session.laddering(found, parts.inspector)
    parts.audit = yield from session.auditing(found, parts.inspector)
    parts.agent = yield from session.playing(parts.played)
    yield from _leave(session, parts, found)


def _leave(session: Session, parts: _Parts, found: Survey) -> Probe[None]:
    """Put the server back as it was found. A run that was stopped asks nothing more: it was told to end at once."""
    stopped = session.runner.stopped or parts.stopped or (session.trials.stopped if session.trials else None)
    if not session.options.dry_run and stopped is None:
        try:
            yield from restore(found)
        except Stopped as stop:
            parts.whole = stop.reason == "upstream"
            session.warnings.append(("not_restored", f"What was loaded before could not be put back: {stop.detail}."))


async def _drive(session: Session, probe: Probe[None], parts: _Parts) -> Result:
    failure: QmError | None = None
    outcome: Outcome[Any] | None = None
    await _check_traffic(session)
    try:
        outcome = await session.runner.run(_shielded(session, probe))
    except QmError as error:
        if isinstance(error, SettingsError) or session.survey is None:
            raise
        failure = error
        _rescue(session, parts)
        await _restore_after(session, error)
    stopped = session.runner.stopped or parts.stopped or (session.trials.stopped if session.trials else None)
    await _traffic_beside(session)
    if parts.whole and outcome is not None:
        stopped = outcome.stopped = None
    if session.survey is None and stopped is not None and stopped.reason == "upstream":
        raise UpstreamUnreachable(
            f"Nothing answers at {session.options.upstream}: {stopped.detail}.", remedy="Start Ollama, or give --upstream."
        )
    if outcome is not None and stopped is not None:
        outcome.stopped, outcome.detail = stopped.reason, stopped.detail
    result = session.document(outcome, failure)
    _fill(session, result, parts)
    if session.options.dry_run:
        return result
    try:
        return session.save(result)
    except StoreError as error:
        result.warn("not_saved", str(error))
        result.run.exit_code = result.run.exit_code or error.exit_code
        return result


async def _restore_after(session: Session, failure: QmError) -> None:
    """A run that failed leaves the server as it was found, too; where the model hangs, asking would only wait again."""
    if session.survey is not None and not session.options.dry_run and not failure.evidence.get("hung"):
        with contextlib.suppress(QmError, Stopped):  # the failure is what is told
            await session.runner.run(restore(session.survey))


def _rescue(session: Session, parts: _Parts) -> None:
    """What was seen before a part failed is concluded all the same, and marked by the run's state."""
    if session.survey is not None and parts.inspector is None and (parts.seen.cold or parts.seen.prefill):
        parts.inspector = conclude(session.plan_inspect(session.survey), parts.seen)
    if session.trials is not None and parts.audit is None and session.trials.observed:
        parts.audit = conclude_audit(session.trials)


def _shielded(session: Session, probe: Probe[None]) -> Probe[None]:
    """A probe that was stopped outside of its own conclusions still ends, instead of raising; why, is kept for the run's state:
    a server that lists no models any more is no complete run."""
    try:
        yield from probe
    except Stopped as stop:
        session.runner.stopped = session.runner.stopped or stop


def _fill(session: Session, result: Result, parts: _Parts) -> None:
    result.inspector, result.audit, result.agent = parts.inspector, parts.audit, parts.agent
    reason = result.run.reason or "not asked for"
    for name in ("inspector", "audit", "agent"):
        if getattr(result, name) is None:
            result.unmeasured[name] = reason
    target = result.target
    if session.survey is not None and parts.inspector is not None:
        plan = session.plan_inspect(session.survey)
        target.options, target.keep_alive, target.truncate, target.shift = dict(plan.options), "10m", False, False
        result.run.stopping = "fixed sequence"
    if session.trials is not None and not target.options:
        target.options, target.keep_alive, target.truncate, target.shift = dict(session.trials.plan.options), "10m", False, False
    if parts.agent is not None:
        _say_conduct(target, result.run, parts.agent)
    if parts.audit is not None:
        target.thinking = parts.audit.thinking
        result.run.stopping = "sequential: Wald's test per rung, confirmed, then bisection"
        if result.run.exit_code == 0:
            result.run.exit_code = EXIT.get(parts.audit.verdict, 0)
    if parts.agent is not None and result.run.exit_code == 0:
        void = parts.agent.verdict == "INSUFFICIENT DATA" and any(tier.status == "VOID" for tier in parts.agent.tiers)
        result.run.exit_code = 5 if void else EXIT.get(parts.agent.verdict, 0)
    if parts.inspector is not None:
        for code, text in _doubts(parts.inspector, parts.seen):
            result.warn(code, text)
        if not parts.inspector.valid and result.run.exit_code == 0:
            result.run.exit_code = 4
        if parts.audit is not None and parts.audit.maintained_tokens is not None:
            ceilings = parts.inspector.memory.ceilings
            ceilings.usable_tokens, ceilings.usable_note = parts.audit.maintained_tokens, parts.audit.sentence
            ceilings.unmeasured.pop("usable_tokens", None)
    if session.options.compat == "quantamind":
        result.compat = compat_section(session.host, parts.seen, parts.inspector, parts.legacy, parts.audit)
        if parts.played.compat is not None:
            ours = parts.agent.tiers if parts.agent is not None else []
            result.compat.agent, values = compat_rows(parts.played.compat, session.host, ours)
            result.compat.values |= values
            compat_kept(result.compat, parts.played.compat)
    result.joint = joint_verdict(result)


def _say_conduct(target: Target, run: Run, agent: AgentSection) -> None:
    """How an agent's runs were asked for, where no other part has said how it asked."""
    how = agent.conduct
    if not run.stopping:
        run.stopping = "; ".join(
            dict.fromkeys(f"{tier.tier}: {tier.stopping}" for tier in agent.tiers if tier.n and tier.stopping)
        )
    if target.options or not how:
        return
    target.options, target.keep_alive, target.truncate, target.shift = dict(how["options"]), "10m", False, False
    target.thinking = how["thinking"]


def _known_pace(options: Options) -> Pace | None:
    """From the result that lies in `out`, of whatever probe, if it is this model's on this server."""
    if options.out is None:
        return None
    try:
        found = Result.from_json((options.out / "result.json").read_bytes())
    except (OSError, ValueError):
        return None
    if (found.target.name, found.target.endpoint) != (options.model, options.upstream):
        return None
    return pace_of_result(found, f"as measured {found.run.started_at[:10]} in {options.out}")


def _pace(section: InspectorSection | None) -> Pace | None:
    """Of a run whose Inspector has measured it."""
    if section is None or section.prefill.slope is None or section.prefill.slope.value <= 0:
        return None
    cells = section.decode.cells
    return Pace(1000 / section.prefill.slope.value, cells[0].rate.value if cells else None, None, "measured by the Inspector")


def _doubts(section: InspectorSection, seen: Seen) -> list[tuple[str, str]]:
    """What the measurements themselves say against them."""
    found = []
    if not section.valid and "ttft_any" in section.unmeasured and seen.cold:
        found.append(("no_text", f"Nothing can be said of its speed: {section.unmeasured['ttft_any']}."))
    if seen.failed:
        requests = "1 request" if len(seen.failed) == 1 else f"{len(seen.failed)} requests"
        found.append(("requests_failed", f"{requests} failed and left no number; last: {seen.failed[-1].why}."))
    if seen.reloaded:
        found.append(("reloaded", f"The model was loaded anew in the middle {seen.reloaded} times: does another client use it?"))
    for check in section.checks:
        if check.agree is False:
            found.append((f"clocks_{check.quantity}", f"Two ways to measure {check.quantity} disagree: {check.note}."))
    drift = section.decode.drift
    if drift is not None and abs(drift.value) > 0.05:
        found.append(
            ("drift", f"Decode time changed by {drift.value:+.0%} from the first cell to its repeat: throttling or other load.")
        )
    samples = [sample for part in (seen.decode, seen.deep, seen.prefill) for one in part for sample in one.answer.host]
    swapped = max((sample.swap_in_per_s or 0.0 for sample in samples), default=0.0)
    if swapped >= _SWAPPING:
        text = (
            f"The machine swapped in up to {swapped / 1024**2:.0f} MiB/s while it was measured: the speeds are not the model's."
        )
        found.append(("swapping", text))
    pressed = max((sample.pressure or 0.0 for sample in samples), default=0.0)
    if pressed >= _PRESSED:
        found.append(("memory_pressure", f"The machine waited for memory {pressed:.0%} of the time while it was measured."))
    for code, name, hot in (
        ("throttled", "GPU", any(sample.gpu_throttled for sample in samples)),
        ("cpu_throttled", "CPU", any(sample.cpu_throttled for sample in samples)),
    ):
        if hot:
            found.append((code, f"The {name} was throttled while it was measured: cooled, it is faster."))
    return found


def _against(host: Host) -> list[tuple[str, str]]:
    """What speaks against measuring on this machine now."""
    found = []
    if host.load_average is not None and host.cores and host.load_average > host.cores:
        found.append(("busy", f"The machine is busy: load average {host.load_average:.1f} on {host.cores} cores."))
    if host.swap_used_bytes and host.memory_bytes and host.swap_used_bytes > 0.01 * host.memory_bytes:
        found.append(
            ("swap", f"Swap is in use ({host.swap_used_bytes / 1024**3:.1f} GiB): what is swapped out will be missed later.")
        )
    if host.on_battery:
        found.append(("battery", "The machine runs on battery: clocks may be lowered."))
    if host.described is None and host.local is False:
        found.append(
            ("remote", "The server is another machine: its memory and load are not known here; describe it with --hardware.")
        )
    return found


async def _traffic_beside(session: Session) -> None:
    """Others may have come while it was measured: that is known only now."""
    if session.options.traffic_since is None or session.options.dry_run:
        return
    beside = await session.options.traffic_since(_instant(session.started))
    if beside:
        text = f"{beside} request(s) of other clients ran through the proxy while this was measured: some waits may be theirs."
        session.warnings.append(("other_traffic", text))


def _instant(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _check_traffic(session: Session) -> None:
    if session.options.other_traffic is None or session.options.dry_run:
        return
    streams = await session.options.other_traffic()
    if streams:
        raise InvalidMeasurement(
            f"{streams} request(s) run through the proxy to this upstream: they would disturb the measurement.",
            remedy="Wait until they end.",
        )


def _sampler(host: Host) -> Callable[[], HostSample] | None:
    """Samples the machine while requests run, when it is this one."""
    if host.described is not None or not host.local:
        return None
    from qm_proxy.beside.host import Host as Beside

    return Beside().sample


def _uuid7() -> str:
    """RFC 9562 5.7: 48 bits of Unix milliseconds, then random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | random.SystemRandom().getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
