"""Ctrl-C: said at once, the run told through its loop, a second one ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probes.interrupt import Interrupts
from qm_proxy.cli import main


def test_the_first_one_stops_the_run_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    stopped = []

    async def run() -> None:
        over = asyncio.Event()

        def stop() -> None:
            stopped.append(True)
            over.set()

        interrupts.measuring(asyncio.get_running_loop(), stop)
        signal.raise_signal(signal.SIGINT)
        assert "what was measured is being written" in capfd.readouterr().err  # before the loop has turned
        await over.wait()

    before = signal.getsignal(signal.SIGINT)
    with Interrupts(None) as interrupts:
        asyncio.run(run())
        assert interrupts.asked
    assert stopped == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_while_pictures_are_drawn_it_says_that_all_was_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").touch()
    with Interrupts(tmp_path, live=True) as interrupts:
        interrupts.writing()
        signal.raise_signal(signal.SIGTERM)
    said = capfd.readouterr().err
    assert f"the measurement is complete; what was measured is in {tmp_path}" in said
    assert said.startswith("\r\x1b[K")


@pytest.mark.parametrize(("signals", "said"), [(1, ["before anything was measured"]), (2, ["is being written", "ended at once"])])
def test_it_ends_the_process_at_the_start_and_the_second_time(signals: int, said: list[str]) -> None:
    script = f"""
import asyncio, signal
from probes.interrupt import Interrupts
with Interrupts(None) as interrupts:
    if {signals} == 2:
        interrupts.measuring(asyncio.new_event_loop(), lambda: None)
    for _ in range({signals}):
        signal.raise_signal(signal.SIGINT)
    raise SystemExit("still there")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ})
    assert ended.returncode == 130
    assert len(ended.stderr.splitlines()) == len(said)
    for words, line in zip(said, ended.stderr.splitlines(), strict=True):
        assert words in line


def test_a_command_without_handlers_of_its_own_exits_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("probes.gate.load_rules", broken_off)
    monkeypatch.setattr(sys, "argv", ["qm-proxy", "gate", "x", "--rules", "y"])
    monkeypatch.setattr("probes.cli._read", lambda path: path)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
