"""Models that repeat themselves: inside one answer (token loops), and over the turns of a task (agent loops).

Each form is one that the detectors must find, or, where it says so, one that they must leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from random import Random
from typing import Any, Literal, get_args

from probes.sim.gojson import encode
from probes.sim.policies import Turn
from probes.sim.speech import Call, Said, prose
from probes.sim.tokens import pieces
from probes.sim.tool_policies import fitting_arguments, pick

__all__ = ["AgentLoop", "TokenLoop"]

_NEAR = (
    ("Let me", "I will", "Now I"),
    ("check", "inspect", "review"),
    ("the file", "this file", "that file"),
    ("again", "once more", "one more time"),
)
Form = Literal["exact", "counter", "near"]
Channel = Literal["text", "thinking", "arguments"]


class TokenLoop:
    """Prose for `after` tokens, then the same for ever, or for `tokens` tokens.

    exact: `phrase` unchanged; counter: the phrase with a number that grows; near: the same sentence in other words.
    channel: where it loops; arguments: inside a string of a tool call, which then comes whole and late.
    """

    def __init__(
        self,
        *,
        form: Form = "exact",
        channel: Channel = "text",
        after: int = 40,
        tokens: int | None = 600,
        phrase: str | None = None,
    ) -> None:
        if form not in get_args(Form) or channel not in get_args(Channel):
            raise ValueError(f"form is one of {get_args(Form)} and channel one of {get_args(Channel)}")
        self._form = form
        self._channel = channel
        self._after = after
        self._tokens = tokens
        self._phrase = phrase

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        note = f"token loop: {self._form} in {self._channel}"
        if self._channel == "arguments":
            if not turn.functions:
                return None
            function = turn.functions[0]
            arguments = fitting_arguments(function["parameters"], turn, rng)
            looped = "".join(self._all(rng, 400))
            name = next((k for k, v in arguments.items() if isinstance(v, str)), "text")
            return Said(calls=[Call(function["name"], encode({**arguments, name: looped}))], note=note)
        if self._channel == "thinking" and turn.think:
            return Said(prose(20, rng), self._all(rng, self._tokens), note=note)
        return Said(self._all(rng, self._tokens), note=note)

    def _all(self, rng: Random, tokens: int | None) -> Iterator[str]:
        yield from prose(self._after, rng)
        yield from islice(self._looped(rng), tokens)

    def _looped(self, rng: Random) -> Iterator[str]:
        for n in count(1):
            if self._form == "exact":
                text = self._phrase or " Let me check the file again to be sure that nothing was missed."
            elif self._form == "counter":
                text = f" {self._phrase or 'Attempt'} {n}: the build failed, so it has to be run again."
            else:
                text = " " + " ".join(rng.choice(words) for words in _NEAR) + "."
            yield from pieces(text)


AgentForm = Literal["cycle", "same_error", "monologue", "near_duplicate", "re_reading", "echo", "poll", "progress"]


class AgentLoop:
    """A tool user that stops getting on: after `after` sensible calls it goes on like this for ever, or `turns` times.

    cycle: the same `period` calls in turn; same_error: one call that fails, unchanged; monologue: text that promises a call;
    near_duplicate: one call whose wording changes a little; re_reading: the same readings again; echo: repeats the last tool
    result; poll: one call, unchanged (legitimate while its result changes); progress: no loop, each call differs.
    """

    def __init__(self, *, form: AgentForm = "cycle", period: int = 1, after: int = 2, turns: int | None = 12) -> None:
        if form not in get_args(AgentForm):
            raise ValueError(f"form is one of {get_args(AgentForm)}")
        if period < 1:
            raise ValueError("period is at least 1")
        self._form = form
        self._period = period
        self._after = after
        self._turns = turns

    def answer(self, turn: Turn, rng: Random) -> Said | None:
        functions = turn.functions
        if not functions:
            return None
        step = turn.turns - self._after
        note = f"agent loop: {self._form}"
        if self._turns is not None and step >= self._turns:
            return Said(pieces("I could not finish this, so I stop here."), note=note)
        if step < 0:
            return self._call(functions[turn.turns % len(functions)], turn, rng, {}, f"sensible step {turn.turns}")
        match self._form:
            case "monologue":
                return Said(pieces("I will now read the file and then fix the problem."), note=note)
            case "echo":
                last = turn.results[-1].content if turn.results else "done"
                return Said(pieces(last[:400] or "done"), note=note)
            case "cycle" | "re_reading":
                k = step % self._period
                function = functions[k % len(functions)]
                return self._call(function, turn, rng, {"variant": k // len(functions)}, note)
            case "near_duplicate":
                return self._call(functions[0], turn, rng, {"variant": f"part {step % 3} of it, try {step}"}, note)
            case "progress":
                return self._call(functions[step % len(functions)], turn, rng, {"variant": f"item {step}"}, note)
        return self._call(functions[0], turn, rng, {}, note)

    def _call(self, function: dict[str, Any], turn: Turn, rng: Random, change: dict[str, Any], note: str) -> Said:
        """The same inputs give the same call: arguments are drawn from the session, not from the turn."""
        steady = Random(f"{turn.session}/{function['name']}")
        asked = replace(turn, messages=[m for m in turn.messages if m.role in ("system", "user")])
        arguments = fitting_arguments(function["parameters"], asked, steady)
        variant = change.get("variant")
        if variant:
            name = next((k for k, v in arguments.items() if isinstance(v, str)), None)
            if name is not None:
                arguments[name] = f"{arguments[name]} {variant}"
        return Said(
            pieces(pick(("Let me look.", "Next step.", "One moment."), steady)),
            calls=[Call(function["name"], encode(arguments))],
            note=note,
        )
