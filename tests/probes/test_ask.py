"""The nouns of the asking side: what an answer says of itself."""

from __future__ import annotations

from probes.ask import Answer, Ask, fingerprint
from qm_proxy.events import Cut, Failed, Finished, Malformed, Nanoseconds, TextDelta, ThinkingDelta, ToolCall, Usage


def at(t: int) -> Nanoseconds:
    return Nanoseconds(t)


def test_an_answer_reads_its_events() -> None:
    answer = Answer(
        "k",
        started_ns=1000,
        ended_ns=9000,
        status=200,
        events=[
            ThinkingDelta(at(2000), "hm", 7),
            TextDelta(at(3000), "a", 8),
            ToolCall(at(4000), 0, "", "f", "{}", True, 9),
            ToolCall(at(4500), 1, "", "g", "{}", False),
            TextDelta(at(5000), "b", None),
            Usage(at(6000), input_tokens=3, output_tokens=4),
            Malformed(at(6500), "x"),
            Finished(at(7000), "stop"),
        ],
    )
    assert answer.ok
    assert (answer.text, answer.thinking, [call.name for call in answer.calls]) == ("ab", "hm", ["f", "g"])
    assert [(chunk.t_ns, chunk.server_ns, chunk.kind) for chunk in answer.chunks] == [
        (2000, 7, "thinking"),
        (3000, 8, "text"),
        (4000, 9, "tool"),
        (5000, None, "text"),
    ]
    assert (answer.ttft_any_s, answer.ttft_content_s) == (1e-6, 2e-6)
    assert (answer.input_tokens, answer.output_tokens, answer.malformed) == (3, 4, 1)
    assert answer.finished is not None
    assert answer.finished.reason == "stop"
    assert answer.cut is None
    assert answer.failed is None


def test_nothing_is_known_of_nothing() -> None:
    answer = Answer("k")
    assert not answer.ok
    assert (answer.ttft_any_s, answer.ttft_content_s, answer.usage, answer.input_tokens, answer.output_tokens) == (None,) * 5


def test_an_error_a_cut_or_a_refusal_is_not_ok() -> None:
    assert not Answer("k", status=500).ok
    assert not Answer("k", status=200, ending="upstream_truncated", events=[Cut(at(1), "upstream_truncated")]).ok
    assert not Answer("k", status=200, error="x", events=[Failed(at(1), 200, "x")]).ok


def test_the_fingerprint_covers_the_whole_question() -> None:
    base = Ask("k", "/api/chat", {"model": "m", "options": {"a": 1, "b": 2}})
    same = Ask("other key", "/api/chat", {"options": {"b": 2, "a": 1}, "model": "m"})
    assert fingerprint(base) == fingerprint(same)
    assert fingerprint(base) != fingerprint(Ask("k", "/api/chat", {"model": "n", "options": {"a": 1, "b": 2}}))
    assert fingerprint(base) != fingerprint(Ask("k", "/api/generate", base.body))
