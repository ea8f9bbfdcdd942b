"""Real processes on loopback: a simulated Ollama in a thread of its own, and `serve` in front of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probes.sim.server import SimulatedOllama
from qm_proxy.cli import plan_of
from qm_proxy.servant import Servant
from qm_proxy.settings import load


class SimThread:
    """A simulated Ollama that goes on while the test blocks."""

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.sim = self._wait(self._start(options))

    async def _start(self, options: dict[str, Any]) -> SimulatedOllama:
        return await SimulatedOllama(**options).start()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    @property
    def url(self) -> str:
        url: str = self.sim.url
        return url

    def close(self) -> None:
        self._wait(self.sim.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def make_sim() -> Iterator[Callable[..., SimThread]]:
    made: list[SimThread] = []

    def make(**options: Any) -> SimThread:
        made.append(SimThread(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sim(make_sim: Callable[..., SimThread]) -> SimThread:
    return make_sim(personas=["steady"], speed=8.0)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Servant]]:
    """Start `serve` with these flags; ends with the test."""
    made: list[Servant] = []

    def serve(upstream: str, **flags: Any) -> Servant:
        given = {
            "upstream": upstream,
            "listen": "127.0.0.1:0",
            "console": "127.0.0.1:0",
            "db": str(tmp_path / "qm.db"),
            "grace": 5.0,
        } | flags
        made.append(Servant(plan_of(load(given), quiet=True)))
        return made[-1]

    yield serve
    for one in made:
        one.close()
