"""Only streams to the same upstream are an objection; no console is none."""

from __future__ import annotations

import asyncio
import json

import pytest

from probes.traffic import in_flight


def asked(status: object, upstream: str) -> int | None:
    async def main() -> int | None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps(status).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await in_flight(upstream, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "upstream", "expected"),
    [
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 2}, "http://localhost:11434", 2),
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 0}, "127.0.0.1:11434", 0),
        ({"upstream": "http://127.0.0.1:11434", "in_flight": 2}, "http://127.0.0.1:9999", None),
        ({"upstream": "http://127.0.0.1:11434", "sessions": {"in_flight": 1}}, "http://127.0.0.1:11434", 1),
        ({"upstream": "http://127.0.0.1:11434"}, "http://127.0.0.1:11434", None),
        ([], "http://127.0.0.1:11434", None),
    ],
)
def test_streams_in_flight(status: object, upstream: str, expected: int | None) -> None:
    assert asked(status, upstream) == expected


def test_no_console_is_no_objection() -> None:
    assert asyncio.run(in_flight("http://127.0.0.1:11434", "http://127.0.0.1:9")) is None
