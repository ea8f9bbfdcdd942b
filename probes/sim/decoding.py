"""The decode phase: one step a token at its planned instant, dressed by the dialect, given to the socket, logged.

The schedule is absolute (each deadline is the last planned one plus the law's gap), so lateness never accumulates. What
happens per token is kept small: 64 streams at 60 tokens/s cost some tenth of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from probes.sim.clock import EARLY_NS, Deadline, Metronome, WallClock
from probes.sim.dialect import Ask, Metrics, Record, Refusal, Writer
from probes.sim.http import Response
from probes.sim.pace import Gap
from probes.sim.scheduler import Runner
from probes.sim.speech import Call, Said, Step, steps
from probes.sim.truth import RequestTruth
from probes.sim.window import Fitted, generation_limit

__all__ = ["Decoding", "Heard"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True)
class Heard:
    """One request and the way back to who asked."""

    ask: Ask
    writer: Writer
    response: Response
    truth: RequestTruth
    began_ns: int  # the handler began
    think: bool
    changed: Callable[[], None]  # tells the truth log's waiters that something happened


class Decoding:
    """Answers `run()` when the body is complete, or deliberately is not. Raises Refusal for a crash before the first byte."""

    def __init__(
        self,
        metronome: Metronome,
        clock: WallClock,
        speed: float,
        runner: Runner,
        heard: Heard,
        said: Said,
        fitted: Fitted,
        first_ns: int,
        rng: Random,
    ) -> None:
        self._metronome, self._clock, self._speed, self._rng = metronome, clock, speed, rng
        self._runner, self._heard, self._fitted, self._wrong = runner, heard, fitted, said.misbehaviour
        persona, ask = runner.persona, heard.ask
        self._persona = persona
        window = runner.launch.window
        limit = generation_limit(int(ask.options.get("num_predict", -1)), window)
        if not ask.shift and persona.mode != "mlx":
            limit = min(limit, window - fitted.tokens)
        self._steps = steps(
            said,
            limit=max(1, limit),
            stop=tuple(s for s in ask.options.get("stop") or () if s),
            guard=persona.mode == "rendered" or (persona.mode == "native" and ask.route == "generate"),
            tokenizer=persona.tokenizer,
            calls_in_done=persona.puts_calls_in_done,
            native=persona.mode == "native",
            think=heard.think,
        )
        slower = persona.decode.spilled_factor if runner.spilled else 1.0
        self._gaps = persona.decode.gaps(rng, fitted.tokens, slower=slower)
        self._first_ns = first_ns
        self._due_ns = float(first_ns)
        self._last_due_ns = first_ns
        self._sampled = 0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deadline: Deadline | None = None
        self._blocked_ns = 0.0  # until then nothing leaves
        self._hold = False  # the record of this token waits for the next
        self._held: list[bytes] = []
        self._unwritten = 0  # records made since the last write
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Call] = []
        self._streamed = ask.streamed
        self._logprobs = ask.logprobs
        self._empties = heard.think and ask.route == "generate"  # this route sends a record for every withheld token too

    async def run(self) -> None:
        gap = next(self._gaps)
        if self._persona.mode == "mlx":  # the last prompt token is left to the first decode step
            self._due_ns += gap.ns / self._speed
        self._pass(gap)
        self._deadline = self._metronome.at(int(self._due_ns), self._tick)
        try:
            await self._ended
        finally:
            self._deadline.cancel()
            truth = self._heard.truth
            truth.text, truth.thinking, truth.sampled_tokens = "".join(self._texts), "".join(self._thoughts), self._sampled

    def _tick(self) -> None:
        """Serve every token that is due."""
        try:
            truth = self._heard.truth
            while True:
                step = next(self._steps)
                truth.planned_ns.append(int(self._due_ns))
                if step.end is not None:
                    self._end(step)
                    return
                self._sampled += 1
                self._last_due_ns = int(self._due_ns)
                if step.text or step.thinking or step.calls or self._empties:
                    self._emit(step)
                gap = next(self._gaps)
                self._due_ns += gap.ns / self._speed
                self._pass(gap)
                if self._due_ns > time.monotonic_ns() + EARLY_NS:
                    break
            self._deadline = self._metronome.at(int(self._due_ns), self._tick)
        except Exception as broken:  # a policy's own error: this request fails, the server goes on
            if not self._ended.done():
                self._ended.set_exception(broken)

    def _pass(self, gap: Gap) -> None:
        """Take over what the law says of the next token, `_due_ns` being already its time."""
        truth = self._heard.truth
        if gap.stall_ns:
            truth.stalls.append((self._sampled, int(gap.stall_ns / self._speed)))
        if gap.block_ns:
            truth.network_stalls.append((self._sampled, int(gap.block_ns / self._speed)))
            self._blocked_ns = self._due_ns + gap.block_ns / self._speed
        self._hold = gap.hold or self._due_ns < self._blocked_ns

    def _emit(self, step: Step) -> None:
        calls = self._identified(step.calls) if step.calls else ()
        if step.text:
            self._texts.append(step.text)
        elif step.thinking:
            self._thoughts.append(step.thinking)
        if not self._streamed:
            self._calls += calls
            return
        tokens = [step.text or step.thinking] if self._logprobs else None
        record = Record(self._clock.unix_ns(time.monotonic_ns()), step.text, step.thinking, calls, tokens=tokens)
        kind = "text" if step.text else "thinking" if step.thinking else "tool" if calls else "empty"
        self._send(self._heard.writer.record(record), kind)

    def _send(self, flushes: list[bytes], kind: str, *, last: bool = False) -> None:
        """Write the flushes of one record; a held record leaves with the next, in the same write."""
        response, truth = self._heard.response, self._heard.truth
        truth.kinds.append(kind)
        self._unwritten += 1
        if not response.began:
            response.headers.update(self._heard.writer.stream_headers)
            truth.status = 200
        if self._hold and not last:
            self._held += flushes
            return
        records, tokens, self._unwritten = self._unwritten, self._sampled, 0
        if self._held:
            flushes, self._held = [b"".join(b"%x\r\n%b\r\n" % (len(f), f) for f in [*self._held, *flushes])], []
            response.framed(flushes[0])
        else:
            for flush in flushes:
                response.stream(flush)
        if response.flowing:
            truth.wrote(time.monotonic_ns(), records, tokens)
            if len(truth.written_ns) == 1:
                self._heard.changed()
        else:  # the client does not read: it is written when there is room again
            response.when_written(lambda t_ns: truth.wrote(t_ns, records, tokens))

    def _end(self, step: Step) -> None:
        truth = self._heard.truth
        self._hold = False
        match step.end:
            case "stop" | "length":
                self._finish(step)
            case "repeat" | "no_done":
                truth.ending = step.end
                self._without_done()
            case "crash":
                truth.ending = "crash"
                if not self._streamed or not self._heard.response.began:
                    self._ended.set_exception(Refusal(500, step.failure, streaming=self._streamed))
                    return
                self._send_held()
                for flush in self._heard.writer.failure(step.failure):
                    self._send([flush], "error", last=True)
            case "cut":
                truth.ending = "cut"
                self._send_held()
                self._heard.response.drop(reset=self._wrong is not None and self._wrong.reset)
            case "silent":
                truth.ending = "silent"
                self._send_held()
                self._heard.changed()
                return  # only the client's leaving ends it
        self._ended.set_result(None)

    def _send_held(self) -> None:
        held, self._held = self._held, []
        for flush in held:
            self._heard.response.stream(flush)

    def _finish(self, step: Step) -> None:
        ask, truth, persona = self._heard.ask, self._heard.truth, self._persona
        if not step.eos and (step.text or step.thinking or step.calls):
            self._emit(step)
        if not step.eos or persona.counts_eos:
            self._sampled += 1
        last_ns = int(self._due_ns) if not step.eos or persona.counts_eos else self._last_due_ns
        truth.decode_ns = max(1, last_ns - self._first_ns)
        truth.ending, truth.finish = "complete", step.end
        calls = self._identified(step.calls) if step.eos else ()
        used = self._fitted.tokens + self._sampled
        window = self._runner.launch.window
        if used > window and persona.mode != "mlx":
            truth.shifts = 1 + (used - window - 1) // max(1, window // 2)
        counted = self._fitted.tokens if persona.count_cached else max(1, self._fitted.tokens - (truth.cached_tokens or 0))
        truth.total_ns = time.monotonic_ns() - self._heard.began_ns
        metrics = Metrics(truth.total_ns, truth.load_ns or 0, counted, truth.prefill_ns or 0, self._sampled, truth.decode_ns)
        self._runner.live_tokens = used
        record = Record(self._clock.unix_ns(time.monotonic_ns()), done=True, reason=step.end, metrics=metrics, calls=calls)
        if ask.route == "generate" and not ask.raw and ask.dialect == "ollama":
            record.context = [257 + (n * 7919 + 13) % 31_743 for n in range(used - 1)]
        if self._streamed:
            self._send(self._heard.writer.record(record), "done", last=True)
        else:
            self._whole(record, calls)

    def _without_done(self) -> None:
        """The stream just ends; a whole answer comes with `done: false`."""
        if not self._streamed:
            self._whole(Record(self._clock.unix_ns(time.monotonic_ns())), ())
            return
        self._send_held()
        if not self._heard.response.began:
            self._heard.response.headers.update(self._heard.writer.stream_headers)

    def _whole(self, record: Record, calls: tuple[Call, ...]) -> None:
        heard = self._heard
        record.text, record.thinking, record.calls = "".join(self._texts), "".join(self._thoughts), [*self._calls, *calls]
        if self._logprobs:
            record.tokens = [*self._thoughts, *self._texts]
        heard.response.headers["Content-Type"] = heard.writer.whole_type
        heard.truth.status = 200
        heard.truth.kinds.append("done")
        heard.response.write(heard.writer.whole(record))
        heard.truth.wrote(time.monotonic_ns(), 1, self._sampled)

    def _identified(self, calls: tuple[Call, ...]) -> tuple[Call, ...]:
        """Give ids: `call_` and eight letters where Ollama parses, the runner's own 32 characters in native mode."""
        found = []
        for call in calls:
            made = call.id
            if not made and self._persona.mode == "native":
                made = "".join(self._rng.choices(_LETTERS + _LETTERS[:26].upper(), k=32))
            elif not made:
                made = "call_" + "".join(self._rng.choices(_LETTERS, k=8))
            found.append(Call(call.name, call.arguments, made))
            self._heard.truth.tool_calls.append(
                {"id": made, "name": call.name, "arguments": call.arguments, "token": self._sampled}
            )
        return tuple(found)
