"""From an Ask to the prompt as the model sees it."""

from __future__ import annotations

from typing import Any

import pytest

from probes.sim.dialect import Ask, Refusal
from probes.sim.personas import Persona
from probes.sim.prompts import prepare, render
from probes.sim.speech import Call, Message


def chat(*messages: Message, **more: Any) -> Ask:
    return Ask("chat", "ollama", "m", True, messages=list(messages), **more)


MODEL = Persona.model_validate({"name": "m", "tokenizer": {"rule": "characters", "per_token": 1, "mark_tokens": 0, "bos": True}})


def test_everything_is_rendered_and_counted() -> None:
    talk = [Message("user", "hello"), Message("assistant", "", calls=[Call("f", '{"a":1}')]), Message("tool", "ok")]
    prepared = prepare(chat(*talk, tools=[{"name": "f"}]), MODEL, 4096)
    assert prepared.text == render(talk, [{"name": "f"}])
    assert '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>' in prepared.text
    assert prepared.text.endswith("<|assistant|>")
    texts = '[{"name":"f"}]' + "hello" + '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>' + "ok"
    assert prepared.fitted.tokens == len(texts) + 1


def test_a_cut_keeps_the_front_and_the_end_of_the_text() -> None:
    text = "".join(chr(97 + n % 26) for n in range(1000))
    ask = Ask("generate", "ollama", "m", True, prompt=text, raw=True, options={"num_keep": 9})
    model = MODEL.model_copy(update={"tokenizer": MODEL.tokenizer.model_copy(update={"per_token": 0.5})})
    prepared = prepare(ask, model, 512)  # two tokens a character, so that the bytes do not hide that it is too long
    assert prepared.fitted.asked_tokens == 2001
    assert prepared.fitted.tokens == 512 - (512 - 10) // 2
    assert text.startswith(prepared.text[:4])
    assert text.endswith(prepared.text[-100:])
    assert len(prepared.text) * 2 <= prepared.fitted.tokens


def test_the_liar_reads_less_than_it_counts() -> None:
    model = Persona.model_validate({"name": "m", "context": {"trained": 9000, "automatic": 9000, "reads": 100}})
    prepared = prepare(chat(Message("user", "start " + "word " * 3000 + "end")), model, 9000)
    assert prepared.fitted.tokens > 3000
    assert len(prepared.text) < 1000
    assert "end" in prepared.text


def test_refusals_know_whether_a_stream_was_asked_for() -> None:
    model = Persona.model_validate({"name": "m", "mode": "mlx", "context": {"trained": 10, "automatic": 10}})
    for streamed in (True, False):
        ask = chat(Message("user", "word " * 50))
        ask.streamed = streamed
        with pytest.raises(Refusal) as refused:
            prepare(ask, model, 10)
        assert refused.value.streaming == streamed
        assert "maximum context length (10 tokens)" in refused.value.text
