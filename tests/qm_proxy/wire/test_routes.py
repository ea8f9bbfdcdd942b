"""The route table, in every target form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.wire.routes import route_of, shape_of


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/api/chat", ("/api/chat", "ollama", "chat", True, True)),
        (b"/api/generate", ("/api/generate", "ollama", "text_completion", True, True)),
        (b"/api/embed", ("/api/embed", "ollama", "embeddings", False, False)),
        (b"/api/embeddings", ("/api/embeddings", "ollama", "embeddings", False, False)),
        (b"/api/pull", ("/api/pull", "ollama", None, True, False)),
        (b"/api/push", ("/api/push", "ollama", None, True, False)),
        (b"/api/create", ("/api/create", "ollama", None, True, False)),
        (b"/v1/chat/completions", ("/v1/chat/completions", "openai-chat", "chat", False, True)),
        (b"/v1/completions", ("/v1/completions", "openai-completions", "text_completion", False, True)),
        (b"/v1/responses", ("/v1/responses", "openai-responses", "chat", False, True)),
        (b"/v1/messages?beta=true", ("/v1/messages", "anthropic", "chat", False, True)),
        (b"/v1/embeddings", ("/v1/embeddings", "other", "embeddings", False, False)),
        (b"/v1/audio/transcriptions", ("/v1/audio/transcriptions", "other", None, False, False)),
        (b"/api/blobs/sha256:00", ("/api/blobs/sha256:00", "other", None, False, False)),
        (b"/api/show", ("/api/show", "other", None, False, False)),
        (b"http://127.0.0.1:11434/api/chat?x=/y", ("/api/chat", "ollama", "chat", True, True)),
        (b"HTTP://h", ("/", "other", None, False, False)),
        (b"http://h?q=/api/chat", ("/", "other", None, False, False)),
        (b"/api/chat#frag", ("/api/chat", "ollama", "chat", True, True)),
        (b"/v1/messages/count_tokens", ("/v1/messages/count_tokens", "other", None, False, False)),
    ],
)
def test_posts(target: bytes, expected: tuple[object, ...]) -> None:
    assert tuple(route_of("POST", target)) == expected


def test_22_stream_default_per_route() -> None:
    """Native absent → stream; /v1 absent → not."""
    assert route_of("POST", b"/api/chat").streams_by_default
    assert route_of("POST", b"/api/generate").streams_by_default
    for path in (b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages", b"/api/embed"):
        assert not route_of("POST", path).streams_by_default


@pytest.mark.parametrize("target", [b"//api/chat", b"/api/chat/", b"/api/%63hat", b"/API/chat", b"/api/../api/chat", b"*", b""])
def test_only_the_exact_spelling_is_a_generation(target: bytes) -> None:
    """Ollama redirects or refuses these: nothing is generated."""
    assert not route_of("POST", target).generation


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "post", "BREW"])
def test_38_only_a_post_generates(method: str) -> None:
    route = route_of(method, b"/api/chat")
    assert (route.path, route.dialect, route.operation, route.generation) == ("/api/chat", "other", None, False)


@pytest.mark.parametrize("path", [b"/api/tags", b"/api/ps", b"/api/version", b"/", b"/v1/models", b"/metrics"])
def test_38_polling_is_no_generation(path: bytes) -> None:
    assert not route_of("GET", path).generation
    assert route_of("GET", path).operation is None


def test_connect_keeps_its_authority() -> None:
    assert route_of("CONNECT", b"example.org:443").path == "example.org:443"


def test_long_and_undecodable_paths_are_bounded() -> None:
    assert len(route_of("GET", b"/" + b"a" * 100_000).path) == 1024
    assert route_of("GET", b"/\xff\xfe").path == "/\ufffd\ufffd"


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/chat", "ollama"),
        ("/", "ollama"),
        ("", "ollama"),
        ("/v1/chat/completions", "openai"),
        ("/v1/models", "openai"),
        ("/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
    ],
)
def test_error_shapes(path: str, shape: str) -> None:
    assert shape_of(path) == shape


@given(st.text(max_size=12), st.binary(max_size=200))
def test_never_raises(method: str, target: bytes) -> None:
    route = route_of(method, target)
    assert len(route.path) <= 1024
    shape_of(route.path)
