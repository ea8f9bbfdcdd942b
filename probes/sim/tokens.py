"""A tokenizer whose counts are known beforehand: what a persona states about token counts is exact by construction.

Counting (prompts, tool calls) and cutting (answers) are two things. An answer is cut into pieces of at most six letters, one
token each, so a stream has a known number of tokens. A prompt is counted by the persona's rule: by the same pieces, or by a
fixed number of characters or bytes per token, which needs no pass over a long text. A tool call, and an answer to the Audit,
cost what they will count in the next prompt.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator

__all__ = ["FixedCount", "Tokenizer", "compiling", "pieces", "role_mark"]

_PIECE = re.compile(r"\s?[^\W\d_]{1,6}|\s?\d{1,3}|\s?[^\w\s]|\s?_|\s+")
_MARK = re.compile(r"<\|(?:system|user|assistant|tool|developer|end|tools|bos)\|>")

Rule: TypeAlias = Literal["pieces", "characters", "bytes"]


def pieces(text: str) -> list[str]:
    """Cut a text into the pieces it is streamed in; joined they are the text again."""
    return _PIECE.findall(text)


@lru_cache(maxsize=512)
def _pieces_in(text: str) -> int:
    """Requests repeat their history: a part that was counted once is not counted again."""
    return sum(1 for _ in _PIECE.finditer(text))


def role_mark(role: str) -> str:
    """The special token that opens a message in a rendered prompt. It counts as `Tokenizer.mark_tokens`."""
    return f"<|{role}|>"


P = TypeVar("P", str, None, str | None)


def compiling(pattern: P) -> P:
    """The pattern, if it is a regular expression (or none); ValueError, as validators raise it, if not."""
    try:
        re.compile(pattern or "")
    except re.error as bad:
        raise ValueError(f"not a regular expression: {bad}") from bad
    return pattern


class FixedCount(BaseModel):
    """Text that matches `pattern` counts as exactly `tokens`, whatever its length: how a persona fixes a count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(description="regular expression (DOTALL); each match counts as `tokens`, the rest by the rule")
    tokens: int = Field(ge=0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return compiling(pattern)


class Tokenizer(BaseModel):
    """How many tokens a prompt has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = Field(
        default="pieces", description="pieces: one token per piece of at most 6 letters; characters, bytes: see `per_token`"
    )
    per_token: PositiveFloat = Field(
        default=4.0, description="characters or UTF-8 bytes per token; rounded half up over the whole prompt"
    )
    mark_tokens: int = Field(default=1, ge=0, description="tokens of each role mark in a rendered prompt (two per message)")
    bos: bool = Field(default=False, description="one more token at the start, as with tokenizers that add BOS")
    split_utf8: bool = Field(
        default=False,
        description="a character beyond ASCII costs a token per UTF-8 byte and arrives in one record, the others withheld",
    )
    fixed: tuple[FixedCount, ...] = ()

    def count(self, text: str) -> int:
        """Tokens of a rendered prompt, BOS not included."""
        fixed = 0
        for rule in self.fixed:
            text, matches = re.subn(rule.pattern, "", text, flags=re.DOTALL)
            fixed += matches * rule.tokens
        if self.rule == "pieces":
            parts = _MARK.split(text)
            return fixed + sum(map(_pieces_in, parts)) + (len(parts) - 1) * self.mark_tokens
        marks = _MARK.findall(text) if "<|" in text else []
        units = len(text) if self.rule == "characters" else len(text.encode("utf-8", "replace"))
        units -= sum(map(len, marks))
        return fixed + len(marks) * self.mark_tokens + int(units / self.per_token + 0.5)

    def cut(self, text: str, first: int, last: int) -> str:
        """What is left of a prompt of which only the first and the last tokens are kept."""
        if self.rule == "pieces":
            every = pieces(text)
            return "".join(islice(every, first)) + "".join(every[len(every) - last :] if last else ())
        total = max(1, self.count(text))
        head, tail = len(text) * first // total, len(text) * last // total
        return text[:head] + (text[len(text) - tail :] if tail else "")

    def answer_pieces(self, text: str) -> list[str]:
        """A known answer as it is streamed: in as many pieces as the rule counts, give or take one."""
        made: list[str] = []
        units = 0.0
        for piece in pieces(text):
            size = len(piece) if self.rule == "characters" else len(piece.encode("utf-8", "replace"))
            if self.rule == "pieces" or not made or units + size > self.per_token + 0.5:
                made.append(piece)
                units = size
            else:
                made[-1] += piece
                units += size
        return made

    def call_tokens(self, text: str) -> int:
        """Tokens sampled for a tool call, `text` being its JSON; at least one."""
        return len(pieces(text)) if self.rule == "pieces" else max(1, self.count(text))

    def answer_tokens(self, piece: str) -> int:
        """Tokens sampled for one streamed piece: 1, or more when it needs several tokens to complete a character."""
        if not self.split_utf8 or piece.isascii():
            return 1
        return sum(len(c.encode("utf-8", "replace")) for c in piece if not c.isascii())
