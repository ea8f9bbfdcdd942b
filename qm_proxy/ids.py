"""Names for what we observe: UUIDv7 (RFC 9562 section 5.7), so that sorting ids sorts by time.

Rules that hold here:

- Within a process every id is greater than the one before, also within one millisecond and when the wall clock steps back:
  the 74 bits behind the time are a counter that starts at random (RFC 9562 section 6.2, method 2, a whole random tail).
- The time is given by the caller, who has the exchange's own; there is no clock in here.
"""

from __future__ import annotations

from random import SystemRandom
from threading import Lock

__all__ = ["Ids", "new_id", "unix_ms_of"]

_TAIL_BITS = 74  # rand_a (12) and rand_b (62)
_STEP_BITS = 40  # each id of a millisecond lies up to 2⁴⁰ above the last: unguessable, and 2³³ of them fit


class Ids:
    """One increasing sequence. Several processes may each have their own: 74 random bits keep them apart."""

    def __init__(self, random_bits: SystemRandom | None = None) -> None:
        self._random = random_bits or SystemRandom()
        self._lock = Lock()
        self._ms = -1
        self._tail = 0

    def new(self, unix_ns: int) -> str:
        """The next id, bearing `unix_ns` (or the time of the id before, if that is later)."""
        ms = max(unix_ns // 1_000_000, 0) & 0xFFFF_FFFF_FFFF
        with self._lock:
            if ms > self._ms:
                self._ms, self._tail = ms, self._random.getrandbits(_TAIL_BITS - 1)  # top bit clear: room to count
            else:
                self._tail += 1 + self._random.getrandbits(_STEP_BITS)
                if self._tail >> _TAIL_BITS:
                    self._ms, self._tail = self._ms + 1, self._random.getrandbits(_TAIL_BITS - 1)
            ms, tail = self._ms, self._tail
        text = f"{ms:012x}7{tail >> 62:03x}{0x8 << 60 | tail & 0x3FFF_FFFF_FFFF_FFFF:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


new_id = Ids().new
"""The process's own sequence: `new_id(unix_ns)`."""


def unix_ms_of(identifier: str) -> int:
    """The time an id bears, in ms since the epoch. Raises `ValueError` when it is not a UUIDv7 in its canonical form."""
    digits = identifier.replace("-", "")
    if len(identifier) != 36 or len(digits) != 32 or digits[12] != "7" or digits[16] not in "89abAB":
        raise ValueError(f"Expected a UUIDv7 such as 0190b5a2-7c1e-7…, found {identifier[:40]!r}.")
    return int(digits[:12], 16)
