from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.errors import QmError, SettingsError
from qm_proxy.reading import export_lines, follow, list_findings, list_sessions, open_store, page_out, show


def test_no_database_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--db is off"):
        open_store(None)
    with pytest.raises(SettingsError, match=r"no database at .*qm-proxy serve"):
        open_store(tmp_path / "none.db")


def test_sessions_newest_first(filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    page, lines = list_sessions(open_store(path), limit=10)
    assert [s["id"] for s in page["items"]] == [records[3].session_id, records[0].session_id]
    assert lines[0].split() == ["session", "started,", "UTC", "client", "model", "req", "tokens", "calls", "found"]
    assert lines[1].split()[3:6] == ["codex", "qwen3:8b", "3"]
    assert all(len(line) <= 118 for line in lines)
    page, lines = list_sessions(open_store(path), limit=10, client="opencode", width=80)
    assert len(lines) == 2
    assert lines[1].startswith("    opencode → qwen3:8b · 3 requests · ")
    assert list_sessions(open_store(path), limit=10, client="nobody")[1] == []


def test_findings(filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    page, lines = list_findings(open_store(path), limit=10)
    assert [f["exchange_id"] for f in page["items"]] == [records[5].id, records[2].id]
    assert "suspect" in lines[0]
    assert records[5].id in lines[0]
    assert list_findings(open_store(path), limit=10, kind="loop")[1] == []
    lines = list_findings(open_store(path), limit=1, width=80)[1]
    assert lines[1:] == ["    A gap of 0.4 s.", f"    in {records[5].id}"]
    assert list_findings(open_store(path), limit=1, width=100)[1][0].endswith(records[5].id)


def test_show_an_exchange_a_session_and_neither(filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    stored = open_store(path)
    found, lines = show(stored, records[2].id, 60)
    assert found["exchange"]["id"] == records[2].id
    assert len(found["chunks"]["arrival_ns"]) == records[2].chunks
    assert any("stall" in line and "A gap of 0.4 s." in line for line in lines)
    assert found["exchange"]["findings"][0]["summary"] == "A gap of 0.4 s."
    assert max(map(len, lines[1:])) <= 60
    found, lines = show(stored, records[0].session_id, 60)
    assert [t["id"] for t in found["session"]["items"]] == [r.id for r in records[:3]]
    assert [line.split()[0] for line in lines if line[:4].strip().isdigit()] == ["1", "2", "3"]
    with pytest.raises(SettingsError, match=r"no exchange and no session 'x'.*qm-proxy sessions"):
        show(stored, "x", 60)


def test_export_is_one_json_line_each_oldest_first(filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    rows = [json.loads(line) for line in export_lines(open_store(path), since=None, chunks=False)]
    assert [row["id"] for row in rows] == [r.id for r in records]
    assert "series" not in rows[0]
    late = [json.loads(line) for line in export_lines(open_store(path), since=records[4].started_at, chunks=True)]
    assert [row["id"] for row in late] == [r.id for r in records[4:]]
    assert len(late[0]["series"]["arrival_ns"]) == records[4].chunks


def test_export_refuses_a_bad_instant_before_its_first_line(filled: tuple[Path, list[Any]]) -> None:
    with pytest.raises(ValueError, match="instant"):
        export_lines(open_store(filled[0]), since="yesterday", chunks=False)


def test_a_page_as_json_or_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    page = {"items": [{"id": "a"}], "next_cursor": "c1"}
    page_out(page, ["line"], True)
    assert json.loads(capsys.readouterr().out) == page
    page_out(page, ["line"], False)
    assert tuple(capsys.readouterr()) == ("line\n", "more: --cursor c1\n")
    page_out(page | {"next_cursor": None}, ["line"], False)
    assert tuple(capsys.readouterr()) == ("line\n", "")


def test_what_others_wrote_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    page_out({"items": []}, ["a\033[2Jb"], False)
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2Jb\n"


# --- tail -------------------------------------------------------------------------------------------------------------


@contextmanager
def answering(reply: bytes, *, reset: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A server of one connection that sends `reply` and leaves; (its URL, what it was asked)."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(reply)
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        thread = threading.Thread(target=once, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join(10)


FEED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 1000\n\n"


def _told(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


CLOSED = {
    "started_at": "2026-11-24T10:00:00.5Z",
    "client": "codex",
    "model": "m",
    "route": "/v1/responses",
    "ttft_s": 0.2,
    "tokens_per_s": None,
    "output_tokens": 7,
    "total_s": 1.5,
    "ending": "complete",
}


def test_tail_tells_answers_findings_and_what_it_missed(capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"severity": "suspect", "kind": "stall", "summary": "A gap."}
    feed = (
        FEED
        + _told("missed", {"events": None})
        + _told("exchange.closed", CLOSED)
        + b": still here\n\n"
        + _told("finding", finding)
    )
    with answering(feed) as (url, asked):
        follow(url, as_json=False, token="secret")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "missed – events"
    assert "codex" in lines[1]
    assert "200 ms" in lines[1]
    assert lines[2].strip() == "suspect stall: A gap."
    assert b"Authorization: Bearer secret" in asked[0]


@pytest.mark.parametrize("width", [80, 120])
def test_tail_fits_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr("qm_proxy.reading.screen_width", lambda: width)
    finding = {"severity": "suspect", "kind": "stall", "summary": "A gap of many words, " * 8}
    closed = CLOSED | {"model": "hf.co/someone/a-model-with-a-very-long-name:Q4_K_M", "ending": "client_disconnect"}
    with answering(FEED + _told("exchange.closed", closed) + _told("finding", finding)) as (url, _):
        follow(url, as_json=False)
    head, line, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["UTC", "client", "model", "ttft", "tok/s", "tokens", "total"]
    assert line.endswith("client left")
    assert "…" in line
    assert line.index("200 ms") + len("200 ms") == head.index("ttft") + len("ttft")
    assert " ".join(" ".join(rest).split()) == ("suspect stall: " + finding["summary"]).strip()
    assert all(len(text) <= width for text in (head, line, *rest))


def test_tail_as_json_is_a_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(FEED + _told("exchange.closed", CLOSED)) as (url, _):
        follow(url, as_json=True)
    assert json.loads(capsys.readouterr().out) == CLOSED


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "answers 401.*QM_CONSOLE_TOKEN"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers 404.*qm-proxy"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "No console answers"),
        (b"", "No console answers"),
    ],
)
def test_tail_of_something_else(reply: bytes, words: str) -> None:
    with answering(reply) as (url, _), pytest.raises(QmError, match=words):
        follow(url, as_json=False)


def test_tail_when_the_console_breaks_off() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nretry: 1000\n\n"
    with answering(chunked) as (url, _), pytest.raises(QmError, match="broke off"):
        follow(url, as_json=False)


def test_tail_of_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(QmError, match="No console answers"):
        follow(f"http://127.0.0.1:{port}", as_json=False)
