"""JSON as Go writes it and refuses it."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.sim.gojson import BadJson, decode, encode, float32, number, quote

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=150)
@given(TEXT)
def test_a_quoted_text_reads_back(text: str) -> None:
    quoted = quote(text)
    assert json.loads(quoted) == text
    assert not set(quoted) & set("<>&\u2028\u2029\n\r\t")


@settings(max_examples=150)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))
)
def test_a_document_reads_back_in_its_order(value: object) -> None:
    assert json.loads(encode(value)) == value
    assert json.loads(encode(value, ordered=False)) == value
    if isinstance(value, dict):
        assert list(json.loads(encode(value))) == list(value)
        assert list(json.loads(encode(value, ordered=False))) == sorted(value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1.0, "1"), (0.5, "0.5"), (-2.25, "-2.25"), (1e-6, "0.000001"), (6.1035e-05, "0.000061035"), (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"), (1e16, "10000000000000000"), (1e20, "100000000000000000000"), (1e21, "1e+21"), (2.5e22, "2.5e+22"),
        (1e-10, "1e-10"), (0.1, "0.1"), (123456789.125, "123456789.125"), (7, "7"), (0.0, "0"),
    ],
)  # fmt: skip
def test_floats(value: float, written: str) -> None:
    assert number(value) == written
    assert float(written) == value


def test_float_that_json_cannot_say() -> None:
    with pytest.raises(BadJson):
        number(float("nan"))


@settings(max_examples=150)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_is_short_and_exact(value: float) -> None:
    written = float32(value)
    assert struct.pack("f", float(written)) == struct.pack("f", value) or float(written) == value == 0
    assert len(written.lstrip("-").replace(".", "").strip("0")) <= 13


@pytest.mark.parametrize(
    ("value", "written"), [(0.1, "0.1"), (1 / 3, "0.33333334"), (2**24, "16777216"), (0.0047586667, "0.0047586667")]
)
def test_float32_of_known_values(value: float, written: str) -> None:
    assert float32(value) == written


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model":', "unexpected EOF"),
        (b'{"model":"x', "unexpected EOF"),
        (b"  ", "EOF"),
        (b'{"a":}', "invalid character '}' looking for beginning of value"),
        (b"{a:1}", "invalid character 'a' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'["a]b" 2]', "invalid character '2' after array element"),
        (b"\x1f\x8b", "invalid character '\\x1f' looking for beginning of value"),
        (b"nope", "invalid character 'n' looking for beginning of value"),
        (b"[" * 100_000, "json: exceeded max depth"),
    ],
)
def test_refusals_in_gos_words(body: bytes, said: str) -> None:
    with pytest.raises(BadJson) as refused:
        decode(body)
    assert str(refused.value) == said


def test_what_follows_the_first_document_is_not_read() -> None:
    assert decode(b' {"a":1} trailing') == {"a": 1}
