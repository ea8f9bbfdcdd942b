from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.shape import context_of, encoded, fence_after, letter_share, machine_made, symbols, unit_of

PROSE = "The relay joins two sockets and copies what it reads.\nNothing is held back on its way,\nand nothing is added.\n"


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        ("again ", "words"),
        ("结束", "words"),
        ("سأحاول", "words"),
        ("🙂", "glyphs"),
        ("?!", "glyphs"),
        ("---\n", "separators"),
        (" \n", "separators"),
        ("│ ", "separators"),
        ("0, ", "numbers"),
        ("0xdeadbeef00 ", "numbers"),
        ("h -1 v 1 z ", "numbers"),
        ("line 1", "words"),
    ],
)
def test_what_a_unit_is_made_of(unit: str, kind: str) -> None:
    assert unit_of(unit) == kind


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (PROSE * 3, "prose"),
        ("one endless line " * 60, "prose"),
        ("".join(f"- item {i} of the list\n" for i in range(9)), "list"),
        ("".join(f"{i}. do the thing\n" for i in range(9)), "list"),
        ("".join(f"The value of {i}th entry is nice\n" for i in range(9)), "list"),
        ("| a | b |\n|---|---|\n" + "| x | y |\n" * 8, "table"),
        ("id,name,city,zip\n" + "1,Ada,Oslo,0150\n" * 8, "table"),
        ("x = 1;\nif (y) {\n  go();\n}\n" * 4, "code"),
        ('{"a": 1,\n "b": [1, 2],\n "c": {}\n}\n' * 3, "code"),
        ("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5\n" * 8, "code"),
    ],
)
def test_what_surrounds_it(text: str, context: str) -> None:
    assert context_of(text, fenced=False) == context
    assert context_of(text, fenced=True) == "code"


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        ("no fence", ""),
        ("```python\ncode", "```"),
        ("```python\ncode\n```\n", ""),
        ("````\n```\n", "````"),
        ("````\n```\n````", ""),
        ("~~~\n```\n", "~~~"),
        ("```\nx\n``` not a closing one", "```"),
        ("inline ``` is none", ""),
    ],
)
def test_fences(text: str, fence: str) -> None:
    assert fence_after(text) == fence


def test_a_fence_that_was_open_before() -> None:
    assert fence_after("x = 1\n```\n", "```") == ""
    assert fence_after("x = 1\n", "```") == "```"


def test_encoded() -> None:
    assert encoded("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAA")
    assert not encoded("So the answer to the question is ")
    assert not encoded("short")


def test_records_and_talk() -> None:
    for record in (
        "==71== by 0x12F68A3: ??? (in /srv/app-v12.1/bin/node) ",
        "GET /a/b?c=1 200 0.031 ",
        "10.0.0.7:8080 -> 10.0.0.9 ",
    ):
        assert machine_made(record), record
    for talk in (
        "Let me try again. ",
        "I'll wait -- no, I won't! ",
        "सूर्य निकल आया है। ",
        "结束了。让我再试一次。",
        "сначала, потом. ",
        "x=y; ",
    ):
        assert not machine_made(talk), talk


def test_symbols_are_about_tokens() -> None:
    assert symbols("The relay joins two sockets.") == 6
    assert 3.0 < len(PROSE) / symbols(PROSE) < 6.0
    assert letter_share("ab1 ") == 0.5
    assert letter_share("") == 0


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.booleans())
def test_they_never_raise(text: str, fenced: bool) -> None:
    context_of(text, fenced=fenced)
    unit_of(text)
    encoded(text)
    fence_after(text)
    assert symbols(text) >= 0
