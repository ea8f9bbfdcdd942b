"""The Protocol of a dialect's decoder: bytes of a response body in, events out. No I/O, no clock.

A decoder gets the *decoded* body (chunk framing and content coding already removed), cut anywhere, each piece with the
time of the read it came from. The same body gives the same events however it was cut, but for their times: a record
bears the time of the read that completed it.

By the time `close` has answered, there was exactly one `Finished` or one `Cut`.
"""

from __future__ import annotations

from typing import Protocol

from qm_proxy.events import Deltas, Ending, Event, Nanoseconds, TextDelta, ThinkingDelta
from qm_proxy.wire.replies import Standing

__all__ = ["Decoder"]


class Decoder(Protocol):
    def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
        """Take the next bytes of the body; answer with the events they complete. Never raises."""

    def deltas(self, kind: type[TextDelta | ThinkingDelta], bodies: list[bytes], t_ns: list[Nanoseconds]) -> Deltas | None:
        """The same for several reads, where each holds one whole record that says one more delta of the kind before. None where
        it is not so: then nothing was taken, and `feed` takes them."""

    def missed(self, n_bytes: int, t_ns: Nanoseconds) -> list[Event]:
        """`n_bytes` of the body are not in the copy. Answers with `Missed`, drops the unfinished record, reads on at the next."""

    def close(self, ending: Ending, t_ns: Nanoseconds) -> list[Event]:
        """The body is over. `ending` "complete" means the HTTP framing ended cleanly; the decoder answers with `Finished`
        (a whole non-streamed answer), or `Cut` when its dialect's terminal record is missing."""

    def standing(self) -> Standing:
        """What a terminal record of ours must repeat (replies.clean_end)."""
