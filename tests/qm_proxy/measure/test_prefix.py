from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.events import Asked, Message, Nanoseconds, OfferedTool, PastCall
from qm_proxy.measure.prefix import Prompt, compare, price
from qm_proxy.record import Prefix

_BASH = OfferedTool("bash", "function", b'{"type":"object"}')
_READ = OfferedTool("read", "function", b"{}")


def _asked(*messages: Message, tools: tuple[OfferedTool, ...] = ()) -> Asked:
    return Asked(Nanoseconds(0), "ollama", "chat", "m", True, messages, tools)


def _compare(before: Asked, now: Asked, **how: bool) -> Prefix:
    return compare(Prompt.of(before), Prompt.of(now), **how)


SYSTEM = Message("system", "You help.")
USER = Message("user", "list the files")
CALL = Message("assistant", "", "hm", (PastCall("call_1", "bash", '{"command":"ls","cwd":"/"}'),))
RESULT = Message("tool", "a.py\nb.py", call_id="call_1")


def test_a_turn_that_only_adds_is_not_broken() -> None:
    found = _compare(_asked(SYSTEM, USER, tools=(_BASH,)), _asked(SYSTEM, USER, CALL, RESULT, tools=(_BASH,)))
    assert (found.broken_at, found.message, found.difference) == (None, None, None)
    assert found.common_characters == found.previous_characters
    assert (found.previous_messages, found.common_messages) == (2, 2)
    assert found.characters > found.previous_characters


def test_the_first_difference_is_found_to_the_character() -> None:
    found = _compare(_asked(SYSTEM, USER), _asked(SYSTEM, replace(USER, text="list the directories"), CALL))
    assert (found.broken_at, found.message, found.role, found.character) == ("message", 1, "user", 9)
    assert found.difference == ("list the files", "list the directories")
    assert found.common_characters == len(SYSTEM.text) + 9
    assert found.common_messages == 1


def test_a_date_in_the_system_prompt_breaks_at_once() -> None:
    long = "x" * 5000
    noon, later = (_asked(Message("system", f"{long} It is {time}. {long}")) for time in ("12:00", "12:01"))
    found = _compare(noon, later)
    assert (found.message, found.role, found.character) == (0, "system", 5011)
    assert found.difference is not None
    assert found.difference[0][:40] == "x" * 13 + " It is 12:00. " + "x" * 13
    assert max(map(len, found.difference)) == 80


def test_thinking_and_ids_do_not_break_it() -> None:
    renamed = replace(CALL, thinking="", calls=(replace(CALL.calls[0], call_id="toolu_9"),))
    assert _compare(_asked(USER, CALL, RESULT), _asked(USER, renamed, replace(RESULT, call_id="toolu_9"))).broken_at is None


def test_another_order_of_arguments_breaks_it() -> None:
    other = replace(CALL, calls=(PastCall("call_1", "bash", '{"cwd":"/","command":"ls"}'),))
    found = _compare(_asked(USER, CALL, RESULT), _asked(USER, other, RESULT))
    assert (found.broken_at, found.message, found.role) == ("message", 1, "assistant")


@pytest.mark.parametrize(
    ("before", "now"),
    [((_BASH, _READ), (_READ, _BASH)), ((_BASH,), (_BASH, _READ)), ((_BASH,), ()), ((), (_BASH,))],
    ids=["reordered", "one more", "gone", "new"],
)
def test_tools_that_change_break_it_behind_the_system_prompt(
    before: tuple[OfferedTool, ...], now: tuple[OfferedTool, ...]
) -> None:
    found = _compare(_asked(SYSTEM, USER, tools=before), _asked(SYSTEM, USER, CALL, tools=now))
    assert (found.broken_at, found.message, found.common_messages) == ("tools", None, 1)
    assert len(SYSTEM.text) <= found.common_characters < found.previous_characters


def test_a_message_put_in_between_and_one_taken_out() -> None:
    found = _compare(_asked(SYSTEM, USER, CALL), _asked(SYSTEM, Message("user", "before"), USER, CALL))
    assert (found.message, found.role, found.character) == (1, "user", 0)
    found = _compare(_asked(SYSTEM, USER, CALL, RESULT), _asked(SYSTEM, USER))
    assert (found.broken_at, found.message, found.role) == ("message", 2, "assistant")
    assert found.common_characters == found.characters


def test_another_role_or_another_picture_breaks_it() -> None:
    assert _compare(_asked(USER), _asked(replace(USER, role="tool"))).character == 0
    one, other = (Message("user", "look", media=(digest,)) for digest in ("a" * 64, "b" * 64))
    assert _compare(_asked(one), _asked(other)).broken_at == "message"
    assert Prompt.of(_asked(one)).characters == 5


def test_without_the_text_the_message_is_still_known() -> None:
    before = Prompt.of(_asked(SYSTEM, USER))
    assert before.held == len(SYSTEM.text) + len(USER.text)
    before.forget_text()
    found = compare(before, Prompt.of(_asked(SYSTEM, Message("user", "other"))))
    assert before.held == 0
    assert (found.message, found.role, found.character, found.difference) == (1, "user", None, None)
    assert found.common_characters == len(SYSTEM.text)
    same = compare(before, Prompt.of(_asked(SYSTEM, USER, CALL)))
    assert same.broken_at is None


def test_no_excerpts_when_none_are_wanted() -> None:
    found = _compare(_asked(USER), _asked(Message("user", "other")), excerpts=False)
    assert (found.character, found.difference) == (0, None)


def test_the_price_is_the_share_that_had_been_evaluated_before() -> None:
    # 1000 characters before, 100 of them repeated; now 1200: 1100 are evaluated, 900 of these in vain
    prefix = Prefix(1000, 100, 1200, 3, 1, "message", 1, "user", 0)
    price(prefix, input_tokens=300, prefill_s=1.1)
    assert prefix.lost_tokens == 225
    assert prefix.lost_s == pytest.approx(0.9)
    price(prefix, input_tokens=None, prefill_s=None)
    assert prefix.lost_tokens == 225


def test_what_is_not_broken_costs_nothing() -> None:
    for prefix in (Prefix(1000, 1000, 1200, 3, 3), Prefix(1000, 200, 200, 3, 1, "message", 1, "user", 0)):
        price(prefix, input_tokens=300, prefill_s=1.0)
        assert (prefix.lost_tokens, prefix.lost_s) == (None, None)


_texts = st.text(alphabet="ab", max_size=6)
_messages = st.lists(st.builds(Message, role=st.sampled_from(["user", "assistant", "system"]), text=_texts), max_size=6)


@given(before=_messages, now=_messages)
def test_what_is_common_is_never_more_than_either(before: list[Message], now: list[Message]) -> None:
    found = _compare(_asked(*before), _asked(*now))
    assert 0 <= found.common_characters <= min(found.previous_characters, found.characters)
    flat_before, flat_now = ("".join(m.text for m in messages) for messages in (before, now))
    common = found.common_characters
    assert flat_before[:common] == flat_now[:common]
    assert (found.broken_at is None) == (now[: len(before)] == before)
    price(found, input_tokens=100, prefill_s=1.0)
    assert found.lost_s is None or 0 < found.lost_s <= 1.0
