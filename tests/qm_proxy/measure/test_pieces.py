"""The lengths of chunks' texts come back as they went in, whatever they are and however they were joined."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.measure.pieces import pack_pieces, unpack_pieces


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 70_000).map(lambda n: "x" * n), max_size=6), max_size=5))
def test_they_come_back(blocks: list[list[str]]) -> None:
    blob = b"".join(map(pack_pieces, blocks))
    assert unpack_pieces(blob) == [len(piece) for block in blocks for piece in block]


def test_code_points_are_counted_and_a_token_costs_a_byte() -> None:
    pieces = ["Hello", " ", "", "wörld", "😀"]
    assert unpack_pieces(pack_pieces(pieces)) == [5, 1, 0, 5, 1]
    assert len(pack_pieces(["token "] * 500)) == 500


def test_a_blob_cut_short_is_said() -> None:
    with pytest.raises(ValueError, match="whole last number"):
        unpack_pieces(pack_pieces(["x" * 300])[:-1])
