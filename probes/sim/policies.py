"""How a simulated model decides what to say: rules first, then its policy, then the Audit's reader, then prose.

A policy sees one request: the messages, the tools, the prompt as the model sees it. Requests are stateless, so a policy
reads how far a task has come from the messages. One instance serves one persona of one server and may keep state.
To add one: a class with `answer`, a line in `repertoire.py`; persona files choose it by name and give its parameters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, TypeAlias

from probes.sim.gojson import JSON, encode
from probes.sim.personas import Answer, Misbehaviour, Persona, When
from probes.sim.speech import Call, Message, Said, instance, prose
from probes.sim.tokens import pieces

__all__ = ["Oracle", "Policy", "Speaker", "Turn"]


@dataclass(slots=True)
class Turn:
    """One request as a policy sees it."""

    persona: Persona
    messages: list[Message]
    prompt: str  # rendered, and cut if the window demanded it
    prompt_tokens: int
    tools: list[JSON] = field(default_factory=list)
    think: bool = False
    format: JSON = None
    options: dict[str, JSON] = field(default_factory=dict)

    @property
    def user(self) -> str:
        """The last user message."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def system(self) -> str:
        return "\n".join(m.content for m in self.messages if m.role in ("system", "developer"))

    @property
    def results(self) -> list[Message]:
        """Tool results since the last user message, oldest first."""
        found: list[Message] = []
        for message in reversed(self.messages):
            if message.role == "user":
                break
            if message.role == "tool":
                found.append(message)
        return found[::-1]

    @property
    def turns(self) -> int:
        """Assistant turns since the last user message."""
        found = 0
        for message in reversed(self.messages):
            if message.role == "user":
                break
            found += message.role == "assistant"
        return found

    @property
    def session(self) -> str:
        """What identifies a task: its system prompt and first user message."""
        first = next((m.content for m in self.messages if m.role == "user"), "")
        return hashlib.sha256(f"{self.system}\0{first}".encode("utf-8", "replace")).hexdigest()

    @property
    def functions(self) -> list[dict[str, Any]]:
        """Offered tools as {name, parameters}, whatever shape the dialect gave them."""
        found = []
        for tool in self.tools:
            if not isinstance(tool, dict):
                continue
            function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
            if isinstance(function, dict) and function.get("name"):
                schema = function.get("parameters") or function.get("input_schema") or {}
                found.append({"name": function["name"], "parameters": schema})
        return found


class Policy(Protocol):
    def answer(self, turn: Turn, rng: Random) -> Said | None:
        """What the model says; None leaves it to prose."""


Oracle: TypeAlias = Callable[[Turn], str | None]
"""Given in process by whoever asks the questions: the right answer to a turn, or None when it is not one of its own."""


class Speaker:
    """Decides for one persona: rules, policy, reader, prose. Deterministic in (seed, prompt, how often it was asked)."""

    def __init__(self, persona: Persona, seed: int, *, policy: Policy | None = None, read: Policy | None = None) -> None:
        self.persona = persona
        self._seed = seed
        self._policy = policy
        self._read = read
        self._asked: dict[bytes, int] = {}

    def rng(self, prompt: str) -> Random:
        """A generator for this prompt; asking the same again gives the next one."""
        key = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=16).digest()
        times = self._asked[key] = self._asked.get(key, 0) + 1
        if len(self._asked) > 50_000:
            self._asked.clear()
        return Random(f"{self._seed}/{self.persona.full_name}/{key.hex()}/{times}")

    def say(self, turn: Turn, rng: Random) -> Said:
        said = self._ruled(turn, rng)
        if said is None and self._policy is not None:
            said = self._policy.answer(turn, rng)
        if said is None and self._read is not None:
            said = self._read.answer(turn, rng)
        if said is None:
            said = self._ordinary(turn, rng)
        wrong = self.persona.misbehaviour
        if said.misbehaviour is None and wrong is not None and rng.random() < wrong.share:
            said.misbehaviour = wrong
        if turn.think and not said.thinking:
            thinking = self.persona.thinking
            said.thinking = endless(rng) if thinking.endless else prose(thinking.tokens, rng)
        return said

    def _ruled(self, turn: Turn, rng: Random) -> Said | None:
        for rule in self.persona.rules:
            match = fits(rule.when, turn)
            if match is not None:
                return scripted(rule.say, match if isinstance(match, re.Match) else None, rng)
        return None

    def _ordinary(self, turn: Turn, rng: Random) -> Said:
        if turn.format is not None:
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}} if turn.format == "json" else turn.format
            return Said(pieces(encode(instance(schema, rng))), note="structured")
        return Said(prose(self.persona.answer_tokens, rng), note="prose")


def endless(rng: Random) -> Iterator[str]:
    while True:
        yield from prose(1000, rng)


def fits(when: When, turn: Turn) -> re.Match[str] | bool | None:
    """None when it does not; else the match whose groups the answer may use, or True."""
    last = turn.messages[-1] if turn.messages else None
    match: re.Match[str] | bool = True
    for pattern, text in (
        (when.system, turn.system),
        (when.prompt, turn.prompt),
        (when.tool_result, last.content if last is not None and last.role == "tool" else None),
        (when.user, turn.user if turn.messages else turn.prompt),
    ):
        if pattern is None:
            continue
        found = re.search(pattern, text, re.DOTALL) if text is not None else None
        if found is None:
            return None
        match = found
    if when.has_tools is not None and when.has_tools != bool(turn.tools):
        return None
    if when.results is not None and when.results != len(turn.results):
        return None
    if when.format is not None and when.format != (turn.format is not None):
        return None
    return match


def scripted(answer: Answer, match: re.Match[str] | None, rng: Random) -> Said:
    def filled(text: str) -> str:
        return match.expand(text) if match is not None and "\\" in text else text

    text: list[str] = []
    if answer.pieces:
        text = list(answer.pieces)
    elif answer.text is not None:
        text = pieces(filled(answer.text))
    elif answer.tokens is not None:
        text = list(prose(answer.tokens, rng))
    calls = []
    for call in answer.calls:
        arguments = _each_text(call.get("arguments", {}), filled)
        calls.append(Call(filled(str(call.get("name", ""))), arguments if isinstance(arguments, str) else encode(arguments)))
    wrong: Misbehaviour | None = answer.misbehave
    thought = answer.thinking or ()
    thinking = pieces(filled(thought)) if isinstance(thought, str) else list(thought)
    return Said(text * answer.repeat, thinking, calls, wrong, note="rule")


def _each_text(value: JSON, change: Callable[[str], str]) -> JSON:
    """The value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {k: _each_text(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(v, change) for v in value]
    return value
