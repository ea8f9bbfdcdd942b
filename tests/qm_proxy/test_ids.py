from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.ids import Ids, new_id, unix_ms_of


def test_is_a_uuid_of_version_7_that_bears_its_time() -> None:
    found = uuid.UUID(new_id(1_800_000_000_123_456_789))
    assert found.version == 7
    assert found.variant == uuid.RFC_4122
    assert unix_ms_of(str(found)) >= 1_800_000_000_123


@given(st.lists(st.integers(0, 2**60), min_size=2, max_size=50))
def test_grows_whatever_the_wall_clock_does(times: list[int]) -> None:
    ids = Ids()
    made = [ids.new(t) for t in times]
    assert made == sorted(set(made))
    assert all(uuid.UUID(i).version == 7 and uuid.UUID(i).variant == uuid.RFC_4122 for i in made)


def test_many_in_one_millisecond_keep_order_and_time() -> None:
    ids = Ids()
    made = [ids.new(5_000_000) for _ in range(20_000)]
    assert made == sorted(set(made))
    assert unix_ms_of(made[-1]) == 5


def test_a_full_millisecond_borrows_the_next() -> None:
    ids = Ids()
    first = ids.new(7_000_000)
    ids._tail = (1 << 74) - 1
    following = ids.new(7_000_000)
    assert unix_ms_of(first) == 7
    assert unix_ms_of(following) == 8
    assert following > first


@pytest.mark.parametrize("text", ["", "x", str(uuid.uuid4()), new_id(0).replace("-", ""), "g" * 8 + new_id(0)[8:]])
def test_refuses_what_is_no_uuid7(text: str) -> None:
    with pytest.raises(ValueError):
        unix_ms_of(text)
