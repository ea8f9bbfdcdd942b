"""The context window's arithmetic, as observed on a real server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.sim.window import TOO_LONG, TooLong, cut_length, fit_messages, fit_prompt, generation_limit


@pytest.mark.parametrize(("keep", "left"), [(0, 257), (1, 257), (4, 259), (24, 269), (300, 407), (600, 511), (-1, 511)])
def test_cut_lengths_of_512_with_bos(keep: int, left: int) -> None:
    assert sum(cut_length(512, keep, bos=True)) == left


@pytest.mark.parametrize(("window", "left"), [(512, 259), (2048, 1027), (4096, 2051)])
def test_default_cut_of_other_windows(window: int, left: int) -> None:
    assert sum(cut_length(window, 4, bos=True)) == left


def fit(tokens: int, window: int = 512, **switches: bool) -> int:
    stated: dict[str, bool] = {"truncate": True, "shift": True, "bos": True, "native": False} | switches
    return fit_prompt(tokens, tokens * 4, window, num_keep=4, **stated).tokens


def test_one_less_than_the_window_fits() -> None:
    assert fit(511) == 511
    assert fit(512) == 259
    assert fit(5000) == 259


def test_refusals() -> None:
    for switches in ({"truncate": False}, {"truncate": False, "shift": False}, {"native": True}):
        with pytest.raises(TooLong, match=r"request \(701 tokens\) exceeds the available context size \(512 tokens\)"):
            fit(701, **switches)
    with pytest.raises(TooLong) as plain:
        fit(701, shift=False)
    assert str(plain.value) == TOO_LONG


def test_one_byte_per_token_exactly_full_is_refused() -> None:
    with pytest.raises(TooLong):
        fit_prompt(512, 512, 512, truncate=True, shift=True, num_keep=4, bos=True, native=False)


@settings(max_examples=100)
@given(st.integers(16, 100_000), st.integers(-1, 2000), st.booleans())
def test_a_cut_prompt_always_fits(window: int, keep: int, bos: bool) -> None:
    first, last = cut_length(window, keep, bos=bos)
    assert first >= 0
    assert last >= 0
    assert first + last < window


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@settings(max_examples=100)
@given(st.lists(st.tuples(ROLES, st.integers(1, 200)), min_size=1, max_size=30), st.integers(50, 2000))
def test_dropping_takes_the_oldest_and_no_more_than_needed(messages: list[tuple[str, int]], window: int) -> None:
    roles = [r for r, _ in messages]

    def count(kept: object) -> int:
        return sum(messages[i][1] for i in kept)  # type: ignore[attr-defined]

    kept = fit_messages(roles, window, count)
    last = len(messages) - 1
    assert last in kept
    assert all(i in kept for i, role in enumerate(roles) if role == "system")
    gone = [i for i in range(len(messages)) if i not in kept]
    droppable = [i for i in range(last) if roles[i] != "system"]
    assert gone == droppable[: len(gone)]
    if gone:
        assert count([*kept, gone[-1]]) > window
    if len(gone) < len(droppable):
        assert count(kept) <= window


def test_generation_limits() -> None:
    assert generation_limit(-1, 512) == 5120
    assert generation_limit(100, 512) == 100
    assert generation_limit(9999, 512) == 5120
