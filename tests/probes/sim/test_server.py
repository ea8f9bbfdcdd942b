"""The class itself: what it takes, what it refuses, what it gives back; other loops, IPv6, many streams."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import uvloop

from probes.sim import Persona, SimulatedOllama, builtin
from qm_proxy.errors import PortInUse, SettingsError
from tests.probes.sim.conftest import ask, post


def chat(model: str, n: int = 3, **more: object) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": f"hi {n}"}], "options": {"num_predict": n}, **more}
    return post("/api/chat", json.dumps(body).encode())


def test_personas_by_object_by_name_or_all() -> None:
    assert [p.name for p in SimulatedOllama([Persona(name="x"), "steady"]).personas] == ["x", "steady"]
    assert len(SimulatedOllama().personas) == len(builtin())
    with pytest.raises(SettingsError, match="no persona 'nobody'"):
        SimulatedOllama(["nobody"])
    with pytest.raises(SettingsError, match="policy"):
        SimulatedOllama([Persona.model_validate({"name": "x", "policy": {"name": "nonsense"}})])


def test_a_taken_port_is_told_and_nothing_leaks() -> None:
    async def main() -> None:
        async with SimulatedOllama(["steady"]) as sim:
            with pytest.raises(PortInUse, match=f"{sim.port}"):
                await SimulatedOllama(["steady"], port=sim.port).start()

    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    asyncio.run(main())
    after = len(list(Path("/proc/self/fd").iterdir())) if before else 0
    assert after <= before


def test_it_can_be_started_again() -> None:
    async def main() -> None:
        for _ in range(2):
            async with SimulatedOllama(["steady"], speed=50) as sim:
                assert (await ask(sim, chat("steady"))).status == 200

    asyncio.run(main())


def test_ipv6() -> None:
    async def main() -> None:
        try:
            async with SimulatedOllama(["steady"], host="::1", speed=50) as sim:
                assert sim.url == f"http://[::1]:{sim.port}"
                assert (await ask(sim, chat("steady"))).status == 200
        except PortInUse:
            pytest.skip("no IPv6 here")

    asyncio.run(main())


def test_on_uvloop() -> None:
    async def main() -> None:
        async with SimulatedOllama(["steady"], speed=50) as sim:
            answer = await ask(sim, chat("steady", 20))
            assert answer.body.count(b"\n") == 21
            assert len(sim.truth[0].planned_ns) == 20

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_many_streams_at_once_each_get_their_own_answer() -> None:
    async def main() -> None:
        async with SimulatedOllama(["jittery"], speed=20, slots=64) as sim:
            answers = await asyncio.gather(*(ask(sim, chat("jittery", n + 2)) for n in range(64)))
            for n, answer in enumerate(answers):
                last = json.loads(answer.body.splitlines()[-1])
                assert last["eval_count"] == min(n + 2, 61)
            assert len(sim.truth.generations()) == 64
            assert sum(r.reload is not None for r in sim.truth.requests) == 0

    asyncio.run(main())


def test_an_oracle_answers_in_process() -> None:
    async def main() -> None:
        async with SimulatedOllama(
            [Persona(name="m")], oracle=lambda turn: "42" if "6 x 7" in turn.prompt else None, speed=50
        ) as sim:
            body = {"model": "m", "prompt": "6 x 7?", "stream": False}
            answer = await ask(sim, post("/api/generate", json.dumps(body).encode()))
            assert json.loads(answer.body)["response"] == "42"

    asyncio.run(main())
