"""SQL functions that unpack what is stored compactly, and the hooks by which Datasette and sqlite-utils get them.

    select qm_gaps(arrival) from chunks where exchange_id = ?

A blob that is none of ours gives NULL, never an error: one bad row must not end a query over a year.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from qm_proxy.measure.pieces import unpack_pieces
from qm_proxy.measure.series import coalesced, unpack, written

__all__ = ["FUNCTIONS", "register"]


def qm_arrivals(arrival: bytes | None) -> str | None:
    """When each chunk arrived: JSON array, seconds since the exchange's first byte."""
    return _json(lambda: [t / 1e9 for t in unpack(_blob(arrival))])


def qm_gaps(arrival: bytes | None) -> str | None:
    """Time between consecutive chunks: JSON array, seconds; 0 where two came in the same read."""
    times = _unpacked(arrival)
    return None if times is None else _json(lambda: [(b - a) / 1e9 for a, b in pairwise(times)])


def qm_written(arrival: bytes | None, lags: bytes | None) -> str | None:
    """When the client had taken each chunk: JSON array, seconds since the exchange's first byte; null where never known."""
    return _json(lambda: [None if t is None else t / 1e9 for t in written(_blob(arrival), _blob(lags))])


def qm_coalesced(arrival: bytes | None) -> str | None:
    """Which chunks came in the same read as the one before: JSON array of their indices."""
    return _json(lambda: list(coalesced(_blob(arrival))))


def qm_max_gap(arrival: bytes | None) -> float | None:
    """The longest time between two consecutive chunks, in seconds."""
    times = _unpacked(arrival)
    return None if times is None or len(times) < 2 else max(b - a for a, b in pairwise(times)) / 1e9


def qm_pieces(pieces: bytes | None) -> str | None:
    """How many characters of the captured text came in each of its chunks: JSON array."""
    return _json(lambda: unpack_pieces(_blob(pieces)))


def _blob(value: bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("Expected a blob of ours.")
    return value


def _unpacked(arrival: bytes | None) -> list[int] | None:
    try:
        return unpack(_blob(arrival))
    except ValueError:
        return None


def _json(make: Callable[[], list[Any]]) -> str | None:
    try:
        return json.dumps(make(), separators=(",", ":"))
    except ValueError:
        return None


FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "qm_arrivals": (1, qm_arrivals),
    "qm_gaps": (1, qm_gaps),
    "qm_written": (2, qm_written),
    "qm_coalesced": (1, qm_coalesced),
    "qm_max_gap": (1, qm_max_gap),
    "qm_pieces": (1, qm_pieces),
}


def register(connection: sqlite3.Connection) -> None:
    """Give a connection the functions. They depend on nothing but their arguments."""
    for name, (arguments, function) in FUNCTIONS.items():
        connection.create_function(name, arguments, function, deterministic=True)
