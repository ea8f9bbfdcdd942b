"""Models that know the key: they answer the Audit's questions as often as their accuracy law says, and play the Agent
Report's scripted agents. The one place where the simulation knows the probes; it reads their questions, never their trials.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

from probes.sim.personas import Accuracy, Misbehaviour
from probes.sim.policies import Oracle, Turn
from probes.sim.speech import Call, Said
from probes.sim.tokens import pieces

if TYPE_CHECKING:
    from probes.audit.solver import Key

__all__ = ["AgentPolicy", "Reader"]

NOT_STATED = "NOT STATED"


class Reader:
    """Answers questions about its context: right with the law's probability, otherwise wrong in the persona's way."""

    def __init__(self, accuracy: Accuracy, oracle: Oracle | None = None) -> None:
        self._accuracy = accuracy
        self._oracle = oracle

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        asked = "Question:" in turn.prompt or "TASK:" in turn.prompt
        if self._oracle is None and not asked:
            return None
        from probes.audit.solver import Key, solve  # late: a server that is never audited need not load the Audit

        known = self._oracle(turn) if self._oracle is not None else None
        key = Key(known, (), (), known, None) if known is not None else solve(turn.prompt) if asked else None
        return None if key is None else self._give(key, turn, rng)

    def _give(self, key: Key, turn: Turn, rng: Random) -> Said:
        law, cut = self._accuracy, turn.persona.tokenizer.answer_pieces
        if key.answer == NOT_STATED:
            if law.absent == "refuse":
                return Said(cut(NOT_STATED), note="absent")
            return Said(cut(invented(key, rng)), note="absent, invented")
        if key.answer == key.header or rng.random() < law.at_tokens(turn.prompt_tokens):
            return Said(cut(key.answer), note="found")
        return Said(cut(self._wrong(key, rng)), note=f"missed: {law.wrong}")

    def _wrong(self, key: Key, rng: Random) -> str:
        match self._accuracy.wrong:
            case "refuse":
                return NOT_STATED
            case "empty":
                return ""
            case "malformed":
                return f"{key.answer} or {invented(key, rng)}"
            case "distractor" if key.others:
                return rng.choice(key.others)
            case "stale" if key.stale:
                return rng.choice(key.stale)
        return invented(key, rng)


def invented(key: Key, rng: Random) -> str:
    """A well-formed value that stands nowhere in the context."""
    while True:
        made = "".join(
            rng.choice("BCDFGHJKMNPQRTVWXYZ") if c.isupper() else rng.choice("2346789") if c.isdigit() else c for c in key.form
        )
        if made != key.answer and made not in key.others and made not in key.stale:
            return made
        if made == key.form:  # nothing in the form can vary
            return NOT_STATED


class AgentPolicy:
    """A scripted agent of the Agent Report, by name; `parameters` as that policy takes them."""

    def __init__(self, script: str, **parameters: Any) -> None:
        from probes.sim.agent_policies import POLICIES, speak  # late: it brings the Agent Report's world

        if script not in POLICIES:
            raise ValueError(f"there is no scripted agent {script!r}; there are {', '.join(POLICIES)}")
        self._speak = speak
        self._script = script
        self._parameters = parameters

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        if not turn.messages or turn.messages[0].role != "system":
            return None
        try:
            said = self._speak(self._script, _body(turn), self._parameters)
        except (LookupError, ValueError):  # not a task of the Agent Report
            return None
        calls = [Call(name, a if isinstance(a, str) else json.dumps(a, ensure_ascii=False)) for name, a in said.calls]
        wrong = None
        if said.drop:
            wrong = Misbehaviour(cut_after=1)
        elif said.error:
            wrong = Misbehaviour(error_before=said.error)
        text = pieces(said.text)
        if said.drop and not text:
            text = pieces("One moment, please.")
        thinking = pieces(said.thinking)
        return Said(
            text, thinking, calls, wrong, note=f"agent: {self._script}", ends="length" if said.finish == "length" else "stop"
        )


def _body(turn: Turn) -> dict[str, Any]:
    """The request as the native route would carry it."""
    messages: list[dict[str, Any]] = []
    for m in turn.messages:
        item: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.calls:
            item["tool_calls"] = [{"function": {"name": c.name, "arguments": _object(c.arguments)}} for c in m.calls]
        if m.tool_name:
            item["tool_name"] = m.tool_name
        messages.append(item)
    return {"messages": messages, "tools": turn.tools, "options": turn.options}


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
