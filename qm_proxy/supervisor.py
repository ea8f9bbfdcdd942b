"""Starts the relays and the observer, keeps them alive, and stops them in order. Standard library only: it stays small.

    supervisor ──┬── relay 0 … N-1      own the listening socket; outlive everything else
                 └── observer           niced; may die: it is started again on the same pipes and the relays do not notice

Rules that hold here:

- Each pipe is a socketpair of which the supervisor keeps both ends, so that a dead observer closes nothing: the relay goes
  on writing, drops when the pipe is full, and the next observer reads on from the next whole batch.
- The ready line is printed once, when the relays accept and the observer has its console up. A relay that accepts while
  the observer cannot start serves anyway; the supervisor says so on stderr and keeps trying.
- SIGINT/SIGTERM: relays stop accepting and let streams end within the grace; then the observer flushes; exit 0.
  SIGHUP: new relays take the port, the old ones drain without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from qm_proxy.errors import QmError, SettingsError, UpstreamIsProxy
from qm_proxy.relay.addresses import Upstream, bind, is_loopback, listens_at, parse_upstream
from qm_proxy.tasks import spawn

__all__ = ["main", "serve"]

Plan = dict[str, Any]
PIPE_BYTES = 8 * 1024 * 1024  # asked for; a stock Linux grants 416 KiB
OBSERVER_PATIENCE_S = 20.0  # how long the ready line waits for a console before saying that it is late


class Child:
    """One process of ours and the control line to it: JSON lines both ways over a socketpair."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, control: socket.socket, ready: asyncio.Event | None = None
    ) -> None:
        self.name = name
        self.process = process
        self.control = control
        self.ready = ready or asyncio.Event()
        self.heard: Callable[[dict[str, Any]], None] | None = None
        self._lines = bytearray()

    async def listen(self) -> None:
        """Follow what the child says until it hangs up."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self.control, 65536)
            except OSError:
                return
            if not data:
                return
            self._lines += data
            while (end := self._lines.find(b"\n")) >= 0:
                line = bytes(self._lines[:end])
                del self._lines[: end + 1]
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if message.get("ready"):
                        self.ready.set()
                    if self.heard is not None:
                        self.heard(message)

    def say(self, message: dict[str, Any], *fds: int) -> None:
        """Send one line, with descriptors where given. A child that is gone is not an error: its exit is seen elsewhere."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            if fds:
                socket.send_fds(self.control, [data], list(fds))
            else:
                self.control.send(data)


class Supervisor:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.upstream: Upstream = parse_upstream(plan["upstream"])
        self.listeners = bind(plan["listen"])
        try:
            self.console = [] if plan["console"] is None else bind(plan["console"], default_port=11437)
        except QmError:
            _close(self.listeners)
            raise
        try:
            _refuse_self(self.upstream, self.listeners + self.console)
        except QmError:
            _close(self.listeners + self.console)
            raise
        self.relays: dict[int, Child] = {}
        self.pipes: dict[int, tuple[socket.socket, socket.socket]] = {}
        self.observer: Child | None = None
        self.observer_starts = 0
        self.observer_ready = asyncio.Event()
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self._generation = 0
        self._draining: set[int] = set()

    # --- starting -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        if self.plan.get("ends_with_stdin"):
            loop.add_reader(0, self._heard_on_stdin)
        loop.add_signal_handler(signal.SIGHUP, lambda: spawn(self._hand_over(), name="hand-over"))
        fresh = [await self._start_relay() for _ in range(self.plan["workers"])]
        spawn(self._keep_observer(), name="observer keeper")
        await self._until(asyncio.gather(*(self.relays[n].ready.wait() for n in fresh)))
        await self._wait_for_observer()
        if not self.stopping.is_set():
            print(self._ready_line(), flush=True)
        await self.stopping.wait()
        return await self._shut_down()

    async def _start_relay(self) -> int:
        self._generation += 1
        number = self._generation
        ours, theirs = _pipe()
        self.pipes[number] = (ours, theirs)
        config = {
            "listen_fds": [sock.fileno() for sock in self.listeners],
            "upstream": self._upstream_json(),
            "pipe_fd": ours.fileno(),
            "relay": number,
            "guard": self.plan["guard"] == "cut",
            "reply": "qm_proxy.wire.replies:unreachable",
        }
        child = await self._spawn(
            f"relay {number}",
            "qm_proxy.relay",
            config,
            [sock.fileno() for sock in self.listeners] + [ours.fileno()],
        )
        self.relays[number] = child
        spawn(self._watch_relay(number, child), name=f"relay {number} watch")
        if self.observer is not None:
            self.observer.say({"pipe": number}, theirs.fileno())
        return number

    async def _spawn(
        self, name: str, module: str, config: dict[str, Any], fds: list[int], ready: asyncio.Event | None = None
    ) -> Child:
        near, far = socket.socketpair()
        near.setblocking(False)
        config = config | {"control_fd": far.fileno()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, json.dumps(config), pass_fds=[*fds, far.fileno()], stdin=asyncio.subprocess.DEVNULL
        )
        far.close()
        child = Child(name, process, near, ready)
        spawn(child.listen(), name=f"{name} control")
        return child

    async def _watch_relay(self, number: int, child: Child) -> None:
        """A relay that ends by itself is replaced; one that drained or was stopped is forgotten."""
        code = await child.process.wait()
        self.relays.pop(number, None)
        child.control.close()
        ours, _ = self.pipes[number]
        if number in self._draining or self.stopping.is_set():
            self._draining.discard(number)
            ours.shutdown(socket.SHUT_WR)
            return
        if not child.ready.is_set():
            print(f"qm-proxy: {child.name} could not start (exit {code}).", file=sys.stderr)
            self.plan["exit_code"] = 5
            self._stop()
            return
        print(f"qm-proxy: {child.name} ended with {code}; starting another.", file=sys.stderr)
        ours.shutdown(socket.SHUT_WR)
        await self._start_relay()

    async def _keep_observer(self) -> None:
        """Start the observer, and start it again when it dies: after 0.1 s, doubling to 5 s while it dies young."""
        pause = 0.1
        while not self.stopping.is_set():
            began = asyncio.get_running_loop().time()
            config = {
                "plan": self.plan,
                "pipes": {number: theirs.fileno() for number, (_, theirs) in self.pipes.items()},
                "console_fds": [sock.fileno() for sock in self.console],
                "proxy_url": _url(self.listeners),
                "console_url": self.console_url,
                "upstream_url": self.upstream.url,
                "restarts": self.observer_starts,
                "supervisor_pid": os.getpid(),
            }
            fds = [theirs.fileno() for _, theirs in self.pipes.values()] + [sock.fileno() for sock in self.console]
            self.observer = await self._spawn("observer", "qm_proxy.wiring", config, fds, self.observer_ready)
            self.observer_starts += 1
            code = await self.observer.process.wait()
            self.observer.control.close()
            self.observer = None
            if self.stopping.is_set():
                return
            if asyncio.get_running_loop().time() - began > 10:
                pause = 0.1
            print(
                f"qm-proxy: the observer ended with {code}; traffic goes on unobserved until it is back in {pause:.1f} s.",
                file=sys.stderr,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)
            pause = min(pause * 2, 5.0)

    async def _wait_for_observer(self) -> None:
        try:
            await asyncio.wait_for(self._until(self.observer_ready.wait()), OBSERVER_PATIENCE_S)
        except TimeoutError:
            print("qm-proxy: the console is not up yet; the proxy serves without it.", file=sys.stderr)

    async def _until(self, work: Awaitable[Any]) -> None:
        """Wait for `work`, or for the order to stop."""
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # --- changing and stopping ----------------------------------------------------------------------------------------

    async def _hand_over(self) -> None:
        """SIGHUP: new relays take the port, the old ones finish what they carry."""
        old = [number for number in self.relays if number not in self._draining]
        fresh = [await self._start_relay() for _ in range(self.plan["workers"])]
        await self._until(asyncio.gather(*(self.relays[n].ready.wait() for n in fresh)))
        for number in old:
            self._draining.add(number)
            if number in self.relays:
                self.relays[number].say({"drain": True})
        print("qm-proxy: new relays have the port; the old ones drain.", file=sys.stderr)

    def _heard_on_stdin(self) -> None:
        """Whoever started this proxy for itself (demo, run, a test) is gone when stdin ends."""
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self._stop()

    def _stop(self) -> None:
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    async def _shut_down(self) -> int:
        grace = float(self.plan["grace"])
        for child in self.relays.values():
            child.say({"stop": grace})
        if self.observer is not None:
            self.observer.heard = self._end_idle
            self.observer.say({"report_idle": True})
        await self._ended([c.process for c in self.relays.values()], grace + 2.0, lambda: self._hurry_relays())
        if self.observer is not None:
            self.observer.say({"stop": True})
            await self._ended([self.observer.process], 8.0, None)
        _close(self.listeners + self.console)
        return int(self.plan.get("exit_code", 0))

    def _end_idle(self, message: dict[str, Any]) -> None:
        """Kept connections on which nothing is under way need no grace: the observer knows which they are."""
        for number, connections in message.get("idle", {}).items():
            if (child := self.relays.get(int(number))) is not None:
                child.say({"end": connections})

    def _hurry_relays(self) -> None:
        for child in self.relays.values():
            child.say({"stop": 0})

    async def _ended(self, processes: list[asyncio.subprocess.Process], limit_s: float, hurry: Callable[[], None] | None) -> None:
        """Wait for `processes`; a second signal calls `hurry`; past the limit they are killed."""
        waiting = asyncio.ensure_future(asyncio.gather(*(p.wait() for p in processes)))
        urged = asyncio.ensure_future(self.hurry.wait())
        deadline = asyncio.get_running_loop().time() + limit_s
        while not waiting.done():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                for process in processes:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
            watched: set[asyncio.Future[Any]] = {waiting} if urged.done() or hurry is None else {waiting, urged}
            await asyncio.wait(watched, timeout=max(left, 0.2), return_when=asyncio.FIRST_COMPLETED)
            if urged.done() and hurry is not None:
                hurry()
                hurry = None
        urged.cancel()

    def _upstream_json(self) -> dict[str, Any]:
        u = self.upstream
        return {"host": u.host, "port": u.port} if u.unix is None else {"unix": u.unix}

    # --- saying -------------------------------------------------------------------------------------------------------

    @property
    def console_url(self) -> str | None:
        return _url(self.console) if self.console else None

    def _ready_line(self) -> str:
        return f"qm-proxy ready: proxy {_url(self.listeners)} -> {self.upstream.url}, console {self.console_url or 'off'}"


def _pipe() -> tuple[socket.socket, socket.socket]:
    """(relay's end, observer's end), buffers as large as the machine grants."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, PIPE_BYTES)
    return ours, theirs


def _url(listeners: list[socket.socket]) -> str:
    """The address a user can paste, of the first listener."""
    sock = listeners[0]
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def _refuse_self(upstream: Upstream, listeners: list[socket.socket]) -> None:
    """An upstream that is one of our own ports would answer itself for ever."""
    if listens_at(upstream, listeners):
        raise UpstreamIsProxy(
            f"The upstream {upstream.url} is this proxy itself.",
            remedy="Give Ollama's own address with --upstream (usually http://127.0.0.1:11434), or another --listen.",
        )


def _close(socks: list[socket.socket]) -> None:
    for sock in socks:
        if sock.family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                Path(sock.getsockname()).unlink()
        sock.close()


def serve(plan: Plan) -> int:
    """Run until told to stop; the exit code. Raises `QmError` when it cannot start."""
    exposed = [address for address in (plan["listen"], plan["console"]) if address is not None and not _loopback_text(address)]
    if plan["console"] in exposed and not plan.get("console_token"):
        raise SettingsError(
            f"The console may not listen on {plan['console']} without a token: prompts' metadata would be open to the network.",
            remedy="Set --console-token (or QM_CONSOLE_TOKEN), or keep it on 127.0.0.1.",
        )
    if plan["listen"] in exposed:
        print(
            f"qm-proxy: listening on {plan['listen']} exposes Ollama, which asks for no password, to your network.",
            file=sys.stderr,
        )

    async def run() -> int:
        return await Supervisor(plan).run()

    return asyncio.run(run())


def _loopback_text(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or (host != "" and is_loopback(host))


def main() -> None:
    """`python -m qm_proxy.supervisor PLAN`: the plan is the settings as JSON."""
    try:
        code = serve(json.loads(sys.argv[1]))
    except QmError as exc:
        print(f"qm-proxy: {exc}", file=sys.stderr)
        code = exc.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
