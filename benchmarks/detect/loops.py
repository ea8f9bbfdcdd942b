"""Generations that fall into a loop at a known place: a clean beginning, then one of thirteen families.

Eight are exact, five near. The loop starts at `onset` (its first copy) and goes on long enough for a model to be past help.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from benchmarks.detect.corpus import Corpus

__all__ = ["EXACT", "NEAR", "Loop", "loop"]

EXACT = ("character", "word", "phrase", "sentence", "paragraph", "code block", "list item", "JSON row")
NEAR = ("A/B", "counter", "noise 3 %", "drift 10 %", "template")


@dataclass(frozen=True)
class Loop:
    family: str
    text: str
    onset: int  # character at which the first copy starts
    unit: int  # characters of one copy (mean where copies differ)


def loop(corpus: Corpus, rng: random.Random, family: str) -> Loop:
    before = corpus.clean(rng) if rng.random() < 0.3 else corpus.prose(rng, rng.randint(200, 3000))
    before = before[:3000].rstrip()
    if before.count("```") % 2:
        before += "\n```"
    before += "\n\n" if before.endswith("```") else rng.choice(("\n\n", " "))
    unit, copies, lead = "", [], ""
    target = rng.randint(7_000, 12_000)
    if family == "character":
        unit = rng.choice(("a", "0", "!", "?", "。", "ha", "A", "1", "🙂", "е", "█", "...", "_", "="))
        lead = rng.choice(("", "So the result is "))
    elif family == "word":
        unit = _word(corpus, rng) + rng.choice((" ", ", ", "\n", ". "))
    elif family == "phrase":
        words = corpus.sentence(rng).split()
        at = rng.randrange(max(len(words) - 6, 1))
        unit = " ".join(words[at : at + rng.randint(2, 6)]) + rng.choice((" ", ", ", ". ", "\n"))
    elif family == "sentence":
        unit = corpus.sentence(rng) + rng.choice((" ", "\n", "\n\n"))
    elif family == "paragraph":
        unit = " ".join(corpus.sentence(rng) for _ in range(rng.randint(3, 8))) + "\n\n"
    elif family == "code block":
        code, language = corpus.slice(rng, "code", rng.randint(200, 1400))
        unit = (code.rsplit("\n", 1)[0] or code).rstrip().replace("```", "") + "\n\n"
        lead = f"Here is the code:\n\n```{language}\n"
    elif family == "list item":
        mark = rng.choice(("- ", "* ", "• ", "1. "))
        unit = mark + corpus.sentence(rng)[: rng.randint(20, 90)] + "\n"
    elif family == "JSON row":
        unit = f'  {{"id": {rng.randint(1, 99)}, "name": "{_word(corpus, rng)}", "value": "{_word(corpus, rng)}", "ok": true}},\n'
        lead = "```json\n[\n" if rng.random() < 0.7 else "[\n"
    elif family == "A/B":
        a, b = corpus.sentence(rng) + " ", corpus.sentence(rng) + " "
        copies = [rng.choice((a, b)) for _ in range(2 * target // (len(a) + len(b)))]
    elif family == "counter":
        words = corpus.sentence(rng).split()[: rng.randint(4, 14)]
        start, step = rng.randint(1, 40), rng.choice((1, 1, 1, 2, 5))
        shape = rng.choice(("Attempt {n}: {w}. ", "Step {n}: {w}\n", "{w} (try {n})... ", "Retry {n} of {w}; "))
        copies = [shape.format(n=start + step * i, w=" ".join(words)) for i in range(400)]
    elif family == "noise 3 %":
        sentence = (corpus.sentence(rng) + " " + (corpus.sentence(rng) if rng.random() < 0.5 else "")).split()
        copies = [" ".join(_noise(rng, word, 0.03) for word in sentence) + " " for _ in range(200)]
    elif family == "drift 10 %":
        sentence = corpus.sentence(rng).split()
        vocabulary = corpus.prose(rng, 2000).split()
        for _ in range(200):
            sentence = [rng.choice(vocabulary) if rng.random() < 0.10 else word for word in sentence]
            copies.append(" ".join(sentence) + " ")
    elif family == "template":
        vocabulary = re.findall(r"[a-z]{4,10}", corpus.prose(rng, 6000)) or ["thing"]
        words = corpus.sentence(rng).split()
        at = rng.randrange(len(words))
        copies = [" ".join([*words[:at], rng.choice(vocabulary), *words[at + 1 :]]) + " " for _ in range(200)]
    if not copies:
        copies = [unit] * max(target // len(unit), 8)
    body = "".join(copies)
    body = body[: max(target, 8 * len(copies[0]))]
    return Loop(
        family,
        before + lead + body,
        len(before) + len(lead),
        len(body) * len(copies[0]) // max(len(copies[0]) * len(copies), 1) or 1,
    )


def _word(corpus: Corpus, rng: random.Random) -> str:
    return str(rng.choice(re.findall(r"[A-Za-z]{3,12}", corpus.prose(rng, 600)) or ["word"]))


def _noise(rng: random.Random, word: str, share: float) -> str:
    if rng.random() >= share or len(word) < 2:
        return word
    at = rng.randrange(len(word))
    return rng.choice((word[:at] + word[at + 1 :], word + word[-1], word.swapcase(), rng.choice(("its", "the", "and", "so"))))
