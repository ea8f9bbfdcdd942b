"""What we say ourselves, held against the standard library's HTTP client and the official SDKs' parsers."""

from __future__ import annotations

import http.client
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import Dialect
from qm_proxy.wire.replies import MARK, OpenItem, Standing, clean_end, unreachable

URL = "http://127.0.0.1:11434"


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parse(reply: bytes, method: str = "POST") -> tuple[http.client.HTTPResponse, bytes]:
    response = http.client.HTTPResponse(_Socket(reply), method=method)  # type: ignore[arg-type]
    response.begin()
    return response, response.read()


def _head(target: str, method: str = "POST", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("/api/chat", ("error",)),
        ("/api/tags", ("error",)),
        ("/v1/chat/completions", ("error", "message")),
        ("/v1/models", ("error", "message")),
        ("/v1/responses", ("error", "message")),
        ("/v1/messages?beta=true", ("error", "message")),
    ],
)
def test_17_unreachable_in_the_callers_shape_and_marked(target: str, where: tuple[str, ...]) -> None:
    response, body = _parse(unreachable(_head(target), URL, "Connection refused"))
    assert response.status == 502
    assert response.headers[MARK] == "unreachable"
    assert response.headers["Connection"] == "close"
    assert response.headers["Content-Type"].startswith("application/json")
    assert int(response.headers["Content-Length"]) == len(body)
    found: Any = json.loads(body)
    assert (found.get("type") == "error") is target.startswith("/v1/messages")
    for key in where:
        found = found[key]
    assert URL in found
    assert "Connection refused" in found
    assert "ollama serve" in found


def test_head_has_a_length_and_no_body() -> None:
    reply = unreachable(_head("/", "HEAD"), URL, "refused")
    assert reply.endswith(b"\r\n\r\n")
    response, body = _parse(reply, "HEAD")
    assert body == b""
    assert int(response.headers["Content-Length"]) > 50


def test_http_1_0_is_answered_in_kind() -> None:
    assert unreachable(_head("/api/chat", version="1.0"), URL, "refused").startswith(b"HTTP/1.0 502 ")


@pytest.mark.parametrize(
    "head",
    [b"", b"\x16\x03\x01\x02\x00", b"GET", b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b"\r\n\r\n", b"GET /v1/x\r\n", b" / HTTP/1.1"],
)
def test_an_unreadable_head_gets_the_plain_native_shape(head: bytes) -> None:
    response, body = _parse(unreachable(head, URL, "refused"))
    assert response.status == 502
    assert isinstance(json.loads(body)["error"], str)


def test_a_torn_head_still_finds_its_shape() -> None:
    _, body = _parse(unreachable(b"\r\nPOST /v1/messages HTTP/1.1\r\nHos", URL, "refused"))
    assert json.loads(body)["type"] == "error"


@given(st.binary(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_unreachable_never_raises_and_always_parses(head: bytes, url: str, reason: str) -> None:
    reply = unreachable(head, url, reason)
    method = "HEAD" if head.lstrip(b"\r\n").startswith(b"HEAD ") and reply.endswith(b"\r\n\r\n") else "POST"
    response, body = _parse(reply, method)
    assert response.status == 502
    if method == "POST":
        json.loads(body)


# --- the guard's end --------------------------------------------------------------------------------------------------


def _dechunk(data: bytes) -> bytes:
    response, body = _parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    assert response.isclosed()
    return body


def _events(body: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def test_native_end() -> None:
    standing = Standing(model="m", created_at="2026-11-23T08:00:00Z")
    record = json.loads(_dechunk(clean_end("ollama", standing)))
    assert record == {
        "model": "m",
        "created_at": "2026-11-23T08:00:00Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
    }
    generate = json.loads(clean_end("ollama", Standing(model="m", generate=True), chunked=False))
    assert generate == {"model": "m", "response": "", "done": True, "done_reason": "length"}


@pytest.mark.parametrize("dialect", ["openai-chat", "openai-completions"])
def test_openai_end(dialect: Dialect) -> None:
    body = _dechunk(clean_end(dialect, Standing("chatcmpl-5", "m", created=7)))
    assert body.endswith(b"data: [DONE]\n\n")
    (chunk,) = _events(body)
    assert chunk["choices"][0]["finish_reason"] == "length"
    assert (chunk["id"], chunk["model"], chunk["created"]) == ("chatcmpl-5", "m", 7)
    assert "usage" not in chunk


def test_responses_end_closes_what_is_open() -> None:
    standing = Standing("resp_1", "m", created=7, sequence=9, open=[OpenItem("text", 1, "msg_4")])
    body = _dechunk(clean_end("openai-responses", standing, text="Hello"))
    events = _events(body)
    assert [event["type"] for event in events] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == [9, 10, 11, 12]
    final = events[-1]["response"]
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["usage"] is None
    assert final["output"][0]["content"][0]["text"] == "Hello"


def test_responses_end_of_thinking_and_of_nothing() -> None:
    thinking = _events(clean_end("openai-responses", Standing(open=[OpenItem("thinking", 0, "rs_1")]), chunked=False, text="Hm"))
    assert [event["type"] for event in thinking] == [
        "response.reasoning_summary_text.done",
        "response.output_item.done",
        "response.completed",
    ]
    tool = _events(clean_end("openai-responses", Standing(open=[OpenItem("tool", 0, "fc_1")]), chunked=False))
    assert [event["type"] for event in tool] == ["response.completed"]


def test_anthropic_end_closes_the_block_and_repeats_the_servers_last_count() -> None:
    body = _dechunk(clean_end("anthropic", Standing(output_tokens=3, open=[OpenItem("text", 2)])))
    stop, delta, end = _events(body)
    assert stop == {"type": "content_block_stop", "index": 2}
    assert delta["delta"]["stop_reason"] == "max_tokens"
    assert delta["usage"] == {"output_tokens": 3}
    assert end == {"type": "message_stop"}
    assert b"event: message_stop\n" in body


def test_other_has_no_end() -> None:
    with pytest.raises(ValueError):
        clean_end("other", Standing())
