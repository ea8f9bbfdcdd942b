"""Reaching the upstream: every address, names looked up again, resets that are no refusals."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.dial import Dial, Target
from tests.qm_proxy.relay.conftest import Bench

Address = tuple[int, tuple[object, ...] | str]


class Outcome:
    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.was_reset = False
        self.reason: str | None = None

    def connected(self, sock: socket.socket, was_reset: bool) -> None:
        assert self.sock is None
        self.sock, self.was_reset = sock, was_reset

    def failed(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason

    def known(self) -> bool:
        return self.sock is not None or self.reason is not None


@pytest.fixture
def outcome() -> Iterator[Outcome]:
    made = Outcome()
    yield made
    if made.sock is not None:
        made.sock.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made


@pytest.fixture
def silent() -> Iterator[Address]:
    """An address that does not answer: its backlog is full, so the kernel drops what comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as made:
        waiting = []
        while True:
            sock = socket.socket()
            waiting.append(sock)
            sock.settimeout(0.1)
            try:
                sock.connect(made.getsockname())
            except TimeoutError:
                break
        yield socket.AF_INET, made.getsockname()
        for sock in waiting:
            sock.close()


def refusing() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return socket.AF_INET, made.getsockname()


def dial(bench: Bench, outcome: Outcome, *addresses: Address, upstream: Upstream | None = None) -> tuple[Dial, Target]:
    target = Target(upstream or Upstream(host="127.0.0.1", port=1))
    target.addresses = addresses
    made = Dial(bench.shared, target, outcome.connected, outcome.failed)

    async def start() -> None:
        made.start()

    bench.loop.run_until_complete(start())
    return made, target


def here(listener: socket.socket) -> Address:
    return socket.AF_INET, listener.getsockname()


def test_on_loopback_nothing_is_deferred(bench: Bench, outcome: Outcome, listener: socket.socket) -> None:
    dial(bench, outcome, here(listener))
    assert outcome.sock is not None
    assert outcome.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert not outcome.sock.getblocking()
    assert len(bench.readiness) == 0


def test_the_next_address_is_tried_and_kept_in_front(bench: Bench, outcome: Outcome, listener: socket.socket) -> None:
    _, target = dial(bench, outcome, refusing(), refusing(), here(listener))
    bench.turn(outcome.known)
    assert outcome.sock is not None
    assert target.addresses[0] == here(listener)
    assert len(target.addresses) == 3


def test_an_address_that_is_silent_is_joined_by_the_next(
    bench: Bench, outcome: Outcome, listener: socket.socket, silent: Address
) -> None:
    dial(bench, outcome, silent, here(listener))
    assert not outcome.known()
    bench.turn(outcome.known)
    assert outcome.sock is not None
    assert outcome.sock.getpeername() == listener.getsockname()
    assert len(bench.readiness) == 0


def test_cancel_leaves_nothing(bench: Bench, outcome: Outcome, silent: Address) -> None:
    made, _ = dial(bench, outcome, silent, silent)
    assert len(bench.readiness) == 1
    made.cancel()
    made.failed()
    made.ready(0)
    assert len(bench.readiness) == 0
    assert not outcome.known()


def test_a_name_is_looked_up_again(
    bench: Bench, outcome: Outcome, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box got another address since the start."""

    async def moved(self: Target) -> str | None:
        self.addresses = (here(listener), *self.addresses)
        return None

    monkeypatch.setattr(Target, "resolve", moved)
    dial(bench, outcome, refusing(), upstream=Upstream(host="box", port=1))
    bench.turn(outcome.known)
    assert outcome.sock is not None


def test_no_address_answers(bench: Bench, outcome: Outcome) -> None:
    address = refusing()
    dial(bench, outcome, address, upstream=Upstream(host="127.0.0.1", port=int(str(address[1][1]))))
    bench.turn(outcome.known)
    assert outcome.reason == "connection refused"
    assert len(bench.readiness) == 0


def test_a_name_that_is_not_known(bench: Bench, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(host: str, port: int) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("qm_proxy.relay.dial._look_up", unknown)
    dial(bench, outcome, upstream=Upstream(host="box.invalid", port=1))
    bench.turn(outcome.known)
    assert outcome.reason == "the name 'box.invalid' cannot be resolved (Name or service not known)"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_resolve(bench: Bench, host: str) -> None:
    target = Target(Upstream(host=host, port=80))
    assert bench.loop.run_until_complete(target.resolve()) is None
    assert {str(address[1][0]) for address in target.addresses} <= {"127.0.0.1", "::1"}
    assert target.addresses


def test_an_upstream_that_answered_and_reset_was_reached(bench: Bench, outcome: Outcome, silent: Address) -> None:
    """The reset comes while we wait for the connection to stand."""
    made, _ = dial(bench, outcome, silent)

    class Reset:
        def getsockopt(self, *_: int) -> int:
            return 104

        def fileno(self) -> int:
            return -1

        def close(self) -> None: ...

    real = next(iter(made._pending))
    made._pending = {Reset(): silent}  # type: ignore[dict-item]
    made.ready(0)
    assert outcome.was_reset
    bench.readiness.forget(real.fileno())
    real.close()
    outcome.sock = None


def test_a_unix_socket(bench: Bench, outcome: Outcome, tmp_path: Path) -> None:
    path = str(tmp_path / "up.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        first, second = Outcome(), Outcome()
        upstream = Upstream(unix=path)
        dial(bench, first, (socket.AF_UNIX, path), upstream=upstream)
        dial(bench, second, (socket.AF_UNIX, path), upstream=upstream)  # the backlog is full
        assert first.known()
        assert not second.known()
        accepted = [listener.accept()[0] for _ in range(1)]
        bench.turn(second.known)
        assert second.sock is not None
        for sock in (first.sock, second.sock, *accepted):
            assert sock is not None
            sock.close()
    dial(bench, outcome, (socket.AF_UNIX, path + "x"), upstream=Upstream(unix=path + "x"))
    assert outcome.reason == "no such file or directory"


def test_no_descriptor_left(bench: Bench, outcome: Outcome, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: Any) -> socket.socket:
        raise OSError(24, "Too many open files")

    target = Target(Upstream(unix="/x"))
    target.addresses = (here(listener),)
    made = Dial(bench.shared, target, outcome.connected, outcome.failed)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none_left)
        made.start()
    assert outcome.reason == "too many open files"
