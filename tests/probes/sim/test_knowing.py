"""Personas that know the Audit's key: right as often as their law says, wrong in their own way."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest

from probes.sim.knowing import NOT_STATED, Reader, invented
from probes.sim.personas import Accuracy, Persona
from probes.sim.policies import Turn
from probes.sim.speech import Message
from tests.probes.sim.conftest import Running, ask, post

FACTS = (
    "Header tag: ZX-1.\nThe weather was fine. The rollback code for service quillby is 7F3K-92B. Nothing else happened.\n"
    "The rollback code for service ternby is 8GHJ-44C. "
)
QUESTION = "\nQuestion: What is the rollback code for service {}?\n"


def say(accuracy: Accuracy, service: str = "quillby", tokens: int = 100, seed: int = 1, **more: Any) -> str:
    prompt = FACTS + QUESTION.format(service)
    turn = Turn(Persona(name="m"), [Message("user", prompt)], prompt, tokens)
    said = Reader(accuracy, **more).answer(turn, Random(seed))
    assert said is not None
    return "".join(said.text)


def test_a_perfect_reader_finds_the_fact_and_admits_what_is_not_there() -> None:
    assert say(Accuracy()) == "7F3K-92B"
    assert say(Accuracy(), "ternby") == "8GHJ-44C"
    assert say(Accuracy(), "nobody") == NOT_STATED


@pytest.mark.parametrize("law", [Accuracy(base=0.7), Accuracy(law="cliff", base=1, floor=0.7, at=10)])
def test_the_law_is_the_share_that_is_right(law: Accuracy) -> None:
    right = sum(say(law, tokens=1000, seed=n) == "7F3K-92B" for n in range(2000))
    assert right == pytest.approx(1400, abs=80)


def test_ways_to_be_wrong() -> None:
    def wrong(how: Any) -> str:
        return say(Accuracy(base=0, wrong=how))

    assert wrong("refuse") == NOT_STATED
    assert wrong("empty") == ""
    assert wrong("distractor") == "8GHJ-44C"
    made = wrong("confabulate")
    assert made not in ("7F3K-92B", "8GHJ-44C", NOT_STATED)
    assert made not in FACTS
    both = wrong("malformed")
    assert both.startswith("7F3K-92B or ")
    assert say(Accuracy(absent="confabulate"), "nobody") != NOT_STATED


def test_the_header_is_known_as_long_as_it_is_there() -> None:
    prompt = FACTS + "\nQuestion: What is the header tag?\n"
    turn = Turn(Persona(name="m"), [Message("user", prompt)], prompt, 9)
    said = Reader(Accuracy(base=0)).answer(turn, Random(1))
    assert said is not None
    assert "".join(said.text) == "ZX-1"


def test_other_questions_are_left_to_others() -> None:
    turn = Turn(Persona(name="m"), [Message("user", "Question: how are you?")], "Question: how are you?", 9)
    assert Reader(Accuracy()).answer(turn, Random(1)) is None
    assert Reader(Accuracy()).answer(Turn(Persona(name="m"), [], "hi", 1), Random(1)) is None


def test_an_oracle_of_the_callers_own() -> None:
    turn = Turn(Persona(name="m"), [Message("user", "6 x 7?")], "6 x 7?", 9)
    reader = Reader(Accuracy(), lambda t: "42" if "6 x 7" in t.prompt else None)
    said = reader.answer(turn, Random(1))
    assert said is not None
    assert "".join(said.text) == "42"


def test_invention_gives_up_where_nothing_can_vary() -> None:
    from probes.audit.solver import Key

    assert invented(Key("x", (), (), "---", None), Random(1)) != "x"
    assert invented(Key("---", (), (), "---", None), Random(1)) == NOT_STATED


def test_a_cut_prompt_has_lost_its_fact(running: Running) -> None:
    """A truncating server: the answer is wrong because the fact is gone, not because the model is."""
    model = Persona.model_validate({"name": "m", "context": {"trained": 4096, "automatic": 512}})
    padding = "Nothing of note took place that day. " * 400

    async def main() -> None:
        async with running(model) as sim:
            for prompt, expected in (
                (FACTS + QUESTION.format("quillby"), "7F3K-92B"),
                (FACTS + padding + QUESTION.format("quillby"), NOT_STATED),
                (padding + FACTS + QUESTION.format("quillby"), "7F3K-92B"),
            ):
                body = {"model": "m", "prompt": prompt, "raw": True, "stream": False}
                answer = await ask(sim, post("/api/generate", json.dumps(body).encode()))
                assert json.loads(answer.body)["response"] == expected

    asyncio.run(main())


def test_a_scripted_agent_answers_only_its_own_tasks(running: Running) -> None:
    model = Persona.model_validate({"name": "m", "policy": {"name": "agent", "script": "mumbler"}, "answer_tokens": 3})

    async def main() -> None:
        async with running(model) as sim:
            task = [
                {"role": "system", "content": "You are an agent. qm-canary-0123456789abcdef"},
                {"role": "user", "content": "Do it."},
            ]
            await ask(sim, post("/api/chat", json.dumps({"model": "m", "messages": task}).encode()))
            await ask(sim, post("/api/chat", json.dumps({"model": "m", "messages": task[1:]}).encode()))
            assert [r.note for r in sim.truth.requests] == ["agent: mumbler", "prose"]

    asyncio.run(main())
