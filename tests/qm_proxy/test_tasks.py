from __future__ import annotations

import asyncio
import gc

import pytest

from qm_proxy.tasks import _running, spawn


async def test_a_task_is_held_until_it_ends() -> None:
    go = asyncio.Event()
    done: list[str] = []

    async def work() -> str:
        await go.wait()
        done.append("yes")
        return "result"

    spawn(work(), name="held")
    gc.collect()
    [task] = [t for t in _running if t.get_name() == "held"]
    go.set()
    assert await task == "result"
    await asyncio.sleep(0)
    assert task not in _running


async def test_a_task_that_dies_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        raise KeyError("gone")

    task = spawn(work(), name="the watcher")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert capsys.readouterr().err == "qm-proxy: the watcher stopped: KeyError('gone')\n"


async def test_a_cancelled_task_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    task = spawn(asyncio.sleep(60), name="quiet")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert capsys.readouterr().err == ""
    assert task not in _running
