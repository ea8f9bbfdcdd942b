"""Counts that are known beforehand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.sim.tokens import FixedCount, Tokenizer, pieces, role_mark


@settings(max_examples=150)
@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("hello there", ["hello", " there"]),
        ("conversation", ["conver", "sation"]),
        ("12345 6", ["123", "45", " 6"]),
        ("a, b!", ["a", ",", " b", "!"]),
        ("snake_case", ["snake", "_", "case"]),
        ("  \n x", ["  \n ", "x"]),
        ("日本 Привет", ["日本", " Привет"]),
        ("🙂", ["🙂"]),
    ],
)
def test_how_texts_are_cut(text: str, cut: list[str]) -> None:
    assert pieces(text) == cut


def test_rules_of_counting() -> None:
    text = role_mark("user") + "é" * 100 + role_mark("end")
    assert Tokenizer(rule="characters", per_token=4).count(text) == 2 + 25
    assert Tokenizer(rule="bytes", per_token=4).count(text) == 2 + 50
    assert Tokenizer(rule="bytes", per_token=4, mark_tokens=0).count(text) == 50
    assert Tokenizer().count(role_mark("user") + "one two" + role_mark("end")) == 4
    assert Tokenizer(mark_tokens=3).count(role_mark("user") + "one two" + role_mark("end")) == 8
    assert Tokenizer(rule="characters", per_token=3).count("x" * 10) == 3
    assert Tokenizer(rule="characters", per_token=4).count("x" * 10) == 3  # half is rounded up


def test_fixed_counts_come_first() -> None:
    tokenizer = Tokenizer(rule="characters", per_token=5, fixed=(FixedCount(pattern=r"SYS.*?END", tokens=829),))
    assert tokenizer.count("SYS whatever\nEND" + "x" * 50) == 839


def test_a_cut_keeps_front_and_back() -> None:
    assert Tokenizer().cut("a b c d e f", 2, 2) == "a b e f"
    assert Tokenizer().cut("a b c", 3, 0) == "a b c"
    assert Tokenizer(rule="characters", per_token=1).cut("0123456789", 3, 2) == "01289"


@settings(max_examples=100)
@given(st.text(min_size=1), st.integers(0, 50), st.integers(0, 50))
def test_a_cut_is_no_longer_than_the_text(text: str, first: int, last: int) -> None:
    for tokenizer in (Tokenizer(), Tokenizer(rule="bytes", per_token=2)):
        total = tokenizer.count(text)
        if first + last <= total:
            assert len(tokenizer.cut(text, first, last)) <= len(text)


def test_characters_beyond_ascii_may_cost_several_tokens() -> None:
    assert Tokenizer(split_utf8=True).answer_tokens("🎉") == 4
    assert Tokenizer(split_utf8=True).answer_tokens("ab") == 1
    assert Tokenizer().answer_tokens("🎉") == 1


def test_a_call_costs_what_it_counts_in_the_next_prompt() -> None:
    call = '{"name":"read_file"}{"path": "components/queue.ts"}'
    assert Tokenizer().call_tokens(call) == len(pieces(call))
    assert Tokenizer(rule="bytes", per_token=5).call_tokens(call) == round(len(call) / 5)
    assert Tokenizer(rule="bytes", per_token=5).call_tokens("{}") == 1


@given(st.text(max_size=200), st.sampled_from(["pieces", "characters", "bytes"]))
def test_a_known_answer_is_whole_and_has_about_as_many_pieces_as_its_rule_counts(text: str, rule: str) -> None:
    tokenizer = Tokenizer(rule=rule, per_token=5.62)  # type: ignore[arg-type]
    cut = tokenizer.answer_pieces(text)
    assert "".join(cut) == text
    assert len(cut) <= len(pieces(text))
    assert rule != "pieces" or cut == pieces(text)


def test_json_is_cut_as_the_rule_counts_it() -> None:
    call = '{"name": "restart_service", "args": {"service": "billing", "ticket": "TK-4711-QX"}}'
    assert len(pieces(call)) > 35
    assert len(Tokenizer(rule="bytes", per_token=5.62).answer_pieces(call)) <= 1.3 * len(call) / 5.62
