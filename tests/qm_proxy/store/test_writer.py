from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.events import ResidentModel
from qm_proxy.store.database import open_for_reading, open_for_writing
from qm_proxy.store.writer import Writer


def _ids(path: Path) -> list[str]:
    connection = open_for_reading(path)
    try:
        return [row[0] for row in connection.execute("select id from exchanges order by id")]
    finally:
        connection.close()


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does, without a deadline of our own: the suite's timeout ends what never comes."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.005)


# --- in service -------------------------------------------------------------------------------------------------------


def test_what_is_closed_can_be_read(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    sent = [records.record() for _ in range(3)]
    for record in sent:
        writer.opened(record.opened)
        writer.closed(record)
    assert writer.flush()
    assert _ids(path) == [record.id for record in sent]
    status = writer.status()
    assert (status["state"], status["written"], status["dropped"], status["rejected"]) == ("ok", 3, 0, 0)


def test_it_is_written_without_being_asked(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path, linger_s=0.05)
    writer.closed(records.record())
    _until(lambda: writer.status()["written"] == 1)


def test_a_batch_is_one_transaction(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path, linger_s=60)
    for _ in range(100):
        writer.closed(records.record())
    assert writer.flush()
    assert writer.status()["commits"] == 1


def test_stopping_writes_what_is_queued(path: Path, records: Any) -> None:
    writer = Writer(path, linger_s=60)
    writer.start()
    writer.closed(records.record())
    assert writer.stop()
    assert len(_ids(path)) == 1


def test_a_finding_is_stored_before_its_exchange_ends(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    opened = records.opened(placed=records.placed())
    writer.opened(opened)
    for kind in ("model.hung", "stall"):
        finding = records.finding(kind)
        finding.id, finding.exchange_id = records.ids.new(records.now_ns), opened.id
        writer.found(finding)
    assert writer.flush()
    reader = open_for_reading(path)
    kinds = reader.execute("select kind, model from findings order by id").fetchall()
    assert kinds == [("model.hung", "qwen3:8b"), ("stall", "qwen3:8b")]
    assert reader.execute("select id, ending from exchanges").fetchall() == [(opened.id, None)]
    writer.closed(records.record(opened))
    assert writer.flush()
    assert reader.execute("select ending from exchanges").fetchall() == [("complete",)]
    assert reader.execute("select count(*) from findings").fetchone() == (2,)


def test_a_finding_of_no_exchange_is_stored(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    finding = records.finding("model.reload")
    writer.found(finding)
    assert writer.flush()
    assert open_for_reading(path).execute("select id, exchange_id from findings").fetchall() == [(finding.id, None)]
    assert finding.id


def test_a_finding_of_an_unknown_exchange_is_left_to_its_record(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    finding = records.finding()
    finding.exchange_id = records.ids.new(records.now_ns)
    writer.found(finding)
    assert writer.flush()
    assert writer.status()["rows"] == 0


def test_models_and_runs(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    resident = [ResidentModel("qwen3:8b", "sha", 9, 8, 8192, None), ResidentModel("unasked", "sha", 1, 1, 1, None)]
    writer.models(resident)
    writer.closed(records.record())
    for _ in range(3):  # it is asked every two seconds, and is no news
        writer.models(resident)
    writer.closed(records.record())
    run = {
        "id": records.ids.new(records.now_ns),
        "kind": "audit",
        "started_at": "2026-11-24T12:00:00Z",
        "result": {"schema": "x"},
    }
    writer.run(run | {"state": "running"})
    writer.run(run | {"state": "done"})
    assert writer.flush()
    assert writer.status()["rows"] == 2 * 3 + 1 + 2  # model, exchange, chunks; what is news of the model; the run twice
    reader = open_for_reading(path)
    assert reader.execute("select name, digest, context_window_tokens from models").fetchall() == [("qwen3:8b", "sha", 8192)]
    assert reader.execute("select state, result from runs").fetchall() == [("done", '{"schema":"x"}')]


def test_in_memory_it_answers_as_from_a_file(records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(None)
    record = records.record()
    writer.closed(record)
    assert writer.flush()
    assert open_for_reading(writer.place).execute("select id from exchanges").fetchall() == [(record.id,)]
    assert writer.status()["path"] is None


def test_retention_runs_beside_the_writing(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    sent = [records.record(chunks=0) for _ in range(20)]
    writer = writing(path, keep_s=5.5, now=lambda: records.now_ns / 1e9)
    for record in sent:
        writer.closed(record)
    assert writer.flush()
    writer.stop()
    again = writing(path, keep_s=5.5, now=lambda: records.now_ns / 1e9)
    _until(lambda: again.status()["deleted"] > 0 or len(_ids(path)) == 6)
    assert _ids(path) == [record.id for record in sent[-6:]]


# --- in trouble -------------------------------------------------------------------------------------------------------


def test_a_full_queue_drops_and_counts(path: Path, records: Any) -> None:
    writer = Writer(path, queue_bytes=20_000)
    for _ in range(50):
        writer.closed(records.record(chunks=0))
    status = writer.status()
    assert 0 < status["queued"] < 50
    assert status["dropped"] == 50 - status["queued"]
    assert status["queued_bytes"] <= 20_000
    writer.start()
    assert writer.stop()
    assert len(_ids(path)) == status["queued"]


def test_a_row_that_sqlite_refuses_costs_that_row(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path, linger_s=60)
    good = [records.record() for _ in range(3)]
    bad = records.record()
    orphan = records.finding()
    orphan.id, orphan.exchange_id = records.ids.new(records.now_ns), "nobody"
    bad.findings.append(orphan)
    for record in (good[0], good[1], bad, good[2]):
        writer.closed(record)
    assert writer.flush()
    assert _ids(path) == [record.id for record in good]
    status = writer.status()
    assert (status["rejected"], status["state"]) == (1, "ok")
    assert "FOREIGN KEY" in status["rejection"]


def test_a_locked_database_is_told_and_waited_for(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    connection, _ = open_for_writing(path)
    connection.execute("begin exclusive")
    writer = writing(path)
    writer.closed(records.record())
    _until(lambda: writer.status()["state"] == "locked")
    assert "locked" in writer.status()["message"]
    assert writer.status()["failing_s"] is not None
    connection.execute("rollback")
    connection.close()
    assert writer.flush(30)
    status = writer.status()
    assert (status["state"], status["message"], status["failing_s"], status["written"]) == ("ok", None, None, 1)
    assert status["recoveries"] >= 1


def test_a_full_database_is_told_and_recovered_from(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    """`max_page_count` makes SQLite itself answer SQLITE_FULL, as a full disk does."""
    writer = writing(path)
    writer.closed(records.record())
    assert writer.flush()
    connection = writer._connection
    assert connection is not None
    connection.execute(f"pragma max_page_count = {connection.execute('pragma page_count').fetchone()[0]}")
    sent = [records.record(chunks=2000) for _ in range(30)]
    for record in sent:
        writer.closed(record)
    _until(lambda: writer.status()["state"] == "full")
    assert "full" in writer.status()["message"]
    connection.execute("pragma max_page_count = 1073741823")
    assert writer.flush(30)
    assert len(_ids(path)) == 31
    assert writer.status()["dropped"] == 0


def test_a_database_that_is_moved_away_is_made_anew(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    writer = writing(path)
    writer.closed(records.record())
    assert writer.flush()
    path.rename(path.with_name("old.db"))
    for log in ("-wal", "-shm"):
        Path(f"{path}{log}").rename(path.with_name(f"old.db{log}"))
    record = records.record()
    writer.closed(record)
    assert writer.flush()
    assert _ids(path) == [record.id]
    assert len(_ids(path.with_name("old.db"))) == 1


def test_a_damaged_file_is_told_not_touched_and_left_when_moved(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    path.parent.mkdir()
    garbage = b"this was a database once, before the disk failed....." * 100
    path.write_bytes(garbage)
    writer = writing(path)
    writer.closed(records.record())
    _until(lambda: writer.status()["state"] == "corrupt")
    assert path.read_bytes() == garbage
    path.rename(path.with_name("damaged"))
    assert writer.flush(30)
    assert len(_ids(path)) == 1


def test_another_programs_database_is_told_and_left_alone(path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("create table logs (x)")
    other.close()
    before = path.read_bytes()
    writer = writing(path)
    writer.closed(records.record())
    _until(lambda: writer.status()["state"] == "foreign")
    assert "--db" in writer.status()["remedy"]
    assert path.read_bytes() == before
    assert not writer.stop(1)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, records: Any, writing: Callable[..., Writer]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    writer = writing(blocked / "qm.db")
    writer.closed(records.record())
    _until(lambda: writer.status()["state"] == "unavailable")
    blocked.unlink()
    assert writer.flush(30)
    assert writer.status()["state"] == "ok"


_NOBODY = 65534
_CHILD = """
    import os, resource, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from conftest import Records
    from qm_proxy.store.writer import Writer
    {before}
    path, records = Path({path!r}), Records()
    writer = Writer(path, linger_s=0.0)
    writer.start()
    writer.closed(records.record())
    assert writer.flush(20)
    {trouble}
    for _ in range(50):
        writer.closed(records.record(chunks=5000))
    import threading
    tick = threading.Event()
    while writer.status()["state"] == "ok":
        tick.wait(0.01)
    print(writer.status()["state"], flush=True)
    {relief}
    assert writer.flush(30)
    assert writer.stop(10)
    print(writer.status()["state"], writer.status()["written"], writer.status()["dropped"], flush=True)
"""


def _child(path: Path, *, trouble: str, relief: str, before: str = "") -> list[str]:
    """A process of its own, for limits and rights that would hit the whole suite; answers with what it printed."""
    parts = {"before": before, "trouble": trouble, "relief": relief}
    parts = {name: textwrap.dedent(part) for name, part in parts.items()}
    code = textwrap.dedent(_CHILD).format(tests=str(Path(__file__).parent), path=str(path), **parts)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_disk_that_takes_no_more_is_told_and_recovered_from(path: Path) -> None:
    """A limit on the size of files: the write itself fails, below SQLite."""
    said = _child(
        path,
        before="signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        trouble="resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(path).st_size, resource.RLIM_INFINITY))",
        relief="resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    )
    assert said in (["full", "ok 51 0"], ["unavailable", "ok 51 0"])
    assert open_for_reading(path).execute("pragma integrity_check").fetchall() == [("ok",)]


def test_a_database_that_becomes_read_only_is_told_and_recovered_from(path: Path) -> None:
    """Rights do not bind root, so the child gives its own up first, in a directory that nobody else's rights hide."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if os.getuid() == 0:
            os.chown(directory, _NOBODY, _NOBODY)
        said = _child(
            directory / "qm.db",
            # what is imported late may lie where nobody cannot read: make a database first
            before=f"""
                from qm_proxy.store.database import in_memory, open_for_writing
                open_for_writing(in_memory())
                os.setuid({_NOBODY}) if os.getuid() == 0 else None
            """,
            trouble="""
                files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
                for file in files:
                    file.chmod(0o400)
                path.parent.chmod(0o500)
                writer._close()
            """,
            relief="""
                path.parent.chmod(0o700)
                for file in files:
                    if file.exists():
                        file.chmod(0o600)
            """,
        )
    assert said in (["read_only", "ok 51 0"], ["unavailable", "ok 51 0"])


# --- killed -----------------------------------------------------------------------------------------------------------


def _write_until_killed(path: Path, told: Connection, seed: int, make: Any) -> None:
    """Write without end; say after each commit how many exchanges are said to be stored."""
    writer = Writer(path, linger_s=0.002, keep_bytes=3_000_000)
    writer.start()
    rng, said, pause = random.Random(seed), -1, threading.Event()
    while True:
        while writer.status()["queued"] > 20:  # a loop that never waits would take the GIL from the writer at every row
            pause.wait(0.001)
        session = make.ids.new(make.now_ns)
        for turn in range(1, rng.randint(2, 6)):
            record = make.turn(session, turn, chunks=rng.randint(2, 400), findings=[make.finding()] if turn == 2 else [])
            writer.opened(record.opened)
            for finding in record.findings:
                writer.found(finding)
            writer.closed(record)
            count = writer.status()["written"]
            if count != said:
                said = count
                told.send((count, record.id))


def _kill_and_look(path: Path, kills: int, seed: int, make: Any) -> int:
    """Kill the writer at random moments; after each kill the file is whole and holds what was said to be stored."""
    rng = random.Random(seed)
    fork = multiprocessing.get_context("fork")
    stored = 0
    for kill in range(kills):
        make.now_ns += 10**9 * 1000
        first = make.ids.new(make.now_ns)
        ours, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=_write_until_killed, args=(path, theirs, seed + kill, make), daemon=True)
        child.start()
        theirs.close()
        said = 0
        ours.poll(20)  # it writes
        while kill % 2 and said == 0 and ours.poll(20):  # every other one is killed after its first commit, however slow it is
            said = ours.recv()[0]
        threading.Event().wait(rng.random() * 0.12)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while ours.poll():
            try:
                said = ours.recv()[0]
            except (EOFError, OSError):
                break
        ours.close()
        connection, _ = open_for_writing(path, busy_ms=5000)
        assert connection.execute("pragma quick_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        now = connection.execute("select count(*) from exchanges where id > ?", (first,)).fetchone()[0]
        ended = connection.execute("select count(*) from exchanges where id > ? and ending = 'complete'", (first,)).fetchone()[0]
        sums = connection.execute("select sum(exchanges) from sessions where id > ?", (first,)).fetchone()[0] or 0
        deleted = connection.execute("select count(*) from exchanges where id < ?", (first,)).fetchone()[0] == 0 and kill > 0
        assert ended >= said or deleted, f"kill {kill}: {said} were said to be stored, {ended} are"
        assert sums >= ended  # an exchange and what it adds to its session came in one transaction
        assert connection.execute("select count(*) from exchanges where ending is null").fetchone()[0] == 0
        stored += now
        connection.close()
    return stored


def test_fifty_kills_leave_a_whole_database(path: Path, records: Any) -> None:
    assert _kill_and_look(path, 50, seed=1, make=records) > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_kills_leave_a_whole_database(path: Path, records: Any) -> None:
    assert _kill_and_look(path, 1000, seed=2, make=records) > 1000
