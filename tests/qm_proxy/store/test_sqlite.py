from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.errors import StoreError
from qm_proxy.ids import unix_ms_of
from qm_proxy.measure.pieces import pack_pieces
from qm_proxy.measure.wall_clock import iso
from qm_proxy.store.queries import Ring
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer


@pytest.fixture
def sent(path: Path, records: Any, writing: Callable[..., Writer]) -> list[Any]:
    """Sixty exchanges: three models, two clients, twelve sessions, findings on every fifth; in a Ring as well."""
    writer = writing(path)
    models = ("qwen3:8b", "llama3.2:latest", "gpt-oss:20b")
    all_records = []
    for s in range(12):
        session = records.ids.new(records.now_ns)
        for turn in range(1, 6):
            placed = records.placed(session, turn=turn, relation="start" if turn == 1 else "next")
            opened = records.opened(placed=placed, client=("opencode", "codex")[s % 2], model=models[s % 3])
            kind = ("stall", "loop.token", "tool.schema", "tool.unknown")[s % 4]
            record = records.record(opened, findings=[records.finding(kind, evidence={"gap_s": 0.4})] if turn == 5 else [])
            all_records.append(record)
            writer.closed(record)
    assert writer.flush()
    return all_records


@pytest.fixture
def stored(path: Path, sent: list[Any]) -> Stored:
    return Stored(path)


@pytest.fixture
def ring(sent: list[Any]) -> Ring:
    ring = Ring(1000)
    for record in sent:
        ring.opened(record.opened)
        for finding in record.findings:
            ring.found(finding)
        ring.closed(record)
    return ring


def _walk(ask: Callable[..., Any], limit: int, **asked: Any) -> list[Any]:
    """All items, page by page."""
    items, cursor = [], None
    while True:
        page = ask(limit=limit, cursor=cursor, **asked)
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


_FILTERS: list[dict[str, str]] = [
    {},
    {"client": "codex"},
    {"model": "qwen3:8b"},
    {"model": "llama3.2"},
    {"model": "llama3.2:latest"},
    {"model": "nobody"},
    {"finding": "stall"},
    {"finding": "tool"},
    {"finding": "too"},
    {"finding": "loop", "client": "codex"},
    {"model": "gpt-oss:20b", "client": "opencode", "finding": "tool"},
]


@pytest.mark.parametrize("asked", _FILTERS, ids=json.dumps)
def test_it_answers_as_the_ring_does(stored: Stored, ring: Ring, asked: dict[str, str]) -> None:
    for limit in (1, 7, 500):
        assert _walk(stored.exchanges, limit, **asked) == _walk(ring.exchanges, limit, **asked)


def test_one_exchange_is_the_rings_with_its_place(stored: Stored, ring: Ring, sent: list[Any]) -> None:
    record = sent[7]
    found, kept = stored.exchange(record.id), ring.exchange(record.id)
    assert found is not None
    assert kept is not None
    place = found.pop("place")
    assert list(found) == list(kept)
    assert found == kept
    assert (place["relation"], place["turn"], place["waited_for"], place["wait_s"]) == ("next", 3, "tools", 1.5)
    assert place["prefix"] == {
        "prompt_characters": 1200,
        "previous_characters": 1000,
        "common_characters": 900,
        "previous_messages": 10,
        "common_messages": 9,
        "broken_at": "message",
        "message": 9,
        "role": "user",
        "character": 12,
        "lost_tokens": 40,
        "lost_s": 0.5,
    }
    assert stored.chunks(record.id) == ring.chunks(record.id)
    assert stored.exchange("nobody") is None
    assert stored.chunks("nobody") is None


def test_sessions_of_an_exchange_and_since_an_instant(stored: Stored, ring: Ring, sent: list[Any]) -> None:
    session = sent[10].session_id
    assert [item["id"] for item in _walk(stored.exchanges, 2, session=session)] == [r.id for r in reversed(sent[10:15])]
    for i in (0, 30, 59):
        since = sent[i].started_at
        assert _walk(stored.exchanges, 7, since=since) == _walk(ring.exchanges, 7, since=since)
        assert len(_walk(stored.exchanges, 7, since=since)) == 60 - i
    just_after = iso(unix_ms_of(sent[59].id) * 1_000_000 + 1_000_000)
    assert stored.exchanges(since=just_after)["items"] == []


@pytest.mark.parametrize("asked", [{}, {"kind": "stall"}, {"kind": "tool"}, {"kind": "nothing"}], ids=json.dumps)
def test_findings_are_the_rings(stored: Stored, ring: Ring, sent: list[Any], asked: dict[str, str]) -> None:
    for limit in (1, 3, 500):
        assert _walk(stored.findings, limit, **asked) == _walk(ring.findings, limit, **asked)
    since = iso(unix_ms_of(sent[29].findings[0].id) * 1_000_000)
    assert _walk(stored.findings, 3, since=since, **asked) == _walk(ring.findings, 3, since=since, **asked)


def test_many_findings_of_a_kind_are_asked_another_way(stored: Stored, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.store.sqlite._DRIVEN", 2)
    for asked in ({"finding": "stall"}, {"finding": "tool", "client": "codex"}):
        assert _walk(stored.exchanges, 2, **asked) == _walk(ring.exchanges, 2, **asked)


def test_an_exchange_with_two_findings_is_listed_once(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    writer.closed(records.record(findings=[records.finding("tool.schema"), records.finding("tool.unknown")]))
    assert writer.flush()
    assert len(Stored(path).exchanges(finding="tool")["items"]) == 1


def test_sessions_come_latest_first_and_page_by_page(stored: Stored, sent: list[Any]) -> None:
    expected = [sent[i * 5].session_id for i in reversed(range(12))]
    for limit in (1, 5, 500):
        assert [item["id"] for item in _walk(stored.sessions, limit)] == expected
    assert [item["id"] for item in _walk(stored.sessions, 2, client="codex")] == expected[0::2]
    assert [item["id"] for item in _walk(stored.sessions, 2, model="llama3.2")] == [expected[i] for i in (1, 4, 7, 10)]
    assert [item["id"] for item in _walk(stored.sessions, 2, finding="tool")] == [expected[i] for i in (0, 1, 4, 5, 8, 9)]
    latest = stored.sessions(limit=1)["items"][0]
    assert [item["id"] for item in _walk(stored.sessions, 5, since=latest["last_at"])] == expected[:1]


def test_a_session_tells_its_story(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    session = records.ids.new(records.now_ns)
    first = records.turn(session, 1)
    second = records.turn(session, 2, findings=[records.finding()])
    second.opened.placed.results = [records.result_of(first)]
    writer.closed(first)
    writer.closed(second)
    assert writer.flush()
    stored = Stored(path)
    found = stored.session(session)
    assert found is not None
    assert (found["models"], found["turnaround_mean_s"], found["prefix_reused"]) == (["qwen3:8b"], 2.5, 0.75)
    assert (found["model_s"], found["tools_s"], found["user_s"]) == (4.0, 3.0, 0.0)
    assert [item["id"] for item in found["items"]] == [first.id, second.id]
    assert found["items"][0]["tool_calls"] == [
        {
            "id": "call_1",
            "name": "bash",
            "t_s": 1.25,
            "argument_bytes": 20,
            "valid": True,
            "problems": ["fits"],
            "turnaround_s": 2.5,
            "result_exchange_id": second.id,
            "result_is_error": False,
        }
    ]
    assert found["items"][1]["findings"][0]["kind"] == "stall"
    page = stored.session(session, limit=1)
    assert page is not None
    assert page["next_cursor"] == first.id
    rest = stored.session(session, limit=1, cursor=page["next_cursor"])
    assert rest is not None
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == ([second.id], None)
    assert stored.session("nobody") is None


def test_captured_content_is_shown(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path, content=True)
    record = records.record()
    record.captured_request, record.captured_answer = "ask", "answer password=hunter2hunter2"
    record.answer_pieces = pack_pieces(["answer ", "password=", "hunter2hunter2"])
    plain = records.record()
    plain.captured_answer, plain.answer_pieces = "two words", pack_pieces(["two", " words"])
    plain.captured_thinking, plain.thinking_pieces = "hm", b"\xff"  # damaged
    writer.closed(record)
    writer.closed(plain)
    assert writer.flush()
    found = Stored(path).exchange(record.id)
    assert found is not None
    assert (found["captured_request"], found["captured_thinking"], found["redactions"]) == ("ask", None, 1)
    assert found["captured_answer"] == "answer password=[redacted: secret]"
    assert found["captured_answer_pieces"] is None, "behind what was taken out nothing is where it was"
    other = Stored(path).exchange(plain.id)
    assert other is not None
    assert (other["captured_answer_pieces"], other["captured_thinking_pieces"]) == ([3, 6], None)
    with sqlite3.connect(path) as older:  # as a version wrote it that knew no pieces
        older.execute("alter table contents drop column answer_pieces")
        older.execute("alter table contents drop column thinking_pieces")
    again = Stored(path).exchange(plain.id)
    assert again is not None
    assert (again["captured_answer"], again["captured_answer_pieces"]) == ("two words", None)


def test_runs(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    ids = [records.ids.new(records.now_ns) for _ in range(5)]
    for i, run in enumerate(ids):
        state = "done" if i < 3 else "running"
        writer.run({"id": run, "kind": "audit", "state": state, "started_at": "2026", "settings": {"seed": i}, "report": "# R"})
    assert writer.flush()
    stored = Stored(path)
    assert [item["id"] for item in _walk(stored.runs, 2)] == ids[::-1]
    assert [item["id"] for item in _walk(stored.runs, 2, state="running")] == ids[:2:-1]
    found = stored.run(ids[0])
    assert found is not None
    assert (found["settings"], found["result"], found["report"]) == ({"seed": 0}, None, "# R")
    assert stored.run("nobody") is None


def test_runs_are_in_the_order_of_their_start(path: Path, writing: Callable[..., Writer]) -> None:
    """Their ids begin with their kind: neither the order nor a cursor may rest on them."""
    writer = writing(path)
    ids = ["report-b", "inspect-a", "audit-c", "agent-d"]
    for i, run in enumerate(ids):
        writer.run({"id": run, "kind": "x", "state": "done", "started_at": f"2026-11-24T10:00:0{i}Z"})
    assert writer.flush()
    stored = Stored(path)
    assert [item["id"] for item in _walk(stored.runs, 1)] == ids[::-1]
    with pytest.raises(ValueError, match="next_cursor"):
        stored.runs(cursor="rubbish")


def test_everything_can_be_exported_oldest_first(stored: Stored, sent: list[Any]) -> None:
    assert [item["id"] for item in stored.export()] == [record.id for record in sent]
    items = list(stored.export(since=sent[57].started_at, chunks=True))
    assert [item["id"] for item in items] == [record.id for record in sent[57:]]
    assert all(len(item["series"]["arrival_ns"]) == 5 for item in items)
    json.dumps(items, allow_nan=False)


def test_recent_turns_bring_what_a_restart_needs(stored: Stored, sent: list[Any]) -> None:
    rows = stored.recent_turns(0)
    assert [row["exchange_id"] for row in rows] == [record.id for record in sent]
    assert rows[0]["ended_unix_s"] == pytest.approx(unix_ms_of(sent[0].id) / 1e3 + 3.5)
    assert {name: rows[0][name] for name in ("tip", "expected", "trajectory", "turn", "client", "client_session")} == {
        "tip": 1234,
        "expected": 5678,
        "trajectory": 0,
        "turn": 1,
        "client": "opencode",
        "client_session": "ses_1",
    }
    assert len(stored.recent_turns(0, limit=7)) == 7
    assert stored.recent_turns(0, limit=7)[-1]["exchange_id"] == sent[-1].id
    assert stored.recent_turns(unix_ms_of(sent[-1].id) / 1e3 + 1) == []


# --- odd questions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["exchanges", "findings", "sessions", "runs"])
def test_what_is_wrong_with_a_question_is_said(stored: Stored, ask: str) -> None:
    question = getattr(stored, ask)
    for asked in ({"limit": 0}, {"limit": 501}, {"cursor": "x"}, {"cursor": "'; drop table exchanges; --"}):
        with pytest.raises(ValueError, match=r"Expected|cursor"):
            question(**asked)
    if ask != "runs":
        with pytest.raises(ValueError, match="instant"):
            question(since="yesterday")


def test_before_there_is_a_database_everything_is_empty(path: Path) -> None:
    stored = Stored(path)
    assert stored.exchanges() == stored.findings() == stored.sessions() == stored.runs() == {"items": [], "next_cursor": None}
    assert stored.exchange("x") is stored.chunks("x") is stored.session("x") is stored.run("x") is None
    assert (stored.status()["exchanges"], list(stored.export()), stored.recent_turns(0)) == (0, [], [])
    path.parent.mkdir()
    path.touch()
    assert stored.exchanges()["items"] == []


def test_it_sees_the_database_as_soon_as_it_is_there(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    stored = Stored(path)
    assert stored.exchanges()["items"] == []
    writer = writing(path)
    writer.closed(records.record())
    assert writer.flush()
    assert len(stored.exchanges()["items"]) == 1
    assert stored.status()["exchanges"] == 1
    assert stored.status()["bytes"] > 0


def test_a_file_of_another_program_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError):
        Stored(path).exchanges()


def test_threads_ask_at_the_same_time_while_it_is_written(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    stored = Stored(path)
    failures: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                items = stored.exchanges(limit=500)["items"]
                assert [item["id"] for item in items] == sorted((item["id"] for item in items), reverse=True)
                stored.sessions()
        except Exception as exc:
            failures.append(exc)
        finally:
            stored.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        writer.closed(records.turn(records.ids.new(records.now_ns), 1))
    assert writer.flush()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(stored.exchanges(limit=500)["items"]) == 150


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=20))
def test_no_text_is_taken_for_sql(text: str) -> None:
    writer = Writer(None)
    writer.start()
    stored = Stored(writer.place)
    everything: list[dict[str, Any]] = [{"model": text}, {"client": text}, {"session": text}, {"finding": text}]
    for asked in everything:
        assert stored.exchanges(**asked)["items"] == []
    assert stored.findings(kind=text)["items"] == []
    assert stored.sessions(client=text, model=text, finding=text)["items"] == []
    assert stored.exchange(text) is None
    stored.close()
    writer.stop()


def test_a_damaged_series_is_no_answer_and_a_damaged_database_is_told(path: Path, sent: list[Any]) -> None:
    stored = Stored(path)
    other = sqlite3.connect(path)
    other.execute("update chunks set arrival = x'ff00ff'")
    other.commit()
    assert stored.chunks(sent[0].id) is None
    other.execute("drop table findings")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="findings"):
        stored.exchanges()
    assert stored.runs()["items"] == []  # the next question gets a connection of its own
    stored.close()


def test_a_database_that_is_made_anew_is_opened_anew(
    path: Path, sent: list[Any], records: Any, writing: Callable[..., Writer]
) -> None:
    stored = Stored(path)
    assert stored.status()["exchanges"] == 60
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink()
    assert stored.status()["exchanges"] == 0
    writer = writing(path)
    record = records.record()
    writer.closed(record)
    assert writer.flush()
    assert [item["id"] for item in stored.exchanges()["items"]] == [record.id]
    stored.close()


def test_what_is_no_number_in_json_is_null(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    finding = records.finding(evidence={"gap_s": float("inf"), "deep": [{"x": float("nan")}, 1.5]})
    writer.closed(records.record(findings=[finding], ttft_s=float("nan"), tokens_per_s=float("inf")))
    assert writer.flush()
    stored = Stored(path)
    item = stored.exchanges()["items"][0]
    assert (item["ttft_s"], item["tokens_per_s"]) == (None, None)
    assert stored.findings()["items"][0]["evidence"] == {"gap_s": None, "deep": [{"x": None}, 1.5]}
    stored.close()


@pytest.mark.parametrize("change", ["alter table exchanges rename column model to asked_model", "drop view slowest_exchanges"])
def test_a_newer_versions_database_that_cannot_be_read_is_told_apart(path: Path, records: Any, change: str) -> None:
    """What can be read of it is; what cannot is no empty answer and no riddle."""
    writer = Writer(path)
    writer.start()
    writer.closed(records.record())
    assert writer.stop()
    connection = sqlite3.connect(path)
    connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) values ('qm_proxy', 'from_2030', '2030')"
    )
    connection.commit()
    assert len(Stored(path).exchanges()["items"]) == 1
    for (view,) in (
        connection.execute("select name from sqlite_master where type = 'view'").fetchall() if "alter" in change else []
    ):
        connection.execute(f"drop view {view}")
        connection.execute(f"create view {view} as select 1")
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"newer qm-proxy.*Upgrade"):
        Stored(path).exchanges()
