"""The Protocol of a detector: events in, findings out. Bounded memory, no clock but the events', never raises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from qm_proxy.events import Event, TextDelta, ThinkingDelta
from qm_proxy.findings import Finding

__all__ = ["Detector", "Listener"]


class Detector(Protocol):
    def see(self, event: Event) -> Iterable[Finding]:
        """Look at the next event of one exchange; answer with what it proves, usually nothing (an empty tuple)."""


class Listener(Detector, Protocol):
    """A detector to which single deltas prove nothing: it gets them in blocks, which costs a call in sixteen."""

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        """The texts of the next deltas, all of one kind, in order, instead of `see` for each. The list is the caller's."""
