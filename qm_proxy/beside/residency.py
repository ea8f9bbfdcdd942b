"""Which models Ollama has loaded, and their windows: `/api/ps`, asked off the request path, `/api/show` never.

Rules that hold here:

- It asks only while there is traffic, or was in the last minute: an idle proxy leaves an idle Ollama alone.
- `/api/ps` loads nothing. It has a short patience; no answer means unknown, never "nothing loaded".
- A model's name is not its runner: two names on one file share a runner, and only the first name is listed
  (seen on 0.33). So an absent name means unknown while anything else is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qm_proxy.events import Nanoseconds, Residency, ResidentModel

if TYPE_CHECKING:
    import aiohttp

__all__ = ["ResidencyWatch", "read_residency"]

PATIENCE_S = 2.0
LINGER_S = 60.0
LEAST_S = 0.2  # between two looks, however much in a hurry


def read_residency(body: bytes, t_ns: Nanoseconds) -> Residency | None:
    """An `/api/ps` body → Residency; `None` when it is not one. Unknown fields are passed over."""
    try:
        found = json.loads(body)["models"] or []
        return Residency(t_ns, tuple(_model(m) for m in found))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _model(m: dict[str, Any]) -> ResidentModel:
    return ResidentModel(
        name=str(m.get("name") or m.get("model") or ""),
        digest=str(m.get("digest") or ""),
        size=m.get("size"),
        size_vram=m.get("size_vram"),
        context_window=m.get("context_length") or None,
        expires_at=m.get("expires_at"),
    )


class ResidencyWatch:
    """Keeps the latest Residency, and passes each on. `wake` is called whenever there is traffic."""

    def __init__(self, url: str, unix: str | None, every_s: float, see: Callable[[Residency], None]) -> None:
        self.url = url
        self.unix = unix
        self.every_s = every_s
        self.see = see
        self.latest: Residency | None = None
        self.failures = 0
        self.failing = False  # the last look was not answered
        self._awake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._last_traffic = time.monotonic()

    def wake(self) -> None:
        self._last_traffic = time.monotonic()
        self._awake.set()

    def hurry(self) -> None:
        """Look again soon: a model answers whose window is not known."""
        self.wake()
        self._hurry.set()

    def window_of(self, model: str | None) -> int | None:
        """The window, in tokens, of the loaded model of that name (`:latest` understood); `None` when unknown."""
        if model is None or self.latest is None:
            return None
        full = model if ":" in model else f"{model}:latest"
        return next((m.context_window for m in self.latest.models if m.name in (model, full)), None)

    async def run(self) -> None:
        """Ask for ever; end by cancelling."""
        import aiohttp

        connector = aiohttp.UnixConnector(self.unix) if self.unix else aiohttp.TCPConnector(limit=1, force_close=True)
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while True:
                await self._look(session)
                await asyncio.sleep(min(LEAST_S, self.every_s))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), max(0.0, self.every_s - LEAST_S))
                self._hurry.clear()
                if time.monotonic() - self._last_traffic > LINGER_S:
                    self._awake.clear()
                    await self._awake.wait()

    async def _look(self, session: aiohttp.ClientSession) -> None:
        before = time.monotonic_ns()
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError):
            import aiohttp

            try:
                base = "http://ollama" if self.unix else self.url
                async with session.get(base + "/api/ps", headers={"User-Agent": "qm-proxy"}) as answer:
                    body = await answer.read()
            except aiohttp.ClientConnectionError:
                self.failures += 1
                self.failing = True
                return
            except aiohttp.ClientError:
                self.failures += 1
                return
            self.failing = False
            found = read_residency(body, Nanoseconds((before + time.monotonic_ns()) // 2))
            if found is not None:
                self.latest = found
                self.see(found)
                return
        self.failures += 1
