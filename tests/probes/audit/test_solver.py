"""The answer key never answers what is not asked of it; solving is tested with the haystack."""

from __future__ import annotations

from probes.audit.solver import NOT_STATED, solve


def test_a_prompt_of_somebody_else_is_none() -> None:
    assert solve("Question: what is the time?") is None
    assert solve("") is None


def test_a_cut_front_loses_header_and_fact() -> None:
    key = solve("…licy.\n\nQuestion: What is the rollback code for service qualm?\nAnswer:")
    assert key is not None
    assert (key.answer, key.header) == (NOT_STATED, None)
    header = solve("Question: What is the header tag in the first line of the material?\nAnswer:")
    assert header is not None
    assert header.answer == NOT_STATED


def test_a_circle_of_registers_ends() -> None:
    text = "Register aa holds the same value as register bb. Register bb holds the same value as register aa."
    key = solve(text + "\n\nQuestion: Follow the registers: which value does register aa hold in the end?")
    assert key is not None
    assert key.answer == NOT_STATED
