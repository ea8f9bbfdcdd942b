"""How long the text of each chunk is, packed beside the captured text: so that one can be found in the other later.

    blob = varint*        characters (code points) of each chunk's text, in order; LEB128: 7 bits a byte, lowest first

One byte a chunk, as a rule. Kept only where the text itself is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["pack_pieces", "unpack_pieces"]

_ONE_BYTE = 0x80


def pack_pieces(pieces: Sequence[str]) -> bytes:
    """The lengths of these texts; blobs may be joined end to end."""
    lengths = list(map(len, pieces))
    if max(lengths, default=0) < _ONE_BYTE:
        return bytes(lengths)
    packed = bytearray()
    for length in lengths:
        while length >= _ONE_BYTE:
            packed.append(length & 0x7F | _ONE_BYTE)
            length >>= 7
        packed.append(length)
    return bytes(packed)


def unpack_pieces(blob: bytes) -> list[int]:
    """The lengths. Raises `ValueError` when the last one is cut short."""
    lengths: list[int] = []
    value = shift = 0
    for byte in blob:
        value |= (byte & 0x7F) << shift
        if byte < _ONE_BYTE:
            lengths.append(value)
            value = shift = 0
        else:
            shift += 7
    if shift:
        raise ValueError(f"Expected a whole last number; found {shift // 7} of its bytes.")
    return lengths
