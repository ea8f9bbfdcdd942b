"""The log: found by order and label, bounded, waited for, written as lines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import probes.sim.truth as module
from probes.sim.truth import Truth
from tests.probes.sim.conftest import Running, ask, post


def test_requests_by_order_and_label() -> None:
    truth = Truth()
    for n in range(3):
        truth.opened(1, "POST", "/api/chat", n).label = f"l{n % 2}"
    assert [truth[n].received_ns for n in (0, 2, -1, -3)] == [0, 2, 2, 0]
    assert [r.n for r in truth.labelled("l0")] == [0, 2]
    assert len(truth) == 3
    for n in (3, -4):
        with pytest.raises(IndexError, match="holds 0 to 2"):
            truth[n]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    truth = Truth()
    for n in range(5):
        truth.opened(1, "GET", "/", n)
    assert len(truth) == 5
    assert truth[3].received_ns == 3
    with pytest.raises(IndexError):
        truth[2]


def test_generations_are_told_from_the_rest() -> None:
    truth = Truth()
    truth.opened(1, "GET", "/api/tags", 0)
    for ending in ("complete", "load", "unload"):
        request = truth.opened(1, "POST", "/api/chat", 0)
        request.persona, request.ending = "m:latest", ending
    assert [r.ending for r in truth.generations()] == ["complete"]


def test_waiting_ends_when_it_is_true() -> None:
    async def main() -> None:
        truth = Truth()
        waiting = asyncio.ensure_future(truth.ended(0))
        abandoned = asyncio.ensure_future(truth.when(lambda: False))
        await asyncio.sleep(0)
        request = truth.opened(1, "GET", "/", 0)
        await asyncio.sleep(0)
        assert not waiting.done()
        truth.closed(request, 7)
        truth.closed(request, 9)  # the first end counts
        assert (await waiting).ended_ns == 7
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        truth.changed()

    asyncio.run(main())


def test_lines_in_a_file(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "truth.jsonl"

    async def main() -> None:
        async with running("steady", truth_file=file) as sim:
            for text in ("hi", "\ud800 surrogate"):
                body = json.dumps({"model": "steady", "prompt": text, "options": {"num_predict": 2}}).encode()
                await ask(sim, post("/api/generate", body, "X-Sim-Label: a"))

    asyncio.run(main())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sampled_tokens"] for line in lines] == [2, 2]
    assert lines[0]["label"] == "a"
    assert lines[0]["written_ns"] == sorted(lines[0]["written_ns"])
