"""Where the observer's results go. Sessions, telemetry, store and console implement `Sink`; wiring lists them.

A sink is called from the observer's loop and must return at once (queue, do not wait). What it raises is counted and
swallowed by the caller: one sink's failure is nobody else's.
"""

from __future__ import annotations

from typing import Protocol

from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Progress, Record

__all__ = ["Sink", "unheard"]


class Sink(Protocol):
    def opened(self, opened: Opened) -> None:
        """The request is read; nothing has been answered yet."""

    def progress(self, progress: Progress) -> None:
        """A stream moves; at most ten times a second for each."""

    def found(self, finding: Finding) -> None:
        """A detector concluded something, live."""

    def closed(self, record: Record) -> None:
        """The exchange is over; the record is complete and is not changed afterwards."""


def unheard(sink: object, what: object) -> None:
    """The step of a sink to which it says nothing: `progress = unheard`. Whoever tells many sinks leaves it out."""
