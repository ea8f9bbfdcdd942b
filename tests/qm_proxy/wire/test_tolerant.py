"""What strict JSON readers refuse and clients read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_proxy.wire.tolerant import REFUSED, compact, evidence, tolerant


class Record(msgspec.Struct):
    text: str = ""
    value: Any = None


@pytest.mark.parametrize(
    ("raw", "text", "value"),
    [
        (b'{"text":"a\\ud83db"}', "a\ufffdb", None),
        (b'{"text":"\\ud83d\\ude42"}', "🙂", None),
        (b'{"text":"a\xff"}', "a\ufffd", None),
        (b'{"text":"x","value":NaN}', "x", None),
        (b'{"text":"x","value":[-Infinity,1]}', "x", [None, 1]),
    ],
)
def test_read(raw: bytes, text: str, value: object) -> None:
    found = tolerant(raw, Record)
    assert found is not None
    assert (found.text, found.value) == (text, value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'{"text":1}', b"[" * 100_000])
def test_not_read(raw: bytes) -> None:
    assert tolerant(raw, Record) is None


def test_compact_keeps_order_and_gives_up_on_depth() -> None:
    assert compact({"b": [1, "é"], "a": None}) == '{"b":[1,"é"],"a":null}'
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert compact(deep) == ""
    while deep:  # a deep list cannot be freed by recursion either
        deep = deep[0]


@given(st.binary(max_size=40).map(lambda b: b'{"text":"' + b + b'"}'))
def test_refused_names_all_that_msgspec_raises(raw: bytes) -> None:
    try:
        msgspec.json.decode(raw, type=Record)
    except REFUSED:
        tolerant(raw, Record)


@given(st.binary(max_size=300))
def test_evidence_is_short_text(raw: bytes) -> None:
    assert len(evidence(raw)) <= 80
