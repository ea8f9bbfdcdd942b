"""Only streams to the same upstream are an objection; no console is none."""

from __future__ import annotations

import asyncio
import json

import pytest

from probes.traffic import Traffic, in_flight


def asked(status: object, upstream: str, exchanges: object = None) -> int | None:
    """What is in flight; with `exchanges`, what ran since."""

    async def main() -> int | None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            body = json.dumps(
                exchanges if b" /api/v1/exchanges?limit=500&since=2026-01-01T00%3A00Z " in head else status
            ).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            console = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if exchanges is None:
                return await in_flight(upstream, console)
            return await Traffic(upstream, console).since("2026-01-01T00:00Z")

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "upstream", "expected"),
    [
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 2}, "http://localhost:11434", 2),
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 0}, "127.0.0.1:11434", 0),
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 2}, "http://127.0.0.1:9999", None),
        ({"upstream": "http://127.0.0.1:11434", "sessions": {"in_flight": 1}}, "http://127.0.0.1:11434", 1),
        ({"upstream": "http://127.0.0.1:11434"}, "http://127.0.0.1:11434", None),
        ({"upstream": "http://127.0.0.1:1", "proxy": "http://127.0.0.1:11436", "in_flight": 3}, "localhost:11436", 3),
        ([], "http://127.0.0.1:11434", None),
    ],
)
def test_streams_in_flight(status: object, upstream: str, expected: int | None) -> None:
    assert asked(status, upstream) == expected


def test_no_console_is_no_objection() -> None:
    assert asyncio.run(in_flight("http://127.0.0.1:11434", "http://127.0.0.1:9")) is None


def test_what_ran_meanwhile_counts_only_generations_of_others() -> None:
    status = {"upstream": "http://127.0.0.1:11434", "in_flight": 1}
    items = [
        {"origin": "client", "operation": "chat"},
        {"origin": "client", "operation": None},  # a poll of /api/tags
        {"origin": "probe", "operation": "text_completion"},
    ]
    assert asked(status, "http://127.0.0.1:11434", {"items": items, "next_cursor": None}) == 2
    assert asked(status, "http://127.0.0.1:9999", {"items": items}) is None


def test_a_console_that_is_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QM_CONSOLE", "off")
    assert asyncio.run(Traffic("http://127.0.0.1:11434").now()) is None
    assert Traffic("http://127.0.0.1:11434", "http://127.0.0.1:9").console == "http://127.0.0.1:9"
