"""How a run is talked: the rules and tools a model is given, its turns and the answers as they go back into the transcript.

Tool results go back in their proper role (native), or as a user's line (prompt path). Thinking is never put back. Every option
is sent, nothing is left to the server's defaults; nothing is truncated, because the window is computed beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from probes.agent.generator import generate
from probes.agent.instance import Instance
from probes.agent.reading import Move, Reading
from probes.agent.tiers import Tier
from probes.agent.tools import tool_json

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "Conduct",
    "Path",
    "request_body",
    "result_messages",
    "sent_options",
    "spoken_message",
    "window_bound",
]

Path = Literal["native", "prompt-json"]

CHARACTERS_PER_TOKEN: Final = 2.5
"""A low guess, so that sizes are estimated high."""

_RULES = (
    "You work on a code base and its services by calling tools. Each call is one step; you have at most {horizon} steps. "
    "Numbers such as revisions, digests and receipts must be taken from what the tools answer. Working copy: {canary}. "
)
_UNTIL_DONE = "The task is over when you call done."
_UNTIL_REACHED = "Go on until everything that was asked for is in place."
_PROMPT_RULES = (
    'Call a tool by answering with one JSON object and nothing else: {{"name": TOOL, "arguments": {{…}}}}\nThe tools:\n{tools}'
)


@dataclass(frozen=True, slots=True)
class Conduct:
    """How runs are made; the same for every run of a report, and recorded with it."""

    model: str
    path: Path = "native"
    think: bool | None = None  # None: the field is not sent (the model does not think)
    window_tokens: int | None = None  # None: `window_bound` of the tier
    window_most: int | None = None  # what the model was trained for
    turn_tokens: int = 512
    thinking_tokens: int = 4096
    temperature: float = 0.0
    turn_limit_s: float = 600.0
    guard_continue: bool = True  # let a tenth of the runs go on after a proven loop, to measure false stops


def window_bound(tier: Tier, conduct: Conduct) -> int:
    """Tokens that the longest transcript of a tier may need: system, tools, every turn and answer, and one thought.

    One number for all instances of a tier, because another `num_ctx` would reload the runner.
    """
    tokens = _text_bound(tier) / CHARACTERS_PER_TOKEN + tier.horizon * conduct.turn_tokens
    tokens += conduct.thinking_tokens if conduct.think else 0
    bound = -(-int(tokens) // 1024) * 1024
    return min(bound, conduct.window_most) if conduct.window_most else bound


@cache
def _text_bound(tier: Tier) -> int:
    """Characters that we ourselves may put into a transcript, from a sample of instances and a tenth more."""
    fixed = listing = 0
    for seed in range(8):
        instance = generate(tier, seed)
        offered = json.dumps([tool_json(name) for name in instance.tools])
        fixed = max(fixed, len(instance.task) + len(offered) + len(_RULES) + len(_PROMPT_RULES) + 200)
        listing = max(listing, sum(len(path) + 1 for path in instance.files) + 600)
    return int(1.1 * (fixed + 2 * listing + 320 * tier.horizon))


def sent_options(conduct: Conduct) -> dict[str, Any]:
    """The options that every request of a report carries alike: nothing is left to the server's defaults."""
    return {
        "num_predict": conduct.turn_tokens + (conduct.thinking_tokens if conduct.think else 0),
        "num_batch": 512,  # as the other probes send it: another value would reload the runner between them
        "temperature": conduct.temperature,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }


def request_body(instance: Instance, conduct: Conduct, *, horizon: int | None = None) -> dict[str, Any]:
    """The first request of a run: rules, task, tools and every option; `messages` is what grows."""
    rules = _RULES.format(horizon=horizon or instance.horizon, canary=instance.canary)
    rules += _UNTIL_DONE if "done" in instance.tools else _UNTIL_REACHED
    offered = [tool_json(name) for name in instance.tools]
    if conduct.path != "native":
        rules += "\n" + _PROMPT_RULES.format(tools="\n".join(json.dumps(tool["function"]) for tool in offered))
    body: dict[str, Any] = {
        "model": conduct.model,
        "messages": [{"role": "system", "content": rules}, {"role": "user", "content": instance.task}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "keep_alive": "10m",
        "options": {
            "num_ctx": conduct.window_tokens or window_bound(instance.tier, conduct),
            **sent_options(conduct),
            "seed": instance.seed & 0x7FFFFFFF,
        },
    }
    if conduct.path == "native":
        body["tools"] = offered
    if conduct.think is not None:
        body["think"] = conduct.think
    return body


def spoken_message(reading: Reading, moves: Sequence[Move], *, native: bool) -> dict[str, Any]:
    """The assistant's turn as it goes back into the transcript, without its thinking."""
    message: dict[str, Any] = {"role": "assistant", "content": reading.text[:20_000]}
    if native and moves:
        message["tool_calls"] = [_call_json(move) for move in moves]
    return message


def result_messages(moves: Sequence[Move], answers: Sequence[str], *, native: bool) -> list[dict[str, Any]]:
    """What the calls came to: in the tool's role, or on the prompt path as a user's lines."""
    messages: list[dict[str, Any]] = []
    for move, text in zip(moves, answers, strict=True):
        if not native:
            messages.append({"role": "user", "content": f"{move.name[:60]} answers: {text}"})
            continue
        message: dict[str, Any] = {"role": "tool", "tool_name": move.name, "content": text}
        if move.call_id:
            message["tool_call_id"] = move.call_id
        messages.append(message)
    return messages


def _call_json(move: Move) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"name": move.name, "arguments": move.arguments if move.arguments is not None else {}}}
    if move.call_id:
        call["id"] = move.call_id
    return call
