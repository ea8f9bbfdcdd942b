"""Loops that are loops, and one that is none."""

from __future__ import annotations

import json
from itertools import islice
from random import Random
from typing import Any

import pytest

from probes.sim.loop_policies import AgentLoop, TokenLoop
from probes.sim.personas import Persona
from probes.sim.policies import Turn
from probes.sim.speech import Call, Message, Said

MODEL = Persona(name="m")
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": n, "parameters": {"type": "object", "properties": {"path": {"type": "string"}},
                                                                "required": ["path"]}}}
    for n in ("read_file", "write_file")
]  # fmt: skip


def asked(*messages: Message, tools: list[Any] | None = None, think: bool = False) -> Turn:
    return Turn(MODEL, [Message("user", "fix a.py"), *messages], "p", 9, tools or [], think)


def text(policy: TokenLoop, n: int = 400) -> str:
    said = policy.answer(asked(), Random(1))
    assert said is not None
    return "".join(islice(said.text, n))


def test_exact_loops_repeat_one_sentence() -> None:
    found = text(TokenLoop(after=0, phrase=" again and again."))
    assert found.replace(" again and again.", "") in ("", *[" again and again."[:n] for n in range(17)])


def test_counter_loops_count() -> None:
    found = text(TokenLoop(form="counter", after=0))
    numbers = [int(w) for w in found.replace(":", "").split() if w.isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10


def test_near_loops_say_the_same_otherwise() -> None:
    sentences = text(TokenLoop(form="near", after=0)).split(".")[:-1]
    assert 2 < len(set(sentences)) < len(sentences)


def test_prose_comes_first_and_an_end_comes_last() -> None:
    said = TokenLoop(after=30, tokens=100).answer(asked(), Random(1))
    assert said is not None
    assert len(list(said.text)) == 130


def test_loops_in_thoughts_and_arguments() -> None:
    thought = TokenLoop(channel="thinking", after=0, tokens=50).answer(asked(think=True), Random(1))
    assert thought is not None
    assert len(list(thought.thinking)) == 50
    called = TokenLoop(channel="arguments", tokens=200).answer(asked(tools=TOOLS), Random(1))
    assert called is not None
    assert len(json.loads(called.calls[0].arguments)["path"]) > 400
    assert TokenLoop(channel="arguments").answer(asked(), Random(1)) is None


def walk(policy: AgentLoop, turns: int) -> list[Said]:
    """The policy's answers over the turns of one task, each result "ok"."""
    messages: list[Message] = []
    found = []
    for n in range(turns):
        said = policy.answer(asked(*messages, tools=TOOLS), Random(n))
        assert said is not None
        found.append(said)
        messages.append(Message("assistant", "".join(said.text), calls=said.calls))
        if said.calls:
            messages.append(Message("tool", f"result {n} in b{n}.py", tool_name=said.calls[0].name))
    return found


def keys(said: list[Said]) -> list[tuple[str, str]]:
    return [(s.calls[0].name, s.calls[0].arguments) for s in said if s.calls]


@pytest.mark.parametrize("period", [1, 2, 3, 4])
def test_cycles_have_their_period(period: int) -> None:
    found = keys(walk(AgentLoop(form="cycle", period=period, after=2, turns=None), 14))[2:]
    assert found[period:] == found[:-period]
    assert len(set(found)) == period


def test_forms_without_exact_repeats() -> None:
    assert len(set(keys(walk(AgentLoop(form="progress", after=0), 10)))) == 10
    near = keys(walk(AgentLoop(form="near_duplicate", after=0), 10))
    assert len(set(near)) == 10
    assert len({name for name, _ in near}) == 1
    assert len(set(keys(walk(AgentLoop(form="poll", after=0), 5)))) == 1


def test_monologue_and_echo_do_not_call() -> None:
    assert not keys(walk(AgentLoop(form="monologue", after=0), 4))
    echo = AgentLoop(form="echo", after=1)
    said = echo.answer(
        asked(Message("assistant", calls=[Call("read_file", "{}")]), Message("tool", "the result"), tools=TOOLS), Random(1)
    )
    assert said is not None
    assert "".join(said.text) == "the result"


def test_it_ends_after_its_turns() -> None:
    found = walk(AgentLoop(after=1, turns=3), 5)
    assert [bool(s.calls) for s in found] == [True, True, True, True, False]


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="form"):
        TokenLoop(form="spiral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form"):
        AgentLoop(form="spiral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="period"):
        AgentLoop(period=0)
