"""Ctrl-C and SIGTERM of a probe's command: say at once what happens, stop the model, keep what was measured.

- Python's own handlers run between any two instructions of the main thread, so a conclusion that computes is no reason for
  silence; a loop's would wait for it. Telling the loop is done through its thread-safe door.
- The second one ends the process at once: every answer is in rows.jsonl already, and a closed socket stops the model.
- Messages are written to the descriptor: a handler may have interrupted a write to the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

__all__ = ["EXIT_CODE", "Interrupts"]

EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """As a context: the handlers stand inside of it. `out` is where the rows are, for the words; `live`: a line may stand."""

    def __init__(self, out: Path | None, *, live: bool = False) -> None:
        self.out = out
        self.asked = False
        self._stage: Literal["starting", "measuring", "writing"] = "starting"
        self._stop: Callable[[], None] | None = None
        self._clear = "\r\033[K" if live else ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        with contextlib.suppress(ValueError):  # not the main thread: there are no signals there
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._see)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def measuring(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """From now on there is something to stop, and something to keep."""
        self._stop = lambda: _tell(loop, stop)
        self._stage = "measuring"
        if self.asked:
            self._stop()

    def writing(self) -> None:
        """The result is made and saved; what is left are reports and pictures."""
        self._stage = "writing"

    def _see(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._say(f"ended at once{self._kept()}")
            os._exit(EXIT_CODE)
        self.asked = True
        if self._stage == "measuring" and self._stop is not None:
            self._stop()
            self._say("interrupted: the model is stopped, what was measured is being written (Ctrl-C again ends at once)")
        elif self._stage == "writing":
            self._say(f"interrupted: the measurement is complete{self._kept()}; the other pictures are left out")
        else:
            self._say("interrupted before anything was measured")
            os._exit(EXIT_CODE)

    def _kept(self) -> str:
        return f"; what was measured is in {self.out}" if self.out is not None and (self.out / "rows.jsonl").exists() else ""

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{self._clear}qm-proxy: {text}\n".encode())


def _tell(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended: so has the run
        loop.call_soon_threadsafe(stop)
