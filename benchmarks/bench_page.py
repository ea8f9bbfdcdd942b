"""What the page costs the browser while eight streams of 60 tokens a second run: first paint, tasks, heap; and the observer's memory.

    python benchmarks/bench_page.py [--seconds 600]        needs Chromium and playwright

Each task of the page's main thread is taken from Chromium's own trace: how long it took by the wall, and how much of that was its
work (thread time). On a machine that is busy elsewhere only the second says something about the page.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from qm_proxy.cli import plan_of
from qm_proxy.demo.clients import send
from qm_proxy.demo.run import Simulator
from qm_proxy.demo.scenes import Scene
from qm_proxy.servant import Servant
from qm_proxy.settings import load

STREAMS = 8
WINDOW_S = 25.0  # a trace is read this often: it is held in the browser until then
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-proxy-server"]


async def _traffic(proxy: str, until: float) -> None:
    async def again(n: int) -> None:
        await asyncio.sleep(0.3 * n)
        turn = 0
        while time.monotonic() < until:
            turn += 1
            said = [{"role": "user", "content": f"explain {n} {turn}"}]
            body = {"model": "steady", "messages": said, "options": {"num_predict": 240}}
            await send(proxy, Scene("steady", "opencode/1.18", "/api/chat", body), f"{n}-{turn}")

    await asyncio.gather(*(again(n) for n in range(STREAMS)))


def _tasks(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(wall ms, thread ms) of each task of the page's main thread."""
    main = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"}
    ran = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) in main and "RunTask" in e["name"]]
    return [(e["dur"] / 1e3, e.get("tdur", 0) / 1e3) for e in ran]


def _watch(page: Any, served: Servant, until: float) -> None:
    session = page.context.new_cdp_session(page)
    events: list[dict[str, Any]] = []
    ended = threading.Event()
    session.on("Tracing.dataCollected", lambda told: events.extend(told["value"]))
    session.on("Tracing.tracingComplete", lambda _: ended.set())
    tasks: list[tuple[float, float]] = []
    while time.monotonic() < until - 2:
        events.clear()
        ended.clear()
        session.send("Tracing.start", {"traceConfig": {"includedCategories": ["toplevel"], "excludedCategories": ["*"]}})
        page.wait_for_timeout(1e3 * min(WINDOW_S, until - time.monotonic()))
        session.send("Tracing.end")
        while not ended.is_set():
            page.wait_for_timeout(20)
        tasks += _tasks(events)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"] / 1e6
        memory = served.ask("/api/v1/status")["observer"]["rss_bytes"] / 2**20
        long = sum(wall > 50 for wall, _ in tasks)
        print(
            f"{len(tasks):7} tasks, {long} over 50 ms by the wall; most work in one {max(work for _, work in tasks):.1f} ms; "
            f"heap {heap:.2f} MB, observer {memory:.0f} MiB, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print("over 50 ms [wall, work]:", [(round(wall), round(work, 1)) for wall, work in tasks if wall > 50])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("QM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    simulator = Simulator(1)
    try:
        with tempfile.TemporaryDirectory() as directory:
            given = {"upstream": simulator.url, "listen": "127.0.0.1:0", "console": "127.0.0.1:0"}
            plan = plan_of(load(given | {"db": str(Path(directory) / "qm.db")}), quiet=True)
            with Servant(plan) as served, sync_playwright() as p:
                browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                page.goto(f"{served.console}/")
                page.wait_for_selector("#link.on")
                painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
                print(f"first paint {painted:.0f} ms")
                until = time.monotonic() + args.seconds
                traffic = threading.Thread(target=lambda: asyncio.run(_traffic(served.proxy, until)))
                traffic.start()
                page.wait_for_timeout(5000)
                _watch(page, served, until)
                traffic.join()
                browser.close()
    finally:
        simulator.close()


if __name__ == "__main__":
    main()
