"""Text to fill a context with: four registers from a seeded grammar, never looped, so that no line stands out by being new.

`paragraphs(register, seed)` is endless; the same seed gives the same text. Two paragraphs of one text share no sentence
(checked by test over 250 kB). The words are our own; names are invented from syllables, so no fact in it can be known.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal, get_args

__all__ = ["GRAMMAR_VERSION", "REGISTERS", "Register", "fill", "invented_name", "nonce", "paragraphs", "repetition"]

GRAMMAR_VERSION = "1"
"""Part of every score: another grammar is another test."""

Register = Literal["policy", "logs", "ledger", "code"]
REGISTERS: tuple[Register, ...] = get_args(Register)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.replace("\n", " ").split("|"))


_ONSET = _words("b br c ch d dr f fl g gl h j k kl l m n p pl qu r s sh sk sl st t th tr v w y z")
_VOWEL = _words("a e i o u ai ea oa ou")
_CODA = _words("b d g k l ll m n nd nt p r rn s sk st t th x")

_DEPARTMENTS = _words("""procurement facilities treasury compliance logistics payroll recruiting security engineering support
marketing legal audit operations research training insurance travel archives quality maintenance catering fleet
licensing translation accessibility sustainability reception publishing""")
_DUTIES = _words("""record review approve archive reconcile escalate document inspect renew withdraw publish schedule verify
circulate countersign catalogue summarise forward retain restrict consolidate register acknowledge annotate""")
_THINGS = _phrases("""invoices vendor contracts|access requests|visitor badges|expense claims|training certificates|retention
schedules|incident summaries|parking permits|purchase orders|meeting minutes|equipment loans|leave balances|shift
rosters|cleaning rotas|insurance renewals|signed waivers|delivery notes|room bookings|safety drills|customer
complaints|warranty claims|relocation grants|mentoring plans|translation drafts|energy readings|press
enquiries|stationery orders|keyholder lists|bicycle storage forms|catering budgets|archive boxes|survey
responses|fire door checks|supplier ratings|laboratory keys|laptop returns|courier receipts""")
_WHEN = _phrases("""before the week ends|within nine business days|on each first weekday|after the second reminder|at every
quarter's close|no later than noon|during the handover|once the draft is complete|while a deputy is away|by the same evening|after
an inspection|when the regional lead agrees|ahead of stocktaking|between the two reviews""")
_UNLESS = _phrases("""unless exempted in writing|with two colleagues present|except where law forbids|even for small amounts
|keeping one copy|without waiting for anyone|and inform the requester|but for nobody else|as questions may follow|since delays
were common|from the temporary office|stating the reason plainly|until the form changes|and thank those who helped""")
_OPENERS = _phrases("""As a rule,|In practice,|For clarity,|Where space allows,|By agreement,|In most regions,|On request,
|After the merger,|Under the older scheme,|For temporary staff,|At smaller sites,|When in doubt,|During renovations,|Since the
last revision,|To avoid queues,""")

_LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR", "TRACE")
_COMPONENTS = _words("""scheduler gateway indexer mailer cache replicator ingest billing search session router sampler compactor
watcher exporter planner notifier balancer thumbnailer archiver resolver throttle""")
_ACTIONS = _words("""accepted rejected flushed rotated merged skipped delayed retried completed dropped expired renewed split
promoted demoted drained paused resumed refreshed evicted queued""")
_SUBJECTS = _words("""batch lease shard snapshot cursor partition upload manifest heartbeat token page segment bucket worker
request transaction checkpoint replica stream socket""")

_ACCOUNTS = _phrases("""Freight|Office rent|Consulting|Licences|Utilities|Travel|Hardware|Catering|Insurance|Advertising|Repairs
|Training|Postage|Cleaning|Translation|Security|Cloud hosting|Furniture|Printing|Recruiting""")
_MEMOS = _phrases("""part delivery|second instalment|corrected after audit|quarterly share|deposit returned|late fee waived|split
with branch|paid in advance|disputed line|framework discount|final invoice|currency adjusted|goods
returned|annual plan|emergency order|shared cost""")

_VERBS = _words("""load parse merge encode resolve filter collect render balance prune index replay sample fold quantise align
route compact rank score""")
_NOUNS = _words("""ledger frame packet record window bucket cursor graph batch vector label route segment token matrix signal
column snapshot queue digest""")
_TYPES = ("int", "float", "str", "bytes", "bool", "list[int]", "dict[str, int]", "tuple[int, ...]")


def invented_name(draw: random.Random, syllables: int = 2) -> str:
    """A pronounceable name that means nothing: "quillby", "thornask"."""
    return "".join(draw.choice(_ONSET) + draw.choice(_VOWEL) for _ in range(syllables - 1)) + (
        draw.choice(_ONSET) + draw.choice(_VOWEL) + draw.choice(_CODA)
    )


def nonce(draw: random.Random, length: int = 10) -> str:
    """Characters that no earlier prompt began with, so that no cached prefix fits."""
    return "".join(draw.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(length))


def paragraphs(register: Register, seed: int | str) -> Iterator[str]:
    """Endless paragraphs, each ending in a newline."""
    draw = random.Random(f"{GRAMMAR_VERSION}/{register}/{seed}")
    make = _MAKERS[register]
    number = 0
    while True:
        number += 1
        yield make(draw, number)


def fill(register: Register, seed: int | str, n_characters: int) -> list[str]:
    """Paragraphs of exactly `n_characters` in all; the last one is cut at that length."""
    found: list[str] = []
    left = n_characters
    for paragraph in paragraphs(register, seed):
        if left <= 0:
            break
        if len(paragraph) > left:
            paragraph = paragraph[: max(0, left - 1)] + "\n"
        found.append(paragraph)
        left -= len(paragraph)
    return found


def repetition(text: str, n: int = 8) -> float:
    """Share of word n-grams that occurred before in `text`: 0 for fresh prose, near 1 for a looped paragraph."""
    words = text.split()
    grams = [tuple(words[index : index + n]) for index in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _policy(draw: random.Random, number: int) -> str:
    sentences = []
    for _ in range(draw.randint(3, 6)):
        who = draw.choice(
            (
                f"the {draw.choice(_DEPARTMENTS)} desk in {invented_name(draw).title()}",
                f"every {draw.choice(_DEPARTMENTS)} lead",
                f"{invented_name(draw).title()} {invented_name(draw).title()} of {draw.choice(_DEPARTMENTS)}",
                f"the {invented_name(draw).title()} committee",
                f"a colleague from {draw.choice(_DEPARTMENTS)}",
            )
        )
        act = f"{draw.choice(('must', 'should', 'is asked to', 'may', 'will'))} {draw.choice(_DUTIES)} {draw.choice(_THINGS)}"
        more = draw.choice(_THINGS)
        tail = draw.choice(
            (
                f"{draw.choice(_WHEN)} at {invented_name(draw).title()}, {draw.choice(_UNLESS)}",
                f"{draw.choice(_WHEN)} for the {invented_name(draw).title()} building",
                f"with {more} from {invented_name(draw).title()}, {draw.choice(_WHEN)}",
                f"and {draw.choice(_DUTIES)} {more} above {draw.randint(20, 990)} {draw.choice(('items', 'pages'))}",
            )
        )
        opener = f"{draw.choice(_OPENERS)} " if draw.random() < 0.4 else ""
        sentence = f"{opener}{who} {act} {tail}."
        sentences.append(sentence[0].upper() + sentence[1:])
    return f"{number}.{draw.randint(1, 9)} {' '.join(sentences)}\n"


def _logs(draw: random.Random, number: int) -> str:
    lines = []
    second = number * 7 % 86_400
    for _ in range(draw.randint(4, 8)):
        second = (second + draw.randint(0, 2)) % 86_400
        clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{draw.randint(0, 999):03d}"
        where, subject = f"{draw.choice(_COMPONENTS)}-{invented_name(draw)}", draw.choice(_SUBJECTS)
        action, name = draw.choice(_ACTIONS), invented_name(draw)
        what = draw.choice(
            (
                f"{subject} {nonce(draw, 6)} {action} after {draw.randint(1, 900)} ms",
                f"{action} {draw.randint(2, 400)} of {draw.randint(400, 9000)} {subject}s for {name}",
                f"peer 10.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)} {action} the {subject}",
                f"{subject} depth {draw.randint(0, 99)} on {name}, next check in {draw.randint(2, 90)} s",
            )
        )
        lines.append(f"{clock} {draw.choice(_LEVELS):5} [{where}] {what}")
    return "\n".join(lines) + "\n"


def _ledger(draw: random.Random, number: int) -> str:
    lines = []
    for line in range(draw.randint(4, 8)):
        amount = f"{draw.randint(3, 98_000):,}.{draw.randint(0, 99):02d}"
        party = f"{invented_name(draw).title()} {draw.choice(('Ltd', 'GmbH', 'SA', 'Bros', 'Works', 'Partners'))}"
        day = f"{draw.randint(1, 28):02d}/{draw.randint(1, 12):02d}"
        lines.append(
            f"{day};{number}-{line};{draw.choice(_ACCOUNTS)};{party};{draw.choice(('debit', 'credit'))};{amount};"
            f"{draw.choice(_MEMOS)}, {invented_name(draw)}"
        )
    return "\n".join(lines) + "\n"


def _code(draw: random.Random, number: int) -> str:
    noun, verb, other = draw.choice(_NOUNS), draw.choice(_VERBS), draw.choice(_NOUNS)
    name = f"{verb}_{noun}_{invented_name(draw)}"
    first, second = invented_name(draw), invented_name(draw)
    kind = draw.choice(_TYPES)
    limit, step = draw.randint(2, 999), draw.randint(2, 64)
    body = draw.choice(
        (
            f"    {first} = [{second} * {step} for {second} in range({limit})]\n    return sum({first}) % {draw.randint(3, 97)}",
            f"    if len({first}) > {limit}:\n        raise ValueError('{noun} {invented_name(draw)} too long')\n"
            f"    return {first}[:{step}]",
            f"    {second} = {{}}\n    for place, part in enumerate({first}):\n"
            f"        {second}.setdefault(part, []).append(place + {step})\n    return {second}",
            f"    while {first} and {second} < {limit}:\n        {second} += {step}\n"
            f"        {first} = {first} >> {draw.randint(1, 5)}\n    return {second}",
        )
    )
    comment = f'    """{verb.title()} the {other} of {invented_name(draw)}; see {draw.choice(_NOUNS)} {number}."""'
    return f"\ndef {name}({first}: {kind}, {second}: int = {draw.randint(0, 512)}):\n{comment}\n{body}\n"


_MAKERS: dict[Register, Callable[[random.Random, int], str]] = {
    "policy": _policy,
    "logs": _logs,
    "ledger": _ledger,
    "code": _code,
}
