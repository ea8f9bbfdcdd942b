"""One generation from its Ask to its last byte: capability checks, runner, window, slot, prefill, decode.

Reported durations are what the persona's laws say; what really passed (a busy machine is late, never early) is in the
truth log and in `total_duration`. Every wait ends at once when the client leaves: the request's task is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from probes.sim.clock import Metronome, WallClock
from probes.sim.decoding import Decoding, Heard
from probes.sim.dialect import Ask, Record, Refusal, Writer
from probes.sim.gojson import encode
from probes.sim.http import Request, Response
from probes.sim.personas import Persona
from probes.sim.policies import Speaker, Turn
from probes.sim.prompts import Prepared, prepare
from probes.sim.scheduler import LAUNCH_OPTIONS, Busy, Launch, LoadFailed, Runner, Scheduler
from probes.sim.truth import RequestTruth

__all__ = ["Engine"]

MS = 1_000_000


@dataclass(slots=True)
class Engine:
    """What all generations of a server share."""

    metronome: Metronome
    clock: WallClock
    scheduler: Scheduler
    speed: float
    seed: int
    changed: Callable[[], None]  # tells the truth log's waiters that something happened

    async def run(
        self,
        persona: Persona,
        speaker: Speaker,
        ask: Ask,
        writer: Writer,
        request: Request,
        response: Response,
        truth: RequestTruth,
    ) -> None:
        """Answer one Ask. Raises Refusal before the first byte; returns when the body is complete or deliberately is not."""
        began_ns = time.monotonic_ns()
        window = window_of(persona, ask)
        launch = Launch(window, ask.shift, _launch_options(ask))
        if ask.empty:
            await self._load_only(persona, ask, launch, writer, response, truth)
            return
        think = _capable(persona, ask)
        truth.window_tokens = window
        runner = await self._runner(persona, ask, launch, truth)
        try:
            heard = Heard(ask, writer, response, truth, began_ns, think, self.changed)
            await _Generation(self, runner, persona, speaker, request, heard).run()
        finally:
            self.scheduler.release(runner)

    async def _runner(self, persona: Persona, ask: Ask, launch: Launch, truth: RequestTruth) -> Runner:
        truth.phase = "loading"
        self.changed()
        try:
            runner, truth.load_ns, truth.reload, truth.evicted = await self.scheduler.acquire(
                persona, ask.model, launch, ask.keep_alive_s
            )
        except Busy:
            raise Refusal(503, "server busy, please try again.  maximum pending requests exceeded") from None
        except LoadFailed as failed:
            raise Refusal(500, str(failed)) from None
        return runner

    async def _load_only(
        self, persona: Persona, ask: Ask, launch: Launch, writer: Writer, response: Response, truth: RequestTruth
    ) -> None:
        """An empty request loads the model, or unloads it (`keep_alive: 0`): one whole record without metrics."""
        reason = "load"
        if ask.keep_alive_s == 0:
            reason = "unload"
            self.scheduler.expire(persona)
        else:
            self.scheduler.release(await self._runner(persona, ask, launch, truth))
        truth.ending, truth.status = reason, 200
        record = Record(self.clock.unix_ns(time.monotonic_ns()), done=True, reason=reason)
        response.headers["Content-Type"] = writer.whole_type
        response.write(writer.whole(record))


def window_of(persona: Persona, ask: Ask) -> int:
    """The request's num_ctx, clamped to what was trained; else the automatic one. An MLX runner takes no limit but its own."""
    asked = ask.options.get("num_ctx") if ask.options_count else None
    if persona.mode == "mlx":
        return persona.context.trained
    if isinstance(asked, int | float) and asked > 0:
        return min(int(asked), persona.context.trained)
    return persona.context.automatic


def _launch_options(ask: Ask) -> tuple[tuple[str, object], ...]:
    if not ask.options_count:
        return ()
    return tuple((name, ask.options[name]) for name in LAUNCH_OPTIONS if name != "num_ctx" and ask.options.get(name) is not None)


def _capable(persona: Persona, ask: Ask) -> bool:
    """Refuse what the model cannot do; tell whether it thinks."""
    shown = encode(ask.model)
    can = persona.capabilities
    if "completion" not in can:
        raise Refusal(400, f"{shown} does not support {'chat' if ask.route == 'chat' else 'generate'}")
    if ask.tools and "tools" not in can:
        raise Refusal(400, f"{shown} does not support tools")
    if ask.suffix and "insert" not in can:
        raise Refusal(400, f"{shown} does not support insert")
    if "thinking" not in can:
        if ask.think and ask.strict_think:
            raise Refusal(400, f"{shown} does not support thinking")
        return False
    return ask.think is not False


@dataclass(slots=True)
class _Generation:
    """One answer being made on one runner."""

    engine: Engine
    runner: Runner
    persona: Persona
    speaker: Speaker
    request: Request
    heard: Heard

    async def run(self) -> None:
        engine, truth, ask = self.engine, self.heard.truth, self.heard.ask
        await engine.metronome.sleep(self.persona.overhead_ms * MS / engine.speed)
        prepared = prepare(ask, self.persona, self.runner.launch.window)
        fitted = prepared.fitted
        truth.asked_tokens, truth.prompt_tokens, truth.dropped_messages = (
            fitted.asked_tokens,
            fitted.tokens,
            prepared.dropped_messages,
        )
        rng = self.speaker.rng(prepared.text)
        said = self.speaker.say(
            Turn(
                self.persona,
                prepared.messages,
                prepared.text,
                fitted.tokens,
                ask.tools,
                self.heard.think,
                ask.format,
                ask.options,
            ),
            rng,
        )
        truth.note = said.note
        slot = await self._slot()
        leaked = False
        busy_until_ns = 0
        try:
            began_ns = time.monotonic_ns()
            batch_ns = self._prefill(prepared, rng)
            due_ns = began_ns + (truth.prefill_ns or 0)
            try:
                await engine.metronome.until(due_ns)
            except asyncio.CancelledError:  # the batch that is being evaluated is finished all the same
                done_ns = time.monotonic_ns() - began_ns
                busy_until_ns = began_ns + (done_ns // batch_ns + 1) * batch_ns if batch_ns else 0
                raise
            self.runner.touched = True
            wrong = said.misbehaviour
            if wrong is not None and wrong.error_before is not None:
                truth.ending = "crash"
                raise Refusal(500, wrong.error_before, streaming=ask.streamed)
            self._phase("decode")
            try:
                await Decoding(
                    engine.metronome, engine.clock, engine.speed, self.runner, self.heard, said, fitted, due_ns, rng
                ).run()
            except asyncio.CancelledError:
                leaked = self._leaks()
                raise
        except asyncio.CancelledError:
            truth.client_left_ns = self.request.left_ns
            truth.ending = truth.ending or "client_left"
            raise
        finally:
            if not leaked:
                self._free(slot, busy_until_ns)
            self.runner.remember(prepared.text + truth.text)

    async def _slot(self) -> int:
        truth = self.heard.truth
        queued_ns = time.monotonic_ns()
        self._phase("queued")
        try:
            return await self.runner.slot()
        finally:
            truth.queue_ns = time.monotonic_ns() - queued_ns
            if self.runner.hung:
                truth.ending = "hung"
            self._phase("prefill")

    def _phase(self, phase: str) -> None:
        self.heard.truth.phase = phase
        self.engine.changed()

    def _prefill(self, prepared: Prepared, rng: Random) -> int:
        """Set the prefill's law time in the truth; answer with that of one batch. Nanoseconds."""
        persona, truth, fitted = self.persona, self.heard.truth, prepared.fitted
        law = persona.prefill
        characters = self.runner.cached_prefix(prepared.text)
        cached = 0
        if characters:
            share = fitted.tokens if characters == len(prepared.text) else persona.tokenizer.count(prepared.text[:characters])
            cached = max(0, min(share, fitted.tokens - 1))  # the last token is always evaluated
        ms = law.ms(fitted.tokens, cached, rng)
        truth.first_touch = not self.runner.touched and law.first_touch_ms > 0
        if truth.first_touch:
            ms += law.first_touch_ms
        truth.cached_tokens = cached
        truth.prefill_ns = int(ms * MS / self.engine.speed)
        return int(truth.prefill_ns * min(1.0, law.batch_tokens / max(1, fitted.tokens - cached)))

    def _leaks(self) -> bool:
        """A client that leaves a stream while it is written may leak the slot."""
        hang = self.persona.hang
        if hang is None or not self.heard.ask.streamed or not self.heard.response.began:
            return False
        if hang.below_token_ms is not None and self.persona.decode.token_ms >= hang.below_token_ms:
            return False
        self.runner.aborts += 1
        if self.runner.aborts < hang.after_aborts:
            return False
        self.runner.leak()
        self.heard.truth.leaked_slot = True
        return True

    def _free(self, slot: int, not_before_ns: int) -> None:
        if not_before_ns > time.monotonic_ns():
            self.engine.metronome.at(not_before_ns, lambda: self.runner.free(slot))
        else:
            self.runner.free(slot)
