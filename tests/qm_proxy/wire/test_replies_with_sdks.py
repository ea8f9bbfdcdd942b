"""What we say ourselves, read by the official SDKs: a stream ended by the guard is no error, our 502 says its sentence."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from qm_proxy.events import Event, Nanoseconds, TextDelta, ThinkingDelta
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.http import HttpConnection, ResponseBody
from qm_proxy.wire.replies import clean_end, unreachable
from qm_proxy.wire.routes import route_of

GOLDEN = Path(__file__).parents[2] / "golden" / "wire"
NOBODY = "http://127.0.0.1:9"
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server that gives `answer` to its one request (None: our 502), then closes. Yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                request = b""
                while (end := request.find(b"\r\n\r\n")) < 0:
                    request += connection.recv(65536)
                length = re.search(rb"(?i)content-length: (\d+)", request)
                while length is not None and len(request) < end + 4 + int(length[1]):
                    request += connection.recv(65536)
                connection.sendall(unreachable(request, NOBODY, "Connection refused") if answer is None else answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(20)


def cut(case: str, chunks: int) -> tuple[bytes, str]:
    """A recorded stream, ended by us behind its first chunks: (all its bytes, the text it said)."""
    raw = (GOLDEN / f"{case}.bin").read_bytes()
    head, _, body = raw.partition(b"\r\n\r\n")
    size = 0
    for _ in range(chunks):
        length, _, _ = body[size:].partition(b"\r\n")
        size += len(length) + 2 + int(length, 16) + 2
    begun = head + b"\r\n\r\n" + body[:size]
    request = (GOLDEN / f"{case}.request.bin").read_bytes()
    route = route_of("POST", request.split(b" ")[1])
    kind = re.search(rb"Content-Type: ([^\r]+)", head)
    assert kind is not None
    decoder = decoder_for(route, streamed=True, status=200, content_type=kind[1].decode())
    http = HttpConnection()
    http.client(request, Nanoseconds(0))
    events: list[Event] = []
    for event in http.upstream(begun, Nanoseconds(1)):
        if isinstance(event, ResponseBody):
            events += decoder.feed(event.data, event.t_ns)
    text = "".join(event.text for event in events if isinstance(event, (TextDelta, ThinkingDelta)))
    return begun + clean_end(route.dialect, decoder.standing(), text=text), text


def test_ollama_takes_the_guards_end() -> None:
    answer, text = cut("ollama/chat_stream.tiny", 5)
    with answering(answer) as url:
        parts = list(ollama.Client(url).chat("tiny", MESSAGES, stream=True))
    assert "".join(part.message.content or "" for part in parts) == text
    assert (parts[-1].done, parts[-1].done_reason, parts[-1].eval_count) == (True, "length", None)


def test_ollama_takes_the_guards_end_of_a_completion() -> None:
    answer, text = cut("ollama/generate_stream", 4)
    with answering(answer) as url:
        parts = list(ollama.Client(url).generate("tiny", "hello", stream=True))
    assert "".join(part.response or "" for part in parts) == text
    assert parts[-1].done_reason == "length"


def test_openai_takes_the_guards_end_of_a_chat() -> None:
    answer, text = cut("openai-chat/v1_chat_stream.tiny", 6)
    with answering(answer) as url, openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openai_takes_the_guards_end_of_a_completion() -> None:
    answer, text = cut("openai-completions/v1_completions_stream", 6)
    with answering(answer) as url, openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
        chunks = list(client.completions.create(model="tiny", prompt="hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("case", ["openai-responses/v1_responses_stream.tiny", "openai-responses/v1_responses_think_stream"])
def test_openai_takes_the_guards_end_of_a_response(case: str) -> None:
    answer, text = cut(case, 9)
    with (
        answering(answer) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client,
        client.responses.stream(model="tiny", input="hello") as stream,
    ):
        events = list(stream)
        final = stream.get_final_response()
    assert events[-1].type == "response.completed"
    assert final.incomplete_details is not None
    assert final.incomplete_details.reason == "max_output_tokens"
    assert final.usage is None
    said = final.output_text or "".join(part.text for item in final.output if item.type == "reasoning" for part in item.summary)
    assert said == text


@pytest.mark.parametrize("case", ["anthropic/v1_messages_stream.tiny", "anthropic/v1_messages_think_stream"])
def test_anthropic_takes_the_guards_end(case: str) -> None:
    answer, text = cut(case, 7)
    with (
        answering(answer) as url,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
        client.messages.stream(model="tiny", max_tokens=40, messages=[{"role": "user", "content": "hello"}]) as stream,
    ):
        message = stream.get_final_message()
    assert message.stop_reason == "max_tokens"
    said = [block.text if block.type == "text" else getattr(block, "thinking", "") for block in message.content]
    assert "".join(said) == text
    assert message.usage.output_tokens == 0  # as message_start said


def test_17_ollama_shows_our_sentence() -> None:
    with answering(None) as url, pytest.raises(ollama.ResponseError) as raised:
        ollama.Client(url).chat("tiny", MESSAGES)
    assert raised.value.status_code == 502
    assert f"qm-proxy cannot reach Ollama at {NOBODY}" in raised.value.error


def test_17_openai_shows_our_sentence() -> None:
    with (
        answering(None) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert raised.value.status_code == 502
    assert "qm-proxy cannot reach Ollama" in str(raised.value)
    assert raised.value.code == "upstream_unreachable"


def test_17_anthropic_shows_our_sentence() -> None:
    with (
        answering(None) as url,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        client.messages.create(model="tiny", max_tokens=4, messages=[{"role": "user", "content": "hello"}])
    assert raised.value.status_code == 502
    assert "qm-proxy cannot reach Ollama" in str(raised.value)
