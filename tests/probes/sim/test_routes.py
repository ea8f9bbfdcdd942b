"""Requests that the generation routes refuse, each in its dialect's shape; bodies in zstd."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import zstandard

from tests.probes.sim.conftest import Answer, Running, ask, post

HI = [{"role": "user", "content": "hi"}]


def send(running: Running, path: str, body: Any, *extra: str) -> Answer:
    async def main() -> Answer:
        async with running("steady", "thinker") as sim:
            return await ask(sim, post(path, body if isinstance(body, bytes) else json.dumps(body).encode(), *extra))

    return asyncio.run(main())


BAD: list[tuple[str, Any, int, str]] = [
    ("/api/chat", {"model": 3}, 400, "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
    ("/api/chat", {"model": "steady", "messages": "x"}, 400, "field ChatRequest.messages of type []api.Message"),
    ("/api/chat", {"model": "steady", "messages": [3]}, 400, "cannot unmarshal number"),
    ("/api/chat", {"model": "steady", "messages": [{"role": 3}]}, 400, "ChatRequest.messages.role"),
    ("/api/chat", {"model": "steady", "messages": HI, "think": "a lot"}, 400, "invalid think value"),
    ("/api/chat", {"model": "steady", "messages": HI, "format": "xml"}, 400, "invalid format"),
    (
        "/api/chat",
        {"model": "steady", "messages": HI, "options": {"num_ctx": "big"}},
        400,
        'option "num_ctx" must be of type integer',
    ),
    ("/api/chat", {"model": "steady", "messages": HI, "options": {"stop": [3]}}, 400, 'option "stop"'),
    ("/api/chat", {"model": "steady", "messages": HI, "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ("/api/chat", {"messages": HI}, 404, "model is required"),
    ("/api/generate", {"model": "steady", "prompt": ["x"]}, 400, "GenerateRequest.prompt of type string"),
    ("/api/generate", {"model": "steady", "prompt": "x", "suffix": "y"}, 400, '"steady" does not support insert'),
    ("/v1/chat/completions", {"model": "steady", "messages": []}, 400, "too short"),
    ("/v1/chat/completions", {"model": "steady", "messages": HI, "max_tokens": "x"}, 400, "max_tokens of type *int"),
    ("/v1/chat/completions", {"model": "steady", "messages": HI, "stop": [3]}, 400, "stop"),
    ("/v1/chat/completions", {"model": "steady", "messages": HI, "reasoning_effort": "huge"}, 400, "invalid reasoning value"),
    ("/v1/chat/completions", {"model": "steady", "messages": HI, "reasoning_effort": "high"}, 400, "does not support thinking"),
    (
        "/v1/chat/completions",
        {"model": "steady", "messages": [{"role": "user", "content": [{"type": "x"}]}]},
        400,
        "invalid message format",
    ),
    ("/v1/completions", {"model": "steady", "prompt": ["x"]}, 400, "CompletionRequest.prompt of type string"),
    ("/v1/responses", {"model": "steady", "input": 3}, 400, "input must be a string or array"),
    ("/v1/responses", {"model": "steady", "input": [{"type": "hologram"}]}, 400, "unknown input item type: hologram"),
    ("/v1/responses", {"model": "steady", "input": ["x"]}, 400, "json: cannot unmarshal request"),
    ("/v1/messages", {"model": "steady", "messages": HI}, 400, "max_tokens is required and must be positive"),
    ("/v1/messages", {"model": "steady", "max_tokens": 5}, 400, "messages is required"),
    ("/v1/messages", {"max_tokens": 5, "messages": HI}, 400, "model is required"),
    (
        "/v1/messages",
        {"model": "steady", "max_tokens": 5, "messages": [{"role": "user", "content": 3}]},
        400,
        "invalid message content",
    ),
    ("/v1/messages", b"[]", 400, "cannot unmarshal array"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), BAD)
def test_refusals(path: str, body: Any, status: int, said: str, running: Running) -> None:
    answer = send(running, path, body)
    assert answer.status == status
    document = json.loads(answer.body)
    error = document["error"]
    if path.startswith("/api"):
        assert said in error
        return
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    if path == "/v1/messages":
        assert document["type"] == "error"
        assert document["request_id"].startswith("req_")
    else:
        assert list(error) == ["message", "type", "param", "code"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_refused_streams_carry_the_stream_headers(path: str, running: Running) -> None:
    body = {"model": "nope", "stream": True, "max_tokens": 5, "messages": HI, "input": "hi"}
    answer = send(running, path, body)
    assert answer.status == 404
    assert [k for k, _ in answer.headers] == ["Cache-Control", "Connection", "Content-Type", "Date", "Content-Length"]
    assert answer.header("Content-Type") == "application/json"


def test_a_model_that_cannot_think_is_no_error_for_anthropic(running: Running) -> None:
    body = {"model": "steady", "max_tokens": 5, "messages": HI, "thinking": {"type": "enabled", "budget_tokens": 9}}
    assert send(running, "/v1/messages", body).status == 200


@pytest.mark.parametrize(
    ("path", "more", "thinks"),
    [
        ("/api/chat", {}, True),
        ("/api/chat", {"think": False}, False),
        ("/api/chat", {"think": "low"}, True),
        ("/v1/chat/completions", {}, True),
        ("/v1/chat/completions", {"reasoning_effort": "none"}, False),
        ("/v1/responses", {"input": "hi", "reasoning": {"effort": "minimal"}}, True),
        ("/v1/messages", {"max_tokens": 200, "thinking": {"type": "disabled"}}, False),
        ("/v1/messages", {"max_tokens": 200}, True),
        ("/v1/messages", {"max_tokens": 200, "output_config": {"effort": "high"}}, True),
    ],
)
def test_who_thinks(path: str, more: dict[str, Any], thinks: bool, running: Running) -> None:
    async def main() -> None:
        async with running("thinker") as sim:
            await ask(sim, post(path, json.dumps({"model": "thinker", "messages": HI, **more}).encode()))
            assert bool(sim.truth[0].thinking) == thinks

    asyncio.run(main())


def test_zstd_bodies_are_read_on_v1_only(running: Running) -> None:
    packed = zstandard.ZstdCompressor().compress(json.dumps({"model": "steady", "messages": HI, "max_tokens": 2}).encode())
    for path, status in (("/v1/chat/completions", 200), ("/v1/messages", 200), ("/api/chat", 400)):
        assert send(running, path, packed, "Content-Encoding: zstd").status == status
    assert send(running, "/v1/chat/completions", b"\x28\xb5\x2f\xfdnonsense", "Content-Encoding: zstd").status == 400
    gzip = send(running, "/v1/chat/completions", b"\x1f\x8b\x08", "Content-Encoding: gzip")
    assert json.loads(gzip.body)["error"]["message"] == "invalid character '\\x1f' looking for beginning of value"
    assert (
        send(running, "/api/chat", json.dumps({"model": "steady", "messages": HI}).encode(), "X-Type: text/plain").status == 200
    )
