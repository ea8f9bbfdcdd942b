"""Drives a probe: asks what it yields, records each answer, replays an interrupted run, stops at once when told to.

Rules that hold here:

- One ask at a time, in the probe's order: two would disturb each other's times.
- A row is on disk before the probe sees the answer. Resuming answers from the rows while they fit (same key, same question);
  where they end, an unrecorded warm-up puts the model back as the last replayed request had left it.
- An upstream that went away is tried again: a few seconds before its first answer, some twenty after it (a restart of Ollama);
  when it is back, an unrecorded warm-up loads the model as it stood, so that no measured request pays for the load.
- A request that brings no byte for long is told of while it is waited for, with the time at which it is given up.
- `stop()` aborts the request in flight (its socket is closed), throws `Stopped` into the probe and returns what it concludes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from probes.ask import Answer, Ask, Note, Probe, Step, Stopped, StopReason, Wait
from probes.padding import nonce
from probes.pagecache import evict, resident_share
from probes.rows import Rows
from qm_proxy.events import HostSample
from qm_proxy.tasks import spawn

__all__ = ["Outcome", "Progress", "Runner", "replay"]

T = TypeVar("T")
_TRIES, _TRIES_LATER = 3, 7  # before and after the first answer of a run; pauses of 1, 2, 3 … s
_RETURNS = 10  # one that goes away more often is not there
_QUIET_S = 15.0  # without a byte for so long is worth a word


@dataclass(slots=True)
class Progress:
    """Where a run stands, for the person or the agent who waits."""

    text: str
    step: int
    steps: int
    elapsed_s: float
    requests: int
    lasting: bool = False  # to be left standing where the next is written over it
    quiet: bool = False  # told because nothing comes, not because something was done

    @property
    def eta_s(self) -> float | None:
        """By the share of steps done; `None` before the first."""
        return None if not self.step or not self.steps else self.elapsed_s / self.step * max(0, self.steps - self.step)


@dataclass(slots=True)
class Outcome(Generic[T]):
    """What a probe concluded, and how the run went."""

    section: T
    stopped: StopReason | None = None
    detail: str = ""
    requests: int = 0
    replayed: int = 0
    model_time_s: float = 0.0


@dataclass(slots=True)
class Runner:
    """One run. `ask` sends a request (a `Client`'s method, or a test's function)."""

    ask: Callable[[Ask], Awaitable[Answer]]
    rows: Rows = field(default_factory=lambda: Rows(None))
    on_progress: Callable[[Progress], None] | None = None
    sample_host: Callable[[], HostSample] | None = None
    budget_s: float | None = None  # stop after so much model time; what is done is kept
    retry_s: float = 1.0  # between tries to reach an upstream that went away
    quiet_s: Callable[[], float | None] | None = None  # how long the request in flight has brought no byte
    tell_s: float = 30.0  # how often a wait without a byte is told of
    _told: Progress | None = None
    _stop: tuple[StopReason, str] | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _standing: Ask | None = None  # the replayed request that left the model loaded as it then was
    _stands: Ask | None = None  # the request of this process that did so
    returned: int = 0  # how often the upstream went away and came back
    requests: int = 0
    replayed: int = 0  # of these, answered from rows
    model_time_s: float = 0.0
    stopped: Stopped | None = None  # what was thrown into the probe, if anything

    def stop(self, reason: StopReason, detail: str = "") -> None:
        """End the run as soon as possible; may be called from a signal handler of the loop."""
        if self._stop is None:
            self._stop = (reason, detail or reason)
            self._stopping.set()

    async def run(self, probe: Probe[T]) -> Outcome[T]:
        """Drive `probe` to its conclusion. Raises what the probe raises; a cancelled task concludes nothing."""
        started = time.monotonic()
        stopped: tuple[StopReason, str] | None = None
        try:
            step = next(probe)
            while True:
                try:
                    if self._stop is not None:
                        raise Stopped(*self._stop)
                    answer = await self._answer(step, started)
                except Stopped as stop:
                    if stopped is None:
                        stopped, self.stopped = (stop.reason, stop.detail), stop
                    step = probe.throw(stop)  # each part of a probe that asks on is told again, until all have concluded
                    continue
                step = probe.send(answer)
        except StopIteration as concluded:
            reason, detail = stopped or (None, "")
            return Outcome(concluded.value, reason, detail, self.requests, self.replayed, self.model_time_s)
        finally:
            probe.close()
            self.rows.close()

    async def _answer(self, step: Step, started: float) -> Answer:
        if isinstance(step, Note):
            if self.on_progress is not None:
                self._told = Progress(step.text, step.step, step.steps, time.monotonic() - started, self.requests, step.lasting)
                self.on_progress(self._told)
            return Answer(key="note")
        if isinstance(step, Wait):
            if self.requests > self.replayed or not self.replayed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(step.seconds):
                        await self._stopping.wait()
            return Answer(key=step.key)
        recalled = self.rows.recall(step)
        if recalled is not None:
            self.requests += 1
            self.replayed += 1
            self.model_time_s += recalled.total_s
            self._standing = _standing_after(step, self._standing)
            return recalled
        if self.budget_s is not None and self.model_time_s >= self.budget_s:
            raise Stopped("budget", f"the budget of {self.budget_s:g} s of model time is spent")
        if self._standing is not None:  # the seam: rows ended, the server may have unloaded the model since
            standing, self._standing = self._standing, None
            await self._warm_up(standing)
        answer = _page_cache(step) if step.method == "LOCAL" else await self._send(step)
        self._stands = _standing_after(step, self._stands)
        self.requests += 1
        self.model_time_s += answer.total_s
        self.rows.add(step, answer)
        return answer

    async def _send(self, ask: Ask) -> Answer:
        while True:
            answer = await self._race(ask)
            if answer.ending != "upstream_unreachable":
                return answer
            if not await self._comes_back(answer):
                raise Stopped("upstream", f"the upstream cannot be reached: {answer.error}")

    async def _comes_back(self, refusal: Answer) -> bool:
        """Wait for an upstream that does not take connections; true once it answers, with the model as it stood."""
        if self.returned >= _RETURNS:
            return False
        for attempt in range(1, _TRIES_LATER if self.requests else _TRIES):
            self._tell(f"the upstream cannot be reached ({refusal.error}); trying again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.retry_s * attempt):
                    await self._stopping.wait()
            if self._stop is not None:
                raise Stopped(*self._stop)
            refusal = await self._race(Ask("back", "/api/version", method="GET", silence_s=10))
            if refusal.ending != "upstream_unreachable":
                self.returned += 1
                if self._stands is not None:
                    await self._warm_up(self._stands)
                return True
        return False

    async def _race(self, ask: Ask) -> Answer:
        """The answer, or `Stopped` the moment the run is stopped; the request's socket is then closed already."""
        request = spawn(_finish(self.ask(ask)), name=f"probe {ask.key}")
        stopping = spawn(_wait(self._stopping), name="probe stop")
        samples: list[HostSample] = []
        watching = spawn(self._watch(samples), name="probe host") if self.sample_host is not None else None
        try:
            waited = {request, stopping}
            while not (await asyncio.wait(waited, timeout=self.tell_s, return_when=asyncio.FIRST_COMPLETED))[0]:
                self._tell_quiet(ask)
        finally:
            for task in (stopping, watching, None if request.done() else request):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        if request.cancelled() or not request.done() or self._stop is not None:
            raise Stopped(*(self._stop or ("cancelled", "cancelled")))
        answer: Answer = request.result()
        answer.host = samples
        return answer

    def _tell_quiet(self, ask: Ask) -> None:
        quiet = self.quiet_s() if self.quiet_s is not None else None
        if quiet is None or quiet < min(_QUIET_S, self.tell_s):
            return
        self._tell(f"no byte for {quiet:.0f} s; given up after {ask.silence_s:.0f} s", quiet)

    def _tell(self, text: str, waited_s: float = 0.0) -> None:
        if self.on_progress is not None:
            before = self._told or Progress("", 0, 0, 0.0, self.requests)
            text = f"{before.text}: {text}".removeprefix(": ")
            self.on_progress(replace(before, text=text, elapsed_s=before.elapsed_s + waited_s, quiet=True))

    async def _watch(self, samples: list[HostSample]) -> None:
        assert self.sample_host is not None
        while True:
            samples.append(self.sample_host())
            await asyncio.sleep(1.0)

    async def _warm_up(self, ask: Ask) -> None:
        """After a resume the runner may be gone or cold: two unrecorded requests with the launch options of `ask`."""
        if ask.body is None:
            return
        draw = random.Random(time.monotonic_ns())
        for _ in range(2):
            body = dict(ask.body)
            text = f"{nonce(draw)} warm up"
            if "messages" in body:
                body["messages"] = [{"role": "user", "content": text}]
            else:
                body["prompt"] = text
            options = body.get("options")
            body["options"] = {**(options if isinstance(options, dict) else {}), "num_predict": 32}
            await self._race(Ask(f"{ask.key}/warm-up", ask.path, body, ask.method, ask.silence_s))


def _page_cache(ask: Ask) -> Answer:
    """Look at (and on wish empty) the page cache of the file `ask.path`."""
    path, wanted = Path(ask.path), bool((ask.body or {}).get("evict"))
    before = resident_share(path)
    evicted = evict(path) if wanted else False
    after = resident_share(path) if evicted else before
    now = time.monotonic_ns()
    found = {"before": before, "evicted": evicted, "resident": after}
    return Answer(ask.key, now, now, time.time(), status=200, document=found)


def _standing_after(ask: Ask, before: Ask | None) -> Ask | None:
    """Which request the model stands loaded by after `ask`: a generation's own, none after an unload."""
    body = ask.body or {}
    if "prompt" in body or "messages" in body:
        return ask
    return None if body.get("keep_alive") == 0 else before


async def _finish(work: Awaitable[Answer]) -> Answer:
    return await work


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def replay(probe: Probe[T], answer: Callable[[Ask], Answer], *, limit: int = 1_000_000) -> T:
    """Drive a probe without a loop, each ask answered by a function: for tests, rows and simulations in process."""
    step = next(probe)
    try:
        for _ in range(limit):
            step = probe.send(answer(step) if isinstance(step, Ask) else Answer(key="note"))
    except StopIteration as concluded:
        value: T = concluded.value
        return value
    raise RuntimeError(f"the probe asked more than {limit} times")
