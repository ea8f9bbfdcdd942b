from __future__ import annotations

from collections.abc import Callable

import pytest

from qm_proxy.detect.hung_slot import HungSlot
from qm_proxy.events import HostSample, Nanoseconds, Residency, ResidentModel
from qm_proxy.record import Opened, Progress, Record

Make = Callable[..., Opened]
Close = Callable[..., Record]


def ns(seconds: float) -> Nanoseconds:
    return Nanoseconds(round(seconds * 1e9))


def resident(at_s: float, *names: str) -> Residency:
    return Residency(ns(at_s), tuple(ResidentModel(f"{name}:latest", "d", 1, 1, 4096, None) for name in names))


class Desk:
    def __init__(self, make_opened: Make, make_record: Close) -> None:
        self.slot = HungSlot()
        self._opened, self._record = make_opened, make_record

    def open(self, name: str, at_s: float, **asked: object) -> Opened:
        opened = self._opened(name, at_s, **asked)
        self.slot.opened(opened)
        return opened

    def run(self, name: str, at_s: float, *, ending: str = "complete", **more: object) -> None:
        record = self._record(self.open(name, at_s), ending=ending, **more)
        self.slot.closed(record)

    def abort(self, name: str, at_s: float) -> None:
        self.run(name, at_s, ending="client_disconnect", ttft_s=0.1, chunks=5)

    def idle(self, at_s: float, cpu: float = 0.02, n: int = 6) -> None:
        for i in range(n):
            self.slot.see(HostSample(ns(at_s + i), cpu=cpu))


@pytest.fixture
def desk(make_opened: Make, make_record: Close) -> Desk:
    return Desk(make_opened, make_record)


def hang(desk: Desk) -> None:
    """Some answers, an abort, and a request that gets nothing."""
    for i in range(4):
        desk.run(f"ok{i}", i * 2.0)
    desk.abort("gone", 10)
    desk.open("waits", 12)
    desk.slot.see(resident(14, "m"))


def test_a_hung_slot_is_told_once_with_its_remedy(desk: Desk) -> None:
    hang(desk)
    assert desk.slot.tick(ns(20)) == []
    (finding,) = desk.slot.tick(ns(33))
    assert (finding.kind, finding.severity, finding.exchange_id) == ("model.hung", "violation", "waits")
    assert finding.evidence["last_abort"] == "gone"
    assert finding.evidence["waiting"] == ["waits"]
    assert finding.evidence["aborts_in_10_min"] == 1
    assert "doctor --unhang m" in finding.summary
    assert desk.slot.tick(ns(60)) == []


def test_a_byte_ends_it_and_another_hang_is_told_again(desk: Desk) -> None:
    hang(desk)
    assert len(desk.slot.tick(ns(40))) == 1
    desk.slot.progress(Progress("waits", ns(41), "answering", 1, 29.0, 29.0, None))
    assert desk.slot.tick(ns(80)) == []
    desk.run("fine", 90)
    desk.abort("gone again", 100)
    desk.open("waits too", 101)
    desk.slot.see(resident(102, "m"))
    assert desk.slot.tick(ns(300)) == [], "the first one is still streaming"


def test_what_is_missing_makes_it_no_hang(desk: Desk) -> None:
    for i in range(4):
        desk.run(f"ok{i}", i * 2.0)
    desk.open("waits", 12)
    desk.slot.see(resident(14, "m"))
    assert desk.slot.tick(ns(500)) == [], "nothing was aborted"


def test_a_model_that_loads_is_not_hung(desk: Desk) -> None:
    for i in range(4):
        desk.run(f"ok{i}", i * 2.0)
    desk.abort("gone", 10)
    desk.open("waits", 12)
    desk.slot.see(resident(14))
    assert desk.slot.tick(ns(500)) == []
    desk.slot.see(resident(501, "m"))
    assert len(desk.slot.tick(ns(502))) == 1


def test_one_that_streams_to_somebody_is_not_hung(desk: Desk) -> None:
    hang(desk)
    desk.open("other", 13)
    desk.slot.progress(Progress("other", ns(14), "waiting", 3, 1.0, 0.5, None))
    assert desk.slot.tick(ns(500)) == []


def test_an_answer_after_the_abort_proves_it_well(desk: Desk) -> None:
    for i in range(4):
        desk.run(f"ok{i}", i * 2.0)
    desk.abort("gone", 10)
    desk.run("fine", 11)
    desk.open("waits", 12)
    desk.slot.see(resident(14, "m"))
    assert desk.slot.tick(ns(500)) == []


def test_a_large_request_may_wait_longer(desk: Desk, make_opened: Make, make_record: Close) -> None:
    for i in range(4):
        opened = make_opened(f"ok{i}", i * 2.0, body_bytes=100_000)
        desk.slot.opened(opened)
        desk.slot.closed(make_record(opened, ttft_s=5.0, bytes_in=100_000))
    desk.abort("gone", 10)
    desk.open("waits", 12, body_bytes=1_000_000)
    desk.slot.see(resident(14, "m"))
    assert desk.slot.tick(ns(12 + 499)) == []
    assert len(desk.slot.tick(ns(12 + 501))) == 1


@pytest.mark.parametrize(("cpu", "patience"), [(0.02, 20), (None, 120), (0.9, 600)])
def test_of_an_unknown_model_the_machine_tells(desk: Desk, cpu: float | None, patience: float) -> None:
    desk.abort("gone", 1)
    desk.open("waits", 12)
    desk.slot.see(resident(14, "m"))
    if cpu is not None:
        desk.idle(13, cpu)
    assert desk.slot.tick(ns(12 + patience - 1)) == []
    (finding,) = desk.slot.tick(ns(12 + patience + 1))
    assert finding.evidence["machine_idle"] is {0.02: True, None: None, 0.9: False}[cpu]


def test_other_models_and_other_requests_do_not_matter(desk: Desk) -> None:
    hang(desk)
    desk.open("elsewhere", 13, model="x")
    desk.slot.progress(Progress("elsewhere", ns(14), "answering", 3, 1.0, 0.5, None))
    desk.open("no model", 14, model=None)
    assert len(desk.slot.tick(ns(60))) == 1


def test_memory_is_bounded(desk: Desk) -> None:
    for i in range(1000):
        desk.run(f"e{i}", float(i))
        desk.open(f"w{i}", float(i), model=f"m{i % 300}")
    for i in range(4000):
        desk.open(f"x{i}", 5000.0)
    desk.slot.tick(ns(9000))
    assert len(desk.slot._of) <= 4096
