"""Conversations against a window: what Ollama would evaluate of each request, by the rules of the simulated one.

Prompts are this machine's prose, code and data; a model counts them by one of several tokenizers of very different density.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.detect.calls import schema
from benchmarks.detect.corpus import Corpus
from probes.sim.window import TooLong, fit_messages, fit_prompt
from qm_proxy.events import Asked, Event, Failed, Finished, Message, Nanoseconds, OfferedTool, Usage

__all__ = ["MODES", "TOKENIZERS", "Request", "conversation"]

MODES = ("rendered", "native", "explicit num_ctx", "num_keep", "v1")
T = Nanoseconds(1)


def _pieces(letters: int) -> Callable[[str], int]:
    pattern = re.compile(rf"\s?[^\W\d_]{{1,{letters}}}|\s?\d{{1,3}}|\s?[^\w\s]|\s?_|\s+")
    return lambda text: sum(1 for _ in pattern.finditer(text))


TOKENIZERS: dict[str, Callable[[str], int]] = {
    "pieces of 4": _pieces(4),
    "pieces of 7": _pieces(7),
    "pieces of 12": _pieces(12),
    "3.3 characters": lambda text: round(len(text) / 3.3),
    "5 bytes": lambda text: round(len(text.encode("utf-8", "replace")) / 5),
}


@dataclass(frozen=True)
class Request:
    asked: Asked
    window: int
    events: list[Event]  # what comes back
    cut: str | None  # how it was truncated
    lost: float = 0.0  # share of its tokens


def conversation(
    corpus: Corpus, rng: random.Random, model: str, tokenizer: str, mode: str, window: int, *, pace: float = 0.5
) -> list[Request]:
    """One growing conversation, or one long question; it may stay far below the window, or pass it at some turn.
    `pace`: median bytes of a message, in windows."""
    count = TOKENIZERS[tokenizer]
    bos = rng.random() < 0.5
    keep = rng.choice((0, 4, 24, 300)) if mode == "num_keep" else 4
    tools = (
        tuple(OfferedTool(f"tool_{i}", "function", json.dumps(schema(rng)).encode()) for i in range(rng.randint(2, 12)))
        if rng.random() < 0.5
        else ()
    )
    tools_text = "".join((tool.parameters or b"").decode() for tool in tools)
    options: dict[str, object] = {}
    if mode == "explicit num_ctx":
        options["num_ctx"] = window
    if mode == "num_keep":
        options["num_keep"] = keep
    messages = [Message("system", _text(corpus, rng, rng.randint(100, 2000)))]
    single = pace >= 0.5 and rng.random() < 0.25
    out: list[Request] = []
    for _ in range(1 if single else rng.randint(3, 14)):
        size = rng.randint(window, window * 12) if single else int(rng.lognormvariate(0, 0.8) * window * pace)
        messages.append(Message(rng.choice(("user", "tool")) if not single else "user", _text(corpus, rng, size)))
        asked = Asked(
            T,
            "openai-chat" if mode == "v1" else "ollama",
            "chat",
            model,
            True,
            messages=tuple(messages),
            tools=tools,
            options=options or None,
        )
        out.append(_answer(asked, count, tools_text, mode, window, keep, bos))
        messages.append(Message("assistant", _text(corpus, rng, rng.randint(40, 800))))
    return out


def _text(corpus: Corpus, rng: random.Random, size: int) -> str:
    return corpus.prose(rng, size) if rng.random() < 0.6 else corpus.slice(rng, rng.choice(("code", "data", "manual")), size)[0]


def _answer(asked: Asked, count: Callable[[str], int], tools: str, mode: str, window: int, keep: int, bos: bool) -> Request:
    sizes = [count(message.text) + 5 for message in asked.messages]
    extra = count(tools) + bos

    def prompt(kept: list[int] | range) -> int:
        return sum(sizes[i] for i in kept) + extra

    everything = range(len(sizes))
    kept = fit_messages([message.role for message in asked.messages], window, lambda some: prompt(list(some)))
    tokens = prompt(kept)
    cut = "dropped" if len(kept) < len(everything) else None
    n_bytes = sum(len(asked.messages[i].text.encode("utf-8", "replace")) for i in kept)
    try:
        fitted = fit_prompt(
            tokens, n_bytes + len(tools), window, truncate=True, shift=True, num_keep=keep, bos=bos, native=mode == "native"
        )
    except TooLong as refusal:
        failed = Failed(T, 400, str(refusal), "exceed_context_size_error", tokens, window)
        return Request(asked, window, [failed], "refused")
    if fitted.keep_first is not None:
        cut = "half_window"
    lost = 1 - fitted.tokens / prompt(everything)
    return Request(asked, window, [Usage(T, input_tokens=fitted.tokens, output_tokens=30), Finished(T, "stop")], cut, lost)
