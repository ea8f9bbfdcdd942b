"""One value and no other is an answer; every way to be wrong has its own name."""

from __future__ import annotations

import pytest

from probes.audit.facts import CODE_FORM, NUMBER_FORM, Trial
from probes.audit.scoring import classify, normalised, tool_call

FACT = Trial("literal", (), "?", "7F3K-92Q", distractors=("BBBB-222",), stale=("CCCC-333",), form=CODE_FORM)
ABSENT = Trial("absent", (), "?", "", distractors=("BBBB-222",), form=CODE_FORM)
NUMBER = Trial("code", (), "?", "4812377", distractors=("1234567",), form=NUMBER_FORM)
CALL = Trial("instruction", (), "", "7F3K-92Q", form=CODE_FORM)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7F3K-92Q", "correct"),
        ("The code is **7f3k-92q**.", "correct"),
        ("7F3K – 92Q", "correct"),
        ("７Ｆ３Ｋ‑９２Ｑ", "correct"),
        ("7F3K-92Q, that is 7F3K-92Q", "correct"),
        ("7F3K-92Q or BBBB-222", "malformed"),
        ("BBBB-222", "distractor"),
        ("CCCC-333", "stale"),
        ("ZZZZ-999", "confabulated"),
        ("NOT STATED", "refused"),
        ("The material does not mention it.", "refused"),
        ("I cannot find that.", "refused"),
        ("It is about gardening", "malformed"),
        ("", "no_answer"),
        (" \n…", "no_answer"),
        ("X7F3K-92Q1", "malformed"),
    ],
)
def test_a_codes_answers(text: str, expected: str) -> None:
    assert classify(FACT, text) == expected


def test_saying_that_it_is_absent_is_right_only_then() -> None:
    assert classify(ABSENT, "NOT STATED") == "correct"
    assert classify(ABSENT, "ZZZZ-999") == "confabulated"
    assert classify(ABSENT, "BBBB-222") == "distractor"


@pytest.mark.parametrize(
    ("text", "expected"), [("4812377", "correct"), ("4,812,377", "correct"), ("1234567", "distractor"), ("48123", "malformed")]
)
def test_numbers_may_be_written_with_separators(text: str, expected: str) -> None:
    assert classify(NUMBER, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "restart_service", "args": {"service": "x", "ticket": "7F3K-92Q"}}', "correct"),
        ('Sure:\n```json\n{"name": "restart_service", "arguments": {"ticket": "7F3K-92Q"}}\n```', "correct"),
        ('{"name": "list_services", "args": {}}', "distractor"),
        ('{"name": "restart_service", "args": {"ticket": "ZZZZ-222"}}', "confabulated"),
        ('{"name": "restart_service", "args": "x"}', "distractor"),
        ("I cannot determine that", "refused"),
        ("done!", "malformed"),
        ("", "no_answer"),
    ],
)
def test_the_hidden_instruction_is_scored_by_its_call(text: str, expected: str) -> None:
    assert classify(CALL, text) == expected


def test_broken_json_before_a_call_is_passed_over() -> None:
    assert tool_call('{"a": {broken {"name": "f"}') == {"name": "f"}
    assert tool_call("none") is None


def test_normalising_is_idempotent() -> None:
    text = "  “A‑b”  –  c\n"
    assert normalised(normalised(text)) == normalised(text)
