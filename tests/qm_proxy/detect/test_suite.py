from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

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
