from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.detector import Detector
from qm_proxy.detect.schemas import ARGUMENT_BYTES
from qm_proxy.detect.suite import Suite
from qm_proxy.events import (
    Asked,
    Began,
    Cut,
    EmptyRecord,
    Event,
    Failed,
    Finished,
    HostSample,
    Malformed,
    Message,
    Missed,
    Nanoseconds,
    OfferedTool,
    Residency,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.record import Opened, Placed
from qm_proxy.wire.dialects import decoder_for
from qm_proxy.wire.routes import route_of

T = st.integers(0, 10**12).map(Nanoseconds)
TEXT = st.text(max_size=50)
NUMBER = st.none() | st.integers(-1, 10**6)
EVENTS = st.one_of(
    st.builds(Began, T, TEXT, TEXT),
    st.builds(TextDelta, T, TEXT, NUMBER),
    st.builds(ThinkingDelta, T, TEXT, NUMBER),
    st.builds(ToolArguments, T, st.integers(0, 3), TEXT),
    st.builds(ToolCall, T, st.integers(0, 3), TEXT, TEXT, TEXT, st.booleans()),
    st.builds(EmptyRecord, T, NUMBER),
    st.builds(Usage, T, NUMBER, NUMBER, NUMBER),
    st.builds(Finished, T, st.none() | TEXT),
    st.builds(Failed, T, st.integers(200, 599), TEXT),
    st.builds(Malformed, T, TEXT),
    st.builds(Missed, T, st.integers(0, 9999)),
    st.builds(Cut, T, st.sampled_from(["upstream_truncated", "client_disconnect", "shutdown"])),
    st.builds(HostSample, T),
    st.builds(Residency, T, st.just(())),
)


def test_what_watches_what(make_opened: Callable[..., Opened]) -> None:
    suite = Suite()
    names = [type(detector).__name__ for detector in suite.detectors_for(make_opened("e"))]
    assert names == ["TokenLoop", "ToolSchema", "Stall", "Ends", "Truncation", "CallLoop"]
    bare = make_opened("e")
    bare.asked = None
    assert [type(detector).__name__ for detector in suite.detectors_for(bare)] == ["TokenLoop", "ToolSchema", "Stall", "Ends"]


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.lists(TEXT, max_size=4), st.booleans())
def test_no_sequence_of_events_makes_any_detector_raise(events: list[Event], texts: list[str], tools: bool) -> None:
    suite = Suite()
    offered = (OfferedTool("f", "function", b'{"type": "object"}'),) if tools else ()
    asked = Asked(Nanoseconds(0), "ollama", "chat", "m", True, tuple(Message("user", text) for text in texts), offered)
    placed = Placed("s", "new", "start", 0, 1)
    opened = Opened(
        "e", Nanoseconds(0), "", "POST", "/api/chat", "ollama", "chat", "m", True, "c", None, "client", asked, placed=placed
    )
    for detector in suite.detectors_for(opened, window_tokens=4096):
        for event in events:
            for finding in detector.see(event):
                assert finding.summary.endswith(".")
                assert len(str(finding.evidence.get("excerpt", ""))) <= 80


# --- bad input: bounded, and no false alarm -------------------------------------------------------------------------------

STEP = 16_000_000
SCRIPTS = {
    "Chinese": (0x4E00, 0x9000, ""),
    "Japanese": (0x3041, 0x3096, ""),
    "Korean": (0xAC00, 0xD000, " "),
    "Hebrew": (0x05D0, 0x05EA, " "),
    "Arabic": (0x0621, 0x064A, " "),
    "Devanagari": (0x0905, 0x0939, " "),
    "emoji": (0x1F300, 0x1F5FF, " "),
}


def words(script: str, n: int) -> list[str]:
    """`n` words in one script, some frequent and most rare, as in a language."""
    low, high, gap = SCRIPTS[script]
    rng = random.Random(script)
    known = ["".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))) + gap for _ in range(900)]
    return [known[int(rng.random() ** 2 * 900)] + rng.choice(["", "", "", "", "", "、", ". "]) for _ in range(n)]


def watched(tools: tuple[OfferedTool, ...]) -> list[Detector]:
    asked = Asked(Nanoseconds(0), "ollama", "chat", "m", True, (Message("user", "go on"),), tools)
    placed = Placed("s", "new", "start", 0, 1)
    opened = Opened(
        "e", Nanoseconds(0), "", "POST", "/api/chat", "ollama", "chat", "m", True, "c", None, "client", asked, placed=placed
    )
    return Suite().detectors_for(opened, window_tokens=4096)


def seen(events: Iterable[Event], tools: tuple[OfferedTool, ...] = ()) -> list[str]:
    """Kinds of what all detectors together find in one answer."""
    detectors = watched(tools)
    return [finding.kind for event in events for detector in detectors for finding in detector.see(event)]


def held(events: Iterable[Event]) -> int:
    """The most bytes that all detectors together hold of one answer, looked at after every 1 024 events."""
    detectors = watched(())
    most = 0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i, event in enumerate(events):
            for detector in detectors:
                list(detector.see(event))
            if i % 1024 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    return most


def paced(pieces: Iterable[str], kind: type[TextDelta] | type[ThinkingDelta] = TextDelta) -> Iterator[Event]:
    yield Began(Nanoseconds(STEP), "m", None)
    t_ns = STEP
    for piece in pieces:
        t_ns += STEP
        yield kind(Nanoseconds(t_ns), piece)
    yield Usage(Nanoseconds(t_ns), 9, 100)
    yield Finished(Nanoseconds(t_ns), "stop")


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_of_any_script_is_no_finding_and_a_loop_in_it_is_one(script: str) -> None:
    text = words(script, 4000)
    assert seen(paced(text)) == []
    sentence = text[:12]
    assert seen(paced(text[:100] + sentence * 60)) == ["loop.token"]


def test_endless_thinking_is_no_loop_and_stays_within_its_memory() -> None:
    thoughts = [word for script in SCRIPTS for word in words(script, 6000)]
    assert seen(paced(thoughts, ThinkingDelta)) == []
    assert held(paced(thoughts, ThinkingDelta)) <= 500_000


def test_one_line_of_a_megabyte_and_one_word_of_a_megabyte() -> None:
    line = " ".join(f"{n * 7919 % 100_003:x}{n % 13}" for n in range(160_000))
    assert len(line) > 900_000
    for cut in (len(line), 60_000):
        assert seen(paced(line[i : i + cut] for i in range(0, len(line), cut))) == []
    letters = random.Random("word").choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)
    assert seen(paced(["".join(letters)])) == []


def test_a_megabyte_of_tool_arguments_is_judged_or_left_alone() -> None:
    schema = b'{"type": "object", "properties": {"content": {"type": "string"}}, "required": ["content"]}'
    tools = (OfferedTool("write_file", "function", schema),)
    text = "".join(words("Hebrew", 45_000))
    arguments = json.dumps({"content": text})
    short = json.dumps({"content": text[:200_000]})
    assert len(arguments) > ARGUMENT_BYTES > len(short) > 800_000

    def call(arguments: str) -> Iterator[Event]:
        yield Began(Nanoseconds(STEP), "m", None)
        for n, i in enumerate(range(0, len(arguments), 4096)):
            yield ToolArguments(Nanoseconds(STEP * (n + 2)), 0, arguments[i : i + 4096])
        end = Nanoseconds(STEP * (len(arguments) // 4096 + 3))
        yield ToolCall(end, 0, "c1", "write_file", arguments, whole=False)
        yield Usage(end, 9, 100)
        yield Finished(end, "tool_calls")

    assert seen(call(arguments), tools) == []
    assert seen(call(arguments[:-2]), tools) == []
    assert seen(call(short), tools) == []
    assert seen(call(short[:-2]), tools) == ["tool.bad_json"]


def test_a_recursive_schema_and_ten_thousand_tools_together() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "name": {"type": "string"}}}
    recursive = json.dumps({"$defs": {"node": node}, "$ref": "#/$defs/node"}).encode()
    tools = tuple(OfferedTool(f"tool_{n}", "function", recursive) for n in range(10_000))
    deep = '{"next":' * 40 + '{"name": 1}' + "}" * 40

    def call(name: str, arguments: str) -> list[str]:
        events: list[Event] = [ToolCall(Nanoseconds(STEP), 0, "c1", name, arguments), Finished(Nanoseconds(STEP), "tool_calls")]
        return seen(events, tools)

    assert call("tool_9999", '{"next": {"next": {"name": "x"}}}') == []
    assert call("tool_9999", '{"next": {"next": {"name": []}}}') == ["tool.schema"]
    assert call("tool_9999", deep) == ["tool.coercible"]
    assert call("tool_99999", "{}") == ["tool.unknown"]


def test_invalid_utf8_reaches_detectors_as_text() -> None:
    """Broken bytes in every record, through the real decoder: replaced, no exception, no loop."""
    decoder = decoder_for(route_of("POST", b"/api/chat"), streamed=True, status=200, content_type="application/x-ndjson")
    rng = random.Random("bytes")
    events: list[Event] = []
    for n in range(2000):
        broken = bytes(b for b in rng.randbytes(6) if b >= 0x80 or chr(b).isalnum())
        line = b'{"model":"m","message":{"role":"assistant","content":"%s "},"done":false}\n' % broken
        events += decoder.feed(line, Nanoseconds(STEP * (n + 1)))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert seen(events) == []
