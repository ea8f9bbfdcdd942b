"""What kind of text a repetition stands in, and what the repeated unit is made of: both decide how much of it is too much.

Ten equal rows are a loop in a paragraph, an ordinary table in a table and boilerplate in a test file. No blanket exemption:
the bars only rise. Pure functions on a few kilobytes of recent text, called when a repetition is judged, not per token.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["Context", "Unit", "context_of", "encoded", "fence_after", "letter_share", "machine_made", "symbols", "unit_of"]

Context = Literal["prose", "list", "table", "code"]
Unit = Literal["words", "glyphs", "separators", "numbers"]

_SYMBOL = re.compile(r"[ \t]*[^\W\d_]{1,16}|[ \t]*\d{1,8}|\n{1,8}|[ \t]+|([^\w\s]|_)\1{0,15}|\s")
"""A stand-in for a model's tokenizer: about 3.4 characters each on English text."""

_LIST = re.compile(r"\s*(?:[-*+•‣◦▪–—>]|\d{1,4}[.):]|[A-Za-z][.)]|\(\w{1,3}\)|\[[ xX✓]\]|#{1,6})\s")
_CODE_END = (";", "{", "}", "(", "[", "\\", "=")
_CODE_START = re.compile(r"""\s*(?:[{}\[\]<@]|["'](?=.*[:,])|//|/\*|\*/|\$\s|--\s|"""
                         r"""(?:def|class|if|for|while|return|import|from|let|const|var|func|fn|public|private|static|int|void|"""
                         r"""assert|self|else|try|except|case|use|my|sub|print|echo|set|local)\b.*[=(){}:;])""")  # fmt: skip
_FENCE = re.compile(r"^[ \t]{0,8}(`{3,}|~{3,})(.*)$", re.M)
_RESULT = re.compile(r"^\s*[\w./:\[\]-]+\s*[:=]\s*\S+\s*$")
_SEPARATORS = frozenset("-=_*#~.+|/\\:`'\"<>^•·…‥―—–│─┼├┤┌┐└┘║═╔╗╚╝╬█▓▒░▀▄▌▐■□▪▫●○◦†‡§¶").union(" \t\r\n\u00a0\u2800\u200b")
_HEX = frozenset("0123456789abcdefABCDEFxX.,;:+-()[]{}\"'/%_eE \t\r\n|&$€")

_WORD = re.compile(r"[^\W\d_]{2}")
_MIXED = re.compile(r"[0-9+/][A-Za-z]|[a-z][A-Z][a-z]?[A-Z]|[A-Z]{2}[a-z]")

_RECENT_LINES = 8
_UNBROKEN = 300


def symbols(text: str) -> int:
    """How many lexer symbols `text` has (≈ tokens)."""
    return len(_SYMBOL.findall(text))


def letter_share(text: str) -> float:
    """Share of letters among all characters, 0–1."""
    return sum(map(str.isalpha, text)) / len(text) if text else 0.0


def unit_of(unit: str) -> Unit:
    """What the repeated unit consists of."""
    characters = set(unit)
    if characters <= _SEPARATORS:
        return "separators"
    if characters <= _HEX and any(map(str.isdigit, characters)):
        return "numbers"
    digits = any(map(str.isdigit, characters))
    if any(map(str.isalpha, characters)) and not (digits and _WORD.search(unit) is None):
        return "words"
    return "numbers" if digits else "glyphs"


def machine_made(unit: str) -> bool:
    """Is it rather a record (log line, trace, address, path) than talk: more than a third digits and ASCII marks?"""
    solid = "".join(unit.split())
    words = sum(not character.isascii() or character.isalpha() for character in solid)
    return len(solid) > 8 and words * 3 < len(solid) * 2


def encoded(before: str) -> bool:
    """Does this text end inside a blob (base64, a hash, a minified path)? Long fills of one character are ordinary there."""
    tail = before[-24:]
    return (
        len(tail) == 24
        and not any(map(str.isspace, tail))
        and any(map(str.isalpha, tail))
        and _MIXED.search(before[-64:]) is not None
    )


def fence_after(text: str, fence: str = "") -> str:
    """The marks of the Markdown code fence that is open behind `text`, "" if none; `fence` was open before it.

    A fence is closed by a line of at least as many of the same marks and nothing else (CommonMark 0.31, 4.5).
    """
    for line in _FENCE.finditer(text):
        marks, rest = line.groups()
        if not fence:
            fence = marks
        elif marks[0] == fence[0] and len(marks) >= len(fence) and not rest.strip():
            fence = ""
    return fence


def context_of(recent: str, *, fenced: bool) -> Context:
    """The surroundings, by majority of the last eight non-blank lines of `recent`. `fenced`: inside a Markdown code fence."""
    if fenced:
        return "code"
    if "\n" not in recent[-_UNBROKEN:]:
        return "prose"  # one endless line is not a table and not code, whatever it looks like
    lines = [line for line in recent[-4096:].split("\n") if line and not line.isspace()][-_RECENT_LINES - 1 :]
    if len(lines) > _RECENT_LINES:
        del lines[0]  # probably cut at its beginning
    votes = {"prose": 0, "list": 0, "table": 0, "code": 0}
    for line in lines:
        votes[_line(line)] += 1
    half = len(lines) / 2
    for context in ("code", "table", "list"):
        if votes[context] >= half:
            return context
    if votes["code"] + votes["table"] >= half:
        return "table"
    if votes["list"] + votes["code"] + votes["table"] >= half or _alike(lines):
        return "list"
    return "prose"


def _line(line: str) -> Context:
    stripped = line.strip()
    if stripped[0] == "|" or stripped.count("|") >= 2 or stripped.count("\t") >= 2 or set(stripped) <= _SEPARATORS:
        return "table"
    fields = stripped.count(",") + stripped.count(";")
    if fields >= 3 and fields * 12 >= len(stripped):
        return "code" if stripped[0] in "{[(" else "table"
    if _LIST.match(line):
        return "list"
    if len(stripped) >= 32 and " " not in stripped:
        return "code"
    if stripped.endswith(_CODE_END) or _CODE_START.match(line):
        return "code"
    if line[:4] == "    " or line[0] == "\t" or (stripped[-1] == "," and line[:2] == "  "):
        return "code"
    if _RESULT.match(line):
        return "table"
    if stripped.count("  ") >= 2 or sum(map(str.isalpha, stripped)) * 2 < len(stripped):
        return "table"
    return "prose"


def _alike(lines: list[str]) -> bool:
    """At least five of the lines begin with the same eight characters."""
    starts = [line[:8] for line in lines if len(line) < _UNBROKEN]
    return any(starts.count(start) >= 5 for start in set(starts))
