from __future__ import annotations

import copy
import random
import tracemalloc
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.repetition import STEP
from qm_proxy.detect.token_loop import TokenLoop
from qm_proxy.events import (
    Asked,
    Deltas,
    Event,
    Failed,
    Finished,
    Message,
    Nanoseconds,
    TextDelta,
    ThinkingDelta,
    ToolArguments,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding

T = Nanoseconds(1)
PROSE = (
    "The relay keeps two sockets and copies what it reads. Nothing is held back, and no byte is changed on its way. "
    "When a client leaves early the upstream is told at once, so that the model stops working for nobody. "
)
SENTENCE = "I will now open the file and look at the second function again. "
PARAGRAPH = (
    "First the window is measured, then the prompt is cut to fit into it, and only the newest messages stay. "
    "A reader who wants to know why an answer is strange looks at what the model could still see at that moment. "
    "Whoever asked for eight thousand tokens gets eight thousand, while another client on the same machine asks for "
    "sixteen and makes the server load everything anew; both pay for it with seconds that nobody explains to them.\n\n"
)
LOOPS = {
    "character": ("a", "prose", 1),
    "emoji": ("🙂", "prose", 1),
    "CJK": ("结束了。", "prose", 4),
    "right-to-left": ("سأحاول مرة أخرى. ", "prose", 17),
    "word": ("again ", "prose", 6),
    "phrase": ("let me check that, ", "prose", 19),
    "sentence": (SENTENCE, "prose", len(SENTENCE)),
    "paragraph": (PARAGRAPH, "prose", len(PARAGRAPH)),
    "list item": ("- check the index of the table\n", "list", 31),
    "code": ("    total = total + row[1]\n    count += 1\n\n", "code", 43),
}


def events(text: str, cuts: Sequence[int] = (), size: int = 4) -> list[Event]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)}) if cuts else [*range(size, len(text), size), len(text)]
    return [TextDelta(T, text[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def found(stream: Iterable[Event], loop: TokenLoop | None = None) -> list[Finding]:
    loop = loop or TokenLoop()
    return [finding for event in stream for finding in loop.see(event)]


@pytest.mark.parametrize("name", LOOPS)
def test_an_exact_loop_is_found_with_its_period_and_its_place(name: str) -> None:
    unit, context, period = LOOPS[name]
    before = PROSE + ("Here:\n\n```python\n" if name == "code" else "\n\n")
    (finding,) = found(events(before + unit * (3000 // len(unit) + 4)))
    assert (finding.kind, finding.severity) == ("loop.token", "violation")
    assert finding.evidence["form"] == "exact"
    assert finding.evidence["context"] == context
    assert finding.evidence["period_characters"] == period
    offset = finding.evidence["offset_characters"]
    assert isinstance(offset, int)
    assert len(before) - period <= offset <= len(before)
    assert len(str(finding.evidence["excerpt"])) <= 80


@pytest.mark.parametrize(("unit", "enough"), [("again ", 12), (SENTENCE, 5), (PARAGRAPH, 3)])
def test_the_alarm_comes_within_one_step_of_its_bar_and_not_before(unit: str, enough: int) -> None:
    before = PROSE + "\n\n"
    needed = max(enough * len(unit), 64)
    text = before + unit * 40
    for size in range(len(before), len(text)):
        loop = TokenLoop()
        if found([TextDelta(T, text[:size])], loop):
            assert needed <= size - len(before) <= needed + STEP
            return
        assert size - len(before) < needed + STEP
    pytest.fail("never found")


@pytest.mark.parametrize(
    "text",
    [
        PROSE + SENTENCE * 2 + PROSE,
        "| name | ok |\n|---|---|\n" + "| relay | yes |\n" * 8,
        "```json\n[\n" + '  {"id": null, "tags": []},\n' * 12 + "]\n```\n",
        "grid = [\n" + "  [0, 0, 0, 0, 0, 0, 0, 0],\n" * 12 + "]\n",
        "-" * 160 + "\n" + PROSE + "\n" + "=" * 160,
        "Contents\n" + "".join(f"{i}. Chapter {'.' * 60} {i * 7}\n" for i in range(1, 20)),
        "```\n" + "".join(f"[{i:3d}%] Building CXX object src/cursor.cpp.o\n" for i in range(100)) + "```",
        "no no no no no, that is not what I meant! 🎉🎉🎉🎉🎉🎉 " + PROSE,
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA" + "A" * 900 + "SUVORK5CYII=",
        "1, 2, 3, 4, 5\n" + ", ".join(map(str, range(1, 900))),
        "".join(f"{i} x 7 = {i * 7}\n" for i in range(1, 60)),
    ],
)
def test_ordinary_repetition_is_none(text: str) -> None:
    assert found([*events(text), Finished(T, "stop")]) == []


def test_records_joined_into_a_paragraph_may_repeat_more_often() -> None:
    """A recursion in a quoted trace: equal frames, one after the other, on one line."""
    frame = "==71==    by 0x12F68A3: ??? (in /srv/app-v12.14.1-linux-x64/bin/node) "
    assert found(events(PROSE + frame * 6 + PARAGRAPH)) == []
    (finding,) = found(events(PROSE + frame * 40))
    assert finding.evidence["form"] == "exact"
    (finding,) = found(events(PROSE + SENTENCE * 6))
    assert finding.evidence["form"] == "exact", "talk may not"


def test_only_the_numbers_change() -> None:
    text = PROSE + "".join(f"Attempt {i}: connecting to the server failed, trying again. " for i in range(1, 80))
    (finding,) = found(events(text))
    assert (finding.evidence["form"], finding.severity) == ("counter", "suspect")


def test_hardly_anything_new() -> None:
    rng = random.Random(3)
    words = ["red", "blue", "green", "black", "white", "yellow", "brown", "silver", "golden", "purple", "orange", "violet"]
    text = PROSE + "".join(
        f"The colour of the {rng.choice(words)} house at the end of the street is {rng.choice(words)}. " for _ in range(90)
    )
    (finding,) = found(events(text))
    assert (finding.evidence["form"], finding.severity) == ("near", "suspect")


def test_channels_are_not_mixed() -> None:
    half = PROSE + SENTENCE * 2
    assert found([*events(half), *(ThinkingDelta(T, event.text) for event in events(half) if isinstance(event, TextDelta))]) == []
    loop = TokenLoop()
    (finding,) = [
        f
        for event in events(PROSE + SENTENCE * 9)
        if isinstance(event, TextDelta)
        for f in loop.see(ThinkingDelta(T, event.text))
    ]
    assert finding.evidence["channel"] == "thinking"


def test_tool_arguments_that_repeat() -> None:
    arguments = '{"text": "' + "never mind, " * 200
    pieces = [ToolArguments(T, 0, arguments[i : i + 9]) for i in range(0, len(arguments), 9)]
    loop = TokenLoop()
    (finding,) = found([*pieces, ToolCall(T, 0, "c", "write", arguments, whole=False)], loop)
    assert finding.evidence["channel"] == "tool"
    assert loop.cut is None, "never inside a tool call"
    (finding,) = found([ToolCall(T, 0, "c", "write", arguments)])
    assert finding.evidence["channel"] == "tool"


def test_two_calls_with_equal_arguments_are_two_channels() -> None:
    call = '{"path": "src/relay/splice.py", "pattern": "write_eof", "context": 3}'
    assert found(ToolCall(T, i, f"c{i}", "grep", call) for i in range(30)) == []


def test_the_cut_point_is_twice_the_bar_and_exact_only() -> None:
    loop = TokenLoop()
    seen = []
    for n, event in enumerate(events(PROSE + "\n\n" + SENTENCE * 20, size=2)):
        if list(loop.see(event)):
            seen.append(n)
        if loop.cut is not None:
            seen.append(n)
            break
    alarm, cut = (n * 2 - len(PROSE) - 2 for n in seen)
    assert 5 * len(SENTENCE) - 4 <= alarm <= 5 * len(SENTENCE) + STEP
    assert 10 * len(SENTENCE) - 4 <= cut <= 10 * len(SENTENCE) + STEP
    assert loop.cut is not None
    assert loop.cut.ratio >= 2
    assert loop.cut.channel == "text"


def test_the_finding_is_brought_up_to_date_at_the_end() -> None:
    loop = TokenLoop()
    (finding,) = found(events(PROSE + SENTENCE * 100), loop)
    early = finding.tokens_wasted or 0
    assert early > 0
    list(loop.see(Usage(Nanoseconds(5), output_tokens=(len(PROSE) + 100 * len(SENTENCE)) // 4)))
    assert list(loop.see(Finished(Nanoseconds(3_000_000_001), "length"))) == []
    assert finding.tokens_wasted == pytest.approx(99 * len(SENTENCE) / 4, abs=4)
    assert (finding.tokens_wasted or 0) > early
    assert finding.evidence["copies"] == pytest.approx(100, abs=1)
    saved = finding.evidence["saved"]
    assert isinstance(saved, dict)
    assert saved["tokens"] == pytest.approx(90 * len(SENTENCE) / 4, abs=10)
    assert saved["seconds"] == 3.0


def test_a_loop_that_was_asked_for_is_no_violation_and_never_cut() -> None:
    asked = Asked(T, "ollama", "chat", "m", True, messages=(Message("user", "Please repeat the word poem forever."),))
    loop = TokenLoop(asked)
    (finding,) = found(events("poem " * 200), loop)
    assert (finding.severity, finding.evidence["asked_for"]) == ("suspect", True)
    assert loop.cut is None


def test_the_length_limit_during_a_beginning_loop() -> None:
    text = PROSE + "\n\n" + SENTENCE * 3
    (finding,) = found([*events(text), Finished(T, "length")])
    assert finding.evidence["probable"] is True
    assert finding.severity == "suspect"
    assert found([*events(text), Finished(T, "stop")]) == []
    assert found([*events(PROSE + SENTENCE), Finished(T, "length")]) == []


def test_the_servers_own_limit() -> None:
    (finding,) = found([Failed(T, 200, "prediction aborted, token repeat limit reached")])
    assert (finding.evidence["form"], finding.evidence["source"]) == ("exact", "server")
    assert found([Failed(T, 500, "model runner has unexpectedly stopped")]) == []


def test_a_loop_with_small_breaks_is_told_once_and_another_one_again() -> None:
    rng = random.Random(1)
    fresh = " ".join("".join(rng.choice("abcdefghij") for _ in range(6)) for _ in range(700))
    text = (SENTENCE * 8 + "Hm. ") * 6 + fresh + "and so on, " * 60
    first, second = found(events(text))
    assert first.evidence["excerpt"] != second.evidence["excerpt"]


def test_mad_streams_give_few_findings() -> None:
    rng = random.Random(2)
    fresh = ["".join(rng.choice("abcdefghij klm") for _ in range(5000)) for _ in range(12)]
    assert len(found(events("".join(f"{text}{i}! " * 1 + f"loop {i} " * 90 for i, text in enumerate(fresh)), size=40))) == 3


def told(stream: list[Event]) -> list[dict[str, object]]:
    loop = TokenLoop()
    return [copy.deepcopy(finding.evidence) for event in stream for finding in loop.see(event)]


@settings(max_examples=120, deadline=None)
@given(
    st.text(max_size=120),
    st.text(min_size=1, max_size=90),
    st.integers(1, 60),
    st.text(max_size=60),
    st.lists(st.integers(0, 6000), max_size=60),
)
def test_the_verdict_does_not_depend_on_the_cut(before: str, unit: str, copies: int, after: str, cuts: list[int]) -> None:
    text = before + unit * copies + after
    whole = told([TextDelta(T, text)])
    assert told(events(text, size=1)) == whole
    assert told(events(text, cuts or (0,))) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=400), st.sampled_from(["\ud800", "\udfff x", "```\n", "~~~", "\n" * 50, "a" * 500, "٣٤٥ ", "½²"])
        )
    )
)
def test_it_never_raises(pieces: list[str]) -> None:
    loop = TokenLoop()
    for piece in pieces:
        list(loop.see(TextDelta(T, piece)))
        list(loop.see(ThinkingDelta(T, piece)))
        list(loop.see(ToolArguments(T, len(piece) % 3, piece)))
    list(loop.see(Finished(T, "length")))


def held(make: list[Event]) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        loop = TokenLoop()
        kept = found(make, loop)
        del kept
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_text_and_stops() -> None:
    rng = random.Random(4)
    short = events("".join(rng.choice("abcdefgh ") for _ in range(800)))
    assert held(short) <= 32 * 1024
    wide = ["".join(rng.choice("🙂🎉日本語a b") for _ in range(50)) for _ in range(1200)]
    stream: list[Event] = []
    for piece in wide:
        stream += [TextDelta(T, piece), ThinkingDelta(T, piece), ToolArguments(T, 0, piece)]
    assert held(stream) <= 512 * 1024


def test_a_megabyte_on_one_line() -> None:
    rng = random.Random(5)
    line = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(1_000_000))
    assert found([TextDelta(T, line), Finished(T, "stop")]) == []
    (finding,) = found([TextDelta(T, "x" * 1_000_000), Finished(T, "stop")])
    assert finding.tokens_wasted is not None
    assert finding.tokens_wasted > 100_000


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(LOOPS)), st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_several_at_once_are_judged_as_one_by_one(name: str, size: int, sizes: list[int], thinks: bool) -> None:
    unit, _, _ = LOOPS[name]
    kind = ThinkingDelta if thinks else TextDelta
    text = PROSE + unit * (3000 // len(unit) + 4) + PROSE
    stream = [kind(Nanoseconds(i), text[at : at + size]) for i, at in enumerate(range(0, len(text), size))]
    end = Finished(Nanoseconds(len(stream)), "stop")
    together, at = TokenLoop(), 0
    told: list[Finding] = []
    while at < len(stream):
        run = stream[at : at + sizes[at % len(sizes)]]
        told += together.deltas(Deltas(kind, [delta.t_ns for delta in run], [delta.text for delta in run]))
        at += len(run)
    told += together.see(end)
    assert told == found([*stream, end])
    assert together.cut is not None or name == "code"
