"""The OpenAI chat and completions dialects' own."""

from __future__ import annotations

from random import Random

from probes.sim import openai
from probes.sim.dialect import Record
from tests.probes.sim.test_dialect import METRICS, ask, events


def test_a_record_of_thought_and_text_is_two_chunks() -> None:
    writer = openai.ChatWriter(ask("openai-chat"), Random(1), usage=False)
    assert len(events(writer.record(Record(1, "text", "thought")))) == 2


def test_completions_with_usage_zero_every_chunk() -> None:
    writer = openai.CompletionsWriter(ask("openai-completions"), Random(1), usage=True)
    found = events(writer.record(Record(10**18, "x")) + writer.record(Record(10**18, done=True, reason="stop", metrics=METRICS)))
    assert [e["usage"]["total_tokens"] for e in found] == [0, 0, 27]
    assert [len(e["choices"]) for e in found] == [1, 1, 0]
