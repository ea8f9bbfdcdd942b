"""The one place where the observer's parts are joined; reads like a parts list. `python -m qm_proxy.wiring CONFIG` runs it.

pipes ─▶ Reader ─▶ Observer ─▶ Exchange ─▶ Fanout ─┬─▶ Ring ─▶ console
/api/ps, host ─────────▲                           ├─▶ Terminal
                                                   └─▶ what the settings add
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import resource
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from qm_proxy import __version__
from qm_proxy.across import Across
from qm_proxy.beside.host import Host
from qm_proxy.beside.residency import ResidencyWatch
from qm_proxy.console.api import problem_response
from qm_proxy.console.app import Server, build, names_of_sockets
from qm_proxy.console.live import Live
from qm_proxy.console.page import page_routes
from qm_proxy.courtesy import stand_back
from qm_proxy.detect.detector import Detector
from qm_proxy.detect.suite import Suite
from qm_proxy.detect.token_loop import TokenLoop
from qm_proxy.errors import SettingsError, StoreError
from qm_proxy.events import HostSample, Nanoseconds, Residency, ResidentModel
from qm_proxy.exchange import Exchange
from qm_proxy.findings import Finding
from qm_proxy.guard import Guard, GuardWatch
from qm_proxy.ids import new_id, unix_ms_of
from qm_proxy.measure.wall_clock import WallClock
from qm_proxy.observer import Fanout, Observer
from qm_proxy.record import Opened, Progress, Record
from qm_proxy.relay.addresses import parse_upstream
from qm_proxy.relay.pipe import Reader, order
from qm_proxy.sessions import Sessions
from qm_proxy.sinks import Sink
from qm_proxy.store.both import Both
from qm_proxy.store.database import secret_key
from qm_proxy.store.queries import Ring
from qm_proxy.store.redact import Redactor, hook_of
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer
from qm_proxy.tasks import spawn
from qm_proxy.telemetry.content import CAPTURE_VARIABLE
from qm_proxy.telemetry.metrics import Metrics
from qm_proxy.telemetry.prometheus import page
from qm_proxy.telemetry.provider import SIGNALS, Export, wanted
from qm_proxy.terminal import Terminal
from qm_proxy.wire.http import RequestHead
from qm_proxy.wire.replies import clean_end

if TYPE_CHECKING:
    from probes.jobs import Jobs

__all__ = ["main"]

READ_BYTES = 256 * 1024
LITTLE_BYTES = 32 * 1024
GATHER_S = 0.045  # with the relay's 25 ms a token is seen within 70 ms, and told of within 100
TICK_S = 0.5
GC_THRESHOLD = (10_000, 20, 20)  # events are no garbage of a collector's kind: it looked for some 70 times a second, in vain
PLACES = 10_000
RESUME_S = 3600.0
MCP_BODY_BYTES = 2**20
MCP_SESSIONS = 256
MEMORY_BYTES = 64 * 2**20  # of the database in memory that `--db off` means


class Place(NamedTuple):
    """Where an exchange runs: for the guard's order."""

    relay: int
    connection: int
    n: int


class LateApp:
    """An ASGI application that is there a moment later than the port: who comes earlier waits for it."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._there = asyncio.Event()

    def arrived(self, app: ASGIApp) -> None:
        self._app = app
        self._there.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._there.wait(), 20)
        if self._app is None:
            await problem_response(503, "Not ready yet", "MCP could not be loaded yet: try again.")(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Busy:
    """A sink: how many requests of each model are in flight. `unknown` is called while a model without known window is asked."""

    def __init__(self, window_of: Callable[[str], int | None], unknown: Callable[[], None]) -> None:
        self._window_of = window_of
        self._unknown = unknown
        self._models: Counter[str] = Counter()
        self._of: dict[str, str] = {}

    def get(self, model: str) -> int:
        return self._models[model]

    def opened(self, opened: Opened) -> None:
        if opened.operation is not None and opened.model is not None:
            self._models[opened.model] += 1
            self._of[opened.id] = opened.model
            self._look(opened.model)

    def progress(self, progress: Progress) -> None:
        if (model := self._of.get(progress.id)) is not None:
            self._look(model)

    def _look(self, model: str) -> None:
        if self._window_of(model) is None:
            self._unknown()

    def found(self, finding: Finding) -> None:
        """Changes nothing."""

    def closed(self, record: Record) -> None:
        if (model := self._of.pop(record.id, None)) is not None:
            self._models[model] -= 1
            if not self._models[model]:
                del self._models[model]


class Process:
    """The observer process: owns the loop, the pipes and everything that is not pure."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.plan = config["plan"]
        self.started = time.monotonic()
        self.started_at = datetime.now(UTC)
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.readers: dict[int, Reader] = {}
        self.pipes: dict[int, socket.socket] = {}
        self.lag_max_s = 0.0
        self.told: dict[str, str | None] = {}
        self.recoveries_told = 0
        upstream = parse_upstream(self.plan["upstream"])

        # the parts
        self.residency = ResidencyWatch(upstream.url, upstream.unix, self.plan["poll"], self._resident)
        self.busy = Busy(self.residency.window_of, self.residency.hurry)
        self.metrics = Metrics()
        self.ring = Ring(limit=self.plan["ring"])
        self.live = Live()
        self.redact, kept = _redactor(self.plan)
        self.export: Export | None = None
        if any(wanted(s) for s in SIGNALS):
            text_of = None if self.redact is None else self.redact.text
            self.export = Export(self.metrics, upstream.url, __version__, text_of, content_is_ours=not kept)
        exported = self.export is not None and self.export.wants_content
        self.capture = kept or exported
        if exported:
            print(f"qm-proxy: prompts and answers are exported: {CAPTURE_VARIABLE} asks for it.", file=sys.stderr, flush=True)
        db = None if self.plan["db"] is None else Path(self.plan["db"])
        self.guard = Guard(self._end_by_guard) if self.plan["guard"] == "cut" else None
        self.places: OrderedDict[str, Place] = OrderedDict()
        self.suite = Suite()
        self.across = Across(self.suite, lambda finding: self.fanout.found(finding), self._attach)
        self.sessions = Sessions(key=_key(db), new_id=_session_id, excerpts=self.plan["excerpts"])
        self.writer = Writer(
            db,
            excerpts=self.plan["excerpts"],
            content=kept,
            redact=self.redact,
            keep_s=self.plan["retain_days"] * 86400,
            keep_bytes=int(self.plan["retain_mb"] * 2**20) if db else MEMORY_BYTES,
        )
        self.stored = Stored(self.writer.place)
        self.queries = Both(self.ring, self.stored)
        sinks: list[Sink] = [self.sessions, self.across, self.busy, self.metrics, self.ring, self.writer, self.live]
        if self.export is not None:
            sinks.insert(2, self.export)  # before the others: it gives each record its trace id
        if not self.plan.get("quiet"):
            sinks.append(Terminal())
        self.fanout = Fanout(sinks)
        self.clock = WallClock(time.monotonic_ns(), time.time_ns())
        self.observer = Observer(self._exchange, breathe=getattr(os, "sched_yield", lambda: None))
        self.host: Host | None = None
        self.sampled: HostSample | None = None
        self._watch_ourselves()
        sockets = [socket.socket(fileno=fd) for fd in config["console_fds"]]
        self.mcp = LateApp()
        self.jobs: Jobs | None = None
        mounts = [
            Route("/metrics", self._metrics_page),
            Route("/api/v1/events", self.live.endpoint),
            *page_routes(lambda: (config["proxy_url"], config["console_url"])),
            Route("/mcp", self.mcp, methods=["GET", "POST", "DELETE"]),
        ]
        app = build(
            self.queries,
            self.status,
            names=names_of_sockets(sockets),
            token=self.plan["console_token"],
            mounts=mounts,
            start=self._start_run,
            cancel=self._cancel_run,
            compare=self._compare_runs,
            replays=self._replays_of,
        )
        self.server = Server(app, sockets) if sockets else None

    # --- the life of the process --------------------------------------------------------------------------------------

    async def run(self) -> None:
        control = socket.socket(fileno=self.config["control_fd"])
        control.setblocking(False)
        self.loop.add_reader(control.fileno(), self._control, control, bytearray())
        for number, fd in self.config["pipes"].items():
            self._open_pipe(int(number), fd)
        serving = spawn(self.server.run_until_stopped(), name="console") if self.server else None
        if self.server is not None:
            await self.server.up.wait()
        control.send(json.dumps({"ready": True}).encode() + b"\n")
        if self.export is not None:
            self.export.start()
        beside = [spawn(self._tick(), name="tick")]
        if self.plan["poll"] > 0:
            beside.append(spawn(self.residency.run(), name="residency"))
        self.writer.start()
        await self._resume_sessions()
        ending = asyncio.Event()
        mcp = spawn(self._serve_mcp(ending), name="mcp") if self.server is not None else None
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        await self.stopping.wait()
        self._drain_pipes()
        for task in beside:
            task.cancel()
        for number in list(self.pipes):
            self.observer.relay_gone(number, Nanoseconds(time.monotonic_ns()))
        ending.set()
        if mcp is not None:
            await mcp
        stored = await asyncio.to_thread(self.writer.stop)
        self._tell_changes()
        if not stored:
            print(f"qm-proxy: {self.writer.pending} exchanges and findings could not be stored.", file=sys.stderr, flush=True)
        if self.export is not None:
            await asyncio.to_thread(self.export.close)
        if self.server is not None and serving is not None:
            self.live.close()
            await self.server.stop(serving)

    def _control(self, control: socket.socket, lines: bytearray) -> None:
        """What the supervisor says: a new pipe, or stop. It hanging up means it is gone: flush and end."""
        try:
            data, fds, _, _ = socket.recv_fds(control, 65536, 8)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.loop.remove_reader(control.fileno())
            self.stopping.set()
            return
        lines += data
        while (end := lines.find(b"\n")) >= 0:
            message = json.loads(bytes(lines[:end]))
            del lines[: end + 1]
            if "pipe" in message and fds:
                self._open_pipe(int(message["pipe"]), fds.pop(0))
            if message.get("report_idle"):
                spawn(self._report_idle(control), name="idle report")
            if message.get("stop"):
                self.stopping.set()

    async def _report_idle(self, control: socket.socket) -> None:
        """While the relays stop: which connections have nothing under way, ten times a second."""
        while not self.stopping.is_set():
            if idle := self.observer.idle():
                with contextlib.suppress(OSError):
                    control.send(json.dumps({"idle": idle}).encode() + b"\n")
            await asyncio.sleep(0.1)

    def _open_pipe(self, number: int, fd: int) -> None:
        pipe = socket.socket(fileno=fd)
        pipe.setblocking(False)
        self.pipes[number] = pipe
        self.readers[number] = Reader()
        self._listen(number)

    def _listen(self, number: int) -> None:
        if number in self.pipes:
            self.loop.add_reader(self.pipes[number].fileno(), self._hear, number)

    def _hear(self, number: int) -> None:
        """Something is in the pipe. Read it, and if it was little, let the next gather for a while: waking costs more than
        reading does (400 µs of cold caches beside 8 µs a token)."""
        if 0 < self._read_pipe(number) < LITTLE_BYTES:
            self.loop.remove_reader(self.pipes[number].fileno())
            self.loop.call_later(GATHER_S, self._listen, number)

    def _read_pipe(self, number: int) -> int:
        """One read; how many bytes there were. An end of file means that this relay is gone."""
        try:
            data = self.pipes[number].recv(READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self.loop.remove_reader(self.pipes[number].fileno())
            self.observer.relay_gone(number, Nanoseconds(time.monotonic_ns()))
            self.pipes.pop(number).close()
            return 0
        for batch in self.readers[number].feed(data):
            self.observer.take(batch)
        return len(data)

    def _drain_pipes(self) -> None:
        for number in list(self.pipes):
            while self._read_pipe(number):
                pass

    async def _tick(self) -> None:
        """Twice a second: silence, the host while streams run, and how late this loop is."""
        last_host = 0.0
        while True:
            due = self.loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            now = self.loop.time()
            self.lag_max_s = max(self.lag_max_s * 0.9, now - due)
            now_ns = Nanoseconds(time.monotonic_ns())
            if self.clock.look(now_ns, time.time_ns()) > 0:
                for exchange in self.observer.in_flight():
                    exchange.suspended()
            self.observer.tick(now_ns)
            self.across.tick(now_ns)
            self._tell_changes()
            if self.observer.in_flight():
                self.residency.wake()
                if now - last_host >= 1.0:
                    last_host = now
                    self.host = self.host or Host()
                    self.sampled = self.host.sample()
                    self.observer.beside(self.sampled)

    async def _serve_mcp(self, ending: asyncio.Event) -> None:
        """Import the heavy part on a thread, after the proxy is up; then serve MCP until the process ends."""
        await asyncio.to_thread(importlib.import_module, "probes.mcp_server")
        from mcp.server.transport_security import TransportSecuritySettings

        from probes.jobs import Jobs
        from probes.mcp_server import Feed, Updates, build

        updates = Updates()
        db = self.plan["db"]
        directory = Path(db).parent / "runs" if db else Path(tempfile.gettempdir()) / f"qm-proxy-runs-{os.getuid()}"
        if not self.plan.get("read_only"):
            self.jobs = Jobs(
                self.config["upstream_url"], directory, self.writer.run, self.live.publish, self.config["console_url"] or "off"
            )
            unfinished = [row for state in ("queued", "running") for row in self.queries.runs(limit=100, state=state)["items"]]
            self.jobs.adopt([whole for row in unfinished if (whole := self.queries.run(row["id"])) is not None])

        def models() -> list[str]:
            latest = self.residency.latest
            return [m.name for m in latest.models] if latest else []

        feed = Feed(self.live.after, self.live.wait, lambda: self.live.last_seq)
        server = build(self.queries, self.status, feed, self.jobs, version=__version__, models=models, updates=updates)
        server.streamable_http_app(
            stateless_http=bool(self.plan.get("mcp_stateless")),
            max_request_body_size=MCP_BODY_BYTES,
            max_sessions=MCP_SESSIONS,
            # Host and Origin are judged by the console's guard, for every route alike
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        async with server.session_manager.run(), updates.following(feed):
            self.mcp.arrived(server.session_manager.handle_request)
            await ending.wait()
            if self.jobs is not None:
                await self.jobs.close()

    def _start_run(self, kind: str, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
        if self.plan.get("read_only"):
            raise SettingsError("This console is read-only: it starts no probes.", remedy="Start serve without --read-only.")
        if self.jobs is None:
            raise SettingsError("No probes can be started here yet.", remedy="Try again in a few seconds.")
        return {k: v for k, v in self.jobs.start(kind, str(model), **settings).row().items() if v is not None}

    async def _cancel_run(self, run_id: str) -> dict[str, Any] | None:
        job = None if self.jobs is None else self.jobs.jobs.get(run_id)
        if job is None or self.jobs is None:
            return None
        await self.jobs.cancel(job)
        return {k: v for k, v in job.row().items() if k not in ("result", "report")}

    @staticmethod
    def _replays_of(run: Mapping[str, Any]) -> Path | None:
        from probes.jobs import replays_of

        return replays_of(run)

    async def _compare_runs(self, a: str, b: str, force: bool) -> dict[str, Any]:
        from probes.comparing import compared

        def row(run_id: str) -> dict[str, Any] | None:
            job = None if self.jobs is None else self.jobs.jobs.get(run_id)
            return self.queries.run(run_id) if job is None else job.row()

        return await compared(row(a), row(b), names=(a, b), force=force)

    def _tell_changes(self) -> None:
        """On stderr, once each time: the upstream that does not answer, the database that cannot be written, and their return."""
        store = self.writer.status()
        news = {
            "upstream": None
            if not self.residency.failing
            else f"nothing answers at {self.config['upstream_url']}; clients are told so. Start Ollama, or give --upstream.",
            "export": None if self.export is None else self.export.trouble(),
            "store": None if store["state"] == "ok" else f"{store['message']} {store['remedy'] or ''} Traffic goes on.",
        }
        passed = self.writer.latest_failure
        if store["recoveries"] > self.recoveries_told and not self.told.get("store") and passed is not None:
            print(f"qm-proxy: {passed.message} {passed.remedy or ''} Traffic goes on.", file=sys.stderr, flush=True)
            self.told["store"] = passed.message  # it came and went between two looks: told all the same, and its end below
        self.recoveries_told = store["recoveries"]
        for name, text in news.items():
            before = self.told.get(name)
            if (text is None) != (before is None):
                print(f"qm-proxy: {text or f'the {name} is back.'}", file=sys.stderr, flush=True)
                self.told[name] = text

    # --- the joints ---------------------------------------------------------------------------------------------------

    def _end_by_guard(self, exchange_id: str, said: str) -> bool:
        """Order the relay to end this exchange with its dialect's own end; whether the order could be given."""
        exchange = next((e for e in self.observer.in_flight() if e.id == exchange_id), None)
        where = self.places.get(exchange_id)
        standing = None if exchange is None else exchange.standing()
        if exchange is None or where is None or standing is None or where.relay not in self.pipes:
            return False
        try:
            end = clean_end(exchange.dialect, standing, chunked=False, text=said)  # the relay frames it
            self.pipes[where.relay].send(order(where.connection, where.n, end))
        except (OSError, ValueError):
            return False
        return True

    def _exchange(self, head: RequestHead, connection: int, relay: int) -> Exchange:
        exchange = self._made(head, connection)
        if self.guard is not None:
            self.places[exchange.id] = Place(relay, connection, head.n)
            while len(self.places) > PLACES:
                self.places.popitem(last=False)
        return exchange

    def _made(self, head: RequestHead, connection: int) -> Exchange:
        made = Exchange(
            head,
            self.fanout,
            connection=connection,
            window_of=self.residency.window_of,
            others_of=self.busy.get,
            detectors=lambda opened: self._detectors(opened, made),
            unix_ns_of=self.clock.unix_ns,
            capture=self.capture,
            trouble=self.observer.trouble,
        )
        return made

    def _detectors(self, opened: Opened, made: Exchange) -> list[Detector]:
        """Who watches this exchange: the suite, the session's line, and the guard behind the loop detector."""
        found = self.suite.detectors_for(
            opened,
            window_tokens=self.residency.window_of(opened.model),
            surroundings=self.across.beside(opened.id, made.client_slow_ns),
            how=made.how,
        )
        if (watch := self.sessions.watch(opened.id)) is not None:
            found.append(watch)
        loop = next((detector for detector in found if isinstance(detector, TokenLoop)), None)
        if self.guard is not None and loop is not None:
            found.append(GuardWatch(self.guard, loop, opened.id, opened.model or "", opened.dialect))
        return found

    def _attach(self, finding: Finding) -> None:
        """A finding about an exchange in flight, made beside it."""
        exchange = next((e for e in self.observer.in_flight() if e.id == finding.exchange_id), None)
        if exchange is not None:
            exchange.add(finding)

    def _resident(self, residency: Residency) -> None:
        self.observer.beside(residency)
        self.across.see(residency)
        self.writer.models(residency.models)

    async def _resume_sessions(self) -> None:
        """After a restart: know the sessions of the last hour again. Read on a thread; `Sessions` belongs to the loop's."""
        now = time.time()
        with contextlib.suppress(StoreError):
            turns = await asyncio.to_thread(self.stored.recent_turns, now - RESUME_S)
            self.sessions.resume(turns, Nanoseconds(time.monotonic_ns()), now)

    async def _metrics_page(self, request: Request) -> Response:
        found = page(self.metrics, request.headers.get("accept", ""))
        return Response(found.body, headers={"content-type": found.content_type})

    def _watch_ourselves(self) -> None:
        """Gauges and counters that are read from where they live when somebody asks."""
        m, observer = self.metrics, self.observer

        def of_relays(name: str) -> float:
            return float(sum(stats.get(name) or 0 for stats in observer.relays.values()))

        def per_process(relay_name: str, ours: float | None, scale: float = 1.0) -> dict[tuple[str, ...], float]:
            values: dict[tuple[str, ...], float] = {}
            if observer.relays:
                values[("relay",)] = of_relays(relay_name) * scale
            if ours is not None:
                values[("observer",)] = ours
            return values

        def dropped() -> dict[tuple[str, ...], float]:
            return {
                ("pipe_full",): of_relays("dropped_batches"),
                ("too_large",): of_relays("skipped_bytes"),
                ("batches_missed",): float(observer.batches_missed),
                ("connections_given_up",): float(observer.connections_given_up),
            }

        def of_models(value: Callable[[ResidentModel], float | None]) -> dict[tuple[str, ...], float]:
            latest = self.residency.latest
            models = latest.models if latest else ()
            return {(r.name.removesuffix(":latest"),): v for r in models if (v := value(r)) is not None}

        def host() -> dict[tuple[str, ...], float]:
            seen = self.sampled
            if seen is None:
                return {}
            used = {"ram": seen.memory_used, "swap": seen.swap_used, "gpu": seen.gpu_memory_used}
            return {(kind,): float(v) for kind, v in used.items() if v is not None}

        m.watch("in_flight", lambda: {(): float(len(observer.in_flight()))})
        m.watch("connections", lambda: {(): float(observer.connections)})
        m.watch("loop_lag", lambda: per_process("loop_lag_max_ms", self.lag_max_s, 1e-3))
        m.watch("memory", lambda: per_process("rss_bytes", _rss()))
        m.watch("cpu", lambda: per_process("cpu_s", time.process_time()))
        m.watch("pipe_pending", lambda: {(): of_relays("pending_bytes")})
        m.watch("dropped", dropped)
        m.watch("restarts", lambda: {(): float(self.config["restarts"])})

        def failures() -> dict[tuple[str, ...], float]:
            names = {type(sink).__name__ for sink in self.fanout.sinks}
            return {(name,): float(self.fanout.failures.get(name, 0)) for name in sorted(names)}

        m.watch("sink_failures", failures)
        m.watch("loaded", lambda: of_models(lambda r: r.size))
        m.watch("window", lambda: of_models(lambda r: r.context_window))
        m.watch("host_memory", host)
        m.watch("store_commit", lambda: {(): self.writer.commit_s} if self.writer.commits else {})
        m.watch("store_queued", lambda: {(): float(self.writer.status()["queued"])})
        if self.export is not None:
            drops = self.export.drops
            m.watch("export_drops", lambda: {(signal,): float(n) for signal, n in drops.items()})

    def status(self) -> dict[str, Any]:
        """What `/api/v1/status` says."""
        observer = self.observer
        relays = [{"relay": number, **stats} for number, stats in sorted(observer.relays.items())]
        latest = self.residency.latest
        return {
            "name": "qm-proxy",
            "version": __version__,
            "started_at": self.started_at.isoformat().replace("+00:00", "Z"),
            "uptime_s": round(time.monotonic() - self.started, 3),
            "proxy": self.config["proxy_url"],
            "console": self.config["console_url"],
            "upstream": self.config["upstream_url"],
            "guard": self.plan["guard"],
            "guard_cuts": None if self.guard is None else self.guard.status(),
            "capture_content": self.plan["capture_content"],
            "read_only": bool(self.plan.get("read_only")),
            "models": None
            if latest is None
            else [
                {
                    "name": m.name,
                    "size_bytes": m.size,
                    "size_vram_bytes": m.size_vram,
                    "context_window_tokens": m.context_window,
                    "expires_at": m.expires_at,
                }
                for m in latest.models
            ],
            "in_flight": len(observer.in_flight()),
            "connections": observer.connections,
            "exchanges": observer.exchanges_seen,
            "observer": {
                "pid": os.getpid(),
                "restarts": self.config["restarts"],
                "rss_bytes": _rss(),
                "cpu_s": round(time.process_time(), 3),
                "loop_lag_s": round(self.lag_max_s, 4),
                "batches": observer.batches,
                "batches_missed": observer.batches_missed,
                "bytes_missed": observer.bytes_missed,
                "pipe_bytes_skipped": sum(reader.skipped_bytes for reader in self.readers.values()),
                "first_batch": observer.first_sequence,
                "connections_given_up": observer.connections_given_up,
                "troubles": observer.troubles,
                "sink_failures": self.fanout.failures,
                "residency_failures": self.residency.failures,
            },
            "sessions": self.sessions.status(),
            "store": self.writer.status(),
            "export": None if self.export is None else self.export.status(),
            "relays": relays,
        }


def _key(db: Path | None) -> bytes:
    """What message hashes are keyed with: the database's own secret; a passing one where it cannot be kept."""
    if db is not None:
        with contextlib.suppress(OSError):
            return secret_key(db)
    return secrets.token_bytes(32)


def _redactor(plan: dict[str, Any]) -> tuple[Redactor | None, bool]:
    """(what takes secrets out of captured text, whether content is stored). A hook that cannot be loaded: no content at all."""
    try:
        return Redactor(hook_of(plan.get("redact"))), bool(plan["capture_content"])
    except SettingsError as exc:
        print(f"qm-proxy: {exc} No content is kept or exported.", file=sys.stderr, flush=True)
        return None, False


def _session_id(exchange_id: str) -> str:
    """A session's id bears the time of the exchange that opened it."""
    return new_id(unix_ms_of(exchange_id) * 1_000_000)


def _rss() -> int | None:
    """Resident bytes now (Linux), else the most there ever were."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - one small read, on every status
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def _observe(config: dict[str, Any]) -> None:
    await Process(config).run()


def main() -> None:
    """`python -m qm_proxy.wiring CONFIG`: started by the supervisor, which speaks over `control_fd`."""
    config = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stand_back()
    runner: Callable[..., Any] = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner = uvloop.run
    runner(_observe(config))


if __name__ == "__main__":
    main()
