"""Hard negatives: clean text that repeats for good reasons. Each generator is one kind; all are seeded by the caller's `rng`."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable

__all__ = ["HARD"]


def _list(words: str) -> list[str]:
    return words.split()


_NOUNS = _list(
    "server client token window model prompt buffer socket thread signal cache queue timer record field layer header "
    "cursor page table index shard replica lease quota budget ticket invoice parcel harbor bridge garden engine pump "
    "valve turbine meadow kitchen lantern violin"
)
_VERBS = _list(
    "open close check update remove insert verify collect measure compare restart deploy publish archive rename inspect"
)
_ADJECTIVES = _list(
    "small large stable broken quick silent bright final local remote early late empty ready shared frozen hidden open"
)
_NAMES = _list(
    "Anna Boris Chen Dalia Emeka Farah Goran Hana Igor Jun Kemal Lena Marco Nadia Omar Petra Quinn Rosa Sven Tariq "
    "Uma Vera Wei Yara"
)
_CITIES = _list(
    "Oslo Lima Cairo Quito Riga Perth Delhi Hanoi Turin Kyoto Accra Bergen Tallinn Porto Gdansk Leeds Dakar Minsk Sofia Davao"
)


def _words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(rng.choice((_NOUNS, _VERBS, _ADJECTIVES))) for _ in range(n))


def _table(rng: random.Random) -> str:
    columns = rng.randint(2, 6)
    head = "| " + " | ".join(rng.choice(_NOUNS).title() for _ in range(columns)) + " |\n"
    rule = "|" + "---|" * columns + "\n"
    values = rng.choice((("yes", "no"), ("N/A", "-", "0"), ("pass",), ("high", "medium", "low"), tuple(map(str, range(100)))))
    rows = "".join(
        f"| {rng.choice(_NOUNS)} | " + " | ".join(rng.choice(values) for _ in range(columns - 1)) + " |\n"
        for _ in range(rng.randint(8, 60))
    )
    return f"Here is the comparison:\n\n{head}{rule}{rows}"


def _csv(rng: random.Random) -> str:
    rows = "".join(
        f"{i},{rng.choice(_NAMES)},{rng.choice(_CITIES)},{rng.choice(('true', 'false'))},0.00,0.00,0.00\n"
        for i in range(rng.randint(20, 120))
    )
    return _maybe_fence(rng, "id,name,city,active,a,b,c\n" + rows, "csv")


def _json_rows(rng: random.Random) -> str:
    status = rng.choice(("ok", "pending", "active"))
    rows = ",\n".join(
        f'  {{"id": {i}, "name": "{rng.choice(_NAMES)}", "status": "{status}", "tags": [], "parent": null}}'
        for i in range(rng.randint(10, 80))
    )
    return _maybe_fence(rng, f"[\n{rows}\n]\n", "json")


def _base64(rng: random.Random) -> str:
    raw = bytes(rng.randrange(256) for _ in range(rng.randint(200, 2000))) + b"\0" * rng.choice((0, 0, 60, 150))
    text = base64.b64encode(raw).decode()
    return _maybe_fence(rng, "\n".join(text[i : i + 76] for i in range(0, len(text), 76)), "")


def _zeros(rng: random.Random) -> str:
    n, m = rng.randint(4, 16), rng.randint(4, 20)
    rows = ",\n".join("  [" + ", ".join(rng.choice(("0", "0", "0", "0", "1")) for _ in range(m)) + "]" for _ in range(n))
    return _maybe_fence(rng, f"grid = [\n{rows}\n]\n", "python")


def _test_boilerplate(rng: random.Random) -> str:
    out = []
    for _ in range(rng.randint(6, 25)):
        name, value = f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}", rng.choice(_NOUNS)
        out.append(
            f"    def test_{name}(self):\n        result = self.client.{name}('{value}')\n"
            "        self.assertEqual(result.status, 200)\n        self.assertIsNone(result.error)\n"
        )
    return _maybe_fence(rng, "class TestApi(TestCase):\n" + "\n".join(out), "python")


def _rules(rng: random.Random) -> str:
    mark = rng.choice(("-", "=", "*", "#", "─", "~", "_"))
    width = rng.randint(60, 160)
    return "\n".join(f"{mark * width}\n{_words(rng, rng.randint(2, 30))}" for _ in range(rng.randint(2, 8)))


def _poem(rng: random.Random) -> str:
    refrain = "\n".join(_words(rng, rng.randint(4, 7)).capitalize() + "," for _ in range(rng.choice((1, 2, 4))))
    return "\n\n".join(
        "\n".join(_words(rng, 6).capitalize() for _ in range(4)) + "\n" + refrain for _ in range(rng.randint(3, 8))
    )


def _lyrics(rng: random.Random) -> str:
    hook = _words(rng, rng.randint(2, 5))
    chorus = "\n".join([hook.capitalize()] * rng.choice((2, 3)) + [_words(rng, 6)])
    verses = []
    for i in range(rng.randint(2, 4)):
        verses.append(f"[Verse {i + 1}]\n" + "\n".join(_words(rng, 7).capitalize() for _ in range(4)) + f"\n\n[Chorus]\n{chorus}")
    return "\n\n".join(verses)


def _bullets(rng: random.Random) -> str:
    vocabulary = [rng.choice(_NOUNS + _VERBS + _ADJECTIVES) for _ in range(25)]
    return "\n".join(
        "- " + " ".join(rng.choice(vocabulary) for _ in range(rng.randint(2, 6))) for _ in range(rng.randint(15, 80))
    )


def _shared_prefix(rng: random.Random) -> str:
    prefix = "The " + _words(rng, rng.randint(4, 8)) + " for "
    return "\n".join(f"{i + 1}. {prefix}{_words(rng, rng.randint(1, 3))}." for i in range(rng.randint(10, 50)))


def _progress(rng: random.Random) -> str:
    n = rng.randint(20, 90)
    return "\n".join(
        f"[{i * 100 // n:3d}%] Building CXX object src/CMakeFiles/{rng.choice(_NOUNS)}.dir/{rng.choice(_VERBS)}.cpp.o"
        for i in range(n)
    )


def _bars(rng: random.Random) -> str:
    return "\n".join(
        f"Epoch {i}/20 [{'=' * i}{'.' * (20 - i)}] loss: {rng.random():.4f} acc: {rng.random():.4f}" for i in range(1, 21)
    )


def _checklist(rng: random.Random) -> str:
    return "\n".join(f"- [{rng.choice(' x')}] {rng.choice(_VERBS)} the {rng.choice(_NOUNS)}" for _ in range(rng.randint(10, 60)))


def _box(rng: random.Random) -> str:
    width = rng.randint(20, 70)
    top, side = "+" + "-" * width + "+", "|" + " " * width + "|"
    return _maybe_fence(rng, "\n".join([top] + [side] * rng.randint(2, 7) + [top]), "")


def _contents(rng: random.Random) -> str:
    lines = []
    for i in range(1, rng.randint(10, 50)):
        title = f"{i}. {_words(rng, rng.randint(2, 5)).title()} "
        lines.append(title.ljust(70, ".") + f" {i * 7}")
    return "\n".join(lines)


def _inserts(rng: random.Random) -> str:
    rows = [
        f"INSERT INTO users (id, name, city, created_at) VALUES ({i}, '{rng.choice(_NAMES)}', '{rng.choice(_CITIES)}', NOW());"
        for i in range(rng.randint(10, 60))
    ]
    return _maybe_fence(rng, "\n".join(rows), "sql")


def _emphasis(rng: random.Random) -> str:
    word = rng.choice(("no", "yes", "ha", "very", "really", "go", "please", "la", "boo", "wow"))
    shout = (word + rng.choice((" ", "! ", ", ", ""))) * rng.randint(3, 10)
    emoji = rng.choice(("🎉", "🔥", "❤️", "😂", "!", "?", "...")) * rng.randint(1, 20)
    return f"{_words(rng, 20).capitalize()}. {shout.strip().capitalize()} {emoji} {_words(rng, 30)}."


def _music(rng: random.Random) -> str:
    bars = [
        " ".join("".join(rng.choice("ABCDEFGabcdefg") + rng.choice(("", "2", "/2")) for _ in range(4)) for _ in range(2))
        for _ in range(4)
    ]
    lines = ["| " + " | ".join(rng.choice(bars) for _ in range(4)) + " |" for _ in range(rng.randint(6, 16))]
    return _maybe_fence(rng, "X:1\nT:Reel\nM:4/4\nL:1/8\nK:G\n" + "\n".join(lines), "abc")


def _art(rng: random.Random) -> str:
    cells = rng.choice((" .:-=+*#%@", "⠀⠁⠃⠇⡇⣿⣶⣤", "░▒▓█ ", " /\\_|"))
    return _maybe_fence(
        rng, "\n".join("".join(rng.choice(cells) for _ in range(rng.randint(20, 60))) for _ in range(rng.randint(8, 24))), ""
    )


def _dna(rng: random.Random) -> str:
    return "\n".join("".join(rng.choice("ACGT") for _ in range(60)) for _ in range(rng.randint(5, 30)))


def _directions(rng: random.Random) -> str:
    turn = ("Turn left", "Turn right", "Continue straight", "Take the exit", "Keep right")
    return "\n".join(
        f"{i + 1}. {rng.choice(turn)} onto {rng.choice(_CITIES)} {rng.choice(('St', 'Ave', 'Rd'))}"
        f" and drive {rng.random() * 3:.1f} miles."
        for i in range(rng.randint(8, 40))
    )


def _hashtags(rng: random.Random) -> str:
    return f"{_words(rng, 25)}\n\n" + " ".join(
        "#" + rng.choice(_ADJECTIVES) + rng.choice(_NOUNS).title() for _ in range(rng.randint(10, 60))
    )


def _hexdump(rng: random.Random) -> str:
    lines = []
    for i in range(rng.randint(8, 50)):
        row = bytes(rng.choice((0, 0, 0, rng.randrange(256))) for _ in range(16))
        lines.append(f"{i * 16:08x}  {row.hex(' ')}  |{''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}|")
    return _maybe_fence(rng, "\n".join(lines), "")


def _log(rng: random.Random) -> str:
    kinds = [f"{rng.choice(('INFO', 'WARN', 'DEBUG'))} {rng.choice(_NOUNS)}: {_words(rng, rng.randint(3, 8))}" for _ in range(4)]
    return _maybe_fence(
        rng,
        "\n".join(
            f"2026-11-0{rng.randint(1, 9)}T12:{i % 60:02d}:{rng.randint(0, 59):02d}Z {rng.choice(kinds)}"
            for i in range(rng.randint(10, 70))
        ),
        "",
    )


def _css(rng: random.Random) -> str:
    rule = "  margin: 0;\n  padding: 0;\n  border: none;\n"
    return _maybe_fence(
        rng, "\n".join(f".{rng.choice(_NOUNS)}-{i} {{\n{rule}  width: {i * 5}px;\n}}\n" for i in range(rng.randint(6, 25))), "css"
    )


def _html(rng: random.Random) -> str:
    cells = "".join(
        f'  <li class="item"><a href="#{rng.choice(_NOUNS)}">{rng.choice(_NOUNS).title()}</a></li>\n'
        for _ in range(rng.randint(8, 50))
    )
    return _maybe_fence(rng, f'<ul class="menu">\n{cells}</ul>', "html")


def _yaml(rng: random.Random) -> str:
    services = "".join(
        f"  {rng.choice(_NOUNS)}{i}:\n    image: registry/{rng.choice(_NOUNS)}:latest\n"
        "    restart: always\n    environment:\n      - LOG=info\n"
        for i in range(rng.randint(4, 20))
    )
    return _maybe_fence(rng, "services:\n" + services, "yaml")


def _diff(rng: random.Random) -> str:
    hunks = []
    for i in range(rng.randint(3, 15)):
        old, new = rng.choice(_NOUNS), rng.choice(_NOUNS)
        hunks.append(
            f"@@ -{i * 9},3 +{i * 9},3 @@\n"
            f"     def {rng.choice(_VERBS)}(self):\n-        return self.{old}\n+        return self.{new}\n "
        )
    return _maybe_fence(rng, "\n".join(hunks), "diff")


def _profiles(rng: random.Random) -> str:
    out = []
    for name in rng.sample(_NAMES, rng.randint(4, 14)):
        out.append(
            f"**{name}** lives in {rng.choice(_CITIES)} and works as a"
            f" {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} engineer. {_words(rng, 18).capitalize()}."
        )
    return "\n\n".join(out)


def _counting(rng: random.Random) -> str:
    separator = rng.choice((", ", "\n", " ", ",\n"))
    return "Here are the numbers:\n" + separator.join(map(str, range(1, rng.randint(60, 400))))


def _times(rng: random.Random) -> str:
    n = rng.randint(2, 19)
    return "\n".join(f"{n} x {i} = {n * i}" for i in range(1, rng.randint(12, 60)))


def _schedule(rng: random.Random) -> str:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    meals = [_words(rng, 3) for _ in range(5)]
    return "\n\n".join(
        f"### {day}\n- Breakfast: {rng.choice(meals)}\n- Lunch: {rng.choice(meals)}"
        f"\n- Dinner: {rng.choice(meals)}\n- Snack: fruit"
        for day in days
    )


def _tree(rng: random.Random) -> str:
    return _maybe_fence(
        rng,
        "src\n"
        + "\n".join(
            f"│   {'│   ' * rng.randint(0, 2)}├── {rng.choice(_NOUNS)}_{rng.choice(_VERBS)}.py"
            for _ in range(rng.randint(10, 60))
        ),
        "",
    )


def _chess(rng: random.Random) -> str:
    def move() -> str:
        return rng.choice(("", "N", "B", "R", "Q", "K")) + rng.choice("abcdefgh") + rng.choice("12345678")

    return " ".join(f"{i}. {move()} {move()}" for i in range(1, rng.randint(20, 70)))


def _exercise(rng: random.Random) -> str:
    step = f"Hold for {rng.randint(10, 40)} seconds, then rest."
    return "\n".join(f"{i}. {_words(rng, 3).capitalize()} stretch. {step}" for i in range(1, rng.randint(6, 16)))


def _dialogue(rng: random.Random) -> str:
    a, b = rng.sample(_NAMES, 2)
    return "\n\n".join(
        f'"{_words(rng, rng.randint(2, 14)).capitalize()}," said {rng.choice((a, b))}.' for _ in range(rng.randint(10, 50))
    )


def _asserts(rng: random.Random) -> str:
    call = f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}"
    return _maybe_fence(
        rng,
        "\n".join(f"assert {call}({rng.randint(0, 99)}) == {rng.randint(0, 99)}" for _ in range(rng.randint(8, 50))),
        "python",
    )


def _maybe_fence(rng: random.Random, text: str, language: str) -> str:
    lead = f"{_words(rng, rng.randint(5, 30)).capitalize()}:\n\n"
    return f"{lead}```{language}\n{text}\n```\n{_words(rng, 12)}." if rng.random() < 0.65 else lead + text


HARD: dict[str, Callable[[random.Random], str]] = {
    name.removeprefix("_"): make
    for name, make in list(globals().items())
    if name.startswith("_") and callable(make) and name not in ("_list", "_words", "_maybe_fence")
    if not name.startswith("__")
}
