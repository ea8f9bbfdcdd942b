"""A gap series ↔ the compact blob that is stored: when each chunk came, and how much later the client had taken it.

    blob    = version:u8 flags:u8 resolution_us:varint n:varint [first:varint] payload
    payload = low bytes of the codes · high bytes of the codes · escapes:varint*        (deflated, RFC 1951, when flag 1 is set)

Rules that hold here:

- Times are rounded to the resolution as absolute times since the exchange's first byte; what is stored is the difference of the
  rounded values. So no error adds up: every time that comes back is within half a step of the one that went in.
- Codes are 16 bits. Arrivals have one for each chunk but the first (`first` is that one's time in steps): the gap before it in
  steps. Lags have one for each chunk, in steps. Two codes are special: 65535 says that the value is the next of the escapes,
  65534 "in the same read as the chunk before" in arrivals, and "never known" in lags.
- Splitting low from high bytes lets deflate spend some 8 bits on the jitter and nothing on the rest: about 1 byte per token.
- Varints are LEB128: 7 bits a byte, lowest first, the top bit says that more follow.
- The first byte is the format's version. A blob that says another, or that does not add up, raises `ValueError`.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import sub

__all__ = [
    "RESOLUTION_NS",
    "UNKNOWN",
    "VERSION",
    "Arrivals",
    "Lags",
    "coalesced",
    "pack",
    "pack_lags",
    "resolution_ns",
    "unpack",
    "unpack_lags",
    "written",
]

VERSION = 1
RESOLUTION_NS = 20_000
"""20 µs: below what a user-space time stamp is worth, and gaps up to 1.3 s fit a code."""
UNKNOWN = -1
"""The lag of a chunk of which nobody learnt when the client took it."""

_DEFLATED = 1
_MOST_PER_BYTE = 1100  # deflate packs at most 1 032 bytes in one
_LAGS = 2
_ESCAPE = 0xFFFF
_SPECIAL = 0xFFFE  # same read; never known
_BIG_ENDIAN = sys.byteorder == "big"


class Arrivals:
    """The arrival times of one stream, packed as they come: 2 bytes held per chunk, escapes apart."""

    __slots__ = ("_carry", "_codes", "_escapes", "_first", "_half", "_last_ns", "_resolution", "_same", "_zero", "n")

    def __init__(self, zero_ns: int = 0, resolution_ns: int = RESOLUTION_NS) -> None:
        """`zero_ns`: the exchange's first byte. `resolution_ns`: a whole number of microseconds, ≤ 100 µs."""
        self._zero = zero_ns
        self._resolution = _checked(resolution_ns)
        self._half = resolution_ns // 2
        self._codes = array("H")
        self._escapes = bytearray()
        self._first = 0
        self._carry = 0  # ns by which the last time, rounded, lies above its step
        self._last_ns = 0
        self._same = False
        self.n = 0

    def extend(self, times_ns: Sequence[int]) -> list[int]:
        """Take the next arrival times, in order (one that lies before its predecessor counts as equal to it: stamps of one
        clock do not run back). Answers with the gaps in ns before each, the first chunk of all having none; 0 = same read."""
        if not len(times_ns):
            return []
        if type(times_ns) is not list:
            times_ns = list(times_ns)  # an array would box every number each time it is read
        resolution = self._resolution
        started = self.n > 0
        if not started:
            since = times_ns[0] - self._zero + self._half
            if since < self._half:
                return self._extend_disordered(times_ns)
            self._first = since // resolution
            self._carry = since % resolution
            self._last_ns = times_ns[0]
        gaps = list(map(sub, times_ns, [self._last_ns, *times_ns[:-1]]))
        if min(gaps) < 0:
            return self._extend_disordered(times_ns)
        # Steps are counted from the last one on, so that the numbers stay small: to divide them costs a third.
        steps = [ns // resolution for ns in accumulate(gaps, initial=self._carry)]
        codes = list(map(sub, steps[1:], steps))
        self._carry += times_ns[-1] - self._last_ns - steps[-1] * resolution
        self._last_ns = times_ns[-1]
        if not started:
            del gaps[0], codes[0]
        _append(self._codes, self._escapes, codes)
        if 0 in gaps:
            self._same = True
            for i in [i for i, gap in enumerate(gaps) if not gap]:
                self._codes[i - len(gaps)] = _SPECIAL
        self.n += len(times_ns)
        return gaps

    def _extend_disordered(self, times_ns: Sequence[int]) -> list[int]:
        floor = self._last_ns if self.n else self._zero
        return self.extend([floor := max(floor, t) for t in times_ns])

    @property
    def last_ns(self) -> int:
        """The latest time taken, as it came; 0 before there is one."""
        return self._last_ns

    def blob(self) -> bytes:
        """What is stored. May be asked for at any time, and again later."""
        if not self.n:
            return _assembled(0, self._resolution, 0, b"", self._codes, self._escapes)
        return _assembled(0, self._resolution, self.n, _varint(self._first), self._codes, self._escapes)

    def coalesced(self) -> array[int]:
        """Indices of the chunks that came in the same read as the one before."""
        return _specials(self._codes) if self._same else array("I")


class Lags:
    """How long after its arrival each chunk had been taken by the client, packed as it becomes known."""

    __slots__ = ("_codes", "_escapes", "_half", "_resolution", "n")

    def __init__(self, resolution_ns: int = RESOLUTION_NS) -> None:
        self._resolution = _checked(resolution_ns)
        self._half = resolution_ns // 2
        self._codes = array("H")
        self._escapes = bytearray()
        self.n = 0

    def extend(self, lags_ns: Sequence[int]) -> None:
        """Take the next lags, in the order of the chunks; `UNKNOWN` where there is none to be had."""
        if not len(lags_ns):
            return
        half, resolution = self._half, self._resolution
        unknown = [i for i, lag in enumerate(lags_ns, -len(lags_ns)) if lag < 0] if min(lags_ns) < 0 else ()
        if unknown:
            lags_ns = [max(lag, 0) for lag in lags_ns]
        _append(self._codes, self._escapes, [(lag + half) // resolution for lag in lags_ns])
        for i in unknown:
            self._codes[i] = _SPECIAL
        self.n += len(lags_ns)

    def blob(self) -> bytes:
        """What is stored. May be asked for at any time, and again later."""
        return _assembled(_LAGS, self._resolution, self.n, b"", self._codes, self._escapes)


def pack(times_ns: Sequence[int], *, zero_ns: int = 0, resolution_ns: int = RESOLUTION_NS) -> bytes:
    """Arrival times (monotonic ns, ascending) → blob."""
    arrivals = Arrivals(zero_ns, resolution_ns)
    arrivals.extend(times_ns)
    return arrivals.blob()


def pack_lags(lags_ns: Sequence[int], *, resolution_ns: int = RESOLUTION_NS) -> bytes:
    """Lags in ns, `UNKNOWN` where there is none → blob."""
    lags = Lags(resolution_ns)
    lags.extend(lags_ns)
    return lags.blob()


def unpack(blob: bytes) -> list[int]:
    """Arrival times in ns since the exchange's first byte, rounded to the blob's resolution."""
    resolution, n, first, codes, escapes = _parsed(blob, 0)
    if not n:
        return []
    steps = codes.tolist()
    if _SPECIAL in codes:
        steps = [0 if step == _SPECIAL else step for step in steps]
    _fill(codes, steps, escapes)
    return [step * resolution for step in accumulate(steps, initial=first)]


def unpack_lags(blob: bytes) -> list[int | None]:
    """Lags in ns, rounded to the blob's resolution; `None`: never known."""
    resolution, _, _, codes, escapes = _parsed(blob, _LAGS)
    steps = codes.tolist()
    _fill(codes, steps, escapes)
    return [None if code == _SPECIAL else step * resolution for code, step in zip(codes, steps, strict=True)]


def written(arrival: bytes, lags: bytes) -> list[int | None]:
    """When the client had taken each chunk, in ns since the exchange's first byte; `None`: never known."""
    came, waited = unpack(arrival), unpack_lags(lags)
    if len(came) != len(waited):
        raise ValueError(f"Expected as many lags as arrivals, found {len(waited)} beside {len(came)}.")
    return [None if lag is None else t + lag for t, lag in zip(came, waited, strict=True)]


def coalesced(arrival: bytes) -> array[int]:
    """Indices of the chunks that came in the same read as the one before. Exact, whatever the resolution."""
    return _specials(_parsed(arrival, 0)[3])


def resolution_ns(blob: bytes) -> int:
    """The step of a blob."""
    return _parsed(blob, blob[1] & _LAGS if len(blob) > 1 else 0)[0]


def _checked(resolution: int) -> int:
    if resolution <= 0 or resolution > 100_000 or resolution % 1000:
        raise ValueError(f"Expected a resolution in whole microseconds up to 100 µs, found {resolution} ns.")
    return resolution


def _specials(codes: array[int]) -> array[int]:
    return array("I", [i for i, code in enumerate(codes, 1) if code == _SPECIAL] if _SPECIAL in codes else [])


def _append(codes: array[int], escapes: bytearray, values: list[int]) -> None:
    """`values` ≥ 0, in steps."""
    if values and max(values) >= _SPECIAL:
        for i, value in enumerate(values):
            if value >= _SPECIAL:
                escapes += _varint(value)
                values[i] = _ESCAPE
    codes.fromlist(values)


def _fill(codes: array[int], steps: list[int], escapes: bytes) -> None:
    if _ESCAPE not in codes:
        if escapes:
            raise ValueError("Expected a series without escapes, found some.")
        return
    at = 0
    for i, code in enumerate(codes):
        if code == _ESCAPE:
            steps[i], at = _read_varint(escapes, at)
    if at != len(escapes):
        raise ValueError(f"Expected {at} bytes of escapes, found {len(escapes)}.")


def _assembled(flags: int, resolution: int, n: int, first: bytes, codes: array[int], escapes: bytes | bytearray) -> bytes:
    if _BIG_ENDIAN:
        codes = array("H", codes)
        codes.byteswap()
    raw = codes.tobytes()
    payload = raw[0::2] + raw[1::2] + escapes
    packer = zlib.compressobj(4, zlib.DEFLATED, -15)  # 6 costs twice and saves 1 %
    deflated = packer.compress(payload) + packer.flush()
    if len(deflated) < len(payload):
        flags, payload = flags | _DEFLATED, deflated
    return bytes((VERSION, flags)) + _varint(resolution // 1000) + _varint(n) + first + payload


def _parsed(blob: bytes, kind: int) -> tuple[int, int, int, array[int], bytes]:
    if len(blob) < 4 or blob[0] != VERSION:
        raise ValueError(f"Expected a series of version {VERSION}, found {bytes(blob[:4])!r}.")
    flags = blob[1]
    if flags & ~_DEFLATED != kind:
        raise ValueError(f"Expected {'lags' if kind else 'arrivals'}, found flags {flags}.")
    resolution, at = _read_varint(blob, 2)
    n, at = _read_varint(blob, at)
    first = 0
    if n and not kind:
        first, at = _read_varint(blob, at)
    count = n if kind else max(n - 1, 0)
    if count > len(blob) * _MOST_PER_BYTE:
        raise ValueError(f"Expected at most {_MOST_PER_BYTE} codes a byte, found {count} in {len(blob)}.")
    payload = bytes(blob[at:])
    if flags & _DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            payload = unpacker.decompress(payload, 12 * count + 1)  # bounded: a code and its escape take ≤ 12 bytes
        except zlib.error as exc:
            raise ValueError(f"Expected a deflated series, found {exc}.") from exc
        if not unpacker.eof:
            raise ValueError("Expected the end of a deflated series, found more or less.")
    if len(payload) < 2 * count:
        raise ValueError(f"Expected {count} codes, found {len(payload) // 2}.")
    raw = bytearray(2 * count)
    raw[0::2], raw[1::2] = payload[:count], payload[count : 2 * count]
    codes = array("H")
    codes.frombytes(bytes(raw))
    if _BIG_ENDIAN:
        codes.byteswap()
    return resolution * 1000, n, first, codes, payload[2 * count :]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(blob: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(blob) and shift < 70:
        byte = blob[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("Expected a varint, found the end of the series.")
