"""A fake Ollama: one class that listens, answers every route byte for byte as the real server, and logs what it did.

    async with SimulatedOllama() as sim:
        print(sim.url, sim.truth[0].prefill_ns)

Beside Ollama's routes there are /sim/personas and /sim/truth, which no Ollama has.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from probes.sim.clock import Metronome, WallClock
from probes.sim.connection import Connection
from probes.sim.generation import Engine
from probes.sim.http import Request, Response
from probes.sim.knowing import Reader
from probes.sim.library import Library
from probes.sim.personas import Accuracy, Persona, builtin
from probes.sim.policies import Oracle, Speaker
from probes.sim.repertoire import Factory, make
from probes.sim.routes import Routes
from probes.sim.scheduler import Scheduler
from probes.sim.truth import Truth
from qm_proxy.errors import PortInUse

__all__ = ["SimulatedOllama"]


class SimulatedOllama:
    """Start it, point any Ollama client at `url`, and read `truth`.

    `personas`: persona objects or names of shipped ones (None: all that ship). `speed` 10 runs ten times as fast as
    stated, and says so in every duration it reports. `slots` overrides each persona's own (their memory stays).
    `policies` and `oracle` plug in answers from the caller's process. The same seed and the same requests give the same
    answers.
    """

    def __init__(
        self,
        personas: Iterable[Persona | str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        speed: float = 1.0,
        slots: int | None = None,
        version: str = "0.33.0-rc2",
        keep_alive_s: float = 300.0,
        max_loaded: int = 3,
        max_queue: int = 512,
        policies: dict[str, Factory] | None = None,
        oracle: Oracle | None = None,
        truth_file: Path | None = None,
    ) -> None:
        given = list(personas) if personas is not None else list(builtin())
        self.personas = [p if isinstance(p, Persona) else builtin([p])[0] for p in given]
        self.host = host
        self.port = port
        self.speed = speed
        self.version = version
        self.truth = Truth(truth_file)
        self.truth_log = self.truth
        self._seed = seed
        self._limits: dict[str, Any] = {
            "speed": speed, "keep_alive_s": keep_alive_s, "max_loaded": max_loaded, "max_queue": max_queue, "slots": slots,
        }  # fmt: skip
        self._policies = policies or {}
        self._oracle = oracle
        self._speakers = {p.full_name: self._speaker(p) for p in self.personas}  # names and parameters are judged here
        self.failures = 0  # requests that an error of our own ended
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._server: asyncio.Server | None = None
        self._metronome: Metronome | None = None
        self.scheduler: Scheduler | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> SimulatedOllama:
        """Listen. Raises PortInUse."""
        loop = asyncio.get_running_loop()
        metronome = self._metronome = Metronome(loop)
        self.scheduler = Scheduler(metronome, rng=Random(f"{self._seed}/scheduler"), **self._limits)
        engine = Engine(metronome, WallClock(), self.scheduler, self.speed, self._seed, self.truth.changed)
        self.scheduler.on_unload = lambda _: self.truth.changed()
        library = Library(self.personas, self.scheduler, self.version)
        self._routes = Routes(engine, library, self._speakers, self.truth)
        try:
            self._server = await loop.create_server(self._connection, self.host, self.port, backlog=4096, reuse_address=True)
        except OSError as cause:
            metronome.close()
            raise PortInUse(
                f"The simulated Ollama cannot listen on {self.host}:{self.port}: {cause.strerror}.",
                remedy="Give another --listen.",
            ) from cause
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.scheduler.start()
        return self

    async def stop(self) -> None:
        """Cut what is in flight, unload everything, give all descriptors back."""
        if self._server is not None:
            self._server.close()
            cut = [task for c in list(self._connections) if (task := c.stop()) is not None]
            await asyncio.gather(*cut, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None
        if self.scheduler is not None:
            await self.scheduler.stop()
        if self._metronome is not None:
            self._metronome.close()
            self._metronome = None
        self.truth.close()

    async def __aenter__(self) -> SimulatedOllama:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    def _connection(self) -> Connection:
        self._accepted += 1
        return Connection(self._handle, self._connections, self._accepted)

    async def _handle(self, request: Request, response: Response) -> None:
        truth = self.truth.opened(request.connection_n, request.method, request.path, request.t_ns)
        truth.label = request.header("x-sim-label")
        truth.user_agent = request.header("user-agent")
        try:
            await self._routes.answer(request, response, truth)
        except asyncio.CancelledError:
            truth.client_left_ns = request.left_ns
            truth.ending = truth.ending or "client_left"
            raise
        except Exception as broken:  # a policy's or an oracle's own error: as a Go handler that panics
            self.failures += 1
            traceback.print_exception(broken, file=sys.stderr)
            truth.ending, truth.note = "failed", repr(broken)
            if response.began:
                response.drop()
            else:
                response.status, response.headers = 500, {}
        finally:
            truth.status = truth.status or (response.status if response.began or truth.ending != "client_left" else None)
            truth.ending = truth.ending or "complete"
            self.truth.closed(truth, time.monotonic_ns())

    def _speaker(self, persona: Persona) -> Speaker:
        read = Reader(persona.accuracy or Accuracy(), self._oracle)
        return Speaker(persona, self._seed, policy=make(persona, self._policies), read=read)
