"""One exchange's times → its numbers: TTFT, inter-token latency, rate, phases, why it was slow.

Rules that hold here:

- Fed with what happened, in order, with the relay's stamps; knows no clock. The same code times real traffic and probes.
- Chunks are not tokens: `eval_count` or usage is the truth about tokens. Both are told; their difference is `withheld_tokens`.
- Definitions, in brackets the names by which probes speak of them. `ttft_s`: request's first byte → first chunk of any kind
  (ttft_any); `ttft_content_s`: → first chunk that is not thinking (ttft_content). Inter-token latency: gaps between consecutive
  chunks of different reads (gap_chunk), of all kinds. Rate: the server's eval_count ÷ eval_duration (decode_ms_per_token_server);
  without it (n − 1) ÷ (last − first) of the chunks (decode_ms_per_token), labelled "client".
- A whole (non-streamed) answer has neither TTFT nor gaps: it came at once, and when its first token was made nobody saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qm_proxy.events import EmptyRecord, Event, Failed, Finished, Missed, Nanoseconds, Usage
from qm_proxy.measure.phases import Observed, Phases, divide
from qm_proxy.measure.slow import STALL_LEAST_NS, STALL_MEDIANS, Seen, Stalls, slow_because
from qm_proxy.measure.ticks import Ticks
from qm_proxy.record import Chunks, InterToken

__all__ = ["Timeline", "Timing"]

_WITHHELD_SHARE = 0.1  # below, special tokens and cut characters explain it
_RATE_SHARE = 0.1
_RATE_CHUNKS = 64  # fewer chunks do not show a pace to 10 %


@dataclass(slots=True)
class Timing:
    """The numbers of one exchange; fields as in `record.Record`. `None`: cannot be known."""

    total_s: float
    ttft_s: float | None
    ttft_content_s: float | None
    queue_s: float | None
    load_s: float | None
    prefill_s: float | None
    decode_s: float | None
    client_wait_s: float | None
    unexplained_s: float | None
    slow_because: str | None
    itl: InterToken | None
    tokens_per_s: float | None
    rate_source: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    server_total_s: float | None
    withheld_tokens: int | None
    chunks: int
    thinking_chunks: int
    written_lag_s: float | None
    proxy_overhead_s: float | None
    doubts: list[str] = field(default_factory=list)
    series: Chunks | None = None


class Timeline(Ticks):
    """Set the marks as they happen (`head_ns`, `asked_ns`, `answered_ns`), feed it as `Ticks`, then `over`, then `timing`."""

    __slots__ = (
        "answered_ns",
        "asked_ns",
        "empty_records",
        "end_ns",
        "finish_reason",
        "head_ns",
        "missed_bytes",
        "streamed",
        "usage",
    )

    def __init__(self, first_ns: int, *, streamed: bool = True) -> None:
        """`first_ns`: the request's first byte. `streamed` may be corrected when the answer begins."""
        super().__init__(first_ns)
        self.streamed = streamed
        self.head_ns: int | None = None  # the request's head was complete
        self.asked_ns: int | None = None  # the request's last byte
        self.answered_ns: int | None = None  # the answer's head
        self.end_ns: int | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.empty_records = 0
        self.missed_bytes = 0

    def note(self, event: Event) -> None:
        match event:
            case EmptyRecord():
                self.empty_records += 1
            case Usage():
                self.usage = _merged(self.usage, event)
            case Finished():
                self.finish_reason = event.reason or self.finish_reason
            case Missed():
                self.missed_bytes += event.n_bytes
                self.interrupt()
            case Failed() if event.n_prompt_tokens is not None:
                self.usage = _merged(self.usage, Usage(event.t_ns, input_tokens=event.n_prompt_tokens))
            case _:
                pass

    def over(self, t_ns: int) -> None:
        """The answer's last byte, or whatever ended the exchange. Nothing may be fed after it."""
        self.close(t_ns)
        self.end_ns = max(t_ns, self.taken_ns or t_ns)

    def client_rate(self) -> float | None:
        """Chunks per second so far: (n − 1) ÷ (last − first)."""
        span = self.span_ns if self.streamed else None
        return None if span is None else (self.n - 1) / span * 1e9

    def timing(
        self,
        *,
        start_unix_ns: int,
        model: str | None = None,
        others: int | None = None,
        bytes_in: int = 0,
        complete: bool = True,
    ) -> Timing:
        """The numbers; ask once, after `over`. `others`: requests for `model` in flight when this one came. `complete`: the
        terminal record came, so that counts can be compared."""
        if self.end_ns is None:
            raise ValueError("Expected `over` before `timing`.")
        usage = self.usage or Usage(Nanoseconds(0))
        first = self.first_chunk_ns if self.streamed else None
        came = self.answered_ns if first is None else first
        wait = None if self.asked_ns is None or came is None else max(came - self.asked_ns, 0)
        span = self.span_ns if self.streamed else None
        phases = divide(self._observed(wait, span, others), usage)
        rate, source = self._rate(usage)
        counted = self.streamed and complete and not self.missed_bytes and usage.output_tokens is not None
        withheld = (usage.output_tokens or 0) - self.n if counted else None
        overhead = self.overheads.quantile(0.5)
        because = slow_because(
            Seen(
                phases,
                model=model,
                others=others,
                stalls=self._stalls(),
                wait_ns=wait,
                bytes_in=bytes_in,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.cached_tokens,
                output_tokens=usage.output_tokens,
                chunks=self.n,
                tokens_per_s=rate,
                whole=not self.streamed,
                only_loaded=self.finish_reason == "load" and not self.n,
            )
        )
        return Timing(
            total_s=phases.total_ns / 1e9,
            ttft_s=self._since_first(first),
            ttft_content_s=self._since_first(self.first_content_ns if self.streamed else None),
            queue_s=_seconds(phases.queue_ns),
            load_s=_seconds(phases.load_ns),
            prefill_s=_seconds(phases.prefill_ns),
            decode_s=_seconds(phases.decode_ns),
            client_wait_s=_seconds(phases.client_wait_ns),
            unexplained_s=_seconds(phases.unexplained_ns),
            slow_because=because,
            itl=self._inter_token(),
            tokens_per_s=rate,
            rate_source=source,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            server_total_s=_seconds(usage.total_ns),
            withheld_tokens=withheld,
            chunks=self.n,
            thinking_chunks=sum(n for label, n in self.kinds if label == "thinking"),
            written_lag_s=_seconds(self.longest_lag_ns),
            proxy_overhead_s=None if overhead is None else overhead / 1e9,
            doubts=self._doubts(phases, usage, withheld, span),
            series=self.chunks(start_unix_ns),
        )

    def _observed(self, wait: int | None, span: int | None, others: int | None) -> Observed:
        end = self.first_ns if self.end_ns is None else self.end_ns
        sent = self.asked_ns if self.asked_ns is not None else self.answered_ns if self.answered_ns is not None else end
        return Observed(
            total_ns=end - self.first_ns,
            upload_ns=sent - self.first_ns,
            body_ns=0 if self.head_ns is None else max(sent - self.head_ns, 0),
            paused_ns=self.paused_ns,
            wait_ns=wait if self.streamed else None,
            span_ns=None if span is None else max(span - self.inner_pause_ns, 0),
            others=others,
        )

    def _since_first(self, t_ns: int | None) -> float | None:
        return None if t_ns is None else max(t_ns - self.first_ns, 0) / 1e9

    def _rate(self, usage: Usage) -> tuple[float | None, str | None]:
        if usage.output_tokens and usage.decode_ns and usage.decode_ns > 0:
            return usage.output_tokens / usage.decode_ns * 1e9, "server"
        rate = self.client_rate()
        return rate, None if rate is None else "client"

    def _inter_token(self) -> InterToken | None:
        gaps = self.gaps
        if not self.streamed or gaps.mean is None:
            return None
        p50, p90, p99 = gaps.quantiles(0.5, 0.9, 0.99)
        return InterToken(gaps.n, gaps.mean / 1e9, p50 / 1e9, p90 / 1e9, p99 / 1e9, gaps.greatest / 1e9)

    def _stalls(self) -> Stalls | None:
        if not self.streamed or self.gaps.greatest <= STALL_LEAST_NS:
            return None
        usual = self.gaps.quantile(0.5) or 0.0
        tail = self.gaps.above(max(STALL_LEAST_NS, STALL_MEDIANS * usual))
        return Stalls(tail.n, int(tail.total - tail.n * usual), self.gaps.greatest, self.longest_at) if tail.n else None

    def _doubts(self, phases: Phases, usage: Usage, withheld: int | None, span: int | None) -> list[str]:
        doubts: list[str] = []
        tokens = usage.output_tokens
        if phases.excess_ns:
            doubts.append(
                f"The server's durations exceed the {phases.total_ns / 1e9:.3g} s that passed by {phases.excess_ns / 1e9:.3g} s:"
                " the last of the phases is cut to fit."
            )
        if withheld is not None and tokens is not None:
            if withheld < 0:
                doubts.append(f"{self.n:,} chunks came, and the server counts only {tokens:,} tokens.")
            elif withheld > max(_WITHHELD_SHARE * tokens, 2):
                doubts.append(
                    f"{withheld:,} of {tokens:,} tokens came in no chunk of their own (held back or merged by the server):"
                    " gaps between chunks are not gaps between tokens."
                )
            elif usage.decode_ns and span is not None and self.n >= _RATE_CHUNKS and not self.paused_ns:
                server_ms, wire_ms = usage.decode_ns / tokens / 1e6, span / (self.n - 1) / 1e6
                if abs(wire_ms / server_ms - 1) > _RATE_SHARE:
                    doubts.append(f"The server counts {server_ms:.3g} ms per token, the wire shows {wire_ms:.3g} ms per chunk.")
        if self.gaps_left_out:
            doubts.append(
                f"Gaps between chunks left out of the statistics: {self.gaps_left_out}"
                " (the client paused, the machine slept, or bytes were not copied)."
            )
        if self.slept:
            doubts.append("The machine slept, or its clock was set, during this exchange.")
        if self.missed_bytes:
            doubts.append(f"{self.missed_bytes:,} bytes of the answer were not copied: counts are lower bounds.")
        return doubts


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


def _merged(before: Usage | None, now: Usage) -> Usage:
    """Later counts replace earlier ones, estimates never anything; what is not told stays as it was."""
    if now.estimated:
        return before or Usage(now.t_ns)
    if before is None:
        return now
    return Usage(
        now.t_ns,
        input_tokens=before.input_tokens if now.input_tokens is None else now.input_tokens,
        output_tokens=before.output_tokens if now.output_tokens is None else now.output_tokens,
        cached_tokens=before.cached_tokens if now.cached_tokens is None else now.cached_tokens,
        total_ns=before.total_ns if now.total_ns is None else now.total_ns,
        load_ns=before.load_ns if now.load_ns is None else now.load_ns,
        prefill_ns=before.prefill_ns if now.prefill_ns is None else now.prefill_ns,
        decode_ns=before.decode_ns if now.decode_ns is None else now.decode_ns,
    )
