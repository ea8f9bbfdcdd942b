"""A relay process between two sockets that the test holds, and the same two sockets without it.

A `Wire` is one client connection with its upstream end. Each `Side` logs what it saw: bytes, and the kind of end. A case moves
both sides step by step, once on a direct wire and once through a relay; the two logs must be equal.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.pipe import Kind, Reader
from qm_proxy.relay.process import Config

ROOT = Path(__file__).parents[3]
PATIENCE_S = 10.0  # what has not come by then never comes: the case fails
QUIET_S = 0.03  # how long "nothing comes" is watched
Address: TypeAlias = Any
EndKind = Literal["eof", "reset"]


class Seen(NamedTuple):
    """What one side saw: the number of bytes, their digest (and themselves, if few), and how it ended (None: still open)."""

    n_bytes: int
    digest: str
    data: bytes
    end: EndKind | None


class Side:
    """One end of a wire, blocking with patience."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.end: EndKind | None = None
        self.n_bytes = 0
        self._digest = hashlib.sha256()
        self._first = bytearray()

    def seen(self) -> Seen:
        return Seen(self.n_bytes, self._digest.hexdigest()[:16], bytes(self._first), self.end)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def push(self, data: bytes) -> None:
        """Send what the peer's end still lets through: an early answer may have closed the way."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def push_until_stuck(self, patience_s: float = 0.2) -> int:
        """Send until nobody takes any more; how many bytes that were."""
        sent = 0
        self.sock.settimeout(patience_s)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += self.sock.send(b"\0" * (1 << 20))
        self.sock.settimeout(PATIENCE_S)
        return sent

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def read(self, n: int) -> bytes:
        """Exactly n bytes, or fewer if it ends."""
        got = bytearray()
        while len(got) < n and self.end is None:
            got += self._recv(min(n - len(got), 1 << 20))
        return bytes(got)

    def rest(self) -> bytes:
        """Everything until it ends."""
        got = bytearray()
        while self.end is None:
            data = self._recv(1 << 20)
            if len(got) < 1 << 20:
                got += data
        return bytes(got)

    def ended(self) -> EndKind:
        """How it ends, bytes before that logged and dropped."""
        self.rest()
        assert self.end is not None
        return self.end

    def is_quiet(self, wait_s: float = QUIET_S) -> bool:
        """Neither bytes nor an end come."""
        readable, _, _ = select.select([self.sock], [], [], wait_s)
        return not readable

    def hears_of_its_end(self) -> None:
        """Wait, without reading, until the kernel knows of the peer's end (FIN or reset)."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        assert poll.poll(PATIENCE_S * 1000), "no end came"

    def hears_of_reset(self) -> None:
        """Wait, without reading, until the kernel knows of the peer's reset."""
        poll = select.poll()
        poll.register(self.sock, 0)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = poll.poll(PATIENCE_S * 1000)
            if found and found[0][1] & select.POLLERR:
                return
        raise AssertionError("no reset came")

    def send_fails(self, data: bytes = b"x") -> bool:
        """The way is closed: the kernel takes no more from us."""
        try:
            self.sock.send(data)
        except ConnectionError:
            return True
        return False

    def waiting_bytes(self) -> int:
        """How much lies unread in this side's kernel."""
        size = array.array("i", [0])
        fcntl.ioctl(self.sock, termios.FIONREAD, size)
        return size[0]

    def awaits(self, n: int) -> None:
        """Wait until n bytes lie unread in this side's kernel."""
        deadline = time.monotonic() + PATIENCE_S
        while self.waiting_bytes() < n:
            assert time.monotonic() < deadline, f"{self.waiting_bytes()} of {n} bytes came"
            select.select([], [], [], 0.001)

    def _recv(self, n: int) -> bytes:
        try:
            data = self.sock.recv(n)
        except ConnectionResetError:
            self.end = "reset"
            return b""
        except BrokenPipeError:
            self.end = "reset"
            return b""
        if not data:
            self.end = "eof"
        self.n_bytes += len(data)
        self._digest.update(data)
        if len(self._first) < 65536:
            self._first += data[: 65536 - len(self._first)]
        return data


class Wire:
    """A connected pair of sides. Closing it resets what is still open."""

    def __init__(self, client: socket.socket, listener: socket.socket) -> None:
        self.client = Side(client)
        listener.settimeout(PATIENCE_S)
        upstream, _ = listener.accept()
        self.upstream = Side(upstream)

    def close(self) -> None:
        for side in (self.client, self.upstream):
            side.sock.close()


def listen(address: Address = ("127.0.0.1", 0)) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(2048)
    return listener


def connect(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def as_upstream(address: Address) -> Upstream:
    return Upstream(unix=address) if isinstance(address, str) else Upstream(host=address[0], port=address[1])


class Record(NamedTuple):
    kind: Kind
    connection: int
    t_ns: int
    offset: int
    lag_ns: int
    data: bytes


class Head(NamedTuple):
    """A batch without its records."""

    relay: int
    sequence: int
    dropped_batches: int
    dropped_records: int
    dropped_bytes: int


@dataclass
class Copy:
    """The observer's end of the pipe, read by a thread."""

    sock: socket.socket
    records: list[Record] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    reader: Reader = field(default_factory=Reader)
    keep: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._resume = threading.Event()
        self._resume.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = self.sock.recv(1 << 18)
            except OSError:
                return
            if not data:
                return
            self._resume.wait()
            with self.changed:
                for batch in self.reader.feed(data):
                    self.heads.append(
                        Head(batch.relay, batch.sequence, batch.dropped_batches, batch.dropped_records, batch.dropped_bytes)
                    )
                    if self.keep:
                        self.records += [Record(Kind(found[0]), *found[1:]) for found in batch.records()]
                self.changed.notify_all()

    def pause(self) -> None:
        """Read no more (but for what is being read just now)."""
        self._resume.clear()

    def go_on(self) -> None:
        self._resume.set()

    def of(self, connection: int) -> list[Record]:
        with self.changed:
            return [record for record in self.records if record.connection == connection]

    def wait_for(self, kind: Kind, connection: int, n: int = 1) -> list[Record]:
        """This connection's records, once there are n of this kind."""
        deadline = time.monotonic() + PATIENCE_S
        with self.changed:
            while True:
                found = [record for record in self.records if record.connection == connection]
                if sum(record.kind == kind for record in found) >= n:
                    return found
                assert self.changed.wait(deadline - time.monotonic()), f"no {kind.name} of {connection}: {found[-5:]}"

    def bytes_of(self, connection: int, kind: Kind) -> bytes:
        return b"".join(record.data for record in self.of(connection) if record.kind == kind)


class RelayProcess:
    """`python -m qm_proxy.relay`, its pipe and its control line."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        loop: str = "own",
        listen: list[str] | None = None,
        listeners: list[socket.socket] | None = None,
        guard: bool = False,
        reply: str | None = None,
        number: int = 1,
        read_pipe: bool = True,
        before: list[str] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        fds = [sock.fileno() for sock in listeners or []]
        config = Config(
            upstream=upstream,
            relay=number,
            listen_fds=fds,
            listen=["127.0.0.1:0"] if listen is None and not listeners else listen or [],
            pipe_fd=theirs.fileno(),
            control_fd=their_control.fileno(),
            guard=guard,
            reply=reply,
            loop=loop,
        )
        self.pipe = ours
        self.process = subprocess.Popen(
            [*(before or []), sys.executable, "-m", "qm_proxy.relay", config.to_json()],
            pass_fds=[theirs.fileno(), their_control.fileno(), *fds],
            cwd=ROOT,
        )
        theirs.close()
        their_control.close()
        self.control = control
        control.settimeout(PATIENCE_S)
        self._lines = control.makefile("rb")
        ready = self.heard()
        assert ready.get("ready") is True, ready
        self.addresses = [_address(text) for text in ready["listening"]]
        self._copy = Copy(ours) if read_pipe else None
        self.connections = 0  # numbers given out so far by the relay

    @property
    def copy(self) -> Copy:
        assert self._copy is not None, "this relay's pipe is not read"
        return self._copy

    @property
    def address(self) -> Address:
        return self.addresses[0]

    def say(self, **message: object) -> None:
        self.control.sendall(json.dumps(message).encode() + b"\n")

    def heard(self) -> dict[str, Any]:
        line = self._lines.readline()
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer

    def stats(self) -> dict[str, Any]:
        self.say(report=True)
        while "stats" not in (heard := self.heard()):
            assert heard, "the relay is gone"
        stats: dict[str, Any] = heard["stats"]
        return stats

    def settled(self) -> dict[str, Any]:
        """The stats, once no connection is open and the pipe, if somebody reads it, has taken everything."""
        deadline = time.monotonic() + PATIENCE_S
        while (stats := self.stats())["connections_open"] or (self._copy is not None and stats["pending_bytes"]):
            assert time.monotonic() < deadline, stats
        return stats

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def cpu_ns(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0])

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.say(stop=0)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._lines.close()
        self.control.close()
        with contextlib.suppress(OSError):
            self.pipe.shutdown(socket.SHUT_RDWR)
        self.pipe.close()


def _address(text: str) -> Address:
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port))


Case: TypeAlias = Callable[[Side, Side], object]


def run_case(case: Case, wire: Wire) -> tuple[Seen, Seen]:
    """What both sides had seen when the case was over."""
    try:
        case(wire.client, wire.upstream)
        return wire.client.seen(), wire.upstream.seen()
    finally:
        wire.close()


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Do `work` in a thread meanwhile; its failure fails the test."""
    failures: list[BaseException] = []

    def doing() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=doing, daemon=True)
    thread.start()
    yield
    thread.join(6 * PATIENCE_S)
    assert not thread.is_alive(), "the background work did not end"
    if failures:
        raise failures[0]


def pattern(n: int, seed: int = 1) -> bytes:
    """n bytes without a short period, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(n)
