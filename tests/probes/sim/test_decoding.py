"""The decode phase: planned times are the law's, records are written at them, coalesced and bursty ones as stated."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama
from probes.sim.truth import RequestTruth
from tests.probes.sim.conftest import Running, ask, post, read_answer


def persona(**more: Any) -> Persona:
    stated = {"name": "m", "load": {"cold_ms": 1}, "prefill": {"fixed_ms": 1}, "decode": {"token_ms": 2}, "answer_tokens": 60}
    return Persona.model_validate({**stated, **more})


async def stream(sim: SimulatedOllama, path: str = "/api/chat", **body: Any) -> RequestTruth:
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}], **body}
    n = len(sim.truth)
    answer = await ask(sim, post(path, json.dumps(asked).encode()))
    assert answer.complete
    return await sim.truth.ended(n)


def gaps(truth: RequestTruth) -> list[int]:
    return [b - a for a, b in pairwise(truth.planned_ns)]


def test_the_plan_is_the_law_exactly_and_does_not_drift(running: Running) -> None:
    async def main() -> None:
        async with running(persona(), speed=1.0) as sim:
            truth = await stream(sim)
            assert len(truth.planned_ns) == 61  # 60 pieces and the end of sequence
            assert set(gaps(truth)) <= {1_999_999, 2_000_000, 2_000_001}
            assert truth.planned_ns[-1] - truth.planned_ns[0] == truth.decode_ns == 120_000_000
            # written after they were planned (served together within EARLY_NS), each in its own write
            late = [w - p for p, w in zip(truth.planned_ns, truth.written_ns, strict=True)]
            assert min(late) >= -20_000
            assert list(truth.written_records) == [1] * 61

    asyncio.run(main())


def test_stalls_are_where_they_were_planted(running: Running) -> None:
    async def main() -> None:
        async with running(persona(decode={"token_ms": 1, "stalls": {"at": [5, 20], "ms": 30}}), speed=1.0) as sim:
            truth = await stream(sim)
            assert truth.stalls == [(5, 30_000_000), (20, 30_000_000)]
            big = [n for n, gap in enumerate(gaps(truth), 1) if gap > 10_000_000]
            assert big == [5, 20]

    asyncio.run(main())


def test_a_network_stall_is_in_the_writes_and_not_in_the_plan(running: Running) -> None:
    async def main() -> None:
        async with running(persona(decode={"token_ms": 1, "network": {"at": [10], "ms": 20}}), speed=1.0) as sim:
            truth = await stream(sim)
            assert truth.network_stalls == [(10, 20_000_000)]
            assert not truth.stalls
            assert max(gaps(truth)) < 2_000_000
            burst = max(truth.written_records)
            assert burst == 21  # what was sampled in 20 ms leaves with the first token after them
            assert truth.written_records[10] == burst
            assert sum(truth.written_records) == 61

    asyncio.run(main())


def test_coalesced_records_leave_in_one_write_each_its_own_chunk(running: Running) -> None:
    async def main() -> None:
        async with running(persona(decode={"token_ms": 1, "coalesce": {"share": 0.5, "most": 3}})) as sim:
            for path in ("/api/chat", "/v1/messages"):
                body = {"max_tokens": 500} if path == "/v1/messages" else {}
                truth = await stream(sim, path, **body)
                assert sum(truth.written_records) == 61
                assert max(truth.written_records) > 1
                assert max(truth.written_records) <= 3

    asyncio.run(main())


def test_speculative_bursts_keep_the_mean_and_come_in_bursts(running: Running) -> None:
    async def main() -> None:
        async with running(
            persona(decode={"token_ms": 4, "speculative": {"drafted": 4, "accepted": 0.7}}, answer_tokens=400)
        ) as sim:
            truth = await stream(sim)
            zero = sum(gap == 0 for gap in gaps(truth))
            assert 0.5 < zero / 400 < 0.8
            assert len({gap for gap in gaps(truth) if gap > 1000}) <= 2  # one step length (rounded to ns)

    asyncio.run(main())


def test_the_same_seed_gives_the_same_answer_and_the_same_plan(running: Running) -> None:
    model = persona(decode={"token_ms": 2, "jitter": "lognormal", "spread": 0.2})

    async def one(seed: int) -> tuple[str, list[int]]:
        async with running(model, seed=seed) as sim:
            truth = await stream(sim)
            start = truth.planned_ns[0]
            return truth.text, [(t - start) // 1000 for t in truth.planned_ns]

    first, again, other = asyncio.run(one(1)), asyncio.run(one(1)), asyncio.run(one(2))
    assert first == again
    assert first != other


def test_asking_the_same_twice_gives_two_answers(running: Running) -> None:
    async def main() -> None:
        async with running(persona()) as sim:
            assert (await stream(sim)).text != (await stream(sim)).text

    asyncio.run(main())


def test_tokens_that_complete_a_character_come_in_one_record(running: Running) -> None:
    model = persona(tokenizer={"split_utf8": True}, rules=[{"say": {"pieces": ["é", "€", "🎉"]}}])

    async def main() -> None:
        async with running(model) as sim:
            truth = await stream(sim)
            assert truth.kinds == ["text"] * 3 + ["done"]
            assert truth.sampled_tokens == 10  # 2 + 3 + 4 and the end of sequence

    asyncio.run(main())


def test_a_tool_call_is_silence_and_then_whole(running: Running) -> None:
    call = {"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2, 3]}}
    for mode, kinds in (("rendered", ["tool", "done"]), ("native", ["done"])):
        model = persona(mode=mode, rules=[{"say": {"calls": [call]}}])

        async def main(model: Persona = model, kinds: list[str] = kinds) -> None:
            async with running(model) as sim:
                truth = await stream(sim)
                assert truth.kinds == kinds
                assert truth.tool_calls[0]["name"] == "get_weather"
                assert truth.sampled_tokens > 10

        asyncio.run(main())


def test_empty_records_on_generate_with_thinking(running: Running) -> None:
    model = persona(capabilities=["completion", "thinking"], thinking={"tokens": 5}, answer_tokens=5)

    async def main() -> None:
        async with running(model) as sim:
            truth = await stream(sim, "/api/generate", prompt="hi")
            assert truth.kinds == ["empty"] + ["thinking"] * 5 + ["empty"] + ["text"] * 5 + ["done"]
            assert (await stream(sim)).kinds == ["thinking"] * 5 + ["text"] * 5 + ["done"]
            assert truth.sampled_tokens == 13

    asyncio.run(main())


def test_logprobs_name_each_token(running: Running) -> None:
    async def main() -> None:
        async with running(persona(answer_tokens=4)) as sim:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}
            answer = await ask(sim, post("/api/chat", json.dumps(body).encode()))
            records = [json.loads(line) for line in answer.body.splitlines()]
            for record in records[:-1]:
                (entry,) = record["logprobs"]
                assert entry["token"] == record["message"]["content"]
                assert bytes(entry["bytes"]).decode() == entry["token"]
                assert len(entry["top_logprobs"]) == 2
            assert "logprobs" not in records[-1]

    asyncio.run(main())


def test_a_reader_that_stops_gets_everything_later(running: Running) -> None:
    """The runner goes on meanwhile and the records wait: none is lost, and their writes are stamped when they happen."""

    async def main() -> None:
        async with running(persona(rules=[{"say": {"pieces": ["x" * 20_000], "repeat": 25}}], mode="mlx"), speed=10.0) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port, limit=1024)
            transport = writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            writer.write(post("/api/chat", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "decode")
            await sim.truth.ended(0)  # the model has finished although nobody read
            transport.resume_reading()
            reader._limit = 1 << 20  # type: ignore[attr-defined]
            raw = await read_answer(reader)
            writer.close()
            assert raw.count(b"x" * 20_000) == 25
            assert raw.endswith(b"0\r\n\r\n")

    asyncio.run(main())
