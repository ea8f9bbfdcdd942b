"""The whole proxy is killed, every process of it, at moments nobody chose: the database stays whole and holds what was said to be
stored. The same file serves on through all kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qm_proxy.cli import plan_of
from qm_proxy.errors import QmError
from qm_proxy.servant import Servant
from qm_proxy.settings import load
from qm_proxy.store.database import open_for_reading
from qm_proxy.store.sqlite import Stored

CLIENTS = 3


class Answered(NamedTuple):
    agent: str  # names the request: stored with its exchange
    tokens: int
    at: float  # monotonic, when the client had the last byte


class Traffic:
    """Clients that ask one thing after the other until the proxy is gone, each request under a name of its own."""

    def __init__(self, proxy: str, name: str, rng: random.Random) -> None:
        self.answered: list[Answered] = []
        self._going = True
        self._threads = [
            threading.Thread(target=self._ask, args=(proxy, f"{name}-{i}", random.Random(rng.random()))) for i in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, proxy: str, name: str, rng: random.Random) -> None:
        said = [{"role": "user", "content": f"count, {name}"}]
        asked = 0
        while self._going:
            asked += 1
            agent = f"killed/{name}-{asked}"
            body = {"model": "steady", "messages": said, "options": {"num_predict": rng.randint(1, 60)}}
            request = urllib.request.Request(
                proxy + "/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": agent}
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    records = [json.loads(line) for line in answer.read().splitlines()]
            except (OSError, ValueError, http.client.HTTPException):
                return  # the proxy is gone
            if not records or not records[-1].get("done"):
                return
            self.answered.append(Answered(agent, records[-1]["eval_count"], time.monotonic()))
            said += [{"role": "assistant", "content": "".join(r["message"]["content"] for r in records)}, said[0]]
            said = said[-9:]

    def end(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join(20)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _kill_all(process: subprocess.Popen[bytes], rng: random.Random, *, at_once: bool) -> None:
    """SIGKILL to supervisor, relay and observer: at once, or in any order with a moment between."""
    if not at_once:
        everyone = [process.pid, *_children(process.pid)]
        rng.shuffle(everyone)
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            threading.Event().wait(rng.random() * 0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its own session: whoever is left, and whoever was started again meanwhile
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait(20)


def _whole(db: Path) -> sqlite3.Connection:
    """What `qm-proxy show` would open: every page and every reference is as it should be."""
    connection = open_for_reading(db)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert connection.execute("pragma foreign_key_check").fetchall() == []
    sums = connection.execute("select sum(exchanges) from sessions").fetchone()[0] or 0
    in_sessions = "select count(*) from exchanges where session_id is not null and ending not in ('shutdown')"
    assert sums >= connection.execute(in_sessions).fetchone()[0], "an exchange without its share of the session"
    lost_chunks = (
        "select count(*) from exchanges where chunks > 0 and ending = 'complete' and id not in (select exchange_id from chunks)"
    )
    assert connection.execute(lost_chunks).fetchone()[0] == 0, "an exchange without its chunks"
    return connection


class Tally(NamedTuple):
    answered: int
    stored: int
    last_second: int  # lost, and answered within a second before the kill
    older: int  # lost, and answered before that


def _kill_and_look(sim_url: str, db: Path, kills: int, seed: int) -> Tally:
    rng = random.Random(seed)
    flags = {"upstream": sim_url, "listen": "127.0.0.1:0", "console": "127.0.0.1:0", "db": str(db)}
    plan = plan_of(load(flags), quiet=True)
    answered = stored = last_second = older = 0
    for kill in range(kills):
        if kill % 4 == 3:  # in the middle of starting
            process = subprocess.Popen(
                [sys.executable, "-m", "qm_proxy.supervisor", json.dumps(plan)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            threading.Event().wait(rng.random() * 1.5)
            _kill_all(process, rng, at_once=True)
            _whole(db).close()
            continue
        proxy = Servant(plan)
        traffic = Traffic(proxy.proxy, f"{seed}-{kill}", rng)
        try:
            said = 0
            deadline = time.monotonic() + 1.2 + rng.random() * 2.5
            while said == 0 or time.monotonic() < deadline:
                with contextlib.suppress(QmError):
                    said = max(said, proxy.ask("/api/v1/status")["store"]["written"])
                threading.Event().wait(rng.random() * 0.1)
        finally:
            killed_at = time.monotonic()
            _kill_all(proxy.process, rng, at_once=kill % 2 == 0)
            traffic.end()
        connection = _whole(db)
        mine = f"killed/{seed}-{kill}-%"
        rows = dict(
            connection.execute(
                "select user_agent, output_tokens from exchanges where user_agent like ? and ending = 'complete'", (mine,)
            )
        )
        connection.close()
        assert said <= len(rows), f"kill {kill}: {said} were said to be stored, {len(rows)} are"
        lost = [a for a in traffic.answered if a.agent not in rows]
        assert all(rows[a.agent] == a.tokens for a in traffic.answered if a.agent in rows)
        answered += len(traffic.answered)
        stored += len(rows)
        last_second += sum(a.at >= killed_at - 1.0 for a in lost)
        older += sum(a.at < killed_at - 1.0 for a in lost)
        reader = Stored(db)
        assert reader.sessions(limit=5)["items"]
        assert reader.exchange(reader.exchanges(limit=1)["items"][0]["id"]) is not None
    with Servant(plan) as proxy:  # and it serves on
        assert proxy.ask("/api/v1/status")["store"]["state"] == "ok"
    connection = _whole(db)
    assert connection.execute("select count(*) from exchanges where ending is null").fetchone()[0] == 0
    connection.close()
    return Tally(answered, stored, last_second, older)


def test_two_kills_of_the_whole_proxy_leave_a_whole_database(make_sim: Callable[..., Any], tmp_path: Path) -> None:
    sim = make_sim(personas=["steady"], speed=8.0)
    assert _kill_and_look(sim.url, tmp_path / "qm.db", 2, seed=1).stored > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_whole_proxy_lose_at_most_the_last_second(
    make_sim: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sim = make_sim(personas=["steady"], speed=8.0)
    tally = _kill_and_look(sim.url, tmp_path / "qm.db", 20, seed=2)
    with capsys.disabled():
        print(f"\n20 kills of the whole proxy: {tally}")
    assert tally.older == 0
    assert tally.stored > 100
