"""Content codings, undone on the copy only: gzip, deflate, br, zstd, and several one over another. Never raises.

Rules that hold here:

- What cannot be decoded gives nothing, and `problem` says why; the relay's bytes are not concerned.
- Bounded: a decoder gives at most `limit` bytes in all, holds a window of at most 8 MiB (RFC 9659 for zstd), and one feed
  cannot make it expand far beyond that limit: input goes in by small slices where the library has no bound of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli
import zstandard

__all__ = ["DEFAULT_LIMIT", "ContentDecoder"]

DEFAULT_LIMIT = 256 * 1024 * 1024

_ZSTD_WINDOW = 8 * 1024 * 1024
_ZSTD_SLICE = 256  # a four-byte block can stand for 128 KiB: a slice for 8 MiB at most
_BROTLI_STEP = 1024 * 1024

_ERRORS = (zlib.error, zstandard.ZstdError, brotli.error, MemoryError, ValueError)


class ContentDecoder:
    """The inverse of one Content-Encoding value ("gzip", "zstd", "gzip, br", "identity"; case and blanks do not matter).

    `problem`: None, or in words why (the rest of) the body could not be decoded.
    """

    __slots__ = ("_given", "_limit", "_steps", "problem")

    def __init__(self, encoding: str, *, limit: int = DEFAULT_LIMIT) -> None:
        self.problem: str | None = None
        self._limit = limit
        self._given = 0
        self._steps: list[_Step] = []
        for name in reversed([part.strip().lower() for part in encoding.split(",")]):
            if name in ("", "identity"):
                continue
            make = _CODINGS.get(name.removeprefix("x-"))
            if make is None:
                self.problem = f"content coding {name[:40]!r} is not known"
                self._steps = []
                return
            self._steps.append(make())

    def feed(self, data: bytes) -> bytes:
        """Take coded bytes; answer with what they decode to, as far as that is certain."""
        if self.problem is not None:
            return b""
        for step in self._steps:
            data = self._one(step.feed, data)
        if self._steps:
            self._given += len(data)
            if self._given > self._limit:
                self.problem = f"decodes to more than {self._limit} bytes"
                return b""
        return data

    def close(self) -> bytes:
        """The body is over; a coding that is not complete is a problem."""
        if self.problem is None:
            for step in self._steps:
                if not step.complete:
                    self.problem = f"{step.name} body is cut short"
                    break
        return b""

    def missed(self) -> None:
        """Bytes are missing here. A coded body cannot be decoded behind that; a plain one can."""
        if self._steps and self.problem is None:
            self.problem = "bytes are missing inside a coded body"

    def _one(self, feed: Callable[[bytes, int], bytes], data: bytes) -> bytes:
        if self.problem is not None or not data:
            return b""
        try:
            return feed(data, self._limit - self._given + 1)
        except _ERRORS as exc:
            self.problem = f"not decodable: {exc}"[:80]
            return b""


class _Step:
    """One coding. `feed(data, room)` may stop once it has given more than `room` bytes: the caller gives up then."""

    name = "coded"
    complete = True

    def feed(self, data: bytes, room: int) -> bytes:
        raise NotImplementedError


class _Zlib(_Step):
    def __init__(self, name: str, wbits: int | None) -> None:
        self.name = name
        self.complete = False
        self._wbits = wbits
        self._object = zlib.decompressobj(wbits) if wbits is not None else None
        self._start = b""

    def feed(self, data: bytes, room: int) -> bytes:
        out: list[bytes] = []
        if self._object is None:
            data = self._start + data
            if len(data) < 2:
                self._start = data
                return b""
            wrapped = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._object = zlib.decompressobj(15 if wrapped else -15)  # RFC 9110 8.4.1.2: some send it without the wrapper
        while data and room > 0:
            if self._object.eof:
                if self._wbits != 31:
                    break  # bytes after the end
                self._object = zlib.decompressobj(31)  # gzip members may follow one another
            piece = self._object.decompress(data, room)
            out.append(piece)
            room -= len(piece)
            data = self._object.unconsumed_tail or self._object.unused_data
        self.complete = self._object.eof
        return b"".join(out)


class _Brotli(_Step):
    name = "br"

    def __init__(self) -> None:
        self.complete = False
        self._object = brotli.Decompressor()

    def feed(self, data: bytes, room: int) -> bytes:
        if self._object.is_finished():
            return b""
        out: list[bytes] = []
        while room > 0:
            # Until nothing comes: can_accept_more_data() is True while output still waits (brotli 1.2.0).
            piece = self._object.process(data, output_buffer_limit=min(room, _BROTLI_STEP))
            if not piece:
                break
            out.append(piece)
            room -= len(piece)
            data = b""
        self.complete = self._object.is_finished()
        return b"".join(out)


class _Zstd(_Step):
    name = "zstd"

    def __init__(self) -> None:
        self.complete = False
        self._object = self._new()

    def feed(self, data: bytes, room: int) -> bytes:
        out: list[bytes] = []
        at = 0
        while at < len(data) and room > 0:
            piece = data[at : at + _ZSTD_SLICE]
            at += len(piece)
            while piece:
                if self._object.eof:
                    self._object = self._new()  # frames may follow one another
                got = self._object.decompress(piece)
                out.append(got)
                room -= len(got)
                piece = self._object.unused_data
        self.complete = self._object.eof
        return b"".join(out)

    @staticmethod
    def _new() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


_CODINGS: dict[str, Callable[[], _Step]] = {
    "gzip": lambda: _Zlib("gzip", 31),
    "deflate": lambda: _Zlib("deflate", None),
    "br": _Brotli,
    "zstd": _Zstd,
}
