"""Text of this machine, by kind, in two halves: what a clean answer of a model may look like, and what loops are made of.

Paths are discovered at run time and differ between machines; nothing found is stored. A file belongs to the half that the
hash of its path says, so no file is in both. Kinds that a machine lacks are left out (and said by `Corpus.kinds`).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["HALVES", "Corpus", "chunks", "symbols_of"]

HALVES = ("dev", "test")

_PER_KIND = 400  # files of one kind and half
_READ = 60_000  # characters of one file
_SCAN = 60_000  # directory entries looked at under one root

_LANGUAGE = {
    ".py": "python",
    ".c": "c",
    ".h": "c",
    ".js": "javascript",
    ".pm": "perl",
    ".pl": "perl",
    ".css": "css",
    ".vim": "vim",
}
_CODE = tuple(_LANGUAGE)
_DATA = (".json", ".xml", ".yaml", ".yml", ".svg", ".conf", ".ini", ".toml", ".desktop")
_DOCUMENT = (".md", ".rst", ".txt", ".pod")

_ROFF_LINE = re.compile(r"^[.'][\w\\].*$", re.M)
_ROFF_MACRO = re.compile(r"^[.'](?:SH|SS|TP|IP|B|I|BR|IR|RB|Sh|Ss|It|Nd|Nm|Fl|Ar)\s*(.*)$", re.M)
_ROFF_ESCAPE = re.compile(r"\\(?:f[A-Z]|f\[\w*\]|\*\(..|\((?:..)|[&|%c/e]|s[-+]?\d)")
_FILL = re.compile(r"([^\s])\1{1500}")
_SYMBOL = re.compile(r"[ \t]*[^\W\d_]{1,16}|[ \t]*\d{1,8}|\n{1,8}|[ \t]+|([^\w\s]|_)\1{0,15}|\s")


class Corpus:
    """The texts of one half. `limit` caps the files per kind (a small one is read in a second)."""

    def __init__(self, half: str, limit: int = _PER_KIND) -> None:
        want = HALVES.index(half)
        paths: dict[str, list[tuple[bytes, Path]]] = {}
        for path in _files():
            kind = _kind(path)
            digest = hashlib.sha256(str(path).encode("utf-8", "replace")).digest()
            if kind is not None and digest[0] & 1 == want:
                paths.setdefault(kind, []).append((digest, path))
        self._texts: dict[str, list[str]] = {}
        self._code_language: dict[int, str] = {}
        self.dropped = 0
        """Files left out because they are loops themselves, by an oracle that shares nothing with the detector."""
        for kind, found in sorted(paths.items()):
            texts = []
            for _, path in sorted(found)[:limit]:
                text = _read(path)
                if len(text) >= 400 and _is_loop(text):
                    self.dropped += 1
                elif len(text) >= 400:
                    texts.append(text)
                    self._code_language[id(text)] = _LANGUAGE.get(path.suffix, path.suffix.lstrip("."))
            if texts:
                self._texts[kind] = texts

    @property
    def kinds(self) -> dict[str, int]:
        """Files read, by kind."""
        return {kind: len(texts) for kind, texts in self._texts.items()}

    def slice(self, rng: random.Random, kind: str, size: int) -> tuple[str, str]:
        """A piece of about `size` characters that starts at a line, and its language."""
        text = rng.choice(self._texts.get(kind) or self._texts[next(iter(self._texts))])
        at = rng.randrange(max(len(text) - size, 1))
        start = text.find("\n", at) + 1 if at else 0
        return text[start : start + size], self._code_language[id(text)]

    def prose(self, rng: random.Random, size: int) -> str:
        """Running text, re-wrapped to paragraphs as a model writes it."""
        kinds: list[str] = [kind for kind in ("document", "licence", "manual") if kind in self._texts] or list(self._texts)
        text, _ = self.slice(rng, rng.choice(kinds), size * 2)
        paragraphs = [" ".join(part.replace("```", "").split()) for part in re.split(r"\n\s*\n", text)]
        paragraphs = [part for part in paragraphs if len(part) > 60 and sum(map(str.isalpha, part)) > len(part) * 0.6]
        return "\n\n".join(paragraphs)[:size] or " ".join(text.split())[:size]

    def sentence(self, rng: random.Random) -> str:
        for _ in range(20):
            for sentence in re.findall(r"[A-Z][^.!?\n]{40,180}[.!?]", self.prose(rng, 1500)):
                return str(sentence)
        return "The quick answer is that the value depends on the setting of the server and on the client."

    def clean(self, rng: random.Random) -> str:
        """One clean answer: one to three sections of this machine's text, code and data in fences more often than not."""
        sections = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(list(self._texts))
            size = min(int(rng.lognormvariate(7.2, 0.9)) + 150, 20_000)
            if kind in ("code", "test", "data"):
                text, language = self.slice(rng, kind, size)
                if rng.random() < 0.7:
                    text = f"{self.sentence(rng)}\n\n```{language}\n{text}\n```\n"
                sections.append(text)
            elif kind in ("document", "licence") and rng.random() < 0.6:
                sections.append(self.prose(rng, size))
            else:
                sections.append(self.slice(rng, kind, size)[0])
        return "\n\n".join(sections)


def symbols_of(text: str) -> list[str]:
    """The lexer's symbols of a text: what stands for tokens where no tokenizer is at hand (about 3.4 characters each)."""
    return [match.group() for match in _SYMBOL.finditer(text)]


def chunks(rng: random.Random, text: str) -> list[str]:
    """Cut a text as a model streams it: four of five pieces are one symbol, the others two to four."""
    pieces = symbols_of(text)
    out, at = [], 0
    while at < len(pieces):
        n = 1 if rng.random() < 0.8 else rng.randint(2, 4)
        out.append("".join(pieces[at : at + n]))
        at += n
    return out


def _is_loop(text: str) -> bool:
    """Four adjacent equal blocks of 1 to 60 lines and 200 characters or more, or one character more than 1 500 times on end."""
    if _FILL.search(text):
        return True
    raw = text.encode("utf-8", "replace")
    windows = (raw[at : at + 8192] for at in range(0, len(raw), 8192))
    if all(len(window) < 5 * len(zlib.compress(window, 1)) for window in windows):
        return False  # four copies would show
    lines = [line for line in text.split("\n") if line.strip()]
    for period in range(1, min(60, len(lines) // 4) + 1):
        run = size = 0
        for at in range(period, len(lines)):
            run, size = (run + 1, size + len(lines[at])) if lines[at] == lines[at - period] else (0, 0)
            if run >= 3 * period and size >= 600:
                return True
    return False


def _roots() -> list[Path]:
    paths = sysconfig.get_paths()
    fixed = [
        "/usr/share/doc",
        "/usr/share/man",
        "/usr/share/common-licenses",
        "/usr/share/perl",
        "/usr/include",
        "/usr/share/vim",
        "/usr/share/icons",
    ]
    roots = [Path(paths["stdlib"]), Path(paths["purelib"]), Path(sys.prefix, "share"), *map(Path, fixed)]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


def _files() -> Iterator[Path]:
    for root in _roots():
        left = _SCAN
        for folder, folders, names in os.walk(root):
            folders.sort()
            if root.name != "site-packages" and "site-packages" in folders:
                folders.remove("site-packages")
            for name in sorted(names):
                yield Path(folder, name)
            left -= len(names)
            if left < 0:
                break


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    parts = path.parts
    if "man" in parts and name.endswith(".gz"):
        section = path.parent.name
        language = path.parent.parent.name
        return ("manual" if language == "man" else "foreign") if section.startswith("man") else None
    stem, suffix = name.removesuffix(".gz"), Path(name.removesuffix(".gz")).suffix
    if stem in ("copyright", "license", "copying", "license.txt") or "common-licenses" in parts:
        return "licence"
    if stem.startswith(("changelog", "news", "changes")):
        return "changelog"
    if name.endswith(".gz") and suffix not in _DOCUMENT:
        return None
    if stem == "metadata" or stem.startswith("readme") or suffix in _DOCUMENT:
        return "document"
    if suffix in _CODE:
        return "test" if suffix == ".py" and ("test" in stem or "tests" in parts or "test" in parts) else "code"
    return "data" if suffix in _DATA else None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > 4_000_000:
            return ""
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                raw = file.read(_READ * 2)
        else:
            raw = path.read_bytes()[: _READ * 2]
    except (OSError, EOFError):
        return ""
    if b"\0" in raw[:1024]:
        return ""
    text = raw.decode("utf-8", "replace")[:_READ]
    if path.suffix == ".gz" and "man" in path.parts:
        text = _ROFF_LINE.sub("", _ROFF_MACRO.sub(r"\1", text))
        text = _ROFF_ESCAPE.sub("", text).replace("\\-", "-").replace("\\ ", " ")
    return text
