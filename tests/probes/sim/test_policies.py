"""What a request looks like to a policy, and how rules, policies and prose take turns."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from probes.sim.personas import Answer, Persona, When
from probes.sim.policies import Speaker, Turn, fits, scripted
from probes.sim.speech import Call, Message, Said


def persona(**more: Any) -> Persona:
    return Persona.model_validate({"name": "m", **more})


def turn(*messages: Message, **more: Any) -> Turn:
    model = more.pop("model", persona())
    return Turn(model, list(messages), more.pop("prompt", "\n".join(m.content for m in messages)), 10, **more)


TALK = (
    Message("system", "be brief"),
    Message("user", "first"),
    Message("assistant", "old", calls=[Call("f", "{}")]),
    Message("tool", "old result"),
    Message("user", "second"),
    Message("assistant", "", calls=[Call("f", "{}")]),
    Message("tool", "new result"),
)


def test_a_turn_reads_its_history() -> None:
    t = turn(*TALK)
    assert t.user == "second"
    assert t.system == "be brief"
    assert [m.content for m in t.results] == ["new result"]
    assert t.turns == 1
    assert t.session == turn(*TALK[:2]).session
    assert t.session != turn(Message("user", "first")).session


def test_tools_of_every_shape() -> None:
    tools: list[Any] = [
        {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}},
        {"name": "b", "input_schema": {"type": "object"}},
        {"type": "web_search"},
        "nonsense",
    ]
    assert [f["name"] for f in turn(tools=tools).functions] == ["a", "b"]


@pytest.mark.parametrize(
    ("when", "fit"),
    [
        ({"user": "sec(on)d"}, True), ({"user": "first"}, False), ({"system": "brief"}, True), ({"tool_result": "new"}, True),
        ({"tool_result": "old"}, False), ({"prompt": "old.*new"}, True), ({"results": 1}, True), ({"results": 0}, False),
        ({"has_tools": False}, True), ({"has_tools": True}, False), ({"format": True}, False), ({}, True),
        ({"user": "second", "results": 0}, False),
    ],
)  # fmt: skip
def test_conditions(when: dict[str, Any], fit: bool) -> None:
    assert (fits(When.model_validate(when), turn(*TALK)) is not None) == fit


def test_a_tool_result_must_be_the_last_message() -> None:
    assert fits(When(tool_result="x"), turn(Message("tool", "x"), Message("user", "y"))) is None


def test_groups_fill_the_answer() -> None:
    t = turn(Message("user", "say hello to Ada"))
    match = fits(When(user=r"hello to (?P<who>\w+)"), t)
    assert not isinstance(match, bool)
    said = scripted(Answer(text=r"Hello, \g<who>!", calls=({"name": "greet", "arguments": {"who": r"\1"}},)), match, Random(1))
    assert "".join(said.text) == "Hello, Ada!"
    assert said.calls[0].arguments == '{"who":"Ada"}'


def test_rules_then_policy_then_reader_then_prose() -> None:
    class Says:
        def __init__(self, word: str | None) -> None:
            self.word = word

        def answer(self, turn: Turn, rng: Random) -> Said | None:
            return None if self.word is None else Said([self.word], note=self.word)

    model = persona(rules=[{"when": {"user": "ruled"}, "say": {"text": "by rule"}}])

    def note(user: str, policy: str | None, read: str | None) -> str:
        speaker = Speaker(model, 0, policy=Says(policy), read=Says(read))
        return speaker.say(turn(Message("user", user), model=model), Random(1)).note

    assert note("ruled", "policy", "read") == "rule"
    assert note("x", "policy", "read") == "policy"
    assert note("x", None, "read") == "read"
    assert note("x", None, None) == "prose"


def test_the_generator_depends_on_prompt_and_repetition() -> None:
    one, two = Speaker(persona(), 0), Speaker(persona(), 0)
    assert one.rng("a").random() == two.rng("a").random()
    assert one.rng("a").random() == two.rng("a").random()
    assert one.rng("b").random() != one.rng("c").random()
    assert Speaker(persona(), 0).rng("a").random() != Speaker(persona(), 1).rng("a").random()


def test_misbehaviour_is_drawn_by_share() -> None:
    speaker = Speaker(persona(misbehaviour={"share": 0.25, "error_after": 3}), 0)
    hit = sum(speaker.say(turn(Message("user", f"{n}")), speaker.rng(f"{n}")).misbehaviour is not None for n in range(2000))
    assert hit == pytest.approx(500, rel=0.15)
