from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.measure.series import UNKNOWN, pack, pack_lags
from qm_proxy.store.functions import FUNCTIONS, register


@pytest.fixture
def connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    register(connection)
    return connection


def _ask(connection: sqlite3.Connection, sql: str, *values: object) -> object:
    return connection.execute(f"select {sql}", values).fetchone()[0]


def test_a_series_is_unpacked(connection: sqlite3.Connection) -> None:
    arrival = pack([100_000_000, 110_000_000, 110_000_000, 400_000_000])
    lags = pack_lags([20_000, UNKNOWN, 40_000, 0])
    assert json.loads(str(_ask(connection, "qm_arrivals(?)", arrival))) == [0.1, 0.11, 0.11, 0.4]
    assert json.loads(str(_ask(connection, "qm_gaps(?)", arrival))) == pytest.approx([0.01, 0, 0.29])
    assert json.loads(str(_ask(connection, "qm_written(?, ?)", arrival, lags))) == [0.10002, None, 0.11004, 0.4]
    assert json.loads(str(_ask(connection, "qm_coalesced(?)", arrival))) == [2]
    assert _ask(connection, "qm_max_gap(?)", arrival) == pytest.approx(0.29)
    assert connection.execute("select max(value) from json_each(qm_gaps(?))", (arrival,)).fetchone()[0] == pytest.approx(0.29)


def test_one_chunk_has_no_gap(connection: sqlite3.Connection) -> None:
    assert _ask(connection, "qm_gaps(?)", pack([5])) == "[]"
    assert _ask(connection, "qm_max_gap(?)", pack([5])) is None


def test_what_does_not_fit_together_is_null(connection: sqlite3.Connection) -> None:
    assert _ask(connection, "qm_written(?, ?)", pack([1, 2, 3]), pack_lags([1])) is None
    assert _ask(connection, "qm_gaps(null)") is None
    assert _ask(connection, "qm_gaps('text')") is None


@given(st.binary(max_size=200))
def test_no_blob_ends_a_query(blob: bytes) -> None:
    connection = sqlite3.connect(":memory:")
    register(connection)
    for name, (arguments, _) in FUNCTIONS.items():
        connection.execute(f"select {name}({', '.join('?' * arguments)})", [blob] * arguments).fetchone()
