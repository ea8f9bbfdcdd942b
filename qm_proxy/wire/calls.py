"""Tool calls that arrive in pieces → whole ones, in the order in which they began. Bounded."""

from __future__ import annotations

from collections.abc import Hashable

from qm_proxy.events import Event, Malformed, Nanoseconds, ToolArguments, ToolCall
from qm_proxy.wire.framing import MAX_RECORD

__all__ = ["OpenCalls"]

_MAX_OPEN = 1024


class _Open:
    __slots__ = ("call_id", "index", "name", "pieces", "size")

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self.call_id = call_id
        self.name = name
        self.pieces: list[str] = []
        self.size = 0


class OpenCalls:
    """The calls of one answer. `key` is the dialect's own handle (an index, an item id); numbers are ours, from 0."""

    __slots__ = ("_next", "_open")

    def __init__(self) -> None:
        self._open: dict[Hashable, _Open] = {}
        self._next = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._open

    def whole(self, out: list[Event], t_ns: Nanoseconds, call_id: str, name: str, arguments: str) -> int:
        """A call that came in one record; answers with its number."""
        out.append(ToolCall(t_ns, self._next, call_id, name, arguments))
        self._next += 1
        return self._next - 1

    def begin(self, key: Hashable, call_id: str, name: str) -> None:
        """A call is announced; what was open under `key` is forgotten."""
        if len(self._open) < _MAX_OPEN:
            self._open[key] = _Open(self._next, call_id, name)
            self._next += 1

    def id_of(self, key: Hashable) -> str | None:
        call = self._open.get(key)
        return None if call is None else call.call_id

    def name(self, key: Hashable, call_id: str, name: str) -> None:
        """Learn id and name that come later than the call's beginning."""
        call = self._open.get(key)
        if call is not None:
            call.call_id = call.call_id or call_id
            call.name = call.name or name

    def add(self, out: list[Event], t_ns: Nanoseconds, key: Hashable, fragment: str) -> None:
        """The next piece of its arguments. Pieces of a call that was never announced open one without a name."""
        if key not in self._open:
            self.begin(key, "", "")
        call = self._open.get(key)
        if call is None:
            return
        out.append(ToolArguments(t_ns, call.index, fragment))
        call.size += len(fragment)
        if call.size <= MAX_RECORD:
            call.pieces.append(fragment)
        else:
            call.pieces.clear()

    def end(self, out: list[Event], t_ns: Nanoseconds, key: Hashable, arguments: str | None = None) -> None:
        """The call is complete. `arguments`: as the server repeats them; else the pieces, or "{}" when none came."""
        call = self._open.pop(key, None)
        if call is None:
            return
        if call.size > MAX_RECORD:
            out.append(Malformed(t_ns, f"tool arguments longer than {MAX_RECORD // 1024**2} MiB"))
            return
        text = arguments or "".join(call.pieces) or "{}"
        out.append(ToolCall(t_ns, call.index, call.call_id, call.name, text, not call.size))

    def end_all(self, out: list[Event], t_ns: Nanoseconds) -> None:
        """The answer is complete, so its calls are."""
        for key in list(self._open):
            self.end(out, t_ns, key)
