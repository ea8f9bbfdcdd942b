"""Phases, counts, windows and departures of one generation, from its request to its last byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama
from tests.probes.sim.conftest import Answer, Running, ask, parse, post, read_answer


def persona(**more: Any) -> Persona:
    stated = {"name": "m", "load": {"cold_ms": 20}, "prefill": {"fixed_ms": 5}, "decode": {"token_ms": 10}, "answer_tokens": 12}
    return Persona.model_validate({**stated, **more})


async def chat(sim: SimulatedOllama, content: str = "hi", **body: Any) -> tuple[Answer, dict[str, Any]]:
    """The answer, and its last document."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **body}
    answer = await ask(sim, post("/api/chat", json.dumps(body).encode()))
    last: dict[str, Any] = json.loads(answer.body.decode().strip().split("\n")[-1])
    return answer, last


WORDS = "word " * 3000


def test_durations_are_the_stated_ones(running: Running) -> None:
    model = persona(prefill={"fixed_ms": 5, "tokens_per_s": 1000, "first_touch_ms": 40})

    async def main() -> None:
        async with running(model, speed=1.0) as sim:
            _, cold = await chat(sim, "one two three")
            truth = sim.truth[0]
            tokens = cold["prompt_eval_count"]
            assert tokens == 6  # three words, two marks of the message, the assistant's
            assert cold["prompt_eval_duration"] == truth.prefill_ns == int((5 + tokens + 40) * 1e6)
            assert 20_000_000 <= cold["load_duration"] < 25_000_000
            assert cold["eval_count"] == 13
            assert cold["eval_duration"] == 12 * 10_000_000  # 13 tokens over 12 gaps
            assert truth.first_touch
            _, warm = await chat(sim, "four five six seven")
            assert warm["load_duration"] == 800_000
            assert not sim.truth[1].first_touch
            stages = sum(warm[k] for k in ("load_duration", "prompt_eval_duration", "eval_duration"))
            assert warm["total_duration"] >= stages

    asyncio.run(main())


def test_speed_scales_what_is_waited_and_what_is_reported(running: Running) -> None:
    async def main() -> None:
        async with running(persona(), speed=10.0) as sim:
            _, last = await chat(sim)
            assert last["eval_duration"] == 12 * 1_000_000

    asyncio.run(main())


def test_a_repeated_prompt_is_counted_in_full_and_evaluated_hardly(running: Running) -> None:
    model = persona(prefill={"fixed_ms": 0, "tokens_per_s": 1000})

    async def main() -> None:
        async with running(model) as sim:
            content = "word " * 300
            _, first = await chat(sim, content)
            _, again = await chat(sim, content)
            _, longer = await chat(sim, content + "and some more of it")
            _, other = await chat(sim, "x " + content)
            assert first["prompt_eval_count"] == again["prompt_eval_count"] == other["prompt_eval_count"] - 1
            assert sim.truth[1].cached_tokens == again["prompt_eval_count"] - 1
            assert again["prompt_eval_duration"] < first["prompt_eval_duration"] / 100
            assert longer["prompt_eval_duration"] < first["prompt_eval_duration"] / 10
            assert sim.truth[3].cached_tokens == 1  # a fresh first word defeats the cache, but for the opening mark

    asyncio.run(main())


def test_the_old_lie_about_cached_tokens(running: Running) -> None:
    async def main() -> None:
        async with running(persona(count_cached=False)) as sim:
            content = "word " * 50
            _, first = await chat(sim, content)
            _, again = await chat(sim, content)
            assert first["prompt_eval_count"] == 54
            assert again["prompt_eval_count"] == 1
            assert sim.truth[1].prompt_tokens == 54

    asyncio.run(main())


def test_a_long_prompt_is_cut_to_half_silently(running: Running) -> None:
    async def main() -> None:
        async with running(persona(context={"trained": 4096, "automatic": 512})) as sim:
            answer, last = await chat(sim, WORDS)
            assert answer.status == 200
            assert last["prompt_eval_count"] == 512 - (512 - 4) // 2
            assert sim.truth[0].asked_tokens == 3004

    asyncio.run(main())


def test_a_native_runner_refuses_instead_with_both_numbers(running: Running) -> None:
    async def main() -> None:
        async with running(persona(mode="native", context={"trained": 4096, "automatic": 512})) as sim:
            answer, last = await chat(sim, WORDS)
            inner = json.loads(last["error"])["error"]
            assert answer.status == 400
            assert (inner["n_prompt_tokens"], inner["n_ctx"], inner["type"]) == (3004, 512, "exceed_context_size_error")

    asyncio.run(main())


def test_a_server_that_cuts_whatever_was_asked_for(running: Running) -> None:
    async def main() -> None:
        async with running(persona(context={"trained": 8192, "automatic": 8192, "serves": 1024})) as sim:
            _, fits = await chat(sim, "word " * 1000, truncate=False, shift=False)
            _, last = await chat(sim, WORDS, truncate=False, shift=False, options={"num_ctx": 8192})
            assert fits["prompt_eval_count"] == 1004
            assert last["prompt_eval_count"] == 1024 - (1024 - 4) // 2
            assert sim.truth[1].window_tokens == 8192

    asyncio.run(main())


def test_an_mlx_runner_refuses_only_at_its_own_maximum(running: Running) -> None:
    async def main() -> None:
        async with running(persona(mode="mlx", context={"trained": 2000, "automatic": 2000})) as sim:
            _, last = await chat(sim, "word " * 1000, options={"num_ctx": 512})
            assert last["prompt_eval_count"] == 1004
            answer, refused = await chat(sim, WORDS)
            assert answer.status == 400
            assert refused["error"] == "input length (3004 tokens) exceeds the model's maximum context length (2000 tokens)"

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["rendered", "native"])
def test_old_messages_are_dropped_silently_and_system_and_last_stay(mode: str, running: Running) -> None:
    model = persona(
        mode=mode, context={"trained": 4096, "automatic": 512}, rules=[{"when": {"system": "sys"}, "say": {"text": "seen"}}]
    )
    messages: list[dict[str, str]] = [{"role": "system", "content": "sys"}]
    for n in range(6):
        messages += [{"role": "user", "content": f"{n} " + "word " * 120}, {"role": "assistant", "content": "ok"}]
    messages.append({"role": "user", "content": "and now?"})

    async def main() -> None:
        async with running(model) as sim:
            answer, last = await chat(sim, messages=messages)
            assert answer.status == 200
            assert 380 < last["prompt_eval_count"] <= 512
            assert sim.truth[0].dropped_messages >= 4
            assert sim.truth[0].text == "seen"  # the system message is still there

    asyncio.run(main())


def test_shift_goes_on_beyond_the_window_and_without_it_length_ends_there(running: Running) -> None:
    model = persona(context={"trained": 4096, "automatic": 512}, answer_tokens=300, decode={"token_ms": 0.2})

    async def main() -> None:
        async with running(model) as sim:
            _, shifted = await chat(sim, "word " * 400)
            assert shifted["prompt_eval_count"] + shifted["eval_count"] > 512
            assert shifted["done_reason"] == "stop"
            assert sim.truth[0].shifts == 1
            _, stopped = await chat(sim, "word " * 400, shift=False)
            assert stopped["prompt_eval_count"] + stopped["eval_count"] == 512
            assert stopped["done_reason"] == "length"

    asyncio.run(main())


def test_without_a_limit_ten_windows_are_the_end(running: Running) -> None:
    model = persona(context={"trained": 4096, "automatic": 100}, decode={"token_ms": 0.01},
                    policy={"name": "token-loop", "tokens": None, "form": "counter"})  # fmt: skip

    async def main() -> None:
        async with running(model) as sim:
            _, last = await chat(sim, stream=False)
            assert (last["eval_count"], last["done_reason"]) == (1000, "length")

    asyncio.run(main())


def test_the_second_on_one_slot_waits_and_no_field_says_so(running: Running) -> None:
    async def main() -> None:
        async with running(persona(answer_tokens=30), speed=2.0) as sim:
            await chat(sim, "warm up")
            first = asyncio.ensure_future(chat(sim, "first"))
            await sim.truth.when(lambda: len(sim.truth) > 1 and sim.truth[1].phase == "decode")
            _, last = await chat(sim, "second")
            await first
            queued = sim.truth[2].queue_ns or 0
            remainder = last["total_duration"] - sum(last[k] for k in ("load_duration", "prompt_eval_duration", "eval_duration"))
            assert queued > 5_000_000
            assert remainder >= queued

    asyncio.run(main())


def test_structured_output_follows_the_schema(running: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"const": "b"}, "n": {"type": "integer", "minimum": 7}}, "required": ["a"]}

    async def main() -> None:
        async with running(persona()) as sim:
            _, last = await chat(sim, format=schema, stream=False)
            assert json.loads(last["message"]["content"]) == {"a": "b", "n": 7}
            _, free = await chat(sim, format="json", stream=False)
            assert isinstance(json.loads(free["message"]["content"]), dict)

    asyncio.run(main())


# --- the client leaves --------------------------------------------------------------------------------------------------


async def leave(sim: SimulatedOllama, phase: str, body: dict[str, Any], n: int) -> None:
    """Send a request and close the connection once it is in this phase."""
    reader, writer = await asyncio.open_connection(sim.host, sim.port)
    writer.write(post("/api/chat", json.dumps(body).encode()))
    await sim.truth.when(lambda: len(sim.truth) > n and sim.truth[n].phase == phase)
    if phase == "decode" and body.get("stream", True):
        await reader.readuntil(b"}\n")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await sim.truth.ended(n)


ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_departure_ends_the_work_and_frees_the_slot(phase: str, streamed: bool, running: Running) -> None:
    model = persona(prefill={"fixed_ms": 300}, answer_tokens=500)

    async def main() -> None:
        async with running(model, speed=4.0) as sim:
            await leave(sim, phase, {**ASK, "stream": streamed}, 0)
            truth = sim.truth[0]
            assert truth.ending == "client_left"
            assert truth.client_left_ns is not None
            assert truth.sampled_tokens < 100
            _, last = await chat(sim, "next", options={"num_predict": 1})
            assert last["eval_count"] == 1

    asyncio.run(main())


def test_a_departure_in_the_prefill_keeps_the_slot_for_the_batch(running: Running) -> None:
    model = persona(
        prefill={"fixed_ms": 0, "tokens_per_s": 2000, "batch_tokens": 512}, context={"trained": 8192, "automatic": 8192}
    )

    async def main() -> None:
        async with running(model, speed=4.0) as sim:
            await leave(sim, "prefill", {"model": "m", "messages": [{"role": "user", "content": "word " * 4000}]}, 0)
            _, _ = await chat(sim, "next", options={"num_predict": 1})
            left = sim.truth[0].client_left_ns or 0
            waited_ns = sim.truth[1].queue_ns or 0
            assert 1_000_000 < waited_ns < (sim.truth[0].prefill_ns or 0)  # the batch of 512 is ended, the other seven are not
            assert left < (sim.truth[1].ended_ns or 0)

    asyncio.run(main())


def test_a_queued_client_that_leaves_was_never_there(running: Running) -> None:
    async def main() -> None:
        async with running(persona(answer_tokens=60), speed=2.0) as sim:
            first = asyncio.ensure_future(chat(sim, "first"))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "decode")
            await leave(sim, "queued", ASK, 1)
            _, last = await chat(sim, "third", options={"num_predict": 2})
            await first
            assert sim.truth[1].ending == "client_left"
            assert last["eval_count"] == 2

    asyncio.run(main())


def test_half_close_in_the_stream_ends_the_body_cleanly_without_done(running: Running) -> None:
    async def main() -> None:
        async with running(persona(answer_tokens=500)) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/chat", json.dumps(ASK).encode()))
            raw = await reader.readuntil(b"}\n")
            writer.write_eof()
            raw += await reader.read()
            answer = parse(raw)
            assert answer.complete
            assert b'"done":true' not in answer.body
            writer.close()

    asyncio.run(main())


def test_half_close_before_the_first_byte_is_never_answered(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.sim.connection.HALF_CLOSED_S", 0.05)

    async def main() -> None:
        async with running(persona(prefill={"fixed_ms": 5000}), speed=1.0) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/chat", json.dumps(ASK).encode()))
            await sim.truth.when(lambda: len(sim.truth) > 0 and sim.truth[0].phase == "prefill")
            writer.write_eof()
            assert await reader.read() == b""
            assert sim.truth[0].ending == "client_left"
            writer.close()

    asyncio.run(main())


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def test_aborted_streams_hang_the_model_until_it_is_unloaded(running: Running) -> None:
    model = persona(slots=2, answer_tokens=400, hang={"after_aborts": 2})

    async def main() -> None:
        async with running(model, speed=4.0) as sim:
            for n in range(3):
                await leave(sim, "decode", ASK, n)
            assert [r.leaked_slot for r in sim.truth.requests] == [False, True, True]
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/chat", json.dumps(ASK).encode()))
            await sim.truth.when(lambda: len(sim.truth) > 3 and sim.truth[3].phase == "queued")
            ps = await ask(sim, b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'"name":"m:latest"' in ps.body  # looks healthy
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            writer.close()
            await sim.truth.ended(3)
            assert sim.truth[3].ending == "hung"
            body = json.dumps({"model": "m", "keep_alive": 0}).encode()
            assert b'"unload"' in (await ask(sim, post("/api/generate", body))).body
            _, last = await chat(sim, "again", options={"num_predict": 1})
            assert last["eval_count"] == 1

    asyncio.run(main())


def test_slow_models_do_not_leak(running: Running) -> None:
    async def main() -> None:
        async with running(persona(hang={"after_aborts": 1, "below_token_ms": 10}, answer_tokens=400)) as sim:
            await leave(sim, "decode", ASK, 0)
            assert not sim.truth[0].leaked_slot

    asyncio.run(main())


ROUTES: dict[str, dict[str, Any]] = {
    "/api/chat": {},
    "/api/generate": {"prompt": "hi"},
    "/v1/chat/completions": {"stream": True},
    "/v1/completions": {"stream": True, "prompt": "hi"},
    "/v1/responses": {"stream": True, "input": "hi"},
    "/v1/messages": {"stream": True, "max_tokens": 100},
}
TERMINAL = (b'"done":true', b"[DONE]", b"response.completed", b"message_stop")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("wrong", "ending"),
    [
        ({"error_after": 5}, "crash"),
        ({"no_done_after": 5}, "no_done"),
        ({"cut_after": 5}, "cut"),
        ({"cut_after": 5, "reset": True}, "cut"),
        ({"cut_after": 0}, "cut"),
    ],
)
def test_streams_end_as_the_fault_says_in_every_dialect(path: str, wrong: dict[str, Any], ending: str, running: Running) -> None:
    async def main() -> None:
        async with running(persona(misbehaviour=wrong)) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post(path, json.dumps({**ASK, **ROUTES[path]}).encode()))
            raw = await read_answer(reader)
            writer.close()
            assert sim.truth[0].ending == ending
            assert not any(t in raw for t in TERMINAL)
            if wrong == {"cut_after": 0}:
                assert raw == b""
                return
            complete = raw.endswith(b"\r\n0\r\n\r\n")
            assert complete == (ending != "cut")
            if ending == "crash":
                told = {"/api": b'{"error":"an error was encountered', "/v1/c": b'"model":""'}
                mark = next((m for start, m in told.items() if path.startswith(start)), None)
                assert mark is None or mark in raw

    asyncio.run(main())


@pytest.mark.parametrize("path", ROUTES)
def test_a_death_in_the_prefill_is_a_500_in_every_dialect(path: str, running: Running) -> None:
    async def main() -> None:
        async with running(persona(misbehaviour={"error_before": "boom"})) as sim:
            answer = await ask(sim, post(path, json.dumps({**ASK, **ROUTES[path]}).encode()))
            assert answer.status == 500
            assert answer.chunked
            assert answer.header("Content-Type") == "application/json"
            error = json.loads(answer.body)["error"]
            assert "boom" in (error if isinstance(error, str) else error["message"])

    asyncio.run(main())


def test_a_silent_stream_stays_open(running: Running) -> None:
    async def main() -> None:
        async with running(persona(misbehaviour={"silent_after": 3})) as sim:
            reader, writer = await asyncio.open_connection(sim.host, sim.port)
            writer.write(post("/api/chat", json.dumps(ASK).encode()))
            for _ in range(3):
                await reader.readuntil(b"}\n")
            await sim.truth.when(lambda: sim.truth[0].ending == "silent")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readuntil(b"}\n"), 0.1)
            writer.close()
            await sim.truth.ended(0)
            assert sim.truth[0].ending == "silent"

    asyncio.run(main())


def test_swallowed_tokens_are_counted_and_not_sent(running: Running) -> None:
    async def main() -> None:
        async with running(persona(misbehaviour={"swallow": True})) as sim:
            answer, last = await chat(sim)
            assert last["eval_count"] == 13
            assert len(answer.chunks) == 1

    asyncio.run(main())


def test_a_policy_that_raises_is_one_failed_request(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def answer(self, turn: object, rng: object) -> None:
            raise LookupError("no such thing")

    async def main() -> None:
        async with running(persona(policy={"name": "broken"}), policies={"broken": Broken}) as sim:
            answer = await ask(sim, post("/api/chat", json.dumps(ASK).encode()))
            assert answer.status == 500
            assert answer.body == b""
            assert sim.failures == 1
            assert (await ask(sim, post("/api/chat", b'{"model":"m"}'))).status == 200

    asyncio.run(main())
    assert "no such thing" in capsys.readouterr().err
