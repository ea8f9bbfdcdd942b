"""What the kernel's queue tells, and when: the rules that the splice stands on."""

from __future__ import annotations

import socket
import struct

import pytest

from qm_proxy.relay.readiness import GONE, READ, WRITE
from tests.qm_proxy.relay.conftest import Bench


class Log:
    def __init__(self) -> None:
        self.events: list[int] = []
        self.failures = 0

    def ready(self, events: int) -> None:
        self.events.append(events)

    def failed(self) -> None:
        self.failures += 1


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_readable_socket_is_told_until_it_is_read(bench: Bench) -> None:
    theirs, ours = bench.pair()
    log = Log()
    bench.readiness.watch(ours.fileno(), log, READ)
    theirs.send(b"x")
    bench.turn(lambda: len(log.events) >= 3)
    assert set(log.events) == {READ}
    ours.recv(1)
    log.events.clear()
    bench.turn()
    bench.readiness.run()
    assert log.events == []


def test_what_is_not_asked_for_is_not_told(bench: Bench) -> None:
    theirs, ours = bench.pair()
    log = Log()
    bench.readiness.watch(ours.fileno(), log, 0)
    theirs.send(b"x")
    theirs.shutdown(socket.SHUT_WR)
    for _ in range(3):
        bench.readiness.run()
    assert log.events == []
    bench.readiness.change(ours.fileno(), READ | WRITE)
    bench.readiness.run()
    assert log.events == [READ | WRITE]


def test_a_reset_is_told_once_to_who_does_not_read(bench: Bench) -> None:
    theirs, ours = bench.pair()
    log = Log()
    bench.readiness.watch(ours.fileno(), log, 0)
    reset(theirs)
    bench.turn(lambda: log.events)
    for _ in range(3):
        bench.readiness.run()
    assert len(log.events) == 1
    assert log.events[0] & GONE
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def test_a_reset_is_told_to_who_reads(bench: Bench) -> None:
    theirs, ours = bench.pair()
    log = Log()
    bench.readiness.watch(ours.fileno(), log, READ)
    reset(theirs)
    bench.turn(lambda: log.events)
    assert log.events[0] & READ
    with pytest.raises(ConnectionResetError):
        ours.recv(1)


def test_a_forgotten_socket_is_not_told(bench: Bench) -> None:
    theirs, ours = bench.pair()
    log = Log()
    bench.readiness.watch(ours.fileno(), log, READ)
    assert len(bench.readiness) == 1
    theirs.send(b"x")
    bench.readiness.forget(ours.fileno())
    bench.readiness.forget(ours.fileno())
    bench.readiness.run()
    assert log.events == []
    assert len(bench.readiness) == 0


def test_another_takes_over(bench: Bench) -> None:
    theirs, ours = bench.pair()
    first, second = Log(), Log()
    bench.readiness.watch(ours.fileno(), first, READ)
    bench.readiness.watch(ours.fileno(), second, READ)
    theirs.send(b"x")
    bench.turn(lambda: second.events)
    assert first.events == []


def test_one_failure_costs_no_other(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Log):
        def ready(self, events: int) -> None:
            raise RuntimeError("a mistake of ours")

    failing, other = Failing(), Log()
    for log in (failing, other):
        theirs, ours = bench.pair()
        bench.readiness.watch(ours.fileno(), log, READ)
        theirs.send(b"x")
    bench.turn(lambda: failing.failures >= 2 and other.events)
    assert bench.readiness.failures == failing.failures
    assert capsys.readouterr().err.count("Traceback") == 1


def test_later_comes_after_the_batch_and_once(bench: Bench) -> None:
    order: list[str] = []

    class Later(Log):
        def ready(self, events: int) -> None:
            order.append("ready")
            bench.readiness.later(lambda: order.append("later"))

    for _ in range(2):
        theirs, ours = bench.pair()
        bench.readiness.watch(ours.fileno(), Later(), READ)
        theirs.send(b"x")
    bench.readiness.run()
    assert order == ["ready", "ready", "later", "later"]


def test_a_later_that_fails_is_counted(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    called = []

    def fail() -> None:
        raise RuntimeError("later")

    bench.readiness.later(fail)
    bench.readiness.later(lambda: called.append(1))
    bench.readiness.run()
    assert called == [1]
    assert bench.readiness.failures == 1
    assert "later" in capsys.readouterr().err
