"""A database that cannot be written, under a real `serve`: traffic goes on, the user is told, all of it is stored afterwards."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.servant import Servant

from .test_serve import CHAT, Serve, eventually, observers, post


@contextlib.contextmanager
def full(proxy: Servant, db: Path) -> Iterator[None]:
    """As on a full disk: no file of the observer's may grow beyond what the database has now."""
    (observer,) = observers(proxy)
    size = max(file.stat().st_size for file in (db, Path(f"{db}-wal")))
    resource.prlimit(observer, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    yield
    resource.prlimit(observer, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def locked(proxy: Servant, db: Path) -> Iterator[None]:
    connection = sqlite3.connect(db, isolation_level=None)
    connection.execute("begin exclusive")
    yield
    connection.execute("rollback")
    connection.close()


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
@pytest.mark.parametrize(
    ("trouble", "states", "words"),
    [(full, ("full", "unavailable"), "disk"), (locked, ("locked",), "Another program has locked the database")],
)
def test_traffic_goes_on_it_says_so_and_it_recovers(
    make_sim: Callable[..., Any],
    serving: Serve,
    tmp_path: Path,
    trouble: Callable[[Servant, Path], contextlib.AbstractContextManager[None]],
    states: tuple[str, ...],
    words: str,
) -> None:
    sim, db = make_sim(personas=["steady"], speed=30.0), tmp_path / "qm.db"
    proxy = serving(sim.url)

    def store() -> dict[str, Any]:
        found: dict[str, Any] = proxy.ask("/api/v1/status")["store"]
        return found

    direct = len(post(sim.url, "/api/chat", CHAT).splitlines())
    post(proxy.proxy, "/api/chat", CHAT)
    eventually(lambda: store()["written"] == 1)
    asked = 1
    with trouble(proxy, db):

        def refused() -> bool:
            nonlocal asked
            asked += 1
            assert len(post(proxy.proxy, "/api/chat", CHAT).splitlines()) == direct
            return store()["state"] in states

        eventually(refused, patience_s=60)
        assert words in store()["message"]
        assert store()["remedy"]
        for _ in range(10):
            asked += 1
            assert len(post(proxy.proxy, "/api/chat", CHAT).splitlines()) == direct
        newest = proxy.ask("/api/v1/exchanges?limit=1")["items"][0]["id"]
        assert proxy.ask(f"/api/v1/exchanges/{newest}")["id"] == newest, "what is not stored yet is read from memory"
        listed = [sys.executable, "-m", "qm_proxy", "sessions", "--db", str(db), "--json"]
        assert subprocess.run(listed, capture_output=True).returncode == 0
    told = eventually(lambda: (s := store())["written"] == asked and s, patience_s=60)
    assert (told["state"], told["dropped"], told["rejected"], told["recoveries"]) == ("ok", 0, 0, 1)
    assert proxy.process.poll() is None
    proxy.process.terminate()
    _, said = proxy.process.communicate(timeout=30)
    assert words in said.decode()
    assert "qm-proxy: the store is back." in said.decode()
    connection = sqlite3.connect(db)
    assert connection.execute("select count(*) from exchanges where ending = 'complete'").fetchone()[0] == asked
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.close()
