"""How much of a prompt repeats the one before it: what a prefix cache can reuse, where it breaks, and what that costs.

Rules that hold here:

- Compared is the exact text, as a template would print it: a blank, a date or another order of keys breaks the prefix.
  Thinking is left out (most templates drop it from earlier turns), and so are ids.
- The order is: leading system messages, tools (names and schemas), all other messages. Templates differ in where they put
  the tools; most put them behind the system prompt.
- Characters stand for tokens: only the server has those.
"""

from __future__ import annotations

from dataclasses import dataclass

from qm_proxy.events import Asked, Message, OfferedTool
from qm_proxy.findings import EXCERPT_CHARACTERS
from qm_proxy.record import Prefix

__all__ = ["Prompt", "compare", "price"]

_TOOLS = -1
_SHOWN_BEFORE = 24  # characters of an excerpt that lie before the difference


@dataclass(slots=True)
class _Part:
    message: int  # index in the request; _TOOLS for the tools
    role: str
    text: str | None  # None: not held any more
    size: int
    mark: int  # Python's own hash; never leaves the process


@dataclass(slots=True)
class Prompt:
    """One request's prompt, kept to compare the next one with. Owns references to the request's text until `forget_text`."""

    parts: list[_Part]
    messages: int
    characters: int

    @classmethod
    def of(cls, asked: Asked) -> Prompt:
        messages = asked.messages
        head = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
        parts = [_part(i, m) for i, m in enumerate(messages)]
        if asked.tools:
            parts.insert(head, _tools_part(asked.tools))
        return cls(parts, len(messages), sum(part.size for part in parts))

    @property
    def held(self) -> int:
        """Characters of text held in memory."""
        return sum(len(part.text) for part in self.parts if part.text is not None)

    def forget_text(self) -> None:
        """Keep marks only: a later comparison knows the message that differs, no longer the character."""
        for part in self.parts:
            part.text = None


def _part(index: int, message: Message) -> _Part:
    text = message.text
    if message.calls:
        text += "".join(f"\0{call.name}\0{call.arguments}" for call in message.calls)
    return _Part(index, message.role, text, len(text) + len(message.media), hash((message.role, text, message.media)))


def _tools_part(tools: tuple[OfferedTool, ...]) -> _Part:
    text = "\n".join(f"{tool.name} {(tool.parameters or b'').decode('utf-8', 'replace')}" for tool in tools)
    return _Part(_TOOLS, "", text, len(text), hash(text))


def compare(before: Prompt, now: Prompt, *, excerpts: bool = True) -> Prefix:
    """How far `now` repeats `before` from its start. Not broken: `before` is repeated to its end."""
    prefix = Prefix(before.characters, 0, now.characters, before.messages, 0)
    at = 0
    for old, new in zip(before.parts, now.parts, strict=False):
        if old.mark != new.mark or old.message != new.message:
            break
        prefix.common_characters += new.size
        prefix.common_messages += new.message != _TOOLS
        at += 1
    if at < len(before.parts):
        new_part = now.parts[at] if at < len(now.parts) else None
        _break(prefix, before.parts[at], new_part, excerpts=excerpts)
    return prefix


def _break(prefix: Prefix, old: _Part, new: _Part | None, *, excerpts: bool) -> None:
    """Say where: at the tools when one of the two has them there, else at a message; at which character when both are held."""
    comparable = new is not None and new.message == old.message and new.role == old.role
    if old.message == _TOOLS or (new is not None and new.message == _TOOLS):
        prefix.broken_at = "tools"
    else:
        prefix.broken_at, prefix.message, prefix.role = "message", old.message, (new or old).role
    now_text = "" if new is None else new.text
    if old.text is None or now_text is None:
        return
    at = _first_difference(old.text, now_text) if comparable else 0
    prefix.character = at
    prefix.common_characters += at
    if excerpts:
        start = max(0, at - _SHOWN_BEFORE)
        prefix.difference = (old.text[start : start + EXCERPT_CHARACTERS], now_text[start : start + EXCERPT_CHARACTERS])


def _first_difference(a: str, b: str) -> int:
    """Offset of the first character that differs; the shorter length when one begins with the other."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def price(prefix: Prefix, *, input_tokens: int | None, prefill_s: float | None) -> None:
    """Fill in what a broken prefix cost: of the part that was evaluated, the share that the previous prompt had already.

    An upper bound where the cache had been lost for another reason as well. `prefill_s` covers the evaluated part only
    (Ollama 0.33: `prompt_eval_duration`), `input_tokens` all of it.
    """
    evaluated = prefix.characters - prefix.common_characters
    repeated = min(prefix.previous_characters - prefix.common_characters, evaluated)
    if prefix.broken_at is None or repeated <= 0:
        return
    if input_tokens is not None:
        prefix.lost_tokens = round(input_tokens * repeated / prefix.characters)
    if prefill_s is not None:
        prefix.lost_s = prefill_s * repeated / evaluated
