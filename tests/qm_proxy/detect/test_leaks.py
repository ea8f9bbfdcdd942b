from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.leaks import OPENER, is_quoted, leaks_at, whole_content_leaks

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.detect.calls import LEAKS, WHOLE_ONLY

ARGUMENTS = {"city": "Paris", "days": 3}
NAMES = {"get_weather"}


@pytest.mark.parametrize("family", LEAKS)
def test_every_family_of_the_catalogue(family: str) -> None:
    text = "I look it up.\n" + LEAKS[family]("get_weather", ARGUMENTS)
    if family in WHOLE_ONLY:
        found = list(whole_content_leaks(LEAKS[family]("get_weather", ARGUMENTS), NAMES))
    else:
        opener = OPENER.search(text)
        assert opener is not None
        found = [leak for match in OPENER.finditer(text) for leak in leaks_at(text, match.start(), NAMES)][:1]
    assert [leak.name for leak in found] == ["get_weather"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        "A <tool_call> tag opens a call.",
        "Action: none\nAction plan: later",
        "<ul>\n<li>one</li></ul>",
        "to=functions.",
        "[TOOL_CALLS] is a special token",
        "functools [cache]",
        '{"name": "Ada", "age": 36}</tool_call>',
    ],
)
def test_an_opener_alone_is_no_leak(text: str) -> None:
    assert [leak for match in OPENER.finditer(text) for leak in leaks_at(text, match.start(), NAMES)] == []


def test_a_whole_answer_must_be_nothing_but_the_call() -> None:
    call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    assert list(whole_content_leaks(call, NAMES))
    assert list(whole_content_leaks(f"Here you are: {call}", NAMES)) == []
    assert list(whole_content_leaks('{"name": "Ada", "arguments": 3}', NAMES)) == []
    assert list(whole_content_leaks("[sorted(key=1)]", NAMES)) == []


def test_quoted() -> None:
    text = "Use `<tool_call>{}` for it"
    assert is_quoted(text, text.index("<"), fenced=False, last=True)
    text = "It's <tool_call>{}"
    assert not is_quoted(text, text.index("<"), fenced=False, last=True)
    assert is_quoted("For example:\n```\n<tool_call>", 17, fenced=True, last=True)
    assert not is_quoted("I call it.\n```\n<tool_call>", 15, fenced=True, last=True)
    assert is_quoted("I call it.\n```\n<tool_call>", 15, fenced=True, last=False)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from('<|>{}[]"`: \n_acelnoprtux.=(),/\\｜▁'), max_size=400))
def test_it_never_raises(text: str) -> None:
    for match in OPENER.finditer(text):
        list(leaks_at(text, match.start(), NAMES))
    list(whole_content_leaks(text, NAMES))


def test_openers_without_end_are_no_work() -> None:
    """A pattern that backtracks without bound would run into the suite's time limit here."""
    rng = random.Random(1)
    hostile = [
        "to=functions.f" + "<|a|> " * 900,
        "to=functions.f" + " " * 4000,
        '{"id": "x", ' * 700 + "</tool_call>",
        '{"name": "f", "arguments": ' * 150 + "</tool_call>",
        "```tool_code\n" + "a = " * 1000,
        "<a><b>" * 700,
        "<tool_call>" + "\n" * 4000,
        "[TOOL_CALLS]f[CALL_ID]" + "x" * 4000,
        "".join(rng.choice(["<a>", "<b>", "</b>", "Action: f\n", '{"name": "f"', "[f("]) for _ in range(3000)),
        "[f(" + "a=1," * 3000,
        '[{"name": "f", "arguments": {' + '"a": {' * 2000,
    ]
    for text in hostile:
        found = [leak for match in OPENER.finditer(text) for leak in leaks_at(text, match.start(), NAMES)]
        assert all(leak.name in ("f", "") or leak.family != "hermes" for leak in found)
        list(whole_content_leaks(text, NAMES))
