"""Who is loaded, who waits, what reloads: the rules that were observed on a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from probes.sim.personas import Persona
from probes.sim.scheduler import Launch, Runner
from probes.sim.server import SimulatedOllama
from tests.probes.sim.conftest import Answer, Running, ask, post

SLOW = Persona.model_validate({"name": "slow", "load": {"cold_ms": 400}, "decode": {"token_ms": 40}, "answer_tokens": 20})


def persona(name: str, **more: Any) -> Persona:
    return Persona.model_validate({"name": name, "load": {"cold_ms": 60, "warm_ms": 1}, "decode": {"token_ms": 20}, **more})


async def generate(sim: SimulatedOllama, model: str, **body: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": "hi", "stream": False, **body}
    answer: Answer = await ask(sim, post("/api/generate", json.dumps(body).encode()))
    found: dict[str, Any] = json.loads(answer.body)
    return {"status": answer.status, **found}


async def loaded(sim: SimulatedOllama) -> list[str]:
    answer = await ask(sim, b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return [m["name"] for m in json.loads(answer.body)["models"]]


def options(n: int) -> dict[str, int]:
    return {"num_predict": n}


def test_launch_differences_name_the_option() -> None:
    base = Launch(4096)
    assert base.difference(Launch(4096)) is None
    assert base.difference(Launch(2048)) == "num_ctx"
    assert base.difference(Launch(4096, shift=False)) == "shift"
    assert base.difference(Launch(4096, options=(("main_gpu", 0),))) == "main_gpu"
    assert base.difference(Launch(4096, options=(("num_batch", 64),))) == "num_batch"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"options": {"num_ctx": 2048}}, "num_ctx"), ({"shift": False}, "shift"), ({"options": {"num_thread": 2}}, "num_thread")],
)
def test_a_launch_option_reloads_there_and_back(change: dict[str, Any], why: str, running: Running) -> None:
    async def main() -> None:
        async with running(persona("m")) as sim:
            await generate(sim, "m")
            await generate(sim, "m", **change)
            await generate(sim, "m", **change)
            await generate(sim, "m")
            await generate(sim, "m", options={"temperature": 0, "seed": 4, "num_keep": 9}, truncate=False)
            assert [r.reload for r in sim.truth.requests] == [None, why, None, why, None]

    asyncio.run(main())


def test_a_refused_request_reloads_too(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m")) as sim:
            await generate(sim, "m")
            refused = await generate(sim, "m", prompt="word " * 900, truncate=False, shift=False, options={"num_ctx": 512})
            assert refused["status"] == 400
            assert sim.truth[-1].reload == "num_ctx"

    asyncio.run(main())


def test_a_fitting_request_overtakes_one_that_wants_a_reload(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m", slots=2, answer_tokens=60), speed=2) as sim:
            first = asyncio.ensure_future(generate(sim, "m"))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "decode")
            reloading = asyncio.ensure_future(generate(sim, "m", options={"num_ctx": 2048}))
            await sim.truth.when(lambda: len(sim.truth) > 1 and sim.truth[1].phase == "loading")
            await generate(sim, "m", options=options(1))
            assert not reloading.done()
            assert sim.truth[2].reload is None
            await asyncio.gather(first, reloading)
            assert sim.truth[1].reload == "num_ctx"
            ended = [sim.truth[n].ended_ns or 0 for n in range(3)]
            assert ended[2] < ended[0] < ended[1]
            assert (sim.truth[1].load_ns or 0) > 30_000_000 / 2  # the wait for the first is in its load

    asyncio.run(main())


def test_two_clients_with_other_windows_thrash(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m")) as sim:
            for n in range(6):
                await generate(sim, "m", options={"num_ctx": 2048 if n % 2 else 4096})
            assert [r.reload for r in sim.truth.requests] == [None] + ["num_ctx"] * 5

    asyncio.run(main())


def test_v1_ignores_num_ctx(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m")) as sim:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "options": {"num_ctx": 512}, "num_ctx": 512}
            await ask(sim, post("/v1/chat/completions", json.dumps(body).encode()))
            assert sim.truth[0].window_tokens == 4096

    asyncio.run(main())


def test_unload_waits_for_the_running_the_queued_and_the_late(running: Running) -> None:
    """A18: the unload answers at once and bars nobody; the runner leaves after its last request."""

    async def main() -> None:
        async with running(persona("m", answer_tokens=30), speed=2) as sim:
            running_now = asyncio.ensure_future(generate(sim, "m"))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "decode")
            queued = asyncio.ensure_future(generate(sim, "m"))
            await sim.truth.when(lambda: len(sim.truth) > 1 and sim.truth[1].phase == "queued")
            unloaded = await generate(sim, "m", prompt="", keep_alive=0)
            assert unloaded["done_reason"] == "unload"
            assert not running_now.done()
            late = await generate(sim, "m", options=options(2))
            assert (await running_now)["done_reason"] == (await queued)["done_reason"] == "stop"
            assert late["done_reason"] == "length"
            assert all(r.reload is None for r in sim.truth.requests)
            assert sim.scheduler is not None
            scheduler = sim.scheduler
            await sim.truth.when(lambda: not scheduler.loaded)
            assert await loaded(sim) == []

    asyncio.run(main())


def test_keep_alive_zero_on_a_generation_unloads_after_it(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m")) as sim:
            await generate(sim, "m", keep_alive=0)
            assert await loaded(sim) == []
            assert (await generate(sim, "m", prompt="", keep_alive=0))["done_reason"] == "unload"  # not loaded: the same answer

    asyncio.run(main())


def test_idle_runners_expire_and_negative_keep_alive_stays(running: Running) -> None:
    async def main() -> None:
        async with running(persona("a"), persona("b"), keep_alive_s=0.05) as sim:
            await generate(sim, "a")
            await generate(sim, "b", keep_alive=-1)
            scheduler = sim.scheduler
            assert scheduler is not None
            await sim.truth.when(lambda: len(scheduler.loaded) == 1)
            assert await loaded(sim) == ["b:latest"]

    asyncio.run(main())


def test_the_fourth_model_evicts_an_idle_one(running: Running) -> None:
    async def main() -> None:
        async with running(*(persona(n) for n in "abcd"), max_loaded=3) as sim:
            for name in "abcd":
                await generate(sim, name)
            assert len(await loaded(sim)) == 3
            assert sim.truth[3].evicted in ("a", "b", "c")

    asyncio.run(main())


def test_two_names_of_one_file_share_a_runner(running: Running) -> None:
    async def main() -> None:
        async with running(persona("m"), persona("other", same_weights_as="m:latest")) as sim:
            await generate(sim, "m")
            await generate(sim, "other")
            assert await loaded(sim) == ["m:latest"]
            await generate(sim, "other", prompt="", keep_alive=0)
            assert await loaded(sim) == []

    asyncio.run(main())


def test_a_full_load_queue_answers_503(running: Running) -> None:
    async def main() -> None:
        async with running(SLOW, persona("m"), speed=1, max_queue=1) as sim:
            first = asyncio.ensure_future(generate(sim, "slow", options=options(1)))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "loading")
            await asyncio.sleep(0)
            second = asyncio.ensure_future(generate(sim, "m", options=options(1)))
            await sim.truth.when(lambda: len(sim.truth) > 1 and sim.truth[1].phase == "loading")
            third = await generate(sim, "m")
            assert third["status"] == 503
            assert third["error"] == "server busy, please try again.  maximum pending requests exceeded"
            assert (await first)["status"] == (await second)["status"] == 200
            assert (sim.truth[1].load_ns or 0) > (sim.truth[0].load_ns or 0) // 2  # it waited behind the other's load

    asyncio.run(main())


def test_a_client_that_leaves_aborts_its_load(running: Running) -> None:
    async def main() -> None:
        async with running(SLOW, speed=1) as sim:
            _, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/generate", b'{"model":"slow","prompt":"x"}'))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "loading")
            writer.close()
            await sim.truth.ended(0)
            assert sim.truth[0].ending == "client_left"
            assert await loaded(sim) == []

    asyncio.run(main())


def test_sizes_follow_the_stated_law() -> None:
    model = persona("m", slots=4, memory={"weights_bytes": 1000, "kv_bytes_per_token": 1024, "compute_bytes": 50})

    def size(window: int, **launch: object) -> int:
        return Runner(model, "m", Launch(window, options=tuple(launch.items())), 4, 300, 0).sizes()[0]

    assert size(2048, num_batch=8) == 1050 + 2048 * (4 * 1024 + 16)
    slope = (size(8192, num_batch=512) - size(4096, num_batch=512)) / 4096
    assert slope == 4 * 1024 + 2 * 512
    automatic = (size(8192) - size(512)) / (8192 - 512)
    assert automatic > slope  # the automatic batch doubled in between: what a measurement must not fall for


def test_spilling_shows_in_size_vram() -> None:
    model = persona("m", memory={"weights_bytes": 1000, "kv_bytes_per_token": 1, "compute_bytes": 0, "mask_bytes": False,
                                 "device_bytes": 3000, "host_bytes": 10_000})  # fmt: skip
    assert Runner(model, "m", Launch(1000), 1, 300, 0).sizes() == (2000, 2000)
    big = Runner(model, "m", Launch(4000), 1, 300, 0)
    assert big.sizes() == (5000, 3000)
    assert big.spilled


def test_what_fits_nowhere_does_not_load(running: Running) -> None:
    model = persona("m", memory={"weights_bytes": 2**40})

    async def main() -> None:
        async with running(model) as sim:
            failed = await generate(sim, "m")
            assert failed["status"] == 500
            assert failed["error"].startswith("model requires more system memory (1024")

    asyncio.run(main())


def test_waiters_that_leave_in_any_order_lose_no_slot() -> None:
    async def main() -> None:
        runner = Runner(persona("m"), "m", Launch(4096), 1, 300, 0)
        held = await runner.slot()
        waiters = [asyncio.ensure_future(runner.slot()) for _ in range(4)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        runner.free(held)  # before the first one knows that it was cancelled: the second gets it
        waiters[1].cancel()  # it has its slot but has not run: the slot goes on to the third
        waiters[3].cancel()
        done, pending = await asyncio.wait(waiters, timeout=5)
        assert not pending
        assert [w.cancelled() for w in waiters] == [True, True, False, True]
        runner.free(waiters[2].result())
        assert await asyncio.wait_for(runner.slot(), 5) == held
        assert len(done) == 4

    asyncio.run(main())


def test_cached_prefix_is_the_longest_common_one() -> None:
    runner = Runner(persona("m"), "m", Launch(4096), 1, 300, 0)
    assert runner.cached_prefix("abc") == 0
    runner.remember("abcdef")
    runner.remember("abX")
    assert runner.cached_prefix("abcxyz") == 3
    assert runner.cached_prefix("abcdef") == 6
    assert runner.cached_prefix("") == 0
    for n in range(20):
        runner.remember(f"{n}")
    assert runner.cached_prefix("abcdef") == 0  # forgotten: the cache is bounded
