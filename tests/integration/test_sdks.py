"""The official SDKs give the same results through the proxy as directly, and every route is byte for byte the same.

Both sides talk to one simulated Ollama; what is random or a clock's (ids, durations, dates) is left out of the comparison.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from qm_proxy.servant import Servant

MODEL = "tool-user"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
                "required": ["city"],
            },
        },
    }
]


class Both:
    """Two ways to the same model: straight, and through the proxy. A fresh server for each, so that neither warms the other."""

    def __init__(self, make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
        def fresh() -> Any:
            return make_sim(personas=["steady", "tool-user", "thinker", "embedder"], speed=20.0, seed=3)

        self.straight: str = fresh().url
        self.proxy = serving(fresh().url)
        self.through: str = self.proxy.proxy

    def same(self, ask: Callable[[str], Any]) -> Any:
        """`ask(url)` both ways; the results are equal; returns one of them."""
        straight, through = ask(self.straight), ask(self.through)
        assert through == straight
        return through


@pytest.fixture
def both(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> Both:
    return Both(make_sim, serving)


# --- ollama -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ollama(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(url)
    yield client
    client._client.close()  # the SDK has no close of its own


def test_ollama_sdk(both: Both) -> None:
    def chat(url: str) -> Any:
        with _ollama(url) as client:
            answers = client.chat(MODEL, [{"role": "user", "content": "hello"}], stream=True, options={"num_predict": 12})
            return [(a.message.content, a.done, a.done_reason, a.eval_count) for a in answers]

    assert both.same(chat)[-1][1] is True

    def tools(url: str) -> Any:
        with _ollama(url) as client:
            asked: list[Any] = [{"role": "user", "content": "the weather in Paris"}]
            answer = client.chat(MODEL, asked, tools=TOOLS)
            calls = [(c.function.name, dict(c.function.arguments)) for c in answer.message.tool_calls or []]
            turn = [*asked, answer.message, {"role": "tool", "tool_name": "get_weather", "content": "22 C"}]
            return calls, client.chat(MODEL, turn, tools=TOOLS).message.content

    assert both.same(tools)[0]

    def rest(url: str) -> Any:
        with _ollama(url) as client:
            generated = [(r.response, r.done) for r in client.generate("steady", "hi", stream=True)]
            with pytest.raises(ollama.ResponseError) as failure:
                client.chat("nope", [{"role": "user", "content": "x"}])
            return (
                [m.model for m in client.list().models],
                client.show(MODEL).capabilities,
                [m.model for m in client.ps().models],
                generated,
                client.embed("embedder", ["a", "b"]).embeddings,
                (failure.value.status_code, failure.value.error),
            )

    assert both.same(rest)[-1][0] == 404

    def think(url: str) -> Any:
        with _ollama(url) as client:
            answers = client.chat("thinker", [{"role": "user", "content": "why"}], stream=True, think=True)
            return [(a.message.thinking, a.message.content) for a in answers]

    assert any(thought for thought, _ in both.same(think))


async def test_ollama_sdk_async(both: Both) -> None:
    async def chat(url: str) -> list[str | None]:
        client = ollama.AsyncClient(url)
        answers = await client.chat(MODEL, [{"role": "user", "content": "hello"}], stream=True, options={"num_predict": 9})
        said = [a.message.content async for a in answers]
        await client._client.aclose()
        return said

    assert await chat(both.through) == await chat(both.straight)


# --- openai -----------------------------------------------------------------------------------------------------------


def _openai(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0)


def test_openai_sdk_chat_and_completions(both: Both) -> None:
    def chat(url: str) -> Any:
        with _openai(url) as client:
            chunks = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hello"}],
                stream=True,
                max_tokens=14,
                stream_options={"include_usage": True},
            )
            return [
                ([(c.delta.content, c.finish_reason) for c in chunk.choices], chunk.usage and chunk.usage.total_tokens)
                for chunk in chunks
            ]

    assert both.same(chat)[-1][1]

    def tools(url: str) -> Any:
        with _openai(url) as client:
            asked: list[Any] = [{"role": "user", "content": "the weather in Paris"}]
            answer = client.chat.completions.create(model=MODEL, messages=asked, tools=TOOLS)
            calls: Any = answer.choices[0].message.tool_calls
            asked += [answer.choices[0].message, {"role": "tool", "tool_call_id": calls[0].id, "content": "22 C"}]
            end = client.chat.completions.create(model=MODEL, messages=asked, tools=TOOLS)
            return calls[0].function.name, calls[0].function.arguments, end.choices[0].message.content

    assert both.same(tools)[0] == "get_weather"

    def completion(url: str) -> Any:
        with _openai(url) as client:
            chunks = client.completions.create(model="steady", prompt="def f(", stream=True, max_tokens=10)
            return [[(c.text, c.finish_reason) for c in chunk.choices] for chunk in chunks]

    both.same(completion)

    def rest(url: str) -> Any:
        with _openai(url) as client:
            vectors = client.embeddings.create(model="embedder", input=["a"]).data[0].embedding
            with pytest.raises(openai.NotFoundError) as failure:
                client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
            return [m.id for m in client.models.list()], vectors, failure.value.message

    both.same(rest)


def test_openai_sdk_responses(both: Both) -> None:
    def respond(url: str) -> Any:
        with _openai(url) as client:
            events = client.responses.create(model=MODEL, input="hello", stream=True, max_output_tokens=11)
            return [(e.type, getattr(e, "delta", None)) for e in events]

    assert both.same(respond)[-1][0] == "response.completed"

    def tools(url: str) -> Any:
        with _openai(url) as client:
            offered: Any = [{"type": "function", **TOOLS[0]["function"], "strict": False}]
            answer = client.responses.create(model=MODEL, input="the weather in Paris", tools=offered)
            return [(i.name, i.arguments) for i in answer.output if i.type == "function_call"]

    assert both.same(tools)


# --- anthropic --------------------------------------------------------------------------------------------------------


def test_anthropic_sdk(both: Both) -> None:
    def client_of(url: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=url, api_key="ollama", max_retries=0)

    def stream(url: str) -> Any:
        with (
            client_of(url) as client,
            client.messages.stream(model=MODEL, max_tokens=13, messages=[{"role": "user", "content": "hello"}]) as answer,
        ):
            texts = list(answer.text_stream)
            final = answer.get_final_message()
            return texts, final.stop_reason, final.usage.output_tokens

    assert both.same(stream)[2]

    def tools(url: str) -> Any:
        offered: Any = [{"name": "get_weather", "input_schema": TOOLS[0]["function"]["parameters"]}]
        with client_of(url) as client:
            answer = client.messages.create(
                model=MODEL, max_tokens=200, messages=[{"role": "user", "content": "the weather in Paris"}], tools=offered
            )
            return answer.stop_reason, [(b.name, b.input) for b in answer.content if b.type == "tool_use"]

    assert both.same(tools)[0] == "tool_use"

    def missing(url: str) -> Any:
        with client_of(url) as client, pytest.raises(anthropic.NotFoundError) as failure:
            client.messages.create(model="nope", max_tokens=5, messages=[{"role": "user", "content": "x"}])
        return re.sub(r"req_\w+", "req", failure.value.message)

    both.same(missing)


# --- bytes ------------------------------------------------------------------------------------------------------------

_SHORT = {"options": {"num_predict": 6, "seed": 1}}
_HELLO = [{"role": "user", "content": "hello"}]
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/", None),
    ("HEAD", "/", None),
    ("GET", "/api/version", None),
    ("HEAD", "/api/version", None),
    ("GET", "/api/status", None),
    ("GET", "/api/tags", None),
    ("HEAD", "/api/tags", None),
    ("GET", "/api/ps", None),
    ("HEAD", "/api/ps", None),
    ("POST", "/api/show", {"model": "steady"}),
    ("POST", "/api/show", {"model": "nope"}),
    ("POST", "/api/generate", {"model": "steady", "prompt": "hi", **_SHORT}),
    ("POST", "/api/generate", {"model": "steady", "prompt": "hi", "stream": False, **_SHORT}),
    ("POST", "/api/generate", {"model": "steady"}),
    ("POST", "/api/chat", {"model": "steady", "messages": _HELLO, **_SHORT}),
    ("POST", "/api/chat", {"model": "steady", "messages": _HELLO, "stream": False, **_SHORT}),
    ("POST", "/api/chat", {"model": "nope", "messages": _HELLO}),
    ("POST", "/api/chat", "{not json"),
    ("POST", "/api/chat", ""),
    ("POST", "/api/embed", {"model": "embedder", "input": "a"}),
    ("POST", "/api/embeddings", {"model": "embedder", "prompt": "a"}),
    ("POST", "/api/pull", {"model": "steady"}),
    ("DELETE", "/api/delete", {"model": "nope"}),
    ("POST", "/v1/chat/completions", {"model": "steady", "messages": _HELLO, "stream": True, "max_tokens": 6}),
    ("POST", "/v1/chat/completions", {"model": "steady", "messages": _HELLO, "max_tokens": 6}),
    ("POST", "/v1/completions", {"model": "steady", "prompt": "x", "stream": True, "max_tokens": 6}),
    ("POST", "/v1/responses", {"model": "steady", "input": "x", "stream": True, "max_output_tokens": 6}),
    ("POST", "/v1/messages", {"model": "steady", "messages": _HELLO, "stream": True, "max_tokens": 6}),
    ("POST", "/v1/messages", {"model": "nope", "messages": _HELLO, "max_tokens": 6}),
    ("POST", "/v1/embeddings", {"model": "embedder", "input": "a"}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/steady", None),
    ("GET", "/v1/models/nope", None),
    ("OPTIONS", "/api/chat", None),
    ("GET", "/api/chat", None),
    ("GET", "/nowhere", None),
    ("GET", "/metrics", None),
    ("GET", "//api//tags", None),
    ("GET", "/api/tags/", None),
    ("POST", "/api/blobs/sha256:" + "0" * 64, "some bytes"),
    ("HEAD", "/api/blobs/sha256:" + "0" * 64, None),
]


def raw(url: str, method: str, path: str, body: Any) -> bytes:
    """The whole answer as it came, of one request on a connection of its own."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nOrigin: http://localhost\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.settimeout(20)
        sock.sendall(head.encode() + b"\r\n" + data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


_CLOCKS: tuple[tuple[bytes, bytes], ...] = (
    (rb"Date: [^\r]+", b"Date"),
    (rb'"(created_at|modified_at|expires_at)":"[^"]+"', rb'"\1"'),
    (rb'"(created|created_at|completed_at)":\d+', rb'"\1"'),
    (rb'"(\w+_duration)":\d+', rb'"\1"'),
    (rb"(chatcmpl-|cmpl-|resp_|msg_|rs_|fc_|call_|req_)\w+", rb"\1"),
    (rb"(?m)^[0-9a-f]+\r$", b"size\r"),
    (rb"Content-Length: \d+", b"Content-Length"),
)


def still(answer: bytes) -> bytes:
    """Without what a clock or chance put there, and without the lengths that depend on it."""
    for pattern, instead in _CLOCKS:
        answer = re.sub(pattern, instead, answer)
    return answer


@pytest.fixture
def sides(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> tuple[str, str]:
    def fresh() -> Any:
        return make_sim(personas=["steady", "embedder"], speed=20.0, seed=3)

    return fresh().url, serving(fresh().url).proxy


def test_every_route_is_the_same_bytes(sides: tuple[str, str]) -> None:
    straight, through = sides
    different = []
    for method, path, body in ROUTES:
        a, b = raw(straight, method, path, body), raw(through, method, path, body)
        assert a.startswith(b"HTTP/1.1 "), (method, path)
        if still(a) != still(b):
            different.append((method, path, a, b))
    assert not different
