from __future__ import annotations

from probes.agent.generator import generate
from probes.agent.tiers import TIERS


def test_numbers_follow_from_what_was_done_and_differ_between_instances() -> None:
    one, two = generate(TIERS[0], 1), generate(TIERS[0], 2)
    assert one.number("sha", "a", "b") == one.number("sha", "a", "b")
    assert (
        len({one.number("sha", "a", "b"), one.number("sha", "ab", ""), one.number("sha", "b", "a"), two.number("sha", "a", "b")})
        == 4
    )


def test_an_instance_says_its_own_wording() -> None:
    said = {generate(TIERS[0], seed).say("noted") for seed in range(40)}
    assert len(said) == 4
    assert generate(TIERS[1], 3).name == f"medium/{generate(TIERS[1], 3).version}/3"
