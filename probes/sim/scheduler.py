"""Runners in memory: who is loaded, who waits for a load, which slot is free. The scheduler's rules as observed.

- A request that fits a loaded runner takes it at once, even while another waits to reload it (and so may starve that one).
- Everything else goes through one queue, served one load at a time; at most `max_queue` wait there (503).
- A change of a launch option reloads: the old runner goes when its last request has ended.
- `keep_alive: 0` answers at once and bars nobody: the runner goes after its last request.
- Slots are a semaphore without limit and without error. A leaked slot is only freed by an unload.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from probes.sim.clock import Metronome
from probes.sim.personas import Persona
from qm_proxy.tasks import spawn

__all__ = ["LAUNCH_OPTIONS", "Acquired", "Busy", "Launch", "LoadFailed", "Runner", "Scheduler"]

LAUNCH_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
MS = 1_000_000
CACHED_PROMPTS = 8
"""Old prompts survive in host memory: this many of them."""


class Busy(Exception):
    """Too many requests wait for a load: 503."""


class LoadFailed(Exception):
    """500; str() is the server's text."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The options a runner was started with. A difference in any of them is a reload."""

    window: int
    shift: bool = True
    options: tuple[tuple[str, object], ...] = ()

    def difference(self, other: Launch) -> str | None:
        """The name of the first option that differs."""
        if self.window != other.window:
            return "num_ctx"
        if self.shift != other.shift:
            return "shift"
        mine, theirs = dict(self.options), dict(other.options)
        return next((name for name in LAUNCH_OPTIONS if mine.get(name) != theirs.get(name)), None)


@dataclass(slots=True)
class Runner:
    """One loaded model."""

    persona: Persona
    name: str  # the name it was loaded by: what /api/ps shows
    launch: Launch
    slots: int
    keep_alive_s: float  # negative: for ever
    loaded_ns: int
    references: int = 0
    leaving: bool = False  # a reload or an eviction waits for its last request
    expires_unix: float = 0.0
    touched: bool = False  # the first prefill has happened
    aborts: int = 0
    leaked: int = 0
    prompts: deque[str] = field(default_factory=lambda: deque(maxlen=CACHED_PROMPTS))
    live_tokens: int = 0
    _free: list[int] = field(default_factory=list)
    _waiting: deque[asyncio.Future[int]] = field(default_factory=deque)
    _expiry: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self._free = list(range(self.slots))

    @property
    def hung(self) -> bool:
        return self.leaked >= self.slots

    @property
    def batch(self) -> int:
        """num_batch: explicit, or what the server picks for this total context."""
        explicit = dict(self.launch.options).get("num_batch")
        if isinstance(explicit, int) and explicit > 0:
            return explicit
        return 512 if self.launch.window * self.persona.slots <= 4096 else 1024

    async def slot(self) -> int:
        """Wait for a slot, first come first served. A waiter that is cancelled leaves the queue as if never there."""
        if self._free:
            return self._free.pop(0)
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.free(turn.result())
            elif turn in self._waiting:  # free() may have passed over it already
                self._waiting.remove(turn)
            raise

    def free(self, slot: int) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)

    def leak(self) -> None:
        """A slot is gone until the runner is."""
        self.leaked += 1

    def cached_prefix(self, prompt: str) -> int:
        """Characters of the prompt that an earlier one begins with."""
        return max((_common(prompt, known) for known in self.prompts), default=0)

    def remember(self, prompt: str) -> None:
        if prompt in self.prompts:
            self.prompts.remove(prompt)
        self.prompts.append(prompt)

    def sizes(self) -> tuple[int, int]:
        """size and size_vram of /api/ps."""
        m, tokens = self.persona.memory, self.launch.window
        if self.persona.mode == "mlx":  # live memory: the cache grows as tokens are used
            size = m.weights_bytes + m.compute_bytes + m.kv(self.live_tokens)
        else:
            per_slot = m.kv(tokens) + m.state_bytes_per_slot
            mask = 2 * self.batch * tokens if m.mask_bytes else 0
            size = m.weights_bytes + m.compute_bytes + self.persona.slots * per_slot + mask
        return size, min(size, m.device_bytes)

    @property
    def spilled(self) -> bool:
        size, on_device = self.sizes()
        return 0 < on_device < size


def _common(a: str, b: str) -> int:
    """Length of the common prefix; halving with slice comparisons, since prompts are long and mostly equal."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Acquired(NamedTuple):
    """A runner with one more reference, and what it took to get it. `load_ns` is load_duration: what was waited for others
    (measured) plus the persona's own time (stated)."""

    runner: Runner
    load_ns: int
    reload: str | None = None  # the option that forced it
    evicted: str | None = None


@dataclass(slots=True)
class _Wanted:
    persona: Persona
    name: str
    launch: Launch
    keep_alive_s: float | None
    asked_ns: int
    answer: asyncio.Future[Acquired]
    reload: str | None = None
    evicted: str | None = None


class Scheduler:
    """Loads, reuses, reloads, evicts and unloads runners."""

    def __init__(
        self,
        metronome: Metronome,
        *,
        speed: float = 1.0,
        keep_alive_s: float = 300.0,
        max_loaded: int = 3,
        max_queue: int = 512,
        slots: int | None = None,
        rng: Random | None = None,
    ) -> None:
        self.loaded: dict[str, Runner] = {}
        self._metronome = metronome
        self._speed = speed
        self._keep_alive_s = keep_alive_s
        self._max_loaded = max_loaded
        self._max_queue = max_queue
        self._slots = slots
        self._rng = rng or Random(0)
        self._pending: deque[_Wanted] = deque()
        self._work = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self.on_unload: Callable[[Runner], None] | None = None

    def start(self) -> None:
        self._loop_task = spawn(self._serve(), name="simulated scheduler")

    async def stop(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        for runner in list(self.loaded.values()):
            self._unload(runner)

    @staticmethod
    def key(persona: Persona) -> str:
        """Names that share their weights share a runner."""
        return persona.same_weights_as or persona.full_name

    async def acquire(self, persona: Persona, name: str, launch: Launch, keep_alive_s: float | None) -> Acquired:
        """A runner for these options, with one more reference.

        Raises Busy or LoadFailed. Cancelling gives up the place in the queue; a load under way for it alone is aborted.
        """
        runner = self.loaded.get(self.key(persona))
        if runner is not None and runner.launch.difference(launch) is None:
            warm_ns = int(persona.load.warm_ms * MS / self._speed)
            await self._metronome.sleep(warm_ns)
            if self.loaded.get(self.key(persona)) is runner:
                self._use(runner, keep_alive_s)
                return Acquired(runner, warm_ns)
        if len(self._pending) >= self._max_queue:
            raise Busy
        answer: asyncio.Future[Acquired] = asyncio.get_running_loop().create_future()
        wanted = _Wanted(persona, name, launch, keep_alive_s, time.monotonic_ns(), answer)
        self._pending.append(wanted)
        self._work.set()
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.release(answer.result().runner)
            answer.cancel()
            self._changed.set()
            raise

    def release(self, runner: Runner) -> None:
        """One reference less; the last one starts the keep-alive clock."""
        runner.references -= 1
        self._changed.set()
        if runner.references == 0:
            if runner.leaving or runner.keep_alive_s == 0:
                self._unload(runner)
            else:
                self._expire_later(runner)

    def expire(self, persona: Persona) -> None:
        """keep_alive: 0. At once when idle, else after the last request."""
        runner = self.loaded.get(self.key(persona))
        if runner is None:
            return
        runner.keep_alive_s = 0
        if runner.references == 0:
            self._unload(runner)

    def _use(self, runner: Runner, keep_alive_s: float | None) -> None:
        runner.references += 1
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        if runner._expiry is not None:
            runner._expiry.cancel()
            runner._expiry = None
        self._stamp(runner)

    def _stamp(self, runner: Runner) -> None:
        far = 10 * 365 * 86400.0
        runner.expires_unix = time.time() + (runner.keep_alive_s if runner.keep_alive_s >= 0 else far)

    def _expire_later(self, runner: Runner) -> None:
        self._stamp(runner)
        if runner.keep_alive_s > 0:
            runner._expiry = asyncio.get_running_loop().call_later(runner.keep_alive_s, self._idle_too_long, runner)

    def _idle_too_long(self, runner: Runner) -> None:
        if runner.references == 0:
            self._unload(runner)

    def _unload(self, runner: Runner) -> None:
        if runner._expiry is not None:
            runner._expiry.cancel()
        self.loaded = {k: r for k, r in self.loaded.items() if r is not runner}
        if self.on_unload is not None:
            self.on_unload(runner)
        self._changed.set()

    async def _serve(self) -> None:
        """The one loop that loads. Whoever waits behind a load waits for all of it."""
        while True:
            while not self._pending:
                self._work.clear()
                await self._work.wait()
            wanted = self._pending.popleft()
            if wanted.answer.cancelled():
                continue
            await self._provide(wanted)

    async def _provide(self, wanted: _Wanted) -> None:
        key = self.key(wanted.persona)
        warm_ns = int(wanted.persona.load.warm_ms * MS / self._speed)
        while not wanted.answer.cancelled():
            runner = self.loaded.get(key)
            if runner is not None:
                difference = runner.launch.difference(wanted.launch)
                if difference is None:  # another request loaded it meanwhile
                    load_ns = max(warm_ns, time.monotonic_ns() - wanted.asked_ns)
                    break
                wanted.reload = difference
                await self._gone(runner, wanted)
                continue
            if len(self.loaded) >= self._max_loaded:
                victim = self._victim()
                wanted.evicted = victim.name
                await self._gone(victim, wanted)
                continue
            waited_ns = time.monotonic_ns() - wanted.asked_ns
            try:
                runner = await self._load(wanted)
            except LoadFailed as failed:
                if not wanted.answer.done():
                    wanted.answer.set_exception(failed)
                return
            if runner is None:
                return
            self.loaded[key] = runner
            load_ns = waited_ns + self._load_time_ns(wanted)
            break
        else:
            return
        if not wanted.answer.done():
            self._use(runner, wanted.keep_alive_s)
            wanted.answer.set_result(Acquired(runner, load_ns, wanted.reload, wanted.evicted))

    def _load_time_ns(self, wanted: _Wanted) -> int:
        load = wanted.persona.load
        return int((load.reload if wanted.reload else load.cold_ms) * MS / self._speed)

    async def _gone(self, runner: Runner, wanted: _Wanted) -> None:
        """Wait until this runner has ended its requests and left, or nobody wants that any more."""
        runner.leaving = True
        if runner.references == 0:
            self._unload(runner)
        while runner in self.loaded.values() and not wanted.answer.cancelled():
            self._changed.clear()
            await self._changed.wait()
        runner.leaving = False

    def _victim(self) -> Runner:
        """Whom to evict: an idle one with the shortest keep-alive (not the least recently used), else any."""
        idle = [r for r in self.loaded.values() if r.references == 0]
        return min(idle or list(self.loaded.values()), key=lambda r: (r.keep_alive_s < 0, r.keep_alive_s))

    async def _load(self, wanted: _Wanted) -> Runner | None:
        """Take the load's time. None when the client left meanwhile: an aborted load leaves nothing behind."""
        persona = wanted.persona
        if persona.load.fails is not None:
            raise LoadFailed(persona.load.fails)
        slots = self._slots or persona.slots
        keep = self._keep_alive_s if wanted.keep_alive_s is None else wanted.keep_alive_s
        runner = Runner(persona, wanted.name, wanted.launch, slots, keep, 0)
        size, _ = runner.sizes()
        room = persona.memory.device_bytes + persona.memory.host_bytes
        if size > room:
            have = f"{room / 2**30:.1f} GiB"
            raise LoadFailed(f"model requires more system memory ({size / 2**30:.1f} GiB) than is available ({have})")
        due = time.monotonic_ns() + self._load_time_ns(wanted)
        timer = spawn(self._metronome.until(due), name="simulated load")
        wanted.answer.add_done_callback(lambda _: timer.cancel())
        await asyncio.wait([timer])
        if wanted.answer.cancelled():
            return None
        runner.loaded_ns = time.monotonic_ns()
        return runner
