from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from qm_proxy.store.database import in_memory, open_for_writing
from qm_proxy.store.rows import ORDER, STATEMENTS, Keeping, Row, exchange_rows, finding_row, run_row, started_rows

_ENDED = "2026-11-24T12:00:03.500000Z"


@pytest.fixture
def connection() -> sqlite3.Connection:
    return open_for_writing(in_memory())[0]


def _write(connection: sqlite3.Connection, rows: list[Row]) -> None:
    for row in sorted(rows, key=lambda row: ORDER.index(row.statement)):
        connection.execute(STATEMENTS[row.statement], row.values)


def _all(connection: sqlite3.Connection, table: str) -> list[dict[str, Any]]:
    cursor = connection.execute(f"select * from {table}")
    return [dict(zip([c[0] for c in cursor.description], row, strict=True)) for row in cursor]


def test_every_column_of_a_full_record_is_filled(connection: sqlite3.Connection, records: Any) -> None:
    session = records.ids.new(records.now_ns)
    first = records.turn(session, 1, findings=[records.finding()], error="no", undecoded="why", load_s=0.5, cached_tokens=3)
    second = records.turn(session, 2)
    second.opened.placed.results = [records.result_of(first)]
    second.opened.placed.parent_trajectory = 1
    second.opened.placed.previous_exchange_id = first.id
    for record in (first, second):
        record.captured_request, record.captured_answer, record.captured_thinking = "ask", "answer", "think"
        record.answer_pieces, record.thinking_pieces = b"\x06", b"\x05"
        _write(connection, exchange_rows(record, _ENDED, Keeping(content=True)))
    _write(connection, [run_row(dict.fromkeys(("id", "kind", "state", "started_at"), "x") | {"result": {"a": 1}})])
    unfilled = {
        f"{table}.{column}"
        for (table,) in connection.execute("select name from sqlite_master where type = 'table' and name not like '%sqlite%'")
        for column in [c[1] for c in connection.execute(f"pragma table_info({table})")]
        if all(row[column] is None for row in _all(connection, table))
    }
    later = {"models": "digest size_bytes size_vram_bytes context_window_tokens", "chunks": "suspended"}
    later["runs"] = "model step steps message summary ended_at elapsed_s settings report"
    by_design = {f"{table}.{column}" for table, columns in later.items() for column in columns.split()}
    assert unfilled == by_design


def test_a_session_is_summed_up(connection: sqlite3.Connection, records: Any) -> None:
    session = records.ids.new(records.now_ns)
    first = records.turn(session, 1, input_tokens=None)
    second = records.turn(session, 2, input_tokens=50, findings=[records.finding("tool.schema", severity="violation")])
    second.opened.placed.results = [records.result_of(first)]
    third = records.turn(session, 3, model="other:1b")
    third.opened.placed.relation = "retry"
    third.opened.placed.waited_for = "user"
    for record in (first, second, third):
        _write(connection, exchange_rows(record, _ENDED, Keeping()))
    (row,) = _all(connection, "sessions")
    expected = {
        "exchanges": 3,
        "turns": 3,
        "retries": 1,
        "tool_calls": 3,
        "tool_results": 1,
        "turnaround_s": 2.5,
        "input_tokens": 950,
        "output_tokens": 15,
        "model_s": 6.0,
        "tools_s": 3.0,
        "user_s": 1.5,
        "findings": 1,
        "violations": 1,
        "prefix_breaks": 2,
        "prompt_characters": 2400,
        "reused_characters": 1800,
        "lost_s": 1.0,
        "client_session": "ses_1",
        "last_at": _ENDED,
    }
    assert {name: row[name] for name in expected} == expected
    assert _all(connection, "session_models") == [
        {"session_id": session, "model": "other:1b", "exchanges": 1},
        {"session_id": session, "model": "qwen3:8b", "exchanges": 2},
    ]
    turnarounds = [(call["turnaround_s"], call["result_exchange_id"]) for call in _all(connection, "tool_calls")]
    assert turnarounds == [(2.5, second.id), (None, None), (None, None)]


def test_unknown_sums_stay_unknown(connection: sqlite3.Connection, records: Any) -> None:
    record = records.turn(records.ids.new(records.now_ns), 1, input_tokens=None)
    _write(connection, exchange_rows(record, _ENDED, Keeping()))
    assert _all(connection, "sessions")[0]["input_tokens"] is None


def test_an_exchange_stored_early_is_completed_and_keeps_its_findings(connection: sqlite3.Connection, records: Any) -> None:
    opened = records.opened(placed=records.placed())
    finding = records.finding()
    finding.id, finding.exchange_id = records.ids.new(records.now_ns), opened.id
    _write(connection, [*started_rows(opened), finding_row(finding, "m", "c", _ENDED, Keeping())])
    assert [row["ending"] for row in _all(connection, "exchanges")] == [None]
    _write(connection, exchange_rows(records.record(opened, findings=[finding]), _ENDED, Keeping()))
    assert [row["ending"] for row in _all(connection, "exchanges")] == ["complete"]
    assert [row["id"] for row in _all(connection, "findings")] == [finding.id]
    assert _all(connection, "sessions")[0]["exchanges"] == 1


def test_excerpts_are_short_or_absent(records: Any) -> None:
    finding = records.finding()
    kept = json.loads(str(dict_of(finding_row(finding, None, None, _ENDED, Keeping()))["evidence"]))
    assert kept == {"cause": "unknown", "excerpt": "x" * 80}
    none = json.loads(str(dict_of(finding_row(finding, None, None, _ENDED, Keeping(excerpts=False)))["evidence"]))
    assert none == {"cause": "unknown"}


def dict_of(row: Row) -> dict[str, Any]:
    names = STATEMENTS[row.statement].split("(")[1].split(")")[0].split(", ")
    return dict(zip(names, row.values, strict=False))


def test_content_only_when_asked_for_and_then_redacted_and_cut(records: Any) -> None:
    record = records.record()
    record.captured_request = "api_key=0123456789abcdef " + "é" * 100
    assert not [row for row in exchange_rows(record, _ENDED, Keeping()) if row.statement == "content"]
    (row,) = [row for row in exchange_rows(record, _ENDED, Keeping(content=True, content_bytes=60)) if row.statement == "content"]
    _, request, answer, thinking, redactions, cut, *pieces = row.values
    assert isinstance(request, str)
    assert "0123456789" not in request
    assert len(request.encode()) <= 60
    assert (answer, thinking, redactions) == (None, None, 1)
    assert pieces == [None, None]
    assert isinstance(cut, int)
    assert cut > 100


def test_a_secret_across_the_cap_goes_as_a_whole(records: Any) -> None:
    record = records.record()
    record.captured_answer = "x" * 50 + " ghp_" + "a1B2" * 9
    (row,) = [row for row in exchange_rows(record, _ENDED, Keeping(content=True, content_bytes=60)) if row.statement == "content"]
    assert "ghp_" not in str(row.values[2])


def test_what_sqlite_refuses_is_made_fit(connection: sqlite3.Connection, records: Any) -> None:
    record = records.record(user_agent="half \ud800 surrogate", input_tokens=1 << 70, output_tokens=-(1 << 63), error="\ud800")
    _write(connection, exchange_rows(record, _ENDED, Keeping()))
    (row,) = _all(connection, "exchanges")
    assert (row["user_agent"], row["input_tokens"], row["output_tokens"]) == ("half ? surrogate", None, -(1 << 63))


def test_no_text_of_a_request_is_in_the_rows(records: Any) -> None:
    placed = records.placed()
    placed.prefix.difference = ("secret before", "secret after")
    rows = exchange_rows(records.record(records.opened(placed=placed)), _ENDED, Keeping())
    assert "secret" not in repr(rows)


def test_a_finding_of_a_session_that_is_not_stored_yet_names_none(connection: sqlite3.Connection, records: Any) -> None:
    finding = records.finding("loop.trajectory")
    finding.id, finding.session_id = records.ids.new(records.now_ns), records.ids.new(records.now_ns)
    _write(connection, [finding_row(finding, None, None, _ENDED, Keeping())])
    assert [row["session_id"] for row in _all(connection, "findings")] == [None]


def test_a_session_began_with_its_earliest_exchange_whichever_closes_first(connection: sqlite3.Connection, records: Any) -> None:
    session = records.ids.new(records.now_ns)
    first, second = records.turn(session, 1), records.turn(session, 2)
    for record in (second, first):
        _write(connection, exchange_rows(record, record.started_at, Keeping()))
    (row,) = _all(connection, "sessions")
    assert (row["started_at"], row["last_at"], row["turns"]) == (first.started_at, second.started_at, 2)
