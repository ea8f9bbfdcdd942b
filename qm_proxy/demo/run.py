"""The demo as a process: a simulated Ollama, `serve` in front of it, the clients here, and the closing table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from qm_proxy.cli import plan_of
from qm_proxy.demo.clients import Heard, play, send
from qm_proxy.demo.judge import Pair, Row, compare, faults_found, nothing_else
from qm_proxy.demo.scenes import Scene, faults, scenes
from qm_proxy.errors import QmError
from qm_proxy.servant import Servant, ask
from qm_proxy.settings import load
from qm_proxy.tasks import spawn
from qm_proxy.terminal import seconds

__all__ = ["run_demo"]


class Simulator:
    """`qm-proxy sim` as a process of its own."""

    def __init__(self, seed: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qm_proxy", "sim", "--listen", "127.0.0.1:0", "--max-loaded", "30", "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.url = next((word.rstrip(",") for word in words if word.startswith("http://")), "")
        if not self.url:
            raise QmError("The simulated Ollama did not start.")

    def truths(self) -> list[dict[str, Any]]:
        found = ask(self.url, "/sim/truth?limit=20000")
        rows: list[dict[str, Any]] = found["requests"] if isinstance(found, dict) else found
        return rows

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def run_demo(*, seconds: float | None, listen: str, console: str, db: str | None, seed: int, as_json: bool) -> int:
    """Run till Ctrl-C or `seconds`; print the table; 0 when everything planted was found within tolerance, else 1."""
    with tempfile.TemporaryDirectory(prefix="qm-demo-") as directory:
        simulator = Simulator(seed)
        try:
            flags = {
                "listen": listen,
                "console": console,
                "db": db or str(Path(directory) / "demo.db"),
                "upstream": simulator.url,
            }
            plan = plan_of(load(flags | {"grace": 3.0, "poll": 0.5}), quiet=True)
            with Servant(plan) as servant:
                print(
                    f"qm-proxy ready: proxy {servant.proxy} -> {simulator.url}, console {servant.console or 'off'}",
                    file=sys.stderr if as_json else sys.stdout,
                    flush=True,
                )
                return asyncio.run(_perform(simulator, servant, seconds, as_json))
        finally:
            simulator.close()


async def _perform(simulator: Simulator, servant: Servant, limit_s: float | None, as_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if limit_s is not None:
        loop.call_later(limit_s, stop.set)
    screen = None if as_json else Screen(servant)
    follower = spawn(screen.follow(), name="screen") if screen else None
    heard: list[Heard] = []
    straight: list[Heard] = []
    round_n = 0
    planted = faults(limit_s)
    playing = [spawn(_broken(servant.proxy, scene, f"fault{n}"), name=scene.name) for n, scene in enumerate(planted)]
    while not stop.is_set():
        label = f"demo-{round_n}"
        batch = scenes(round_n)
        through = [_staggered(send(servant.proxy, scene, f"{label}-{n}"), 0.3 * n) for n, scene in enumerate(batch)]
        whole = [(n, scene) for n, scene in enumerate(batch) if scene.leave_after is None]
        twins = [_staggered(send(simulator.url, scene, f"{label}-{n}-direct"), 0.3 * n + 0.15) for n, scene in whole]
        answers = await asyncio.gather(*through, *twins)
        heard += answers[: len(through)]
        straight += answers[len(through) :]
        round_n += 1
    for task in playing:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 30)
    await asyncio.sleep(0.6)  # what closed last is readable within that
    if follower is not None:
        follower.cancel()
    named = {scene.name: (scene.expects or "", f"fault{n}") for n, scene in enumerate(planted)}
    rows = await asyncio.to_thread(_judge, simulator, servant, heard, straight, named)
    missed = [row for row in rows if not row.within]
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        _show(rows, round_n)
    return 1 if missed else 0


async def _broken(base: str, scene: Scene, label: str) -> None:
    """Play a planted fault; that its stream breaks is meant."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        await play(base, scene, label)


async def _staggered(work: Any, delay_s: float) -> Heard:
    await asyncio.sleep(delay_s)
    heard: Heard = await work
    return heard


def _judge(
    simulator: Simulator, servant: Servant, heard: list[Heard], straight: list[Heard], planted: dict[str, tuple[str, str]]
) -> list[Row]:
    truths = {t["label"]: t for t in simulator.truths() if t["label"]}
    found: dict[str, dict[str, Any]] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = servant.ask("/api/v1/exchanges?limit=500" + (f"&cursor={quote(cursor)}" if cursor else ""))
        found |= {row["user_agent"].rsplit(" ", 1)[-1]: row for row in page["items"] if row["user_agent"]}
        cursor = page["next_cursor"]
    pairs = []
    for one in heard:
        if one.label not in truths or one.label not in found:
            continue
        row = found[one.label]
        arrivals = servant.ask(f"/api/v1/exchanges/{row['id']}/chunks")["arrival_ns"] if row["chunks"] else []
        pairs.append(Pair(truths[one.label], row, arrivals))
    rows = compare(pairs, [(truths[s.label], s) for s in straight if s.label in truths])
    rows.insert(
        0, Row("requests observed", len(heard), len(pairs), abs(len(heard) - len(pairs)), "", len(heard) == len(pairs), 0.0)
    )
    return rows + faults_found(found, planted) + [nothing_else(found, planted, pairs)]


class Screen:
    """One line for each answer as it ends, from the console's event feed: what a user of `serve` sees."""

    def __init__(self, servant: Servant) -> None:
        self.servant = servant

    async def follow(self) -> None:
        if self.servant.console is None:
            return
        url = urlsplit(self.servant.console)
        reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=2**22)
        writer.write(f"GET /api/v1/events HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    with contextlib.suppress(ValueError):
                        self._say(json.loads(line[6:]))
        finally:
            writer.close()

    @staticmethod
    def _say(event: dict[str, Any]) -> None:
        if "ending" in event and event.get("operation"):
            rate = f"{event['tokens_per_s']:.1f}" if event["tokens_per_s"] is not None else "–"
            print(
                f"  {event['client']:<12} {event['model'] or '':<12} {event['dialect']:<18} ttft {seconds(event['ttft_s']):>7}"
                f"  {rate:>6} tok/s  {event['output_tokens'] if event['output_tokens'] is not None else '–':>4} tokens"
                f"  {seconds(event['total_s']):>7}  {event['ending']}",
                flush=True,
            )
            if event["slow_because"]:
                print(f"               {event['slow_because']}", flush=True)
        elif "severity" in event and "kind" in event:
            print(f"  ! {event['kind']}: {event['summary']}", flush=True)


def _show(rows: list[Row], rounds: int) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable(title=f"planted beside found, {rounds} rounds", title_justify="left", header_style="bold")
    for name, side in (
        ("what", "left"),
        ("planted", "right"),
        ("found", "right"),
        ("error", "right"),
        ("allowed", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        mark = "[green]✓[/]" if row.within else "[red]✗ missed[/]"
        table.add_row(
            row.name,
            _text(row.planted, row.unit),
            _text(row.found, row.unit),
            _text(row.error, row.unit),
            _text(row.tolerance, row.unit),
            mark,
        )
    screen = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "110")))
    screen.print(table)
    missed = sum(not row.within for row in rows)
    screen.print(
        "[green]Everything planted was found within what a direct client achieved in this run, plus 1 ms.[/]"
        if not missed
        else f"[red]{missed} of {len(rows)} rows missed.[/]"
    )


def _text(value: float | str | None, unit: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value if len(value) < 30 else f"{value[:27]}…"
    return f"{value:g}" if not unit else f"{value:.2f} {unit}"
