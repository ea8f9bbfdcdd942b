"""From an Ask to the prompt as the model sees it: rendered, older messages dropped, cut to half, as its window demands."""

from __future__ import annotations

from typing import NamedTuple

from probes.sim.dialect import Ask, Refusal
from probes.sim.gojson import JSON, encode
from probes.sim.personas import Persona
from probes.sim.speech import Message
from probes.sim.tokens import role_mark
from probes.sim.window import Fitted, TooLong, cut_length, fit_messages, fit_prompt

__all__ = ["Prepared", "prepare", "render"]


class Prepared(NamedTuple):
    """What reaches the model."""

    text: str
    messages: list[Message]
    fitted: Fitted
    dropped_messages: int


def render(messages: list[Message], tools: list[JSON]) -> str:
    """The whole prompt of a chat, ending where the assistant begins."""
    return _front(tools) + "".join(map(_rendered, messages)) + role_mark("assistant")


def prepare(ask: Ask, persona: Persona, window: int) -> Prepared:
    """Raises Refusal where the server refuses instead of cutting."""
    tokenizer = persona.tokenizer
    bos = int(tokenizer.bos)
    dropped = 0
    if ask.route == "chat":
        messages = ask.messages
        texts = [_rendered(m) for m in messages]
        front, back = _front(ask.tools), role_mark("assistant")
        tokens = asked = tokenizer.count(front + "".join(texts) + back) + bos
        if persona.mode != "mlx" and ask.truncate and tokens > window:
            kept = fit_messages(
                [m.role for m in messages],
                window,
                lambda idx: tokenizer.count(front + "".join(texts[i] for i in idx) + back) + bos,
            )
            dropped = len(messages) - len(kept)
            messages, texts = [messages[i] for i in kept], [texts[i] for i in kept]
            tokens = tokenizer.count(front + "".join(texts) + back) + bos
        text = front + "".join(texts) + back
    else:
        messages = [Message("user", ask.prompt)]
        if ask.system and not ask.raw:
            messages.insert(0, Message("system", ask.system))
        text = (ask.prompt if ask.raw else "".join(map(_rendered, messages)) + role_mark("assistant")) + ask.suffix
        tokens = asked = tokenizer.count(text) + bos
    fitted = _fitted(ask, persona, window, text, tokens)._replace(asked_tokens=asked)
    if fitted.keep_first is not None:
        text = tokenizer.cut(text, fitted.keep_first - bos, fitted.keep_last)
        messages = [Message("user", text)]
    reads = persona.context.reads
    if reads is not None and fitted.tokens > reads:  # counted in full, read in part: the liar
        text = tokenizer.cut(text, 4, reads - 4)
        messages = [Message("user", text)]
    return Prepared(text, messages, fitted, dropped)


def _fitted(ask: Ask, persona: Persona, window: int, text: str, tokens: int) -> Fitted:
    serves = persona.context.serves
    if serves is not None and tokens >= serves:  # whatever was asked for
        first, last = cut_length(serves, 4, bos=persona.tokenizer.bos)
        return Fitted(first + last, first, last, tokens)
    if persona.mode == "mlx":
        if tokens > window:
            said = f"input length ({tokens} tokens) exceeds the model's maximum context length ({window} tokens)"
            raise Refusal(400, said, streaming=ask.streamed)
        return Fitted(tokens, None, 0, tokens)
    try:
        return fit_prompt(
            tokens,
            len(text.encode("utf-8", "replace")),
            window,
            truncate=ask.truncate,
            shift=ask.shift,
            num_keep=int(ask.options.get("num_keep", 4)),
            bos=persona.tokenizer.bos,
            native=persona.mode == "native" and ask.route == "chat",
        )
    except TooLong as refused:
        raise Refusal(400, str(refused), streaming=ask.streamed) from None


def _front(tools: list[JSON]) -> str:
    return f"{role_mark('tools')}{encode(tools)}{role_mark('end')}" if tools else ""


def _rendered(message: Message) -> str:
    calls = "".join(f'<tool_call>{{"name":{encode(c.name)},"arguments":{c.arguments}}}</tool_call>' for c in message.calls)
    return f"{role_mark(message.role or 'user')}{message.content}{calls}{role_mark('end')}"
