"""The Protocol of a detector: events in, findings out. Bounded memory, no clock but the events', never raises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from qm_proxy.events import Event
from qm_proxy.findings import Finding

__all__ = ["Detector"]


class Detector(Protocol):
    def see(self, event: Event) -> Iterable[Finding]:
        """Look at the next event of one exchange; answer with what it proves, usually nothing (an empty tuple)."""
