"""Over real sockets against the simulated Ollama: times, endings, cancel."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from probes.ask import Answer, Ask
from probes.client import Client
from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama
from qm_proxy import __version__
from qm_proxy.errors import SettingsError
from qm_proxy.events import Event

BODY: dict[str, object] = {"model": "m", "prompt": "hello there", "raw": True, "options": {"num_predict": 20}}


def persona(**laws: Any) -> Persona:
    base: dict[str, Any] = {"name": "m", "load": {"cold_ms": 5}, "prefill": {"fixed_ms": 2}, "decode": {"token_ms": 2.0}}
    return Persona.model_validate({**base, "answer_tokens": 500, **laws})


def with_sim(work: Callable[[SimulatedOllama, Client], Awaitable[Any]], **laws: Any) -> Any:
    async def main() -> Any:
        async with SimulatedOllama([persona(**laws)]) as sim:
            return await work(sim, Client(sim.url, "run-1"))

    return asyncio.run(main())


def test_a_stream_is_decoded_and_stamped_in_order() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> tuple[Answer, Any]:
        seen: list[object] = []
        answer = await client.ask(Ask("k", "/api/generate", BODY), seen.append)
        assert seen == answer.events
        return answer, sim.truth.requests[-1]

    answer, truth = with_sim(work)
    assert answer.ok
    assert answer.output_tokens == 20
    assert len(answer.chunks) == 20
    times = [chunk.t_ns for chunk in answer.chunks]
    assert times == sorted(times)
    assert answer.started_ns <= times[0]
    assert times[-1] <= answer.ended_ns
    assert all(chunk.server_ns is not None for chunk in answer.chunks)
    assert answer.usage is not None
    assert answer.usage.load_ns == truth.load_ns
    assert truth.user_agent == f"qm-probe/{__version__} run-1"


def test_a_process_that_was_not_let_run_says_when() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> Answer:
        seen: list[Event] = []

        def hold_up(event: Event) -> None:
            seen.append(event)
            if len(seen) == 10:
                end = time.monotonic_ns() + 60_000_000
                while time.monotonic_ns() < end:  # the loop cannot run meanwhile
                    pass

        return await client.ask(Ask("k", "/api/generate", BODY), hold_up)

    answer = with_sim(work)
    held_up, after = max(itertools.pairwise(chunk.t_ns for chunk in answer.chunks), key=lambda pair: pair[1] - pair[0])
    assert after - held_up >= 60_000_000
    assert 40 <= answer.paused_ms(held_up, after) <= (after - held_up) / 1e6


def test_calls_that_are_no_generation_answer_with_a_document() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> list[Answer]:
        return [
            await client.ask(Ask("v", "/api/version", method="GET")),
            await client.ask(Ask("s", "/api/show", {"model": "m", "verbose": True})),
            await client.ask(Ask("n", "/api/show", {"model": "nobody"})),
        ]

    version, show, missing = with_sim(work)
    assert version.document == {"version": "0.33.0-rc2"}
    assert show.ok
    assert isinstance(show.document, dict)
    assert (missing.status, missing.ending) == (404, "upstream_error")
    assert "not found" in (missing.error or "")


def test_whole_answers_are_read_too() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> Answer:
        return await client.ask(Ask("k", "/api/generate", {**BODY, "stream": False}))

    answer = with_sim(work)
    assert answer.ok
    assert answer.output_tokens == 20


@pytest.mark.parametrize(
    ("wrong", "ending"),
    [
        ({"error_before": "out of memory"}, "upstream_error"),
        ({"error_after": 3}, "upstream_error"),
        ({"no_done_after": 3}, "upstream_truncated"),
        ({"cut_after": 3}, "upstream_truncated"),
        ({"cut_after": 3, "reset": True}, "upstream_truncated"),
    ],
)
def test_every_bad_ending_has_its_name(wrong: dict[str, object], ending: str) -> None:
    async def work(sim: SimulatedOllama, client: Client) -> Answer:
        return await client.ask(Ask("k", "/api/generate", BODY))

    answer = with_sim(work, misbehaviour=wrong)
    assert not answer.ok
    assert answer.ending == ending


def test_silence_is_given_up_and_a_limit_kept() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> list[Answer]:
        return [
            await client.ask(Ask("k", "/api/generate", BODY, silence_s=0.3)),
            await client.ask(Ask("k", "/api/generate", BODY, limit_s=0.3)),
        ]

    quiet, slow = with_sim(work, misbehaviour={"silent_after": 2})
    assert quiet.silent
    assert not slow.silent
    assert "no byte" in (quiet.error or "")
    assert "not finished" in (slow.error or "")
    assert (quiet.ending, slow.ending) == ("upstream_truncated",) * 2


def test_cancelling_stops_the_model() -> None:
    async def work(sim: SimulatedOllama, client: Client) -> Any:
        begun = asyncio.Event()
        long = {**BODY, "options": {"num_predict": 400}}
        task = asyncio.ensure_future(client.ask(Ask("k", "/api/generate", long), lambda event: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        truth = sim.truth.requests[-1]
        await sim.truth.when(lambda: truth.client_left_ns is not None)
        return truth

    truth = with_sim(work)
    assert truth.ending == "client_left"
    assert truth.sampled_tokens < 400


def test_nobody_there_is_an_answer_not_an_exception() -> None:
    async def main() -> Answer:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return await Client(f"http://127.0.0.1:{port}", "r").ask(Ask("k", "/api/version", method="GET"))

    answer = asyncio.run(main())
    assert (answer.status, answer.ending) == (None, "upstream_unreachable")
    assert answer.error


def test_a_server_that_accepts_and_says_garbage_or_nothing() -> None:
    async def main() -> list[Answer]:
        made = []
        for reply in (
            b"",
            b"\x00\xffnot http\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{",
        ):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: bytes = reply) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(reply)
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            made.append(await Client(f"http://127.0.0.1:{port}", "r").ask(Ask("k", "/api/ps", method="GET")))
            made.append(await Client(f"http://127.0.0.1:{port}", "r").ask(Ask("k", "/api/generate", BODY)))
            server.close()
        return made

    answers = asyncio.run(main())
    assert not any(answer.ok for answer in answers if answer.key == "k" and answer.status is None)
    assert not any(answer.ok and answer.chunks for answer in answers)
    assert all(answer.document is None for answer in answers)


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://x:port"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(SettingsError, match="11434"):
        Client(address, "r")


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 11434),
        ("0.0.0.0:1234", "127.0.0.1", 1234),
        ("http://box", "box", 80),
        ("https://box/base", "box", 443),
        ("[::1]:9", "::1", 9),
    ],
)
def test_every_form_that_ollama_host_takes(given: str, host: str, port: int) -> None:
    client = Client(given, "r")
    assert (client._host, client._port) == (host, port)
