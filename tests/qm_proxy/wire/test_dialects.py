"""Which decoder reads an answer; error bodies; bodies that nobody reads; the guard's ends through our own decoders."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Cut, Ending, Failed, Finished, Nanoseconds, Usage
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.framing import MAX_RECORD
from qm_proxy.wire.replies import clean_end
from qm_proxy.wire.routes import route_of
from tests.qm_proxy.wire.answers import every, names, only, run

ROUTES = [
    "/api/chat", "/api/generate", "/api/embed", "/api/pull", "/v1/chat/completions", "/v1/completions", "/v1/responses",
    "/v1/messages", "/v1/embeddings", "/api/show",
]  # fmt: skip


def chosen(path: str, *, streamed: bool = False, status: int = 200, kind: str | None = None) -> str:
    return type(decoder_for(route_of("POST", path.encode()), streamed=streamed, status=status, content_type=kind)).__name__


@pytest.mark.parametrize(
    ("path", "streamed", "kind", "expected"),
    [
        ("/api/chat", True, "application/x-ndjson", "NativeAnswer"),
        ("/api/chat", False, "application/x-ndjson", "NativeAnswer"),
        ("/api/chat", True, "application/json; charset=utf-8", "NativeAnswer"),
        ("/api/chat", False, "application/json; charset=utf-8", "NativeWhole"),
        ("/api/chat", False, None, "NativeAnswer"),
        ("/api/pull", True, "application/x-ndjson", "NativeAnswer"),
        ("/api/embed", False, "application/json", "NativeEmbeddings"),
        ("/v1/embeddings", False, "application/json", "NativeEmbeddings"),
        ("/v1/chat/completions", True, "text/event-stream; charset=utf-8", "OpenAIAnswer"),
        ("/v1/chat/completions", False, "TEXT/EVENT-STREAM", "OpenAIAnswer"),
        ("/v1/chat/completions", True, "application/json", "OpenAIWhole"),
        ("/v1/chat/completions", True, None, "OpenAIAnswer"),
        ("/v1/chat/completions", False, None, "OpenAIWhole"),
        ("/v1/completions", True, "text/event-stream", "OpenAIAnswer"),
        ("/v1/responses", True, "text/event-stream", "ResponsesAnswer"),
        ("/v1/responses", False, "application/json", "ResponsesWhole"),
        ("/v1/messages", True, "text/event-stream", "AnthropicAnswer"),
        ("/v1/messages", False, "application/json", "AnthropicWhole"),
        ("/api/show", False, "application/json", "Opaque"),
    ],
)
def test_the_answers_content_type_decides(path: str, streamed: bool, kind: str | None, expected: str) -> None:
    assert chosen(path, streamed=streamed, kind=kind) == expected


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "application/x-ndjson", None])
def test_an_error_status_is_an_error_body_whatever_was_asked(path: str, kind: str | None) -> None:
    assert chosen(path, streamed=True, status=500, kind=kind) == "ErrorBody"


@pytest.mark.parametrize("status", [101, 204, 301, 307, 304])
def test_statuses_without_an_answer(status: int) -> None:
    assert chosen("/api/chat", status=status) == "Opaque"


NO = (None, None)
INNER = json.dumps({"error": {"code": 400, "message": "m", "type": "t", "n_prompt_tokens": 7, "n_ctx": 5}})
TOO_LONG = "input length (70 tokens) exceeds the model's maximum context length (50 tokens)"
ERRORS: list[tuple[bytes, str, str | None, tuple[int | None, int | None]]] = [
    (b'{"error":"model not found"}', "model not found", None, NO),
    (b'{"error":{"message":"m","type":"api_error","param":null,"code":null}}', "m", "api_error", NO),
    (b'{"error":{"message":"m","type":"invalid_request_error","code":"too_long"}}', "m", "too_long", NO),
    (b'{"type":"error","error":{"type":"not_found_error","message":"m"},"request_id":"r"}', "m", "not_found_error", NO),
    (json.dumps({"error": INNER}).encode(), "m", "t", (7, 5)),
    (json.dumps({"error": "runner: " + INNER}).encode(), "m", "t", (7, 5)),
    (json.dumps({"error": TOO_LONG}).encode(), TOO_LONG, None, (70, 50)),
    (b'{"error":"raw={not json"}', "raw={not json", None, NO),
    (b'{"error":"raw={\\"message\\":\\"x\\"}"}', 'raw={"message":"x"}', None, NO),
    (b'{"error":"{\\"x\\":1}"}', '{"x":1}', None, NO),
    (b'{"StatusCode":401,"error":"unauthorized","signin_url":"https://x"}', "unauthorized", None, NO),
    (b'{"detail":[{"msg":"m","type":"missing"}]}', "[{'msg': 'm', 'type': 'missing'}]", None, NO),
    (b'{"object":"error","message":"m","type":"BadRequestError","code":400}', "m", "BadRequestError", NO),
    (b'{"error":null}', "", None, NO),
    (b'{"error":7}', "7", None, NO),
    (b'data: {"error":{"message":"m"}}\n\n', "m", None, NO),
    (b'event: error\ndata: {"type":"error","error":{"type":"t","message":"m"}}\n\n', "m", "t", NO),
    (b"404 page not found", "404 page not found", None, NO),
    (b"", "", None, NO),
    (b"\xff\xfe", "\ufffd\ufffd", None, NO),
]


@pytest.mark.parametrize(("body", "message", "code", "counts"), ERRORS)
def test_error_bodies(body: bytes, message: str, code: str | None, counts: tuple[int | None, int | None]) -> None:
    decoder = decoder_for(route_of("POST", b"/api/chat"), streamed=True, status=400, content_type="application/json")
    events = run(decoder, body[:7], body[7:])
    failed = only(events, Failed)
    assert failed.status == 400
    assert failed.message == message
    assert failed.code == code
    assert (failed.n_prompt_tokens, failed.n_ctx) == counts
    assert "https://x" not in failed.message
    assert only(events, Cut).ending == "upstream_error"


def test_error_bodies_are_bounded() -> None:
    decoder = decoder_for(route_of("POST", b"/api/chat"), streamed=True, status=500, content_type=None)
    assert only(run(decoder, b"x" * (MAX_RECORD + 1)), Failed).message == ""
    decoder = decoder_for(route_of("POST", b"/api/chat"), streamed=True, status=500, content_type=None)
    assert len(only(run(decoder, json.dumps({"error": "y" * 10**6}).encode()), Failed).message) == 2000


def test_an_opaque_body_has_an_end_only() -> None:
    route = route_of("GET", b"/api/tags")
    assert names(run(decoder_for(route, streamed=False, status=200, content_type=None), b"x" * 100)) == ["Finished"]
    torn = run(decoder_for(route, streamed=False, status=200, content_type=None), b"x", ending="upstream_truncated")
    assert only(torn, Cut).ending == "upstream_truncated"
    opaque = decoder_for(route, streamed=False, status=200, content_type=None)
    assert names(opaque.missed(3, Nanoseconds(1))) == ["Missed"]


@pytest.mark.parametrize(
    "path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_the_guards_end_is_one_to_our_own_decoders(path: str) -> None:
    route = route_of("POST", path.encode())
    kind = "application/x-ndjson" if route.dialect == "ollama" else "text/event-stream"
    decoder = decoder_for(route, streamed=True, status=200, content_type=kind)
    events = run(decoder, clean_end(route.dialect, decoder.standing(), chunked=False))
    assert only(events, Finished).reason in ("length", "max_tokens", "max_output_tokens")
    assert all(usage.input_tokens is None and not usage.output_tokens for usage in every(events, Usage))


_ENDINGS: list[Ending] = ["complete", "client_disconnect", "upstream_truncated", "shutdown"]


@settings(max_examples=200)
@given(
    st.sampled_from(ROUTES),
    st.booleans(),
    st.sampled_from([200, 200, 200, 400, 503, 302]),
    st.sampled_from(["text/event-stream", "application/json", "application/x-ndjson", "text/plain", None]),
    st.lists(st.binary(max_size=50), max_size=6),
    st.sampled_from(_ENDINGS),
)
def test_any_bytes_on_any_route_end_exactly_once(
    path: str, streamed: bool, status: int, kind: str | None, pieces: list[bytes], ending: Ending
) -> None:
    decoder = decoder_for(route_of("POST", path.encode()), streamed=streamed, status=status, content_type=kind)
    events = run(decoder, *pieces, ending=ending)
    assert len(every(events, Finished)) + len(every(events, Cut)) == 1
    assert isinstance(decoder.standing().open, list)
