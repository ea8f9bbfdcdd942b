"""Bodies → records, at any cut: NDJSON lines and server-sent events.

Rules that hold here:

- Only the unfinished record is kept, and no byte is searched twice.
- A record longer than `MAX_RECORD` comes out as None, once, and costs nothing but the passing of its bytes.
- Lines end at LF, in bytes: a text's U+2028 or U+0085 is no line end. CR LF (and CR, in server-sent events) is read too.
- Sources: WHATWG HTML, "Server-sent events", section 9.2.6; ndjson.org.
"""

from __future__ import annotations

__all__ = ["COMMENT", "MAX_RECORD", "Lines", "ServerSent", "Whole"]

MAX_RECORD = 8 * 1024 * 1024
"""Bytes of one record, or of a whole body that is read at its end."""

COMMENT = b":"
"""The event name under which a comment line comes out (a keep-alive); no real event can have it."""

_BOM = b"\xef\xbb\xbf"


class _Held:
    """The unfinished line: pieces, joined once. Beyond the limit only its length is kept."""

    __slots__ = ("pieces", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= MAX_RECORD:
            self.pieces.append(piece)
        else:
            self.pieces.clear()

    def take(self, rest: bytes) -> bytes | None:
        """The whole line, ended by `rest`; None when it was too long."""
        size = self.size + len(rest)
        line = None if size > MAX_RECORD else b"".join((*self.pieces, rest))
        self.drop()
        return line

    def drop(self) -> None:
        self.pieces.clear()
        self.size = 0


class Lines(_Held):
    """NDJSON: non-blank lines, with or without their line end (JSON does not care). `size`: bytes held of an unfinished one."""

    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes | None]:
        """Take bytes; answer with the lines they complete."""
        *whole, rest = data.split(b"\n")
        lines: list[bytes | None] = []
        for line in whole:
            complete = self.take(line) if self.size else line if len(line) <= MAX_RECORD else None
            if complete is None or complete.strip():
                lines.append(complete)
        if rest:
            self.add(rest)
        return lines

    def close(self) -> list[bytes | None]:
        """The body is over; a last line without its line end comes out."""
        if not self.size:
            return []
        line = self.take(b"")
        return [line] if line is None or line.strip() else []

    def missed(self) -> None:
        """Bytes are missing here: what was held is no record's beginning any more."""
        self.drop()


class Whole(Lines):
    """A body that is one record, however many lines it has."""

    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes | None]:
        if data:
            self.add(data)
        return []


class ServerSent:
    """Server-sent events as (name, data); data None: it was too long. Comments come out as (COMMENT, b"").

    Beyond the specification: a last event without its blank line comes out at the end (as the SDKs read it), llama.cpp's
    former `error:` field is data, and so is a bare JSON line (an error that a server wrote into an event stream).
    """

    __slots__ = ("_cr", "_data", "_fresh", "_held", "_idle", "_name", "_size", "_touched")

    def __init__(self) -> None:
        self._held = _Held()
        self._cr = False  # the last byte was a CR that ended a line: an LF that follows belongs to it
        self._fresh = True  # no line yet: a byte order mark may come
        self._touched = False  # an event has begun
        self._idle = True  # nothing is held and no event has begun
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bytes | None]]:
        """Take bytes; answer with the events they complete."""
        if self._idle and 13 not in data and len(data) <= MAX_RECORD:
            # The two shapes that an event has when a server flushes each: a quarter of the general way's time.
            line, _, rest = data.partition(b"\n")
            if rest == b"\n":
                if line.startswith(b"data: "):
                    self._fresh = False
                    return [(b"", line[6:])]
            elif line.startswith(b"event: "):
                second, _, rest = rest.partition(b"\n")
                if rest == b"\n" and second.startswith(b"data: "):
                    self._fresh = False
                    return [(line[7:], second[6:])]
        if self._cr and data:
            self._cr = False
            if data[0] == 10:
                data = data[1:]
        if b"\r" in data:
            self._cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = data.split(b"\n")
        events: list[tuple[bytes, bytes | None]] = []
        for line in whole:
            self._line(self._held.take(line), events)
        if rest:
            self._held.add(rest)
        self._idle = not (rest or self._held.size or self._touched or self._cr)
        return events

    @property
    def idle(self) -> bool:
        """Whether nothing is held and no event has begun."""
        return self._idle

    def record(self, body: bytes) -> bytes | None:
        """The data of a read that is one whole event, of a line of data, or of a line with its name and one of data. None where
        it is not so: then nothing was taken."""
        if not self._idle or body[-2:] != b"\n\n" or 13 in body:
            return None
        if body[:6] == b"data: ":
            record = body[6:-2]
        elif body[:7] == b"event: ":
            name, _, record = body[:-2].partition(b"\ndata: ")
            if b"\n" in name:
                return None
        else:
            return None
        if b"\n" in record or len(record) > MAX_RECORD:
            return None
        self._fresh = False
        return record

    def close(self) -> list[tuple[bytes, bytes | None]]:
        """The body is over."""
        events: list[tuple[bytes, bytes | None]] = []
        if self._held.size:
            self._line(self._held.take(b""), events)
        self._line(b"", events)
        return events

    def missed(self) -> None:
        """Bytes are missing here: what was held is no event's beginning any more."""
        self._held.drop()
        self._cr = False
        self._idle = True
        self._reset()

    def _line(self, line: bytes | None, events: list[tuple[bytes, bytes | None]]) -> None:
        if self._fresh and line is not None:
            line = line.removeprefix(_BOM)
        self._fresh = False
        if line == b"":
            if self._size > MAX_RECORD:
                events.append((self._name, None))
            elif self._data:
                events.append((self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
            if self._touched:
                self._reset()
            return
        self._touched = True
        if line is None:
            self._add(None)
        elif line.startswith(b"data:"):
            self._add(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            self._name = line[6:].strip(b" ")
        elif line.startswith(b":"):
            events.append((COMMENT, b""))
        elif line.startswith(b"error:"):
            self._name = b"error"
            self._add(line[6:])
        elif line.startswith(b"{"):
            events.append((b"", line))

    def _add(self, piece: bytes | None) -> None:
        self._size += MAX_RECORD + 1 if piece is None else len(piece) + 1
        if piece is not None and self._size <= MAX_RECORD:
            self._data.append(piece)
        else:
            self._data.clear()

    def _reset(self) -> None:
        self._touched = False
        self._name = b""
        self._data = []
        self._size = 0
