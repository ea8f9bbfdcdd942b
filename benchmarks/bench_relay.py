"""What the proxy costs: direct, nginx and ours side by side, interleaved in rounds of one run, observation on.

    python benchmarks/bench_relay.py [--rounds 5] [--quick] [--only latency,leave,memory,requests,upload,exact,kill,beside] [--json FILE]

Read it so: every figure is the median over rounds, with the lowest and the highest round in brackets; ratios are taken within a
round first. "over direct" is added latency. CPU is the proxy's own user and system time (both processes of ours and the
supervisor together), from /proc, over the tokens delivered. Machines are shared and noisy: compare columns, not days.

Needs gcc, and nginx for its column. Everything runs on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qm_proxy.servant import Servant

HERE = Path(__file__).parent
BUILD = HERE / "build"


def build() -> None:
    BUILD.mkdir(exist_ok=True)
    for name in ("emit", "drive"):
        source, target = HERE / "rig" / f"{name}.c", BUILD / name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-o", str(target), str(source)], check=True)


class Emit:
    """The fake Ollama, and what it logs."""

    def __init__(self) -> None:
        self.log = tempfile.NamedTemporaryFile(prefix="emit", suffix=".log", delete=False)  # noqa: SIM115 - read while it runs
        self.process = subprocess.Popen([str(BUILD / "emit"), "0"], stdout=self.log)
        deadline = time.monotonic() + 5
        while not (text := Path(self.log.name).read_text()).startswith("port "):
            if time.monotonic() > deadline:
                raise RuntimeError("emit did not start")
            time.sleep(0.01)
        self.port = int(text.split()[1])

    def left(self) -> dict[int, int]:
        """Stream id → when it saw the client gone, monotonic ns."""
        rows = [line.split() for line in Path(self.log.name).read_text().splitlines()]
        return {int(row[1]): int(row[2]) for row in rows if row[0] == "left"}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()
        Path(self.log.name).unlink()


NGINX = """
worker_processes 1; daemon off; pid {d}/nginx.pid; error_log {d}/error.log crit; worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
  client_max_body_size 0; keepalive_requests 100000000;
  upstream ollama {{ server 127.0.0.1:{up}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; tcp_nodelay on;
    location / {{ proxy_pass http://ollama; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; proxy_send_timeout 1h; }}
  }}
}}
"""


class Nginx:
    """The peer: nginx with buffering off and upstream connections kept."""

    def __init__(self, upstream: int) -> None:
        import socket

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port: int = s.getsockname()[1]
        self.directory = tempfile.TemporaryDirectory(prefix="bench-nginx")
        config = Path(self.directory.name) / "nginx.conf"
        config.write_text(NGINX.format(d=self.directory.name, up=upstream, port=self.port))
        # as root nginx drops to another user, who must be able to write here
        Path(self.directory.name).chmod(0o777)
        self.process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL)
        time.sleep(0.3)

    def pids(self) -> list[int]:
        return [self.process.pid, *children(self.process.pid)]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()


class Ours:
    """`serve` as a user runs it: relay, observer with console, database on."""

    def __init__(self, upstream: int, *, db: bool = True) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="bench-qm")
        plan: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "upstream": f"127.0.0.1:{upstream}",
            "console": "127.0.0.1:0",
            "db": str(Path(self.directory.name) / "qm.db") if db else None,
            "quiet": True,
        }
        self.servant = Servant(_plan(plan))
        self.port = int(self.servant.proxy.rpartition(":")[2])
        self._settle()

    def _settle(self) -> None:
        """Until all is imported: MCP comes on a thread after the ports are open, and would count as a stream's memory."""
        steady, before, deadline = 0, 0, time.monotonic() + 30
        while steady < 5 and time.monotonic() < deadline:
            time.sleep(0.2)
            now = rss_kib(self.pids())
            steady = steady + 1 if now == before else 0
            before = now

    def pids(self) -> list[int]:
        return [self.servant.process.pid, *children(self.servant.process.pid)]

    def pid_of(self, module: str) -> int:
        return next(p for p in self.pids() if module in Path(f"/proc/{p}/cmdline").read_text())

    def close(self) -> None:
        self.servant.close()
        self.directory.cleanup()


class Bare:
    """The relay alone: no pipe, so nothing is observed."""

    def __init__(self, upstream: int) -> None:
        config = {"upstream": {"host": "127.0.0.1", "port": upstream}, "listen": ["127.0.0.1:0"]}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qm_proxy.relay", json.dumps(config)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["listening"][0].rpartition(":")[2])

    def close(self) -> None:
        self.process.kill()  # it is told to end over its control line, and has none
        self.process.wait()


class Readers:
    """A page's feed, lists, metrics and MCP asked for in a row without a pause, by one process, until closed."""

    def __init__(self, console: str) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "--read", console], stdout=subprocess.PIPE, text=True)

    def close(self) -> int:
        """How many answers it had."""
        self.process.terminate()
        assert self.process.stdout is not None
        return int(self.process.stdout.read() or 0)


def _idle_class() -> None:
    """Run only where nobody else wants to, and give way at once."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


class Spinner:
    """The control: a program that has nothing to do with ours computes, in the idle class, until closed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "--spin"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def read_all_the_time(console: str) -> None:
    """What `Readers` runs: one MCP session, and the pages and lists of a console, again and again."""
    import urllib.request

    _idle_class()  # what is measured is what the console costs, not what its reader does
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "find_anomalies", "arguments": {}}}
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}}}
    hello["params"] |= {"clientInfo": {"name": "bench", "version": "1"}}  # type: ignore[operator]
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    with urllib.request.urlopen(urllib.request.Request(f"{console}/mcp", json.dumps(hello).encode(), headers)) as first:
        session = first.headers.get("mcp-session-id")
        first.read()
    if session:
        headers["Mcp-Session-Id"] = session
    n = 0
    while not stop:
        for path in ("/", "/api/v1/exchanges?limit=50", "/api/v1/sessions", "/api/v1/findings", "/api/v1/status", "/metrics"):
            with contextlib.suppress(OSError), urllib.request.urlopen(console + path) as answer:
                answer.read()
                n += 1
        with contextlib.suppress(OSError):
            asked = urllib.request.Request(f"{console}/mcp", json.dumps(call).encode(), headers)
            with urllib.request.urlopen(asked) as answer:
                answer.read()
                n += 1
    print(n, flush=True)


def _plan(flags: dict[str, Any]) -> dict[str, Any]:
    from qm_proxy.cli import plan_of
    from qm_proxy.settings import load

    quiet = flags.pop("quiet")
    return plan_of(load({k: "off" if v is None else v for k, v in flags.items()}), quiet=quiet)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may end while we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(c) for c in (task / "children").read_text().split()]
    return found + [g for c in found for g in children(c)]


def cpu_ns(pids: list[int]) -> int:
    """On-CPU time of all threads of these processes, ns (schedstat)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
    return total


def rss_kib(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return total


def drive(port: int, *words: object) -> dict[str, Any]:
    done = subprocess.run([str(BUILD / "drive"), str(port), *map(str, words)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@dataclass
class Figures:
    """name → one value a round; printed as median [least … most]."""

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.rounds.setdefault(name, []).append(value)

    def text(self, name: str, unit: str = "", digits: int = 1) -> str:
        values = self.rounds.get(name)
        if not values:
            return "–"
        low, high = min(values), max(values)
        return f"{statistics.median(values):.{digits}f}{unit} [{low:.{digits}f} … {high:.{digits}f}] n={len(values)}"

    def median(self, name: str) -> float | None:
        return statistics.median(self.rounds[name]) if name in self.rounds else None


def say(text: str = "") -> None:
    print(text, flush=True)


def latency(targets: dict[str, Any], rounds: int, quick: bool) -> Figures:
    """Added latency and CPU per token at 60 tok/s, C = 16 and 64."""
    f = Figures()
    for c in (16, 64):
        tokens = 120 if quick else 240
        for _ in range(rounds):
            seen: dict[str, dict[str, Any]] = {}
            for name, target in targets.items():
                before = cpu_ns(target.pids()) if name != "direct" else 0
                seen[name] = drive(target.port, "stream", c, c, tokens, 60, 0)
                time.sleep(0.1)  # the observer's last batch belongs to this cell
                used = cpu_ns(target.pids()) - before if name != "direct" else 0
                seen[name]["cpu_us"] = used / 1e3 / max(1, seen[name]["tokens"])
                for key in ("errors", "lost", "altered"):
                    f.add(f"{c} {name} {key}", seen[name][key])
            direct = seen["direct"]
            f.add(f"{c} direct p50", direct["p50_us"])
            f.add(f"{c} direct p99", direct["p99_us"])
            for name in targets:
                if name == "direct":
                    continue
                s = seen[name]
                f.add(f"{c} {name} p50 over direct", s["p50_us"] - direct["p50_us"])
                f.add(f"{c} {name} p99", s["p99_us"])
                f.add(f"{c} {name} cpu", s["cpu_us"])
                f.add(f"{c} {name} ttft over direct", s["ttft_p50_us"] - direct["ttft_p50_us"])
            if "nginx" in seen:
                n, o = seen["nginx"], seen["ours"]
                f.add(f"{c} p99 x nginx", o["p99_us"] / n["p99_us"])
                f.add(f"{c} cpu x nginx", o["cpu_us"] / max(n["cpu_us"], 1e-9))
                allowed = 1.5 * max(n["p50_us"] - direct["p50_us"], 0) + 20
                f.add(f"{c} p50 of allowed", (o["p50_us"] - direct["p50_us"]) / allowed)
        say(f"\n60 tok/s, C={c}, {tokens} tokens a stream, {rounds} rounds")
        say(f"  direct   p50 {f.text(f'{c} direct p50', ' us')}   p99 {f.text(f'{c} direct p99', ' us')}")
        for name in targets:
            if name != "direct":
                say(
                    f"  {name:<8} p50 over direct {f.text(f'{c} {name} p50 over direct', ' us')}   p99 {f.text(f'{c} {name} p99', ' us')}"
                )
                say(
                    f"  {'':<8} CPU {f.text(f'{c} {name} cpu', ' us/token')}   TTFT over direct {f.text(f'{c} {name} ttft over direct', ' us')}"
                )
        say(
            f"  ours     p99 x nginx {f.text(f'{c} p99 x nginx', '', 2)} (must ≤ 1.5)   CPU x nginx {f.text(f'{c} cpu x nginx', '', 2)} (must ≤ 3)"
        )
        say(f"  {'':<8} added p50 / (1.5 x nginx's + 20 us) {f.text(f'{c} p50 of allowed', '', 2)} (must ≤ 1)")
    return f


def requests(targets: dict[str, Any], rounds: int, quick: bool) -> Figures:
    f = Figures()
    for _ in range(rounds):
        seen = {name: drive(t.port, "request", 16, 1 if quick else 2) for name, t in targets.items()}
        for name, s in seen.items():
            f.add(f"{name} per_s", s["per_s"])
        if "nginx" in seen:
            f.add("x nginx", seen["ours"]["per_s"] / seen["nginx"]["per_s"])
    say(f"\nSmall POSTs, C=16, {rounds} rounds")
    for name in targets:
        say(f"  {name:<8} {f.text(f'{name} per_s', ' /s', 0)}")
    say(f"  ours x nginx {f.text('x nginx', '', 2)} (must ≥ 0.8)")
    return f


def leave(rounds: int) -> Figures:
    """Client closes → emit sees it, ms: while tokens flow at 60 and at 2 per second, and while nothing has come yet."""
    f = Figures()
    cells = {"60 tok/s": (8, 40, 10, 60, 0), "2 tok/s": (8, 24, 2, 2, 0), "before the first byte": (1, 24, 0, 60, 60000)}
    for _ in range(rounds):
        for cell, words in cells.items():
            for name in ("direct", "ours", "nginx") if shutil.which("nginx") else ("direct", "ours"):
                emit = Emit()
                target: Any = {"direct": lambda e: None, "ours": lambda e: Ours(e.port), "nginx": lambda e: Nginx(e.port)}[name](
                    emit
                )
                port = emit.port if target is None else target.port
                done = subprocess.run(
                    [str(BUILD / "drive"), str(port), "leave", *map(str, words)], capture_output=True, text=True, check=True
                )
                time.sleep(0.3)
                closed = {int(r[1]): int(r[2]) for r in (line.split() for line in done.stdout.splitlines()) if r[0] == "closed"}
                left = emit.left()
                delays = sorted((left[i] - t) / 1e6 for i, t in closed.items() if i in left)
                f.add(f"{cell} {name} unseen", len(closed) - len(delays))
                if delays:
                    f.add(f"{cell} {name} p50", statistics.median(delays))
                    f.add(f"{cell} {name} max", delays[-1])
                if target is not None:
                    target.close()
                emit.close()
    say(f"\nClient leaves, until the upstream sees it, {rounds} rounds")
    for cell in cells:
        for name in ("direct", "nginx", "ours"):
            if f"{cell} {name} p50" in f.rounds:
                say(
                    f"  {cell:<22} {name:<8} p50 {f.text(f'{cell} {name} p50', ' ms', 2)}   max {f.text(f'{cell} {name} max', ' ms', 2)}   unseen {f.text(f'{cell} {name} unseen', '', 0)}"
                )
    say("  (must: ours p50 ≤ 1 ms, max ≤ 5 ms, none unseen)")
    return f


def memory(c: int = 1000) -> Figures:
    """Resident memory of all our processes per stream, C streams of 5 tok/s held at once; fresh processes."""
    f = Figures()
    for name in ("ours", "nginx") if shutil.which("nginx") else ("ours",):
        emit = Emit()
        target: Any = Ours(emit.port) if name == "ours" else Nginx(emit.port)
        drive(target.port, "stream", 1, 1, 5, 60, 0)
        time.sleep(0.5)
        pids = target.pids()
        relay = [target.pid_of("qm_proxy.relay")] if name == "ours" else pids
        before, before_relay = rss_kib(pids), rss_kib(relay)
        holding = subprocess.Popen(
            [str(BUILD / "drive"), str(target.port), "hold", str(c), "40", "5"], stdout=subprocess.PIPE, text=True
        )
        assert holding.stdout is not None
        holding.stdout.readline()
        time.sleep(3)
        f.add(f"{name} KiB", (rss_kib(pids) - before) / c)
        f.add(f"{name} relay KiB", (rss_kib(relay) - before_relay) / c)
        f.add(f"{name} before MiB", before / 1024)
        result = json.loads(holding.stdout.read().splitlines()[-1])
        holding.wait()
        for key in ("errors", "lost", "altered"):
            f.add(f"{name} {key}", result[key])
        f.add(f"{name} p99 us", result["p99_us"])
        target.close()
        emit.close()
    say(f"\nMemory, {c} streams at 5 tok/s")
    for name in ("nginx", "ours"):
        if f"{name} KiB" in f.rounds:
            say(
                f"  {name:<8} {f.text(f'{name} KiB', ' KiB/stream')} (relay alone {f.text(f'{name} relay KiB')}), before {f.text(f'{name} before MiB', ' MiB')}, p99 {f.text(f'{name} p99 us', ' us')}"
            )
    say("  (must: ours ≤ 12 KiB/stream)")
    return f


def upload() -> Figures:
    f = Figures()
    emit = Emit()
    ours = Ours(emit.port)
    drive(ours.port, "upload", 1)
    pids = ours.pids()
    relay = ours.pid_of("qm_proxy.relay")
    before, before_relay, most, most_relay = rss_kib(pids), rss_kib([relay]), 0, 0
    sending = subprocess.Popen([str(BUILD / "drive"), str(ours.port), "upload", "1024"], stdout=subprocess.PIPE, text=True)
    while sending.poll() is None:
        most, most_relay = max(most, rss_kib(pids)), max(most_relay, rss_kib([relay]))
        time.sleep(0.005)
    assert sending.stdout is not None
    result = json.loads(sending.stdout.read())
    direct = drive(emit.port, "upload", 1024)
    f.add("relay MiB", (most_relay - before_relay) / 1024)
    f.add("all MiB", (most - before) / 1024)
    f.add("MiB/s", 1024 / result["elapsed_s"])
    f.add("direct MiB/s", 1024 / direct["elapsed_s"])
    say("\nUpload of 1 GiB")
    say(
        f"  relay grew {f.text('relay MiB', ' MiB')} (must ≤ 8), all processes {f.text('all MiB', ' MiB')}; {f.text('MiB/s', ' MiB/s', 0)}, direct {f.text('direct MiB/s', ' MiB/s', 0)}; ok {result['ok']}"
    )
    ours.close()
    emit.close()
    return f


def exact(streams: int = 1000) -> Figures:
    """Every stream's bytes against the hash that emit took; and the measured times against emit's own stamps."""
    f = Figures()
    emit = Emit()
    ours = Ours(emit.port)
    for sse in (0, 1):
        result = drive(ours.port, "stream", 50, streams // 2, 40, 400, sse)
        for key in ("errors", "lost", "altered", "done"):
            f.add(f"{key}", result[key])
    say(
        f"\nExactness, {streams} streams, NDJSON and SSE: done {sum(f.rounds['done']):.0f}, errors {sum(f.rounds['errors']):.0f}, lost {sum(f.rounds['lost']):.0f}, altered {sum(f.rounds['altered']):.0f} (must 0)"
    )
    ours.close()
    ours = Ours(emit.port, db=False)
    with tempfile.TemporaryDirectory() as directory:
        through, straight = Path(directory) / "through", Path(directory) / "straight"
        drive(ours.port, "stream", 8, 24, 240, 60, 0, through)
        straight_result = drive(emit.port, "stream", 8, 24, 240, 60, 0, straight)
        time.sleep(0.5)
        measured, ttfts = _measured(ours)
        truth = _dump(through)
        found_gaps: list[float] = []
        for stream, rows in truth.items():
            chunks = measured.get(f"bench/{stream}")
            if chunks is None or len(chunks) != len(rows):
                f.add("streams not measured whole", 1)
                continue
            emitted = [e for e, _ in rows]
            found_gaps += [abs((chunks[i] - chunks[i - 1]) - (emitted[i] - emitted[i - 1])) / 1e3 for i in range(1, len(rows))]
        direct_gaps = [
            abs((rows[i][1] - rows[i - 1][1]) - (rows[i][0] - rows[i - 1][0])) / 1e3
            for rows in _dump(straight).values()
            for i in range(1, len(rows))
        ]
    gaps, direct = sorted(found_gaps), sorted(direct_gaps)
    f.add("gap error p50 us", gaps[len(gaps) // 2])
    f.add("gap error p99 us", gaps[int(len(gaps) * 0.99)])
    f.add("direct gap error p50 us", direct[len(direct) // 2])
    f.add("direct gap error p99 us", direct[int(len(direct) * 0.99)])
    say(
        f"Measured gaps against emit's stamps, 8 x 60 tok/s, n={len(gaps)}: error p50 {gaps[len(gaps) // 2]:.0f} us, p99 {gaps[int(len(gaps) * 0.99)]:.0f} us; "
        f"a direct client's own: p50 {direct[len(direct) // 2]:.0f} us, p99 {direct[int(len(direct) * 0.99)]:.0f} us (must: ≤ 100 us and ≤ 1000 us beyond direct's)"
    )
    say(
        f"Measured TTFT (truth: the first token leaves at once), n={len(ttfts)}: p99 {ttfts[int(len(ttfts) * 0.99)] * 1e6:.0f} us; "
        f"a direct client's own p99 {straight_result['ttft_p99_us']:.0f} us (must: ≤ 1000 us beyond)"
    )
    ours.close()
    emit.close()
    return f


def _dump(path: Path) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for line in path.read_text().splitlines():
        stream, _, emitted, arrived = line.split()
        found.setdefault(int(stream), []).append((int(emitted), int(arrived)))
    return found


def _measured(ours: Ours) -> tuple[dict[str, list[int]], list[float]]:
    """(user agent → its chunks' times in ns, every TTFT in s) as the console tells them."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = ours.servant.ask("/api/v1/exchanges?limit=500" + (f"&cursor={cursor}" if cursor else ""))
        rows += page["items"]
        cursor = page["next_cursor"]
    chunks = {r["user_agent"]: ours.servant.ask(f"/api/v1/exchanges/{r['id']}/chunks")["arrival_ns"] for r in rows if r["chunks"]}
    return chunks, sorted(r["ttft_s"] for r in rows if r["ttft_s"] is not None)


def kill(rounds: int) -> Figures:
    """Kill -9 the observer in mid-stream, and again while it restarts: bytes and p99 unchanged, it comes back and says so."""
    f = Figures()
    for _ in range(rounds):
        emit = Emit()
        ours = Ours(emit.port)
        calm = drive(ours.port, "stream", 16, 16, 360, 60, 0)
        running = subprocess.Popen(
            [str(BUILD / "drive"), str(ours.port), "stream", "16", "16", "360", "60", "0"], stdout=subprocess.PIPE, text=True
        )
        time.sleep(1.5)
        first = ours.pid_of("qm_proxy.wiring")
        os.kill(first, signal.SIGKILL)
        for _ in range(500):
            with contextlib.suppress(StopIteration):
                if (second := ours.pid_of("qm_proxy.wiring")) != first:
                    os.kill(second, signal.SIGKILL)
                    break
            time.sleep(0.005)
        assert running.stdout is not None
        hit = json.loads(running.stdout.read())
        running.wait()
        back = time.monotonic() + 15
        status = None
        while status is None and time.monotonic() < back:
            with contextlib.suppress(Exception):
                status = ours.servant.ask("/api/v1/status")
            time.sleep(0.1)
        f.add("faults", hit["errors"] + hit["lost"] + hit["altered"])
        f.add("p99 ratio", hit["p99_us"] / calm["p99_us"])
        f.add("restarts", status["observer"]["restarts"] if status else -1)
        ours.close()
        emit.close()
    say(
        f"\nObserver killed twice in mid-stream, {rounds} rounds: faults {f.text('faults', '', 0)}, p99 over undisturbed {f.text('p99 ratio', '', 2)}, restarts it reports {f.text('restarts', '', 0)}"
    )
    return f


def beside(rounds: int) -> Figures:
    """What observing costs the relay's p99, and what a busy console does: the same relay alone, observed, and observed with
    page, API, metrics and MCP asked without a pause. Ratios within a round."""
    f = Figures()
    emit = Emit()
    bare, ours = Bare(emit.port), Ours(emit.port)
    assert ours.servant.console is not None
    for target in (bare, ours):
        drive(target.port, "stream", 4, 8, 30, 60, 0)
    for c in (16, 64):
        for _ in range(rounds):
            alone = drive(bare.port, "stream", c, c, 180, 60, 0)
            observed = drive(ours.port, "stream", c, c, 180, 60, 0)
            readers = Readers(ours.servant.console)
            busy = drive(ours.port, "stream", c, c, 180, 60, 0)
            f.add(f"{c} answers", readers.close())
            spinner = Spinner()
            beside_it = drive(bare.port, "stream", c, c, 180, 60, 0)
            spinner.close()
            f.add(f"{c} spun", beside_it["p99_us"] / alone["p99_us"])
            f.add(f"{c} faults", sum(s[k] for s in (alone, observed, busy) for k in ("errors", "lost", "altered")))
            f.add(f"{c} alone p99 us", alone["p99_us"])
            f.add(f"{c} observed", observed["p99_us"] / alone["p99_us"])
            f.add(f"{c} busy", busy["p99_us"] / observed["p99_us"])
            f.add(f"{c} busy p50", busy["p50_us"] / observed["p50_us"])
    bare.close()
    ours.close()
    emit.close()
    for c in (16, 64):
        say(f"\nThe relay's p99 per token, 60 tok/s, C={c}, {rounds} rounds; alone {f.text(f'{c} alone p99 us', ' us')}")
        say(f"  observed / alone             {f.text(f'{c} observed', '', 2)} (must ≤ 1.3)")
        say(
            f"  a stranger spins / alone     {f.text(f'{c} spun', '', 2)} (the same relay alone beside an idle-class loop: the machine's share)"
        )
        say(f"  console busy / quiet         {f.text(f'{c} busy', '', 2)} (must ≤ 1.3)   p50 {f.text(f'{c} busy p50', '', 2)}")
        say(f"  answers read meanwhile       {f.text(f'{c} answers', '', 0)}   faults {f.text(f'{c} faults', '', 0)}")
    return f


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


@contextlib.contextmanager
def lined_up() -> Iterator[dict[str, Any]]:
    emit = Emit()
    targets: dict[str, Any] = {"direct": emit}
    if shutil.which("nginx"):
        targets["nginx"] = Nginx(emit.port)
    targets["ours"] = Ours(emit.port)
    try:
        for name, target in targets.items():
            if name != "direct":
                drive(target.port, "stream", 4, 8, 30, 60, 0)
        yield targets
    finally:
        for name, target in targets.items():
            if name != "direct":
                target.close()
        emit.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and rounds")
    parser.add_argument("--only", default="latency,requests,leave,memory,upload,exact,kill,beside")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--spin", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.read:
        read_all_the_time(a.read)
        return
    if a.spin:
        _idle_class()
        while True:
            pass
    if shutil.which("gcc") is None and not (BUILD / "emit").exists():
        sys.exit("bench: gcc is needed to build the emitter and the driver (apt-get install gcc)")
    build()
    rounds = 2 if a.quick else a.rounds
    wanted = a.only.split(",")
    say(f"{machine()}; {'nginx beside' if shutil.which('nginx') else 'nginx not installed: no column for it'}")
    found: dict[str, Figures] = {}
    if {"latency", "requests"} & set(wanted):
        with lined_up() as targets:
            if "latency" in wanted:
                found["latency"] = latency(targets, rounds, a.quick)
            if "requests" in wanted:
                found["requests"] = requests(targets, rounds, a.quick)
    if "leave" in wanted:
        found["leave"] = leave(1 if a.quick else min(rounds, 3))
    if "memory" in wanted:
        found["memory"] = memory()
    if "upload" in wanted:
        found["upload"] = upload()
    if "exact" in wanted:
        found["exact"] = exact()
    if "kill" in wanted:
        found["kill"] = kill(1 if a.quick else min(rounds, 3))
    if "beside" in wanted:
        found["beside"] = beside(2 if a.quick else max(rounds, 10))
    if a.json:
        a.json.write_text(json.dumps({"machine": machine(), **{k: v.rounds for k, v in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
