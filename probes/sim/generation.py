"""One generation from its Ask to its last byte: capability checks, runner, window, slot, prefill, tokens, record by record.

Reported durations are what the persona's laws say; what really passed (a busy machine is late, never early) is in the
truth log and in `total_duration`. Every wait ends at once when the client leaves: the request's task is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from probes.sim.clock import EARLY_NS, Deadline, Metronome, WallClock
from probes.sim.dialect import Ask, Metrics, Record, Writer
from probes.sim.gojson import encode
from probes.sim.http import Request, Response
from probes.sim.pace import Gap
from probes.sim.personas import Persona
from probes.sim.policies import Speaker, Turn
from probes.sim.scheduler import LAUNCH_OPTIONS, Busy, Launch, LoadFailed, Runner, Scheduler
from probes.sim.speech import Call, Message, Said, Step, steps
from probes.sim.tokens import role_mark
from probes.sim.truth import RequestTruth
from probes.sim.window import Fitted, TooLong, fit_messages, fit_prompt, generation_limit

__all__ = ["Engine", "Refusal"]

MS = 1_000_000


class Refusal(Exception):
    """The request ends with an error status. `plain`: raised before the stream, so the body has its whole-answer type."""

    def __init__(self, status: int, text: str, *, streaming: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.streaming = streaming


@dataclass(slots=True)
class Engine:
    """What all generations of a server share."""

    metronome: Metronome
    clock: WallClock
    scheduler: Scheduler
    speed: float
    seed: int
    changed: Callable[[], None]

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
        if ask.empty:
            await self._load_only(persona, ask, writer, response, truth)
            return
        think = self._capable(persona, ask)
        window = persona.context.automatic
        asked = ask.options.get("num_ctx") if ask.options_count else None
        if persona.mode == "mlx":
            window = persona.context.trained
        elif isinstance(asked, int | float) and asked > 0:
            window = min(int(asked), persona.context.trained)
        launch = Launch(window, ask.shift, self._launch_options(ask))
        truth.window_tokens = window
        runner = await self._runner(persona, ask, launch, truth)
        try:
            await _Generation(self, runner, persona, speaker, ask, writer, request, response, truth, think, began_ns).run()
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

    async def _load_only(self, persona: Persona, ask: Ask, writer: Writer, response: Response, truth: RequestTruth) -> None:
        """An empty request loads the model, or unloads it (`keep_alive: 0`): one whole record without metrics."""
        if ask.keep_alive_s == 0:
            self.scheduler.expire(persona)
            reason = "unload"
        else:
            asked = ask.options.get("num_ctx") if ask.options_count else None
            window = (
                persona.context.automatic if not isinstance(asked, int) or asked <= 0 else min(asked, persona.context.trained)
            )
            window = persona.context.trained if persona.mode == "mlx" else window
            runner = await self._runner(persona, ask, Launch(window, ask.shift, self._launch_options(ask)), truth)
            self.scheduler.release(runner)
            reason = "load"
        truth.ending = reason
        record = Record(self.clock.unix_ns(time.monotonic_ns()), done=True, reason=reason)
        response.headers["Content-Type"] = writer.whole_type
        response.write(writer.whole(record))
        truth.status = 200

    @staticmethod
    def _launch_options(ask: Ask) -> tuple[tuple[str, object], ...]:
        if not ask.options_count:
            return ()
        return tuple((name, ask.options[name]) for name in LAUNCH_OPTIONS[1:] if ask.options.get(name) is not None)

    @staticmethod
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
    ask: Ask
    writer: Writer
    request: Request
    response: Response
    truth: RequestTruth
    think: bool
    began_ns: int

    async def run(self) -> None:
        engine, persona, truth = self.engine, self.persona, self.truth
        await engine.metronome.sleep(persona.overhead_ms * MS / engine.speed)
        prompt, fitted, turn = self._prompt()
        rng = self.speaker.rng(prompt)
        said = self.speaker.say(turn, rng)
        truth.note = said.note
        wrong = said.misbehaviour
        queued_ns = time.monotonic_ns()
        truth.phase = "queued"
        engine.changed()
        slot = await self.runner.slot()
        truth.queue_ns = time.monotonic_ns() - queued_ns
        truth.phase = "prefill"
        engine.changed()
        held = True
        batch_end_ns = 0
        decoding = False
        try:
            prefill_ns, batch_ns = self._prefill(prompt, fitted, rng)
            prefilled_ns = time.monotonic_ns()
            due = prefilled_ns + prefill_ns
            try:
                await engine.metronome.until(due)
            except asyncio.CancelledError:
                done = time.monotonic_ns() - prefilled_ns
                batch_end_ns = prefilled_ns + (done // batch_ns + 1) * batch_ns if batch_ns else 0
                raise
            self.runner.touched = True
            if wrong is not None and wrong.error_before is not None:
                truth.ending = "crash"
                raise Refusal(500, wrong.error_before, streaming=self.ask.streamed)
            decoding = True
            truth.phase = "decode"
            engine.changed()
            stream = _Stream(self, said, fitted, prefill_ns, due, rng)
            await stream.run()
        except asyncio.CancelledError:
            truth.client_left_ns = self.request.left_ns
            truth.ending = truth.ending or "client_left"
            if decoding:
                held = not self._leaks()
            raise
        finally:
            if held:
                self._free(slot, batch_end_ns)
            self.runner.remember(prompt + truth.text)

    def _prompt(self) -> tuple[str, Fitted, Turn]:
        """Render, drop, cut, as the window demands. Raises Refusal."""
        ask, persona, truth = self.ask, self.persona, self.truth
        window = self.runner.launch.window
        tokenizer = persona.tokenizer
        bos = int(tokenizer.bos)
        native = persona.mode == "native" and ask.route == "chat"
        if ask.route == "chat":
            messages = ask.messages
            texts = [render_message(m) for m in messages]
            front, back = render_tools(ask.tools), role_mark("assistant")
            tokens = tokenizer.count(front + "".join(texts) + back) + bos
            truth.asked_tokens = tokens
            if persona.mode != "mlx" and ask.truncate and tokens > window:
                kept = fit_messages(
                    [m.role for m in messages],
                    window,
                    lambda idx: tokenizer.count(front + "".join(texts[i] for i in idx) + back) + bos,
                )
                truth.dropped_messages = len(messages) - len(kept)
                messages, texts = [messages[i] for i in kept], [texts[i] for i in kept]
                tokens = tokenizer.count(front + "".join(texts) + back) + bos
            prompt = front + "".join(texts) + back
        else:
            messages = [Message("user", ask.prompt)]
            if ask.system and not ask.raw:
                messages.insert(0, Message("system", ask.system))
            prompt = ask.prompt if ask.raw else "".join(map(render_message, messages)) + role_mark("assistant")
            prompt += ask.suffix
            tokens = truth.asked_tokens = tokenizer.count(prompt) + bos
        limit = window
        if persona.mode == "mlx":
            if tokens > window:
                raise Refusal(
                    400,
                    f"input length ({tokens} tokens) exceeds the model's maximum context length ({window} tokens)",
                    streaming=True,
                )
            fitted = Fitted(tokens, None, 0, tokens)
        else:
            keep = ask.options.get("num_keep", 4)
            try:
                fitted = fit_prompt(
                    tokens, len(prompt.encode("utf-8", "replace")), limit,
                    truncate=ask.truncate, shift=ask.shift, num_keep=int(keep), bos=tokenizer.bos, native=native,
                )  # fmt: skip
            except TooLong as refused:
                raise Refusal(400, str(refused), streaming=ask.streamed) from None
        seen = prompt
        if fitted.keep_first is not None:
            seen = tokenizer.cut(prompt, fitted.keep_first - bos, fitted.keep_last)
            messages = [Message("user", seen)]
        if persona.context.reads is not None and fitted.tokens > persona.context.reads:
            seen = tokenizer.cut(seen, 4, persona.context.reads - 4)  # counted in full, read in part: the liar
            messages = [Message("user", seen)]
        truth.prompt_tokens = fitted.tokens
        return seen, fitted, Turn(persona, messages, seen, fitted.tokens, ask.tools, self.think, ask.format, ask.options)

    def _prefill(self, prompt: str, fitted: Fitted, rng: Random) -> tuple[int, int]:
        """Nanoseconds of the prefill, and of one batch of it."""
        persona, truth = self.persona, self.truth
        law = persona.prefill
        characters = self.runner.cached_prefix(prompt)
        cached = 0
        if characters:
            share = persona.tokenizer.count(prompt[:characters]) if characters < len(prompt) else fitted.tokens
            cached = max(0, min(share, fitted.tokens - 1))  # the last token is always evaluated
        ms = law.ms(fitted.tokens, cached, rng)
        truth.first_touch = not self.runner.touched and law.first_touch_ms > 0
        if truth.first_touch:
            ms += law.first_touch_ms
        truth.cached_tokens = cached
        truth.prefill_ns = int(ms * MS / self.engine.speed)
        fresh = fitted.tokens - cached
        return truth.prefill_ns, int(truth.prefill_ns * min(1.0, law.batch_tokens / max(1, fresh)))

    def _leaks(self) -> bool:
        """A client that leaves a stream while it is written may leak the slot."""
        hang = self.persona.hang
        if hang is None or not self.ask.streamed or not self.response.began:
            return False
        if hang.below_token_ms is not None and self.persona.decode.token_ms >= hang.below_token_ms:
            return False
        self.runner.aborts += 1
        if self.runner.aborts < hang.after_aborts:
            return False
        self.runner.leak()
        self.truth.leaked_slot = True
        return True

    def _free(self, slot: int, not_before_ns: int) -> None:
        if not_before_ns > time.monotonic_ns():  # the batch that was being evaluated ends first
            self.engine.metronome.at(not_before_ns, lambda: self.runner.free(slot))
        else:
            self.runner.free(slot)


def render_message(message: Message) -> str:
    calls = "".join(f'<tool_call>{{"name":{encode(c.name)},"arguments":{c.arguments}}}</tool_call>' for c in message.calls)
    return f"{role_mark(message.role or 'user')}{message.content}{calls}{role_mark('end')}"


def render_tools(tools: list[object]) -> str:
    return f"{role_mark('tools')}{encode(tools)}{role_mark('end')}" if tools else ""


def _kind(step: Step) -> str:
    return "tool" if step.calls else "text" if step.text else "thinking" if step.thinking else "empty"


class _Stream:
    """The decode phase: one step a token at its planned instant, records written as they come about."""

    def __init__(self, generation: _Generation, said: Said, fitted: Fitted, prefill_ns: int, first_ns: int, rng: Random) -> None:
        g = self._g = generation
        persona = g.persona
        speed = g.engine.speed
        window = g.runner.launch.window
        predict = g.ask.options.get("num_predict", -1)
        limit = generation_limit(int(predict), window)
        self._shift_at = window
        if not g.ask.shift:
            limit = min(limit, window - fitted.tokens)
        self._steps: Iterator[Step] = steps(
            said,
            limit=max(1, limit),
            stop=tuple(s for s in g.ask.options.get("stop") or () if s),
            guard=persona.mode == "rendered" or g.ask.route == "generate",
            tokenizer=persona.tokenizer,
            calls_in_done=persona.puts_calls_in_done,
            native=persona.mode == "native",
            think=g.think,
        )
        slower = persona.decode.spilled_factor if g.runner.spilled else 1.0
        self._gaps: Iterator[Gap] = persona.decode.gaps(rng, fitted.tokens, slower=slower)
        self._speed = speed
        self._rng = rng
        self._wrong = said.misbehaviour
        self._last_due_ns = first_ns
        self._fitted = fitted
        self._prefill_ns, self._first_ns = prefill_ns, first_ns
        self._due_ns = float(first_ns)
        self._sampled = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deadline: Deadline | None = None
        self._hold = False
        self._held: list[bytes] = []
        self._held_records = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Call] = []
        self._logged: list[str] = []
        self._streamed = g.ask.streamed
        self._empties = g.think and g.ask.route == "generate"  # this route sends a record for every withheld token too

    async def run(self) -> None:
        metronome = self._g.engine.metronome
        gap = next(self._gaps)
        if self._g.persona.mode == "mlx":  # the last prompt token is left to the first decode step
            self._due_ns += gap.ns / self._speed
        self._hold = gap.hold
        self._deadline = metronome.at(int(self._due_ns), self._tick)
        try:
            await self._done
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            truth = self._g.truth
            truth.text, truth.thinking = "".join(self._texts), "".join(self._thoughts)
            truth.sampled_tokens = self._sampled

    def _tick(self) -> None:
        """Serve every token that is due."""
        try:
            truth = self._g.truth
            while True:
                step = next(self._steps)
                now = time.monotonic_ns()
                truth.planned_ns.append(int(self._due_ns))
                if step.end is not None:
                    self._end(step, now)
                    return
                self._sampled += 1
                self._last_due_ns = int(self._due_ns)
                if step.text or step.thinking or step.calls or self._empties:
                    self._emit(step, now)
                gap = next(self._gaps)
                self._hold = gap.hold
                if gap.stall_ns:
                    truth.stalls.append((self._sampled, int(gap.stall_ns / self._speed)))
                self._due_ns += gap.ns / self._speed
                if self._due_ns > time.monotonic_ns() + EARLY_NS:
                    break
            self._deadline = self._g.engine.metronome.at(int(self._due_ns), self._tick)
        except Exception as broken:  # a policy's own error: the request fails, the server goes on
            if not self._done.done():
                self._done.set_exception(broken)

    def _emit(self, step: Step, now_ns: int) -> None:
        g = self._g
        calls = [Call(c.name, c.arguments, c.id or self._call_id()) for c in step.calls]
        self._texts.append(step.text)
        self._thoughts.append(step.thinking)
        self._calls += calls
        for c in calls:
            g.truth.tool_calls.append({"id": c.id, "name": c.name, "arguments": c.arguments, "token": self._sampled})
        if not self._streamed:
            return
        tokens = [step.text or step.thinking] if g.ask.logprobs else None
        record = Record(g.engine.clock.unix_ns(now_ns), step.text, step.thinking, calls, tokens=tokens)
        self._send(g.writer.record(record), _kind(step))

    def _send(self, flushes: list[bytes], kind: str, *, last: bool = False) -> None:
        """Write the flushes of one record; a held record leaves with the next."""
        g = self._g
        g.truth.kinds.append(kind)
        self._held_records += 1
        response = g.response
        if not response.began:
            response.headers.update(g.writer.stream_headers)
            g.truth.status = 200
        if self._hold and not last:
            self._held += flushes
            return
        records, tokens = self._held_records, self._sampled
        self._held_records = 0

        def written(t_ns: int) -> None:
            g.truth.wrote(t_ns, records, tokens)
            if len(g.truth.written_ns) == 1:
                g.engine.changed()

        if self._held:
            flushes = self._held + flushes
            self._held = []
            response.together(flushes, written)
            return
        for n, flush in enumerate(flushes):
            response.stream(flush, written if n == 0 else None)

    def _end(self, step: Step, now_ns: int) -> None:
        g = self._g
        truth = g.truth
        self._hold = False
        if step.end in ("stop", "length"):
            self._finish(step, now_ns)
        elif step.end == "repeat":
            truth.ending = "repeat"
            self._without_done(now_ns)
        elif step.end == "no_done":
            truth.ending = "no_done"
            self._without_done(now_ns)
        elif step.end == "crash":
            truth.ending = "crash"
            if not self._streamed or not g.response.began:
                self._done.set_exception(Refusal(500, step.failure, streaming=self._streamed))
                return
            for flush in g.writer.failure(step.failure):
                self._send([flush], "error", last=True)
        elif step.end == "cut":
            truth.ending = "cut"
            self._flush_held()
            g.response.drop(reset=self._wrong is not None and self._wrong.reset)
        elif step.end == "silent":
            truth.ending = "silent"
            self._flush_held()
            return  # never done: only the client's leaving ends it
        self._done.set_result(None)

    def _flush_held(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._g.response.together(held)

    def _finish(self, step: Step, now_ns: int) -> None:
        g = self._g
        if not step.eos or g.persona.counts_eos:
            self._sampled += 1
        truth = g.truth
        if not step.eos and (step.text or step.thinking or step.calls):
            self._emit(step._replace(end=None), now_ns)
        last_ns = self._last_due_ns if step.eos and not g.persona.counts_eos else int(self._due_ns)
        decode_ns = max(1, last_ns - self._first_ns)
        truth.decode_ns, truth.ending, truth.finish = decode_ns, "complete", step.end
        calls = [Call(c.name, c.arguments, c.id or self._call_id()) for c in step.calls] if step.eos else []
        for c in calls:
            truth.tool_calls.append({"id": c.id, "name": c.name, "arguments": c.arguments, "token": self._sampled})
        counted = self._fitted.tokens if g.persona.count_cached else max(1, self._fitted.tokens - (truth.cached_tokens or 0))
        if self._fitted.tokens + self._sampled > self._shift_at and g.ask.shift and g.persona.mode != "mlx":
            truth.shifts = 1 + (self._fitted.tokens + self._sampled - self._shift_at - 1) // max(1, self._shift_at // 2)
        truth.total_ns = time.monotonic_ns() - g.began_ns
        metrics = Metrics(truth.total_ns, truth.load_ns or 0, counted, self._prefill_ns, self._sampled, decode_ns)
        g.runner.live_tokens = self._fitted.tokens + self._sampled
        record = Record(g.engine.clock.unix_ns(time.monotonic_ns()), done=True, reason=step.end, metrics=metrics, calls=calls)
        if g.ask.route == "generate" and not g.ask.raw and g.ask.dialect == "ollama":
            record.context = self._context()
        if self._streamed:
            self._send(g.writer.record(record), "done", last=True)
            return
        record.text, record.thinking, record.calls = "".join(self._texts), "".join(self._thoughts), [*self._calls, *calls]
        if g.ask.logprobs:
            record.tokens = [t for t in self._texts if t]
        self._whole(record)

    def _without_done(self, now_ns: int) -> None:
        """The stream just ends; a whole answer comes with `done: false`."""
        if self._streamed:
            self._flush_held()
            if not self._g.response.began:
                self._g.response.headers.update(self._g.writer.stream_headers)
            return
        record = Record(self._g.engine.clock.unix_ns(now_ns), "".join(self._texts), "".join(self._thoughts), self._calls)
        self._whole(record)

    def _whole(self, record: Record) -> None:
        response = self._g.response
        response.headers["Content-Type"] = self._g.writer.whole_type
        self._g.truth.status = 200
        self._g.truth.kinds.append("done")
        response.write(self._g.writer.whole(record))
        self._g.truth.wrote(time.monotonic_ns(), 1, self._sampled)

    def _call_id(self) -> str:
        """`call_` and eight letters where Ollama parses, the runner's own 32 characters in native mode."""
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        if self._g.persona.mode == "native":
            return "".join(self._rng.choices(letters + letters[:26].upper(), k=32))
        return "call_" + "".join(self._rng.choices(letters, k=8))

    def _context(self) -> list[int]:
        """Token ids of prompt and answer, as many as there are."""
        return [257 + (n * 7919 + 13) % 31_743 for n in range(self._fitted.tokens + self._sampled - 1)]
