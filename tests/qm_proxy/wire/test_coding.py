"""Content codings on the copy: right at any cut, bounded against bombs, never an exception."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.wire.coding import ContentDecoder

TEXT = b'{"model":"m","messages":[{"role":"user","content":"' + "é🙂 words ".encode() * 300 + b'"}]}'


def _two_frames(data: bytes) -> bytes:
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:99], data[99:]))


def _raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "two gzip members": ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    "deflate": ("deflate", zlib.compress),
    "deflate, unwrapped": ("deflate", _raw_deflate),
    "br": ("br", lambda data: bytes(brotli.compress(data, quality=4))),
    "zstd": ("zstd", lambda data: zstandard.ZstdCompressor().compress(data)),
    "two zstd frames": (
        "zstd",
        lambda data: b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:99], data[99:])),
    ),
    "gzip, br": ("gzip, br", lambda data: bytes(brotli.compress(gzip.compress(data), quality=4))),
    "identity": ("identity", bytes),
    "": ("", bytes),
}


def decode(encoding: str, *pieces: bytes, limit: int = 1 << 24) -> tuple[bytes, str | None]:
    decoder = ContentDecoder(encoding, limit=limit)
    out = b"".join(decoder.feed(piece) for piece in pieces) + decoder.close()
    return out, decoder.problem


@pytest.mark.parametrize("name", CODINGS)
def test_whole_and_byte_by_byte(name: str) -> None:
    encoding, encode = CODINGS[name]
    coded = encode(TEXT)
    assert decode(encoding, coded) == (TEXT, None)
    assert decode(encoding, *[coded[i : i + 1] for i in range(len(coded))]) == (TEXT, None)


@pytest.mark.parametrize("name", CODINGS)
def test_a_large_body_in_one_feed(name: str) -> None:
    encoding, encode = CODINGS[name]
    large = random.Random(1).randbytes(1000) * 5000
    assert decode(encoding, encode(large)) == (large, None)


@pytest.mark.parametrize("name", ["gzip", "deflate", "deflate, unwrapped", "br", "zstd", "gzip, br"])
def test_a_body_cut_short_gives_what_is_certain_and_says_so(name: str) -> None:
    encoding, encode = CODINGS[name]
    out, problem = decode(encoding, encode(TEXT)[:-6])
    assert TEXT.startswith(out)
    assert problem is not None
    assert "cut short" in problem


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_garbage_is_a_problem_not_an_exception(encoding: str) -> None:
    _, problem = decode(encoding, b"\xff\xfe garbage that is no such thing \x00" * 20, b"more")
    assert problem is not None
    assert len(problem) <= 80


def test_an_unknown_coding() -> None:
    out, problem = decode("snappy", b"x")
    assert out == b""
    assert problem is not None
    assert "snappy" in problem


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_bomb_is_bounded(name: str) -> None:
    encoding, encode = CODINGS[name]
    bomb = encode(bytes(16 << 20))
    decoder = ContentDecoder(encoding, limit=1 << 20)
    given_back = sum(len(decoder.feed(bomb[i : i + 65536])) for i in range(0, len(bomb), 65536))
    assert given_back <= 1 << 20
    assert decoder.problem is not None
    assert "more than" in decoder.problem
    assert decoder.feed(bomb) == b""


def test_a_zstd_window_beyond_8_mib_is_refused() -> None:
    """RFC 9659: no more may be asked of a receiver."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    coder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    coded = coder.compress(bytes(1000)) + coder.flush()
    assert decode("zstd", coded)[1] is not None


def test_bytes_after_the_end_do_no_harm() -> None:
    assert decode("deflate", zlib.compress(TEXT) + b"tail", b"more") == (TEXT, None)
    assert decode("br", brotli.compress(TEXT), b"tail") == (TEXT, None)


def test_a_gap_ends_a_coded_body_and_not_a_plain_one() -> None:
    coded = ContentDecoder("gzip")
    coded.feed(gzip.compress(TEXT)[:20])
    coded.missed()
    assert coded.problem is not None
    assert coded.feed(b"x") == b""
    plain = ContentDecoder("identity")
    plain.missed()
    assert plain.feed(b"x") == b"x"


@settings(max_examples=60)
@given(st.sampled_from(sorted(CODINGS)), st.binary(max_size=3000), st.lists(st.integers(0, 10**6), max_size=10))
def test_any_cut_gives_the_same_bytes(name: str, data: bytes, marks: list[int]) -> None:
    encoding, encode = CODINGS[name]
    coded = encode(data)
    edges = [0, *sorted({mark % (len(coded) + 1) for mark in marks}), len(coded)]
    assert decode(encoding, *[coded[a:b] for a, b in pairwise(edges)]) == (data, None)


@settings(max_examples=100)
@given(
    st.text(max_size=30) | st.sampled_from(["gzip", "deflate", "br", "zstd", "zstd, gzip"]),
    st.lists(st.binary(max_size=60), max_size=6),
)
def test_never_raises(encoding: str, pieces: list[bytes]) -> None:
    decode(encoding, *pieces)
