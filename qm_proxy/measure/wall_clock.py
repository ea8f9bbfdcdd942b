"""Monotonic stamps → instants. The wall clock dates things; it measures nothing.

A monotonic clock stands still while the machine sleeps (Linux, macOS) and the wall clock does not: a jump of the one against the
other is how a sleep is seen. A clock that was set by hand looks the same; so a jump is marked, the gap across it not measured.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["JUMP_NS", "WallClock", "iso", "unix_ns_of_iso"]

JUMP_NS = 1_000_000_000
"""NTP slews by at most 500 ppm: half a millisecond between two looks a second apart. A second is no drift."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class WallClock:
    """The offset between the two clocks, looked at about once a second by whoever has clocks."""

    def __init__(self, monotonic_ns: int, unix_ns: int) -> None:
        self._offset = unix_ns - monotonic_ns

    def look(self, monotonic_ns: int, unix_ns: int) -> int:
        """Take a pair of readings made together. Answers with the jump in ns since the last pair: > 0 the machine slept (or the
        clock was set forward), < 0 the clock was set back, 0 no jump. Small drift is followed silently."""
        offset = unix_ns - monotonic_ns
        jump, self._offset = offset - self._offset, offset
        return jump if abs(jump) >= JUMP_NS else 0

    def unix_ns(self, monotonic_ns: int) -> int:
        """The instant of a stamp, by the offset of now: right for stamps since the last jump."""
        return monotonic_ns + self._offset


def iso(unix_ns: int) -> str:
    """UTC, ISO 8601, always with six decimals: `2026-11-24T12:00:00.123456Z`. Sorts as text."""
    return (_EPOCH + timedelta(microseconds=unix_ns // 1000)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_ns_of_iso(text: str) -> int:
    """Any ISO 8601 instant or date → ns since the epoch; one without an offset is UTC. Raises `ValueError` for anything else."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as exc:
        raise ValueError(f"Expected an instant such as 2026-11-24T12:00:00Z, found {text[:40]!r}.") from exc
    since = (found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
