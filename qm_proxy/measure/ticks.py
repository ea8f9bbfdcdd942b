"""When each chunk of an answer came, and when the client had taken it: kept compactly while the stream runs.

Rules that hold here:

- A chunk is a record with text, thinking or (a piece of) a tool call. Chunks of one read share its stamp: they are coalesced, and
  between them is no gap.
- A gap across a pause of the client, a sleep of the machine or bytes that were not copied is in the series, not in `gaps`.
- What a slow client took late is known by the next sign that it had caught up (TCP keeps order): an upper bound.
- Kept per chunk: 4 bytes (arrival 2, lag 2), and for the first 2 048 gaps 4 more, for exact quantiles. Beside that a block of
  64 reads in the making, some 20 bytes each: packing them together costs a third of packing each.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from qm_proxy.events import Event, TextDelta, ThinkingDelta, ToolArguments, ToolCall
from qm_proxy.measure.quantiles import Running, Sampled
from qm_proxy.measure.series import RESOLUTION_NS, UNKNOWN, Arrivals, Lags
from qm_proxy.record import Chunks

__all__ = ["MAX_RUNS", "Ticks"]

MAX_RUNS = 4096
"""Runs of one kind of chunk that are told apart; an answer that alternates more often than that ends in one run "mixed"."""
_BLOCK = 64
_UNTOLD = 0xFFFF_FFFF  # of a read in the block: nobody told yet when the client took it
_LABELS: dict[type, str] = {TextDelta: "text", ThinkingDelta: "thinking", ToolArguments: "tool", ToolCall: "tool"}


class Ticks:
    """Fed in order: for each read `written`, then the events it completed; pauses and sleeps as they come; `close` at the end."""

    __slots__ = (
        "_arrivals",
        "_behind",
        "_kind",
        "_lags",
        "_read_lags",
        "_reads",
        "_run_start",
        "_skip_gap",
        "_slow_since",
        "_suspended",
        "_times",
        "_undivided_pause",
        "_untold_from",
        "_waited",
        "_waiting",
        "_was_written",
        "first_chunk_ns",
        "first_content_ns",
        "first_ns",
        "gaps",
        "gaps_left_out",
        "inner_pause_ns",
        "kinds",
        "longest_at",
        "longest_lag_ns",
        "overheads",
        "paused_ns",
        "taken_ns",
    )

    def __init__(self, first_ns: int) -> None:
        """`first_ns`: the request's first byte, the zero of everything."""
        self.first_ns = first_ns
        self.first_chunk_ns: int | None = None
        self.first_content_ns: int | None = None  # first chunk that is not thinking
        self.kinds: list[tuple[str, int]] = []
        self.gaps = Running()  # ns, between chunks of different reads
        self.gaps_left_out = 0
        self.longest_at = 0  # index of the chunk after the longest gap
        self.overheads = Sampled()  # ns, read → written, of chunks that did not wait for the client
        self.longest_lag_ns: int | None = None
        self.paused_ns = 0  # upstream was not read because the client did not take
        self.inner_pause_ns = 0  # the part of it that lies between chunks
        self.taken_ns: int | None = None  # when the client last had taken all that was read
        self._kind: type | None = None
        self._run_start = 0
        self._arrivals = Arrivals(first_ns)
        self._times = array("q")  # of the block: arrivals of chunks …
        self._reads = array("q")  # … and of reads, each with its lag …
        self._read_lags = array("I")
        self._waited: dict[int, int] = {}  # … or, when it waited for the client, with the lag here
        self._untold_from = 0  # when behind: from which read on
        self._skip_gap = False
        self._suspended: list[int] = []
        self._lags = Lags()
        self._waiting = array("q")  # arrivals of packed chunks that the client has not taken yet
        self._behind = False  # it has not taken the latest read
        self._was_written = False
        self._slow_since: int | None = None
        self._undivided_pause = 0

    # --- per token ----------------------------------------------------------------------------------------------------

    def see(self, event: Event) -> bool:
        """The next event of the answer; whether it is more than one more chunk of the kind before. Per chunk: one comparison,
        one number kept."""
        kind = type(event)
        if kind is self._kind:
            self._times.append(event.t_ns)
            return False
        if self._other(kind, event):
            self._times.append(event.t_ns)
        return True

    def written(self, read_ns: int, lag_ns: int | None) -> None:
        """An upstream read, told before the events it completed: the client's kernel had taken all of it `lag_ns` later.
        `None`: the client is slow; `client_ready`, or the next read with a lag, will tell."""
        reads = self._reads
        if len(reads) >= _BLOCK:
            self._fold()
        reads.append(read_ns)
        if lag_ns is None:
            self._read_lags.append(_UNTOLD)
            if not self._behind:
                self._behind = True
                self._untold_from = len(reads) - 1
        else:
            try:
                self._read_lags.append(lag_ns)
            except OverflowError:  # beyond what the relay can say
                self._read_lags.append(_UNTOLD - 1)
            if self._behind:
                self._caught_up(read_ns + lag_ns)

    def deltas(self, kind: type, t_ns: Sequence[int], lags_ns: Sequence[int]) -> bool:
        """One more chunk of the kind before in each of several reads, none of which waited for the client: `written` and `see`
        for each, at once. False where it is not so: then nothing was taken. Lags are below 2³² − 1."""
        if kind is not self._kind or self._behind:
            return False
        if len(self._reads) >= _BLOCK:
            self._fold()
        self._reads.extend(t_ns)
        self._times.extend(t_ns)
        self._read_lags.extend(lags_ns)
        return True

    def note(self, event: Event) -> None:
        """An event that is no chunk. For those who build on this."""

    def _other(self, kind: type, event: Event) -> bool:
        """Any event but a chunk of the same kind as the last. Whether it is a chunk."""
        label = _LABELS.get(kind)
        if label is None or (isinstance(event, ToolCall) and not event.whole):
            self.note(event)
            return False
        if self.first_chunk_ns is None:
            self.first_chunk_ns = event.t_ns
        if self.first_content_ns is None and label != "thinking":
            self.first_content_ns = event.t_ns
        self._close_run()
        if kind is ToolCall:  # each one must be looked at: it may be no chunk
            self._kind = None
            self._add_run(label, 1)
            self._run_start += 1
        else:
            self._kind = kind
        return True

    # --- now and then -------------------------------------------------------------------------------------------------

    def client_slow(self, t_ns: int) -> None:
        """The client does not take what there is: upstream is not read any more."""
        self.interrupt()
        if self._slow_since is None:
            self._slow_since = t_ns

    def client_ready(self, t_ns: int) -> None:
        """The client has taken all of it."""
        if self._behind:
            self._caught_up(t_ns)
        self._end_pause(t_ns)

    def suspended(self) -> None:
        """The machine slept just now: the gap before the next chunk is marked, not measured."""
        self.interrupt()
        if not self._suspended or self._suspended[-1] != self.n:
            self._suspended.append(self.n)

    def interrupt(self) -> None:
        """What comes next does not follow what came before at the model's pace."""
        self._fold(amid_read=True)
        if self._arrivals.n:
            self._skip_gap = True

    def close(self, t_ns: int) -> None:
        """The end. Chunks of which nobody learnt when they were taken stay unknown."""
        self._end_pause(t_ns)
        self._fold()
        self._close_run()
        if self._was_written and (unknown := self.n - self._lags.n):
            self._lags.extend([UNKNOWN] * unknown)

    @property
    def awaits_client(self) -> bool:
        """Some of the answer is still on its way to a slow client."""
        return self._slow_since is not None or self._behind

    @property
    def n(self) -> int:
        """Chunks so far."""
        return self._arrivals.n + len(self._times)

    @property
    def thinking(self) -> bool:
        """Whether the latest chunk is thinking."""
        return self._kind is ThinkingDelta

    @property
    def slept(self) -> bool:
        return bool(self._suspended)

    @property
    def span_ns(self) -> int | None:
        """First chunk → last chunk; `None` below two chunks, and when all came in one read."""
        last = self._times[-1] if self._times else self._arrivals.last_ns
        return None if self.first_chunk_ns is None or last <= self.first_chunk_ns else last - self.first_chunk_ns

    def chunks(self, start_unix_ns: int) -> Chunks | None:
        """The series, after `close`; `None` when there was no chunk."""
        if not self.n:
            return None
        return Chunks(
            n=self.n,
            start_unix_ns=start_unix_ns,
            resolution_ns=RESOLUTION_NS,
            arrival=self._arrivals.blob(),
            written=self._lags.blob() if self._was_written else None,
            kinds=self.kinds,
            coalesced=self._arrivals.coalesced(),
            suspended=self._suspended,
        )

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _fold(self, *, amid_read: bool = False) -> None:
        """Pack the block; its gaps and lags go to the statistics. `amid_read`: more chunks of the latest read may follow."""
        if self._reads:
            self._fold_lags(amid_read)
        times = self._times
        if not times:
            return
        gaps = self._arrivals.extend(times)
        del times[:]
        if self._skip_gap:  # there was a chunk before, so the first gap reaches back to it
            self._skip_gap = False
            self.gaps_left_out += bool(gaps[0])
            del gaps[0]
            self.inner_pause_ns += self._undivided_pause
            self._undivided_pause = 0
        if not gaps:
            return
        before = self.gaps.greatest
        self.gaps.extend([gap for gap in gaps if gap] if 0 in gaps else gaps)
        if self.gaps.greatest > before:
            self.longest_at = self._arrivals.n - len(gaps) + gaps.index(self.gaps.greatest)

    def _end_pause(self, t_ns: int) -> None:
        if self._slow_since is not None:
            pause = max(t_ns - self._slow_since, 0)
            self._slow_since = None
            self.paused_ns += pause
            self.interrupt()
            if self._skip_gap:
                self._undivided_pause += pause  # between chunks if another follows

    def _caught_up(self, t_ns: int) -> None:
        """The client has taken all that was read, at `t_ns` or before."""
        self._behind = False
        if self._waiting:
            self._lag_waited([max(t_ns - arrived, 0) for arrived in self._waiting])
            del self._waiting[:]
        for i in range(self._untold_from, len(self._reads)):
            if self._read_lags[i] == _UNTOLD:
                self._waited[i] = max(t_ns - self._reads[i], 0)

    def _fold_lags(self, amid_read: bool) -> None:
        """The block's chunks get the lags of their reads."""
        reads, times = self._reads, self._times
        lags: list[int] = self._read_lags.tolist()
        untold = bool(self._behind or self._waited)
        if untold:
            lags = [UNKNOWN if lag == _UNTOLD else lag for lag in lags]
            for i, waited in self._waited.items():
                lags[i] = -2 - waited
            self._waited.clear()
        if (last := lags[-1]) != UNKNOWN:
            self.taken_ns = reads[-1] + (last if last >= 0 else -2 - last)
        if not self._was_written:
            self._was_written = True
            self._lags.extend([UNKNOWN] * self._arrivals.n)  # packed before anybody told of a read
        if times:
            known = lags
            if times != reads:  # else one chunk a read, as nearly always
                of_read = dict(zip(reads, lags, strict=True))
                known = [of_read.get(t, UNKNOWN) for t in times]
                untold = True
            if untold:
                known = self._sort_out(known)
            if known:
                self._lag_plain(known)
        self._untold_from = 0
        if amid_read:
            self._reads, self._read_lags = reads[-1:], self._read_lags[-1:]
            if last < UNKNOWN:
                self._waited[0] = -2 - last
        else:
            del reads[:], self._read_lags[:]

    def _sort_out(self, lags: list[int]) -> list[int]:
        """Of a block with waiting in it (a lag of -2 - n waited n): packs what precedes the last chunk that waited, sets aside
        what the client has not taken yet, answers with the plain lags behind."""
        plain: list[int] = []
        for i, lag in enumerate(lags):
            if lag >= 0:
                plain.append(lag)
                continue
            if plain:
                self._lag_plain(plain)
                plain = []
            if lag != UNKNOWN:
                self._lag_waited([-2 - lag])
            elif self._behind:
                self._waiting.extend(self._times[i:])
                break
            else:
                self._lags.extend([UNKNOWN])
        return plain

    def _lag_plain(self, lags: list[int]) -> None:
        self.longest_lag_ns = max(self.longest_lag_ns or 0, max(lags))
        self.overheads.extend(lags)
        self._lags.extend(lags)

    def _lag_waited(self, lags: list[int]) -> None:
        self.longest_lag_ns = max(self.longest_lag_ns or 0, max(lags))
        self._lags.extend(lags)

    def _close_run(self) -> None:
        n = self.n
        if self._kind is not None and n > self._run_start:
            self._add_run(_LABELS[self._kind], n - self._run_start)
        self._run_start = n

    def _add_run(self, label: str, length: int) -> None:
        kinds = self.kinds
        if kinds and (kinds[-1][0] == label or len(kinds) >= MAX_RUNS):
            last, n = kinds[-1]
            kinds[-1] = (last if last == label else "mixed", n + length)
        else:
            kinds.append((label, length))
