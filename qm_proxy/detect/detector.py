"""The Protocol of a detector: events in, findings out. Bounded memory, no clock but the events', never raises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from qm_proxy.events import Deltas, Event, TextDelta, ThinkingDelta
from qm_proxy.findings import Finding

__all__ = ["Detector", "Listener", "SeesDeltas"]


class Detector(Protocol):
    def see(self, event: Event) -> Iterable[Finding]:
        """Look at the next event of one exchange; answer with what it proves, usually nothing (an empty tuple)."""


@runtime_checkable
class SeesDeltas(Protocol):
    """A detector that can look at several deltas at once, with the same result as `see` for each."""

    def deltas(self, deltas: Deltas) -> Iterable[Finding]: ...


class Listener(Detector, Protocol):
    """A detector to which single deltas prove nothing: it gets them in blocks, which costs a call in sixteen."""

    def said(self, kind: type[TextDelta | ThinkingDelta], pieces: list[str]) -> None:
        """The texts of the next deltas, all of one kind, in order, instead of `see` for each. The list is the caller's."""
