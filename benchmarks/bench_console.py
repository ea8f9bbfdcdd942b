"""How fast the console's lists are answered over HTTP when there are many exchanges.

    python benchmarks/bench_console.py [--exchanges 100000] [--db FILE] [--rounds 60]

The database is bench_store's; `serve` runs in front of nothing, and each list is asked in turn on one connection, as the page does:
first pages, filtered ones, and deep cursors. Milliseconds from the request's first byte to the answer's last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench_store import fill

from qm_proxy.cli import plan_of
from qm_proxy.servant import Servant
from qm_proxy.settings import load

ASKED = {
    "exchanges": "exchanges?limit=50",
    "exchanges, 250 at once": "exchanges?limit=250",
    "exchanges, deep": "exchanges?limit=50&cursor={deep}",
    "exchanges of a model": "exchanges?limit=50&model=llama3.2",
    "exchanges of a client": "exchanges?limit=50&client=aider",
    "exchanges with a loop": "exchanges?limit=50&finding=loop",
    "exchanges of a session": "exchanges?limit=50&session={session}",
    "findings": "findings?limit=50",
    "findings of a kind": "findings?limit=50&kind=stall",
    "sessions": "sessions?limit=50",
    "sessions, deep": "sessions?limit=50&cursor={cursor}",
    "sessions of a model": "sessions?limit=50&model=qwen3-coder:30b",
    "runs": "runs?limit=50",
    "status": "status",
    "one exchange": "exchanges/{deep}",
    "its chunks": "exchanges/{deep}/chunks",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--db", type=Path, help="use this file; filled first when it is not there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = args.db or Path(directory) / "qm.db"
        if not path.exists():
            fill(path, args.exchanges, 20)
        given = {
            "upstream": "http://127.0.0.1:1",
            "listen": "127.0.0.1:0",
            "console": "127.0.0.1:0",
            "db": str(path),
            "poll": 0.0,
        }
        with Servant(plan_of(load(given), quiet=True)) as served:
            assert served.console is not None
            connection = http.client.HTTPConnection(urlsplit(served.console).netloc, timeout=60)

            def ask(target: str) -> Any:
                connection.request("GET", f"/api/v1/{target}")
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status == 200, (target, answer.status, body[:200])
                return json.loads(body)

            places = _places(ask)
            print(f"{'list':26} {'p50':>8} {'p95':>8} {'max':>8}   ms over HTTP, {args.rounds} rounds")
            for name, target in ASKED.items():
                took = []
                for n in range(args.rounds):
                    began = time.perf_counter()
                    ask(target.format(**places[n % len(places)]))
                    took.append(1e3 * (time.perf_counter() - began))
                took.sort()
                print(f"{name:26} {took[len(took) // 2]:8.1f} {took[int(0.95 * (len(took) - 1))]:8.1f} {took[-1]:8.1f}")


def _places(ask: Any) -> list[dict[str, str]]:
    """Ids and cursors at random depths, found by walking once through the sessions."""
    found = []
    page = ask("sessions?limit=500")
    sessions, cursors = page["items"], [page["next_cursor"] or ""]
    while page["next_cursor"] and len(sessions) < 4000:
        page = ask(f"sessions?limit=500&cursor={page['next_cursor']}")
        sessions += page["items"]
        cursors += [page["next_cursor"]] if page["next_cursor"] else []
    draw = random.Random(1)
    for session in draw.sample(sessions, min(40, len(sessions))):
        turns = ask(f"exchanges?limit=5&session={session['id']}")["items"]
        withchunks = [t["id"] for t in turns if t["chunks"]]
        if withchunks:
            found.append({"session": session["id"], "cursor": draw.choice(cursors), "deep": withchunks[0]})
    return found


if __name__ == "__main__":
    main()
