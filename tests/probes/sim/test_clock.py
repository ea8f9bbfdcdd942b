"""Timers in order and never early; stamps as Go prints them."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from probes.sim.clock import EARLY_NS, Metronome, WallClock, rfc3339


@pytest.fixture(params=["timerfd", "event loop"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "event loop":
        monkeypatch.setattr(sys, "platform", "elsewhere")
    return str(request.param)


def test_deadlines_come_in_order_and_not_early(kind: str) -> None:
    async def main() -> list[tuple[int, int]]:
        metronome = Metronome()
        came: list[tuple[int, int]] = []
        start = time.monotonic_ns()
        done = asyncio.Event()

        def at(due: int) -> None:
            metronome.at(due, lambda: came.append((due, time.monotonic_ns())))

        for offset in (9, 3, 6, 3, 1):
            at(start + offset * 1_000_000)
        metronome.at(start + 10_000_000, done.set)
        await done.wait()
        metronome.close()
        return came

    came = asyncio.run(main())
    assert [due for due, _ in came] == sorted(due for due, _ in came)
    assert len(came) == 5
    slack = EARLY_NS + (1_000_000 if kind == "event loop" else 0)  # the loop's own clock is coarser
    assert all(now >= due - slack for due, now in came)


def test_a_callback_may_ask_for_more_and_an_earlier_one_rearms(kind: str) -> None:
    async def main() -> list[str]:
        metronome = Metronome()
        came: list[str] = []
        done = asyncio.Event()
        now = time.monotonic_ns()
        metronome.at(now + 50_000_000, lambda: came.append("late"))
        metronome.at(now + 60_000_000, done.set)

        def ask_for_more() -> None:
            metronome.at(now + 2_000_000, lambda: came.append("nested"))

        metronome.at(now + 1_000_000, ask_for_more)
        metronome.at(now - 1, lambda: came.append("past"))
        await done.wait()
        metronome.close()
        return came

    assert asyncio.run(main()) == ["past", "nested", "late"]


def test_cancelled_and_closed_deadlines_do_not_come(kind: str) -> None:
    async def main() -> list[str]:
        metronome = Metronome()
        came: list[str] = []
        metronome.at(time.monotonic_ns() + 1_000_000, lambda: came.append("cancelled")).cancel()
        sleeper = asyncio.ensure_future(metronome.sleep(10e9))
        await metronome.sleep(5_000_000)
        sleeper.cancel()
        await asyncio.gather(sleeper, return_exceptions=True)
        metronome.close()
        metronome.at(time.monotonic_ns(), lambda: came.append("closed"))
        await asyncio.sleep(0)
        return came

    assert asyncio.run(main()) == []


def test_a_raising_callback_does_not_stop_the_others(kind: str) -> None:
    async def main() -> bool:
        metronome = Metronome()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        done = asyncio.Event()
        now = time.monotonic_ns()

        def broken() -> None:
            raise LookupError

        metronome.at(now + 1_000_000, broken)
        metronome.at(now + 2_000_000, done.set)
        await done.wait()
        metronome.close()
        return True

    assert asyncio.run(main())


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (1_795_420_940_996_006_177, "2026-11-23T08:02:20.996006177Z"),
        (1_795_420_940_999_069_310, "2026-11-23T08:02:20.99906931Z"),
        (1_795_420_940_500_000_000, "2026-11-23T08:02:20.5Z"),
        (1_795_420_941_000_000_000, "2026-11-23T08:02:21Z"),
        (1_795_420_940_000_000_001, "2026-11-23T08:02:20.000000001Z"),
    ],
)
def test_stamps(ns: int, shown: str) -> None:
    assert rfc3339(ns) == shown


def test_the_wall_clock_steps_with_the_monotonic_one() -> None:
    clock = WallClock()
    now = time.monotonic_ns()
    assert clock.unix_ns(now + 5) - clock.unix_ns(now) == 5
    assert clock.stamp(now) == rfc3339(clock.unix_ns(now))
