"""The origin's numbers from its runs: tiers, verdict and hardware class by its own rules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from probes.agent.compat import CompatTally
from probes.agent.origin import aggregate, compat_rows, headline, ram_class
from probes.hardware import describe
from probes.result import Host

Run = Callable[..., CompatTally]


def test_the_posts_numbers_are_measured(compat: Run) -> None:
    tally = compat("post")
    rows, values = compat_rows(tally, describe("apple:64GiB"))
    shown = {row.name: row.theirs for row in rows}
    print(shown)
    assert shown["Easy tier"].startswith("100 % (Pass^5), 1.8 steps")
    assert shown["Medium tier"] == shown["Extreme tier"] == "NOT TESTED"
    assert shown["Hard tier"].startswith("0 % (Pass^16), 7.4 steps")
    assert shown["Failure taxonomy"] == "InfiniteLoop 83 % (53), Hallucinated 17 % (11) of 64"
    assert shown["Verdict"] == "CONDITIONAL: clears through Easy; falls off at Hard"
    assert shown["Hardware"] == "Workstation, HW recommends HARD"
    assert values["hard_failures"] == 64


def test_copies_are_counted(compat: Run) -> None:
    found = aggregate(compat("looper", "hard"), "hard")
    assert found is not None
    assert (found.runs, found.distinct) == (64, 4)
    rows, _ = compat_rows(compat("looper", "hard"), Host())
    assert any(row.note is not None and "copies" in row.note for row in rows)


def test_their_verdict_by_contiguous_clears(compat: Run) -> None:
    easy, hard = (aggregate(compat("oracle", tier), tier) for tier in ("easy", "hard"))
    failed = {tier: aggregate(compat("looper", tier), tier) for tier in ("easy", "hard")}
    assert easy is not None
    assert hard is not None
    assert headline([easy, hard])[0] == "READY"
    words = {headline([a, b])[0] for a, b in combinations([t for t in (easy, failed["hard"]) if t is not None], 2)}
    assert words == {"CONDITIONAL"}
    assert headline([t for t in failed.values() if t is not None])[0] == "NOT READY"
    assert headline([])[0] == "NOT READY"


def test_their_hardware_class_is_by_ram() -> None:
    classes = {"cpu:15GiB": "Constrained", "cpu:16GiB": "Mainstream", "apple:96GiB": "Workstation", "apple:97GiB": "Frontier"}
    for told, expected in classes.items():
        found = ram_class(describe(told))
        assert found is not None
        assert found[0] == expected
    assert ram_class(Host()) is None
