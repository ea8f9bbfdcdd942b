"""The official SDKs against the simulation: whoever writes an Ollama client can test it here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from probes.sim.server import SimulatedOllama

PERSONAS = ("steady", "thinker", "tool-user", "native-strict", "embedder", "mid-crash", "too-big")


class Background:
    """A server in a thread of its own, for clients that block."""

    def __init__(self) -> None:
        self.sim = SimulatedOllama(PERSONAS, speed=40.0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with self.sim:
            self._ready.set()
            await self._stopped.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    background = Background()
    yield background.sim.url
    background.stop()


@pytest.fixture
def native(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(url)
    yield client
    client._client.close()  # the SDK has no close of its own


@pytest.fixture
def chat(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="ollama", max_retries=0) as client:
        yield client


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
      city: Name of the city
    """
    return f"21 degrees in {city}"


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASKED = "What is the weather in Paris?"


class TestOllama:
    def test_what_there_is(self, native: ollama.Client) -> None:
        assert {m.model for m in native.list().models} == {f"{n}:latest" for n in PERSONAS}
        shown = native.show("thinker")
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.modelinfo is not None
        assert shown.modelinfo["llama.context_length"] == 131_072

    def test_generate_and_ps(self, native: ollama.Client) -> None:
        whole = native.generate("steady", "hello", options={"num_predict": 5})
        assert whole.done_reason == "length"
        assert whole.eval_count == 5
        assert "steady:latest" in [m.model for m in native.ps().models]

    def test_chat_streamed(self, native: ollama.Client) -> None:
        parts = list(native.chat("steady", [{"role": "user", "content": "hi"}], stream=True, options={"num_predict": 9}))
        assert len(parts) == 10
        assert all(p.message.content for p in parts[:-1])
        assert parts[-1].done
        assert parts[-1].eval_count == 9

    def test_chat_asynchronously(self, url: str) -> None:
        async def chat() -> list[bool | None]:
            client = ollama.AsyncClient(url)
            stream = await client.chat("steady", [{"role": "user", "content": "hi"}], stream=True)
            done = [p.done async for p in stream]
            await client._client.aclose()
            return done

        assert asyncio.run(chat())[-1] is True

    def test_thinking(self, native: ollama.Client) -> None:
        answer = native.chat("thinker", [{"role": "user", "content": "hi"}], think=True)
        assert answer.message.thinking
        assert answer.message.content
        silent = native.chat("thinker", [{"role": "user", "content": "hi"}], think=False)
        assert not silent.message.thinking

    @pytest.mark.parametrize("model", ["tool-user", "native-strict"])
    def test_tools_there_and_back(self, native: ollama.Client, model: str) -> None:
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        first = native.chat(model, messages, tools=[get_weather])
        assert first.message.tool_calls
        call = first.message.tool_calls[0].function
        assert (call.name, dict(call.arguments)) == ("get_weather", {"city": "Paris"})
        rounds = 0
        while first.message.tool_calls:
            rounds += 1
            messages += [first.message, {"role": "tool", "tool_name": call.name, "content": get_weather(**call.arguments)}]
            first = native.chat(model, messages, tools=[get_weather])
        assert rounds == (2 if model == "tool-user" else 1)
        assert "21 degrees in Paris" in (first.message.content or "")

    def test_embeddings(self, native: ollama.Client) -> None:
        answer = native.embed("embedder", ["one", "two", "one"])
        assert [len(e) for e in answer.embeddings] == [256] * 3
        assert answer.embeddings[0] == answer.embeddings[2] != answer.embeddings[1]

    def test_errors(self, native: ollama.Client) -> None:
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
            native.chat("nope", [{"role": "user", "content": "hi"}])
        assert missing.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="unexpected EOF"):
            list(native.chat("mid-crash", [{"role": "user", "content": "hi"}], stream=True))
        with pytest.raises(ollama.ResponseError, match="more system memory") as big:
            native.generate("too-big", "hi")
        assert big.value.status_code == 500
        with pytest.raises(ollama.ResponseError, match='"steady" does not support thinking'):
            native.chat("steady", [{"role": "user", "content": "hi"}], think=True)

    def test_pull_shows_progress(self, native: ollama.Client) -> None:
        states = [p.status for p in native.pull("steady", stream=True)]
        assert states[0] == "pulling manifest"
        assert states[-1] == "success"
        assert len(states) > 10


class TestOpenAI:
    def test_models(self, chat: openai.OpenAI) -> None:
        assert "steady:latest" in [m.id for m in chat.models.list()]
        assert chat.models.retrieve("steady").id == "steady"

    def test_chat(self, chat: openai.OpenAI) -> None:
        whole = chat.chat.completions.create(model="steady", messages=[{"role": "user", "content": "hi"}], max_tokens=7)
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 7

    def test_chat_streamed_with_usage(self, chat: openai.OpenAI) -> None:
        stream = chat.chat.completions.create(
            model="thinker", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert any(getattr(c.choices[0].delta, "reasoning", None) for c in chunks if c.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 90
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"

    def test_chat_asynchronously(self, url: str) -> None:
        async def talk() -> str:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="ollama") as client:
                asked: Any = [{"role": "user", "content": "hi"}]
                stream = await client.chat.completions.create(model="steady", messages=asked, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

        assert len(asyncio.run(talk())) > 60

    def test_tools_there_and_back(self, chat: openai.OpenAI) -> None:
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        for _ in range(3):
            answer = chat.chat.completions.create(model="tool-user", messages=messages, tools=[WEATHER]).choices[0]  # type: ignore[list-item]
            if answer.finish_reason != "tool_calls":
                break
            messages.append(answer.message)
            for call in answer.message.tool_calls or []:
                assert call.type == "function"
                assert call.function.arguments == '{"city":"Paris"}'
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees"})
        assert "21 degrees" in (answer.message.content or "")

    def test_completions(self, chat: openai.OpenAI) -> None:
        stream = chat.completions.create(model="steady", prompt="def f", max_tokens=6, stream=True)
        chunks = list(stream)
        assert len(chunks) == 7
        assert chunks[-1].choices[0].finish_reason == "length"

    def test_responses(self, chat: openai.OpenAI) -> None:
        with chat.responses.stream(model="thinker", input="hi") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert "response.reasoning_summary_text.delta" in kinds
        assert final.output_text
        whole = chat.responses.create(model="steady", input="hi", max_output_tokens=5)
        assert whole.usage is not None
        assert whole.usage.output_tokens == 5

    def test_responses_tools(self, chat: openai.OpenAI) -> None:
        tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
        with chat.responses.stream(model="tool-user", input=ASKED, tools=[tool]) as stream:
            for _ in stream:
                pass
            first = stream.get_final_response()
        call = next(item for item in first.output if item.type == "function_call")
        assert call.arguments == '{"city":"Paris"}'
        history: Any = [
            {"role": "user", "content": ASKED},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"},
        ] * 1
        history += history[1:]
        last = chat.responses.create(model="tool-user", input=history, tools=[tool])
        assert "21 degrees" in last.output_text

    def test_embeddings(self, chat: openai.OpenAI) -> None:
        floats = chat.embeddings.create(model="embedder", input=["a", "b"], encoding_format="float").data
        packed = chat.embeddings.create(model="embedder", input=["a", "b"]).data
        assert [len(d.embedding) for d in floats] == [256, 256]
        assert packed[0].embedding == pytest.approx(floats[0].embedding)

    def test_errors(self, chat: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            chat.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.BadRequestError):
            chat.chat.completions.create(model="steady", messages=[])
        with pytest.raises(openai.InternalServerError):
            chat.responses.create(model="too-big", input="hi")


class TestAnthropic:
    def test_whole_and_streamed(self, claude: anthropic.Anthropic) -> None:
        whole = claude.messages.create(model="steady", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        assert whole.stop_reason == "max_tokens"
        assert whole.usage.output_tokens == 5
        with claude.messages.stream(model="thinker", max_tokens=500, messages=[{"role": "user", "content": "hi"}]) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert [b.type for b in final.content] == ["thinking", "text"]
        assert final.stop_reason == "end_turn"
        assert text

    def test_tools_there_and_back(self, claude: anthropic.Anthropic) -> None:
        tool: Any = {"name": "get_weather", "description": "Weather", "input_schema": WEATHER["function"]["parameters"]}
        messages: list[Any] = [{"role": "user", "content": ASKED}]
        with claude.messages.stream(model="tool-user", max_tokens=200, messages=messages, tools=[tool]) as stream:
            first = stream.get_final_message()
        use = next(b for b in first.content if b.type == "tool_use")
        assert use.input == {"city": "Paris"}
        for _ in range(2):
            messages.append(
                {"role": "assistant", "content": [{"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}]}
            )
            messages.append(
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees"}]}
            )
        last = claude.messages.create(model="tool-user", max_tokens=200, messages=messages, tools=[tool])
        assert last.stop_reason == "end_turn"
        assert last.content[0].type == "text"
        assert "21 degrees" in last.content[0].text

    def test_errors(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
            claude.messages.create(model="nope", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            claude.messages.create(model="steady", max_tokens=0, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.NotFoundError):
            claude.messages.count_tokens(model="steady", messages=[{"role": "user", "content": "hi"}])
