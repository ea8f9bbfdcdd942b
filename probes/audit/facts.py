"""Fresh facts to hide and to ask for: nothing in them can be known beforehand, and each is scored by exact form.

A `Trial` is one fact instance with its question; where it is hidden is the haystack's concern. Families:

- literal: asked with the words it was told in (the floor)
- paraphrase: needs one hop of common knowledge; question and fact share no content word (checked by `shared_words`)
- multikey: several look-alike facts, one is asked
- conflict: a value was revised; the current one is asked, the old one is "stale"
- chain: three registers that point at each other, spread over the depth
- code: a default argument in one of many generated modules, asked through its call
- absent: the fact is not there; saying so is right
- instruction: the task itself is hidden in the padding and asks for one tool call (the origin's test)
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from probes.padding import invented_name

__all__ = ["FAMILIES", "PLACES", "Family", "Needle", "Trial", "make_trial", "secret_code", "shared_words"]

Family = Literal["literal", "paraphrase", "multikey", "conflict", "chain", "code", "absent", "instruction", "header"]
FAMILIES: tuple[Family, ...] = get_args(Family)

_CODE_LETTERS = "2346789BCDFGHJKMNPQRTVWXYZ"  # no vowels: a code spells no word; no 0/O, 1/I/L, 5/S
CODE_FORM = re.compile(r"(?<![A-Z0-9])[2346789BCDFGHJKMNPQRTVWXYZ]{4}-[2346789BCDFGHJKMNPQRTVWXYZ]{3}(?![A-Z0-9])")
NUMBER_FORM = re.compile(r"(?<![\d.,])\d{7}(?![\d.,]\d|\d)")

PLACES: tuple[tuple[str, str], ...] = (
    ("the Eiffel Tower", "France"),
    ("the Colosseum", "Italy"),
    ("Machu Picchu", "Peru"),
    ("the Taj Mahal", "India"),
    ("the Acropolis", "Greece"),
    ("Mount Fuji", "Japan"),
    ("Petra", "Jordan"),
    ("Angkor Wat", "Cambodia"),
    ("the Brandenburg Gate", "Germany"),
    ("the Sagrada Familia", "Spain"),
    ("Table Mountain", "South Africa"),
    ("the Sydney Opera House", "Australia"),
    ("the Forbidden City", "China"),
    ("Hagia Sophia", "Turkey"),
    ("Chichen Itza", "Mexico"),
    ("the Atomium", "Belgium"),
    ("the Matterhorn", "Switzerland"),
    ("the Burj Khalifa", "the United Arab Emirates"),
    ("the Great Sphinx", "Egypt"),
    ("the Geirangerfjord", "Norway"),
    ("the Blue Lagoon near Reykjavik", "Iceland"),
    ("Charles Bridge in Prague", "the Czech Republic"),
    ("the Kremlin", "Russia"),
    ("Stonehenge", "England"),
)
"""Landmark and country: the one hop. Common knowledge in every model that speaks English."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence to hide. `order`: where among its siblings (chains and revisions must keep theirs); 0–1."""

    text: str
    order: float = 0.5


@dataclass(frozen=True, slots=True)
class Trial:
    """One question with its one right answer."""

    family: Family
    needles: tuple[Needle, ...]
    question: str
    answer: str  # "" when the right answer is that it is not stated
    distractors: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    form: re.Pattern[str] = field(default=CODE_FORM)


def secret_code(draw: random.Random) -> str:
    """26^7 possibilities, 33 bits: cannot be guessed."""
    letters = "".join(draw.choice(_CODE_LETTERS) for _ in range(7))
    return f"{letters[:4]}-{letters[4:]}"


def make_trial(family: Family, seed: int | str) -> Trial:
    """A fresh instance; the same seed gives the same one."""
    draw = random.Random(f"fact/{family}/{seed}")
    return _MAKERS[family](draw)


def shared_words(first: str, second: str) -> set[str]:
    """Content words that two texts share: what a lexical search could match on."""
    return _content(first) & _content(second)


_FUNCTION_WORDS = (
    "a an and any are as at be by does did for from has have in is it its me most no not of on or same that the their them there "
    "these they this to until was were what when which who whose with your value code"
)
_EMPTY = frozenset(_FUNCTION_WORDS.split(" "))


def _content(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]{2,}", text.lower()) if word not in _EMPTY}


def _literal(draw: random.Random) -> Trial:
    service, code = invented_name(draw), secret_code(draw)
    return Trial(
        "literal",
        (Needle(f"The rollback code for service {service} is {code}."),),
        f"What is the rollback code for service {service}?",
        code,
    )


def _multikey(draw: random.Random) -> Trial:
    names = _distinct(draw, draw.randint(4, 8))
    codes = [secret_code(draw) for _ in names]
    needles = tuple(
        Needle(f"The rollback code for service {name} is {code}.", draw.random()) for name, code in zip(names, codes, strict=True)
    )
    asked = draw.randrange(len(names))
    others = tuple(code for index, code in enumerate(codes) if index != asked)
    return Trial("multikey", needles, f"What is the rollback code for service {names[asked]}?", codes[asked], others)


def _absent(draw: random.Random) -> Trial:
    names = _distinct(draw, 5)
    codes = [secret_code(draw) for _ in names[1:]]
    needles = tuple(
        Needle(f"The rollback code for service {name} is {code}.", draw.random())
        for name, code in zip(names[1:], codes, strict=True)
    )
    return Trial("absent", needles, f"What is the rollback code for service {names[0]}?", "", tuple(codes))


def _conflict(draw: random.Random) -> Trial:
    service, old, new = invented_name(draw), secret_code(draw), secret_code(draw)
    return Trial(
        "conflict",
        (
            Needle(f"The rollback code for service {service} is {old}.", 0.0),
            Needle(f"Revision: from now on the rollback code for service {service} is {new}; the earlier one is void.", 1.0),
        ),
        f"What is the current rollback code for service {service}?",
        new,
        stale=(old,),
    )


def _chain(draw: random.Random) -> Trial:
    names = _distinct(draw, 6)
    code, other = secret_code(draw), secret_code(draw)
    needles = (
        Needle(f"Register {names[0]} holds the same value as register {names[1]}.", draw.random()),
        Needle(f"Register {names[1]} holds the same value as register {names[2]}.", draw.random()),
        Needle(f"Register {names[2]} holds {code}.", draw.random()),
        Needle(f"Register {names[3]} holds the same value as register {names[4]}.", draw.random()),
        Needle(f"Register {names[4]} holds {other}.", draw.random()),
    )
    question = f"Follow the registers: which value does register {names[0]} hold in the end?"
    return Trial("chain", needles, question, code, (other,))


def _paraphrase(draw: random.Random) -> Trial:
    chosen = draw.sample(PLACES, 3)
    codes = [secret_code(draw) for _ in chosen]
    needles = tuple(
        Needle(f"The crew that photographed {place} carries {code}.", draw.random())
        for (place, _), code in zip(chosen, codes, strict=True)
    )
    question = f"Which identifier belongs to the team whose pictures show {chosen[0][1]}?"
    return Trial("paraphrase", needles, question, codes[0], tuple(codes[1:]))


def _code(draw: random.Random) -> Trial:
    names = _distinct(draw, 4)
    values = [str(draw.randint(1_000_000, 9_999_999)) for _ in names]
    needles = tuple(
        Needle(f"\ndef open_{name}(path: str, lease: int = {value}):\n    return connect(path, lease)\n", draw.random())
        for name, value in zip(names, values, strict=True)
    )
    question = f"The call open_{names[0]}('main') leaves out `lease`. Which value does `lease` then have?"
    return Trial("code", needles, question, values[0], tuple(values[1:]), form=NUMBER_FORM)


def _instruction(draw: random.Random) -> Trial:
    service, code = invented_name(draw), secret_code(draw)
    return Trial(
        "instruction",
        (Needle(f"TASK: restart service {service} with ticket {code}. Call the right tool now."),),
        "",
        code,
        form=CODE_FORM,
    )


def _header(draw: random.Random) -> Trial:
    return Trial("header", (), "What is the header tag in the first line of the material?", secret_code(draw))


def _distinct(draw: random.Random, n: int) -> list[str]:
    names: list[str] = []
    while len(names) < n:
        if (name := invented_name(draw)) not in names:
            names.append(name)
    return names


_MAKERS = {
    "literal": _literal,
    "paraphrase": _paraphrase,
    "multikey": _multikey,
    "conflict": _conflict,
    "chain": _chain,
    "code": _code,
    "absent": _absent,
    "instruction": _instruction,
    "header": _header,
}
