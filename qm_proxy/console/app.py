"""The console application: guard around page, API, metrics and what wiring mounts (MCP, jobs). Starlette on uvicorn with h11."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from qm_proxy.console.api import CancelRun, CompareRuns, Replays, StartRun, Status, crash_problem, http_problem, routes
from qm_proxy.console.guard import Guard, names_of
from qm_proxy.store.queries import Archive

__all__ = ["Server", "build"]


def build(
    queries: Archive,
    status: Status,
    *,
    names: frozenset[str],
    token: str | None = None,
    mounts: Sequence[BaseRoute] = (),
    start: StartRun | None = None,
    cancel: CancelRun | None = None,
    compare: CompareRuns | None = None,
    replays: Replays | None = None,
) -> Guard:
    """The ASGI application. `names` are the exact `host:port` it answers to; `mounts` come after the API's routes."""
    given: dict[str, Any] = {"start": start, "cancel": cancel, "compare": compare, "replays": replays}
    jobs = {name: function for name, function in given.items() if function is not None}
    app = Starlette(
        routes=[*routes(queries, status, **jobs), *mounts],
        exception_handlers={HTTPException: http_problem, Exception: crash_problem},
    )
    return Guard(app, names, token)


class Server(uvicorn.Server):
    """uvicorn on sockets that are already bound; signals are the supervisor's business, not its."""

    def __init__(self, app: Guard, sockets: list[socket.socket]) -> None:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._sockets = sockets
        self.up = asyncio.Event()
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which wakes ten times a second to see whether it is to end (1.5 ms of CPU); here it is told, and the
        second is for its Date header."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), 1)

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield

    async def run_until_stopped(self) -> None:
        await self.serve(sockets=self._sockets)

    async def stop(self, task: asyncio.Task[None]) -> None:
        """End the streams that are open and wait for `task`, which runs `run_until_stopped`."""
        self.should_exit = True
        self._ending.set()
        await task


def names_of_sockets(sockets: Sequence[socket.socket]) -> frozenset[str]:
    """Every name by which these listening sockets may be called."""
    return names_of([(s.getsockname()[0], s.getsockname()[1]) for s in sockets if s.family != socket.AF_UNIX])
