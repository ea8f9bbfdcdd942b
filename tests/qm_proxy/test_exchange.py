from __future__ import annotations

import gc
import gzip
import json
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.detector import Detector
from qm_proxy.detect.ends import How
from qm_proxy.events import Cut, Event, Finished, HostSample, Nanoseconds, TextDelta, ToolCall
from qm_proxy.exchange import CAPTURE_BYTES, MAX_BODY, Exchange, MakeDetectors
from qm_proxy.findings import Finding
from qm_proxy.measure.pieces import unpack_pieces
from qm_proxy.measure.series import unpack, unpack_lags
from qm_proxy.record import Opened, Placed, Progress, Record
from qm_proxy.store.queries import chunks_json, record_json
from qm_proxy.wire.http import (
    Broken,
    Headers,
    HttpConnection,
    HttpEvent,
    RequestBody,
    RequestEnd,
    RequestHead,
    ResponseBody,
    ResponseEnd,
    ResponseHead,
    Skipped,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "wire"
MS = 1_000_000
T0 = 7_000_000 * MS
UNIX = 1_795_521_600_000_000_000


def at(ms: float) -> Nanoseconds:
    return Nanoseconds(T0 + int(ms * MS))


class Told:
    """A sink that remembers, and fails when it shall."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.opened_: list[Opened] = []
        self.progress_: list[Progress] = []
        self.found_: list[Finding] = []
        self.closed_: list[Record] = []
        self.fails = fails

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if self.fails == name:
            raise RuntimeError("full")

    def opened(self, opened: Opened) -> None:
        self.opened_.append(opened)
        self._note("opened")

    def progress(self, progress: Progress) -> None:
        self.progress_.append(progress)
        self._note("progress")

    def found(self, finding: Finding) -> None:
        self.found_.append(finding)
        self._note("found")

    def closed(self, record: Record) -> None:
        self.closed_.append(record)
        self._note("closed")


class Scene:
    """One exchange, fed with HTTP events."""

    def __init__(
        self,
        target: bytes = b"/api/chat",
        body: bytes | None = b'{"model":"tiny"}',
        *,
        headers: Headers = (),
        method: str = "POST",
        fails: str = "",
        **kwargs: Any,
    ) -> None:
        self.told = Told(fails)
        self.troubles: list[str] = []
        head = RequestHead(at(1), at(0), 0, method, target, headers)
        kwargs = {"unix_ns_of": lambda t_ns: UNIX + t_ns - T0, "trouble": self.troubles.append} | kwargs
        self.exchange = Exchange(head, self.told, **kwargs)
        if body is not None:
            if body:
                self.exchange.see(RequestBody(at(2), 0, body))
            self.exchange.see(RequestEnd(at(2), 0))

    def answer(
        self, status: int = 200, content_type: bytes = b"application/x-ndjson", *, ms: float = 100, **more: bytes
    ) -> Scene:
        headers = ((b"Content-Type", content_type), *((name.replace("_", "-").encode(), value) for name, value in more.items()))
        self.exchange.written(at(ms), 20_000)
        self.exchange.see(ResponseHead(at(ms), 0, status, headers))
        return self

    def read(self, ms: float, data: bytes, *, lag: int | None = 30_000) -> Scene:
        self.exchange.written(at(ms), lag)
        self.exchange.see(ResponseBody(at(ms), 0, data))
        return self

    def end(self, ms: float, how: Any = "framing", *, clean: bool = True) -> Scene:
        self.exchange.see(ResponseEnd(at(ms), 0, clean, how))
        return self

    @property
    def record(self) -> Record:
        assert self.exchange.record is not None
        return self.exchange.record


def native(text: str) -> bytes:
    return b'{"model":"tiny","message":{"role":"assistant","content":"%s"},"done":false}\n' % text.encode()


DONE = (
    b'{"model":"tiny","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":190000000,'
    b'"load_duration":20000000,"prompt_eval_count":9,"prompt_eval_duration":70000000,"eval_count":4,"eval_duration":80000000}\n'
)


def streamed(scene: Scene, n: int = 3, *, done: bool = True) -> Scene:
    scene.answer()
    for i in range(n):
        scene.read(100 + 20 * i, native("a"))
    return scene.read(200, DONE) if done else scene


# --- whole recordings -----------------------------------------------------------------------------------------------------


def replay(case: str, cuts: Sequence[int] = (), **kwargs: Any) -> Told:
    """A golden case through HttpConnection: all of the request at once, the answer in pieces, all with one stamp."""
    told = Told()
    request, answer = (GOLDEN / f"{case}.request.bin").read_bytes(), (GOLDEN / f"{case}.bin").read_bytes()
    connection, exchanges = HttpConnection(), dict[int, Exchange]()

    def tell(events: Iterable[HttpEvent], *, read: bool = False) -> None:
        for event in events:
            if isinstance(event, RequestHead):
                exchanges[event.n] = Exchange(event, told, unix_ns_of=lambda _: UNIX, **kwargs)
            exchanges[event.n].see(event)

    tell(connection.client(request, at(0)))
    places = sorted({0, *(cut % (len(answer) + 1) for cut in cuts), len(answer)})
    for start, stop in pairwise(places):
        exchanges[0].written(at(300), 30_000)
        tell(connection.upstream(answer[start:stop], at(300)))
    tell(connection.upstream_end("eof", at(300)))
    tell(connection.client_end("eof", at(300)))
    tell(connection.closed(at(300)))
    assert all(exchange.record is not None for exchange in exchanges.values())
    return told


ENDINGS = {
    "ollama/chat_stream.tiny": ("complete", 11, 12, "stop"),
    "ollama/chat_nostream.tiny": ("complete", 1, 12, "stop"),
    "ollama/chat_think_stream": ("complete", 11, 14, "stop"),
    "ollama/chat_tools_stream.tiny": ("complete", 1, 8, "stop"),
    "ollama/chat_load": ("complete", 0, None, "load"),
    "ollama/embed": ("complete", 0, None, None),
    "ollama/err_model_404": ("upstream_error", 0, None, None),
    "ollama/midstream_kill_chat": ("upstream_error", 24, None, None),
    "ollama/repeat_abort_chat_stream": ("upstream_truncated", 38, None, None),
    "ollama/repeat_abort_chat_nostream": ("upstream_truncated", 1, None, None),
    "openai-chat/v1_chat_stream_usage.tiny": ("complete", 22, 23, "stop"),
    "openai-chat/v1_chat_stream.tiny": ("complete", 22, None, "stop"),
    "openai-chat/midstream_kill_v1_chat": ("upstream_error", 25, None, None),
    "openai-completions/v1_completions_stream": ("complete", 9, None, "stop"),
    "openai-responses/v1_responses_stream.tiny": ("complete", 40, 40, "completed"),
    "openai-responses/midstream_kill_v1_responses": ("upstream_truncated", None, None, None),
    "anthropic/v1_messages_stream.tiny": ("complete", 22, 23, "end_turn"),
    "anthropic/midstream_kill_v1_messages": ("upstream_truncated", None, None, None),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_recordings_end_as_they_ended(case: str) -> None:
    told = replay(case)
    ending, chunks, tokens, reason = ENDINGS[case]
    record = told.closed_[0]
    assert told.calls == ["opened", "progress", "closed"] or told.calls == ["opened", "closed"]
    assert (record.ending, record.output_tokens, record.finish_reason) == (ending, tokens, reason)
    assert chunks is None or record.chunks == chunks
    assert record.undecoded is None
    assert record.bytes_in == told.opened_[0].asked.body_bytes if told.opened_[0].asked else True


CASES = sorted(str(path.relative_to(GOLDEN))[: -len(".request.bin")] for path in GOLDEN.glob("*/*.request.bin"))
WHOLE = [case for case in CASES if (GOLDEN / f"{case}.bin").exists()]


def story(told: Told) -> list[dict[str, Any]]:
    """Every Record without its names."""
    records = [asdict(record) for record in told.closed_]
    for record in records:
        del record["id"], record["opened"]
    return records


@pytest.mark.parametrize("case", WHOLE)
def test_every_recording_gives_its_record_however_it_was_cut(case: str) -> None:
    whole = story(replay(case))
    size = (GOLDEN / f"{case}.bin").stat().st_size
    for step in (1, 7, 61, 1460) if size < 20_000 else (997,):
        assert story(replay(case, range(0, size, step))) == whole


@settings(max_examples=60)
@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 100_000), max_size=12))
def test_any_cut_of_the_bytes_gives_the_same_record(case: str, cuts: list[int]) -> None:
    assert story(replay(case, cuts)) == story(replay(case))


# --- the parts of a story -------------------------------------------------------------------------------------------------


def test_a_stream_from_first_byte_to_last() -> None:
    scene = streamed(
        Scene(headers=((b"User-Agent", b"curl/8.5"), (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")))
    )
    record = scene.end(200).record
    opened = scene.told.opened_[0]
    assert (opened.id, opened.t_ns, opened.started_at) == (record.id, T0, "2026-11-24T12:00:00.000000Z")
    assert (opened.model, opened.streamed, opened.client, opened.origin) == ("tiny", True, "curl", "client")
    assert (record.route, record.dialect, record.operation, record.http_status) == ("/api/chat", "ollama", "chat", 200)
    assert (record.ending, record.finish_reason, record.response_model) == ("complete", "stop", "tiny")
    assert (record.ttft_s, record.total_s, record.chunks, record.output_tokens) == (0.1, 0.200_03, 3, 4)
    assert (record.load_s, record.prefill_s, record.decode_s) == (0.019, 0.07, 0.08)
    assert (record.tokens_per_s, record.rate_source, record.proxy_overhead_s) == (50.0, "server", 3e-5)
    assert (record.bytes_in, record.bytes_out) == (16, 3 * len(native("a")) + len(DONE))
    assert record.trace_id == "a" * 32
    assert record.series is not None
    assert unpack(record.series.arrival) == [100 * MS, 120 * MS, 140 * MS]
    assert record.series.start_unix_ns == UNIX
    assert scene.told.calls[0] == "opened"
    assert scene.told.calls[-1] == "closed"
    assert scene.troubles == []


def test_nothing_of_what_was_said_is_in_the_record() -> None:
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"SECRET"}],"tools":[{"type":"function","function":{"name":"f"}}]}'
    )
    scene = Scene(body=body)
    scene.answer().read(90, native("SECRET")).read(100, DONE).end(100)
    assert "SECRET" not in repr(scene.record)
    asked = scene.told.opened_[0].asked
    assert asked is not None
    assert asked.messages[0].text == "SECRET"
    assert scene.record.opened is not None
    assert scene.record.opened.asked is not None
    assert scene.record.opened.asked.tools[0].name == "f"


def test_content_is_captured_only_when_asked_for_and_up_to_a_size() -> None:
    body = b'{"model":"tiny","messages":[]}'
    scene = Scene(body=body, capture=True).answer()
    scene.read(100, native("hello")).read(110, b'{"message":{"thinking":"hm"}}\n').read(120, native("x" * CAPTURE_BYTES)).read(
        130, native("y")
    )
    record = scene.read(140, DONE).end(140).record
    assert record.captured_request == body.decode()
    assert record.captured_thinking == "hm"
    assert record.captured_answer == "hello" + "x" * (CAPTURE_BYTES - 5)
    assert record.answer_pieces is not None
    assert unpack_pieces(record.answer_pieces)[:2] == [5, CAPTURE_BYTES]  # of whole chunks: the last one told is cut
    assert record.thinking_pieces == b"\x02"
    silent = streamed(Scene(body=body)).end(200).record
    assert (silent.captured_request, silent.captured_answer, silent.captured_thinking) == (None, None, None)
    assert (silent.answer_pieces, silent.thinking_pieces) == (None, None)


def test_each_chunk_finds_its_piece_of_what_was_captured() -> None:
    said = [f"w{i} " if i % 3 else "thought " for i in range(50)]
    scene = Scene(capture=True).answer()
    for i, piece in enumerate(said):
        key = "content" if i % 3 else "thinking"
        scene.read(100 + i, json.dumps({"message": {key: piece}}).encode() + b"\n")
    record = scene.read(200, DONE).end(200).record
    left = {"text": record.captured_answer or "", "thinking": record.captured_thinking or ""}
    lengths = {"text": unpack_pieces(record.answer_pieces or b""), "thinking": unpack_pieces(record.thinking_pieces or b"")}
    assert record.series is not None
    found = []
    for kind in [kind for kind, n in record.series.kinds for _ in range(n)]:
        n = lengths[kind].pop(0)
        found.append(left[kind][:n])
        left[kind] = left[kind][n:]
    assert found == said
    assert left == {"text": "", "thinking": ""}


def test_progress_is_told_five_times_a_second() -> None:
    scene = Scene().answer()
    for i in range(200):
        scene.read(100 + 5 * i, native("a"))
    scene.read(1100, DONE).end(1100)
    stamps = [progress.t_ns for progress in scene.told.progress_]
    assert 5 <= len(stamps) <= 6
    assert all(b - a >= 200 * MS for a, b in pairwise(stamps))
    last = scene.told.progress_[-1]
    assert (last.phase, last.ttft_s, last.id) == ("answering", 0.1, scene.record.id)
    assert last.tokens_per_s == pytest.approx(200, rel=0.02)


def test_the_phases_of_the_wait_are_told_by_the_clock() -> None:
    scene = Scene(body=None)
    scene.exchange.tick(at(100))
    scene.exchange.tick(at(600))
    scene.exchange.see(RequestEnd(at(700), 0))
    scene.exchange.tick(at(810))
    scene.answer(ms=900).read(901, b'{"message":{"thinking":"hm"}}\n')
    assert [progress.phase for progress in scene.told.progress_] == ["uploading", "waiting", "thinking"]
    silent = Scene(b"/api/tags", b"", method="GET")
    silent.exchange.tick(at(5000))
    assert silent.told.progress_ == []


# --- how it ended ---------------------------------------------------------------------------------------------------------

STREAM_ENDS: list[tuple[bool, str, bool, str]] = [
    (True, "framing", True, "complete"),
    (True, "client_reset", False, "complete"),  # it had all it wanted
    (True, "upstream_reset", False, "complete"),
    (False, "framing", True, "upstream_truncated"),
    (False, "client_eof", True, "client_disconnect"),
    (False, "client_eof", False, "client_disconnect"),
    (False, "client_reset", False, "client_disconnect"),
    (False, "upstream_eof", False, "upstream_truncated"),
    (False, "upstream_reset", False, "upstream_truncated"),
    (False, "broken", False, "upstream_truncated"),
    (False, "closed", False, "upstream_truncated"),
]


@pytest.mark.parametrize(("done", "how", "clean", "ending"), STREAM_ENDS)
def test_endings_of_a_stream(done: bool, how: str, clean: bool, ending: str) -> None:
    record = streamed(Scene(), done=done).end(210, how, clean=clean).record
    assert record.ending == ending
    assert (record.undecoded is not None) == (how in ("broken", "closed"))


def test_a_client_that_left_before_the_answer() -> None:
    record = Scene().end(4000, "client_reset", clean=False).record
    assert (record.ending, record.http_status, record.ttft_s, record.chunks) == ("client_disconnect", None, None, 0)
    refused = Scene().end(50, "upstream_eof", clean=False).record
    assert (refused.ending, refused.error) == ("upstream_truncated", "The upstream closed the connection without an answer.")
    upload = Scene(body=None).end(4000, "client_eof", clean=False).record
    assert (upload.ending, upload.model, upload.client_wait_s) == ("client_disconnect", None, 4.0)


@pytest.mark.parametrize(
    ("target", "status", "ending"),
    [
        (b"/api/chat", 404, "upstream_error"),
        (b"/api/embed", 400, "upstream_error"),
        (b"/v1/embeddings", 500, "upstream_error"),
        (b"/api/show", 404, "complete"),
        (b"/nowhere", 404, "complete"),
        (b"/api/pull", 500, "complete"),
    ],
)
def test_an_error_status_is_an_error_where_a_model_was_asked(target: bytes, status: int, ending: str) -> None:
    scene = Scene(target).answer(status, b"application/json").read(101, b'{"error":"no such thing"}')
    record = scene.end(101).record
    assert (record.ending, record.http_status, record.error) == (ending, status, "no such thing")
    assert not record.streamed


def test_an_error_inside_an_answer_is_one_on_every_route() -> None:
    scene = Scene(b"/api/pull").answer().read(101, b'{"status":"pulling"}\n{"error":"disk full"}\n').end(102)
    assert (scene.record.ending, scene.record.error) == ("upstream_error", "disk full")


def test_what_we_did_ourselves_goes_first() -> None:
    refused = Scene()
    refused.exchange.refused("connection refused", at(3))
    record = refused.answer(502, b"application/json").read(4, b'{"error":"qm-proxy: nothing answers"}').end(4).record
    assert (record.ending, record.http_status, record.error) == ("upstream_unreachable", 502, "connection refused")
    cut = streamed(Scene(), done=False)
    cut.exchange.cut(at(190))
    assert cut.record.ending == "guard_cut"
    stopped = streamed(Scene(), done=False)
    stopped.exchange.shutdown(at(190))
    assert stopped.record.ending == "shutdown"
    finished = streamed(Scene())
    finished.exchange.shutdown(at(210))
    assert finished.record.ending == "complete"
    for scene in (cut, stopped, finished):
        assert scene.record.undecoded is None
        assert scene.told.calls.count("closed") == 1


def test_a_slow_client_keeps_it_open_until_it_has_taken_the_rest() -> None:
    scene = streamed(Scene(), done=False)
    scene.read(200, DONE, lag=None)
    scene.exchange.client_slow(at(201))
    scene.end(202)
    assert scene.exchange.record is None
    scene.exchange.client_ready(at(2201))
    assert (scene.record.ending, scene.record.total_s, scene.record.client_wait_s) == ("complete", 2.201, 2.002)
    gone = streamed(Scene(), done=False).read(200, DONE, lag=None).end(202)
    assert gone.exchange.record is None
    gone.exchange.abandon(at(900))
    assert (gone.record.ending, gone.record.total_s) == ("client_disconnect", 0.9)
    failed = streamed(Scene(), done=False).read(200, b'{"error":"died"}\n', lag=None).end(202)
    failed.exchange.abandon(at(900))
    assert failed.record.ending == "upstream_error"


def test_how_long_a_client_did_not_take_what_there_was() -> None:
    exchange = streamed(Scene(), done=False).exchange
    assert exchange.client_slow_ns(at(0), at(500)) == 0
    exchange.client_slow(at(150))
    exchange.client_slow(at(160))  # still
    assert exchange.client_slow_ns(at(100), at(170)) == 20 * MS, "it is slow now"
    exchange.client_ready(at(180))
    exchange.client_slow(at(300))
    exchange.client_ready(at(400))
    assert exchange.client_slow_ns(at(0), at(1000)) == 130 * MS
    assert exchange.client_slow_ns(at(170), at(310)) == 20 * MS
    assert exchange.client_slow_ns(at(180), at(300)) == 0
    for i in range(1000):  # bounded: the oldest are forgotten
        exchange.client_slow(at(1000 + 2 * i))
        exchange.client_ready(at(1001 + 2 * i))
    assert exchange.client_slow_ns(at(0), at(9000)) == 64 * MS


class AsksHow:
    """A detector that asks the connection when the answer was cut."""

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.says: list[How] = []

    def see(self, event: Event) -> tuple[()]:
        if isinstance(event, Cut) and self.scene is not None:
            self.says.append(self.scene.exchange.how())
        return ()


@pytest.mark.parametrize(
    ("how", "clean", "expected"),
    [
        ("framing", True, True),
        ("upstream_eof", False, False),
        ("upstream_reset", False, False),
        ("closed", False, None),
        ("broken", False, None),
    ],
)
def test_detectors_learn_how_the_connection_ended(how: str, clean: bool, expected: bool | None) -> None:
    asks = AsksHow()
    scene = asks.scene = Scene(detectors=lambda opened: [asks])
    streamed(scene, done=False).end(200, how, clean=clean)
    assert asks.says == [How(expected, client_half_closed=False)]


@pytest.mark.parametrize(("last_ms", "certain"), [(360, False), (361, True)])
def test_a_half_close_is_certain_when_the_client_took_more_for_a_quarter_of_a_second(last_ms: float, certain: bool) -> None:
    asks = AsksHow()
    scene = asks.scene = Scene(detectors=lambda opened: [asks])
    streamed(scene, n=1, done=False)
    scene.exchange.client_said_fin()
    scene.read(111, native("b")).read(last_ms, native("c")).read(900, native("d"), lag=None)  # the last one it did not take
    scene.exchange.client_ready(at(901))
    scene.end(902, "client_eof")
    assert asks.says == [How(True, client_half_closed=certain)]
    assert scene.record.ending == "client_disconnect"
    assert scene.record.chunks == 4


@pytest.mark.parametrize(("how", "says"), [("upstream_reset", 1), ("upstream_eof", 1), ("client_reset", 0), ("closed", 0)])
def test_an_end_without_any_answer_is_told_to_detectors_when_the_upstream_made_it(how: str, says: int) -> None:
    asks = AsksHow()
    scene = asks.scene = Scene(detectors=lambda opened: [asks])
    scene.end(50, how, clean=False)
    assert asks.says == [How(False, client_half_closed=False)] * says


def test_an_exchange_that_is_over_leaves_no_circle() -> None:
    """Its detectors and their maker know it; nothing of that may wait for the garbage collector."""
    made: list[Scene] = []
    scene = Scene(detectors=lambda opened: [_Knows(lambda: made[0].exchange)])
    made.append(scene)
    streamed(scene, done=False).exchange.client_said_fin()
    scene.read(150, native("b")).end(200)
    gone = weakref.ref(scene.exchange)
    gc.disable()
    try:
        made.clear()
        del scene
        assert gone() is None
    finally:
        gc.enable()


class _Knows:
    def __init__(self, of: Callable[[], Exchange]) -> None:
        self.of = of

    def see(self, event: Event) -> tuple[()]:
        return ()


def test_lags_belong_to_the_chunks_of_their_read() -> None:
    scene = Scene().answer()
    scene.read(100, native("a") + native("b"), lag=40_000).read(120, native("c"), lag=80_000).read(140, DONE, lag=10)
    record = scene.end(140).record
    assert record.series is not None
    assert record.series.written is not None
    assert unpack_lags(record.series.written) == [40_000, 40_000, 80_000]
    assert list(record.series.coalesced) == [1]
    assert (record.written_lag_s, record.proxy_overhead_s) == (8e-5, 4e-5)


def test_a_connection_that_is_gone_without_a_word() -> None:
    scene = streamed(Scene(trouble=None), done=False)
    scene.exchange.abandon(at(500))
    assert (scene.record.ending, scene.record.undecoded) == ("upstream_truncated", "its end was not seen")


def test_what_a_guard_would_have_to_repeat() -> None:
    scene = Scene()
    assert scene.exchange.standing() is None
    standing = streamed(scene, done=False).exchange.standing()
    assert standing is not None
    assert standing.model == "tiny"


def test_after_the_end_nothing_is_heard() -> None:
    scene = streamed(Scene()).end(200)
    told = list(scene.told.calls)
    scene.read(300, native("late")).end(301)
    scene.exchange.written(at(300), 1)
    scene.exchange.client_slow(at(301))
    scene.exchange.client_ready(at(302))
    scene.exchange.suspended()
    scene.exchange.tick(at(9000))
    scene.exchange.beside(HostSample(at(9000)))
    scene.exchange.cut(at(9001))
    scene.exchange.shutdown(at(9002))
    scene.exchange.abandon(at(9003))
    assert scene.told.calls == told
    assert scene.record.chunks == 3


# --- what cannot be read --------------------------------------------------------------------------------------------------


def test_a_body_longer_than_the_copy_leaves_the_request_unread() -> None:
    scene = Scene(body=None)
    for _ in range(3):
        scene.exchange.see(RequestBody(at(2), 0, b"x" * (MAX_BODY // 2)))
    scene.exchange.see(RequestEnd(at(3), 0))
    record = streamed(scene).end(200).record
    assert (record.model, record.bytes_in, record.ending, record.chunks) == (None, 3 * (MAX_BODY // 2), "complete", 3)
    assert (record.undecoded or "").startswith("the request's body: longer than")


def test_nothing_is_held_of_a_body_that_says_it_will_be_too_long() -> None:
    scene = Scene(body=None, headers=((b"Content-Length", b"%d" % (MAX_BODY + 1)),))
    tracemalloc.start()
    try:
        scene.exchange.see(RequestBody(at(2), 0, b"x" * 1_000_000))
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
    scene.exchange.see(RequestEnd(at(3), 0))
    record = streamed(scene).end(200).record
    assert (record.model, record.bytes_in, record.chunks) == (None, 1_000_000, 3)
    assert (record.undecoded or "").startswith("the request's body: longer than")
    assert scene.troubles == ["undecoded"]


def test_bytes_that_were_not_copied() -> None:
    asked = Scene(body=None)
    asked.exchange.see(Skipped(at(2), 0, "client", 5000))
    asked.exchange.see(RequestEnd(at(3), 0))
    record = streamed(asked).end(200).record
    assert (record.bytes_in, record.undecoded) == (5000, "the request's body: 5,000 bytes of it were not copied")
    answered = streamed(Scene(), done=False)
    answered.exchange.see(Skipped(at(150), 0, "upstream", 4096))
    record = answered.read(160, b'alf a record"}\n' + native("b")).end(170).record
    assert (record.ending, record.chunks, record.withheld_tokens) == ("complete", 4, None)
    assert record.undecoded == "4,096 bytes of the answer were not copied"
    assert any("lower bounds" in doubt for doubt in record.doubts)


def test_garbage_for_http() -> None:
    scene = streamed(Scene(), done=False)
    scene.exchange.see(Broken(at(150), 0, "upstream", "chunk size 'zz'"))
    record = scene.end(150, "broken", clean=False).record
    assert record.undecoded == "the upstream's bytes are not readable as HTTP: chunk size 'zz'"
    assert record.ending == "upstream_truncated"


def test_a_coded_answer_is_decoded_on_the_copy() -> None:
    scene = Scene().answer(content_encoding=b"gzip").read(100, gzip.compress(native("a") + DONE)).end(101)
    assert (scene.record.chunks, scene.record.output_tokens, scene.record.undecoded) == (1, 4, None)
    gap = Scene().answer(content_encoding=b"gzip")
    gap.exchange.see(Skipped(at(99), 0, "upstream", 5))
    assert gap.end(101).record.undecoded == "5 bytes of the answer were not copied"
    left = (
        Scene().answer(content_encoding=b"gzip").read(100, gzip.compress(native("a"))[:-9]).end(101, "client_reset", clean=False)
    )
    assert (left.record.ending, left.record.undecoded) == ("client_disconnect", None)
    broken = Scene().answer(content_encoding=b"gzip").read(100, b"no gzip at all").end(101)
    assert (broken.record.undecoded or "").startswith("the answer: not decodable")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b'{"model":7}', b'{"messages":"x"}'])
def test_requests_that_are_no_requests_are_exchanges(body: bytes) -> None:
    scene = Scene(body=body).answer(400, b"application/json").read(101, b'{"error":"bad"}').end(101)
    assert (scene.record.ending, scene.record.model) == ("upstream_error", None)


@pytest.mark.parametrize("target", [b"/", b"*", b"//", b"http://h/api/chat?x=1", b"\xff\xfe", b"/api/chat/" * 500])
def test_odd_targets(target: bytes) -> None:
    scene = Scene(target, b"").answer(404, b"text/plain").read(101, b"404 page not found").end(101)
    assert scene.record.http_status == 404


def test_other_routes_are_seen_at_once_and_their_bodies_not_held() -> None:
    scene = Scene(b"/api/blobs/sha256:abc", None)
    assert scene.told.calls == ["opened"]
    for _ in range(100):
        scene.exchange.see(RequestBody(at(2), 0, b"x" * 1_000_000))
    scene.exchange.see(RequestEnd(at(900), 0))
    assert scene.exchange._body is None
    record = scene.answer(201, b"text/plain").end(901).record
    assert (record.bytes_in, record.ending, record.dialect, record.operation) == (100_000_000, "complete", "other", None)
    assert record.undecoded is None


def test_an_answer_before_the_requests_end() -> None:
    scene = Scene(body=None)
    scene.exchange.see(RequestBody(at(2), 0, b'{"model":'))
    scene.answer(400, b"application/json").read(101, b'{"error":"too long"}').end(102)
    assert (scene.record.ending, scene.record.model) == ("upstream_error", None)
    assert (scene.told.calls[0], scene.told.calls[-1]) == ("opened", "closed")
    assert scene.record.undecoded is None


# --- who watches ----------------------------------------------------------------------------------------------------------


class Watcher:
    """Finds something at the n-th text; fails when it shall."""

    def __init__(self, n: int = 2, *, fails: bool = False) -> None:
        self.left = n
        self.fails = fails
        self.seen: list[Event] = []

    def see(self, event: Event) -> Iterable[Finding]:
        self.seen.append(event)
        if isinstance(event, TextDelta):
            self.left -= 1
            if not self.left:
                if self.fails:
                    raise ValueError("lost")
                yield Finding("stall", "suspect", "It stalled.", event.t_ns)


def watched(*detectors: Detector) -> MakeDetectors:
    return lambda opened: detectors


def test_findings_get_their_names_and_places() -> None:
    watcher = Watcher()
    scene = streamed(Scene(detectors=watched(watcher))).end(200)
    finding = scene.told.found_[0]
    assert scene.record.findings == [finding]
    assert (finding.exchange_id, finding.t_s, finding.chunk, finding.session_id) == (scene.record.id, 0.12, 1, None)
    assert finding.id > scene.record.id
    assert scene.told.calls.index("found") < scene.told.calls.index("closed")
    assert any(isinstance(event, Finished) for event in watcher.seen)


def test_a_detector_that_fails_is_dropped_and_counted_and_the_others_stay() -> None:
    bad, good = Watcher(1, fails=True), Watcher(3)
    scene = streamed(Scene(detectors=watched(bad, good))).end(200)
    assert scene.troubles == ["detector Watcher: ValueError"]
    assert sum(isinstance(event, TextDelta) for event in bad.seen) == 1
    assert len(scene.record.findings) == 1
    assert scene.record.chunks == 3


def test_detectors_are_made_when_sessions_have_placed_the_exchange() -> None:
    class Placing(Told):
        def opened(self, opened: Opened) -> None:
            opened.placed = Placed("s1", "header", "next", 0, 4)
            super().opened(opened)

    seen: list[Opened] = []

    def make(opened: Opened) -> list[Detector]:
        seen.append(opened)
        return [Watcher()]

    scene = Scene(body=None, detectors=make)
    scene.exchange._sink = Placing()
    scene.exchange.see(RequestBody(at(2), 0, b'{"model":"tiny"}'))
    scene.exchange.see(RequestEnd(at(2), 0))
    record = streamed(scene).end(200).record
    assert seen[0].placed is not None
    assert (record.session_id, record.session_source, record.turn) == ("s1", "header", 4)
    assert record.findings[0].session_id == "s1"


def test_only_generations_are_watched() -> None:
    def make(opened: Opened) -> list[Detector]:
        raise AssertionError(opened.route)

    for target in (b"/api/embed", b"/api/tags", b"/api/pull"):
        Scene(target, detectors=make).answer(200, b"application/json").end(110)
    broken = streamed(Scene(detectors=make)).end(200)
    assert broken.troubles == ["detectors: AssertionError"]
    assert broken.record.ending == "complete"


def test_what_happens_beside_is_seen_and_a_finding_may_come_from_outside() -> None:
    watcher = Watcher()
    scene = Scene(detectors=watched(watcher))
    scene.exchange.beside(HostSample(at(50)))
    assert isinstance(watcher.seen[-1], HostSample)
    scene.exchange.add(Finding("model.hung", "violation", "It hangs.", at(60)))
    streamed(scene).end(200)
    assert [finding.kind for finding in scene.record.findings] == ["model.hung", "stall"]
    assert scene.record.findings[0].chunk is None
    scene.exchange.add(Finding("cache.broken", "info", "It broke.", at(200)))
    assert scene.told.found_[-1].exchange_id == scene.record.id
    assert len(scene.record.findings) == 2


def test_findings_are_bounded() -> None:
    class Noisy:
        def see(self, event: Event) -> Iterable[Finding]:
            return [Finding("stall", "info", "Again.", event.t_ns) for _ in range(600)]

    scene = streamed(Scene(detectors=watched(Noisy()))).end(200)
    assert len(scene.record.findings) == 1000
    assert "findings beyond 1000 in one exchange" in scene.troubles


def test_verdicts_on_calls_reach_the_record() -> None:
    class Judge:
        verdicts = [(1, "", "g", False, ["type at /x"]), (0, "", "f", True, []), (7, "", "?", False, [])]

        def see(self, event: Event) -> Iterable[Finding]:
            return ()

    call = (
        b'{"message":{"role":"assistant","content":"",'
        b'"tool_calls":[{"function":{"index":%d,"name":"%s","arguments":{"x":"\xc3\xa9"}}}]}}\n'
    )
    scene = (
        Scene(detectors=watched(Judge()))
        .answer()
        .read(100, call % (0, b"f"))
        .read(150, call % (1, b"g"))
        .read(200, DONE)
        .end(200)
    )
    assert [(c.name, c.t_s, c.argument_bytes, c.valid, c.problems) for c in scene.record.tool_calls] == [
        ("f", 0.1, 10, True, []),
        ("g", 0.15, 10, False, ["type at /x"]),
    ]


@pytest.mark.parametrize("fails", ["opened", "progress", "found", "closed"])
def test_a_sink_that_fails_is_counted_and_harms_nothing(fails: str) -> None:
    scene = streamed(Scene(fails=fails, detectors=watched(Watcher()))).end(200)
    assert scene.record.ending == "complete"
    assert set(scene.troubles) == {"sink: RuntimeError"}


def test_a_detector_may_fail_at_what_happens_beside() -> None:
    class Deaf:
        def see(self, event: Event) -> Iterable[Finding]:
            raise ValueError("deaf")

    scene = Scene(detectors=watched(Deaf()))
    scene.exchange.beside(HostSample(at(50)))
    scene.exchange.beside(HostSample(at(60)))
    assert scene.troubles == ["detector Deaf: ValueError"]


def test_a_request_reader_that_fails_costs_only_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("qm_proxy.exchange.read_request", fail)
    record = streamed(Scene()).end(200).record
    assert (record.model, record.chunks, record.undecoded) == (None, 3, "the request's body: KeyError")


def test_a_decoder_that_fails_costs_the_answer_only_its_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, where: str) -> None:
            self.where = where

        def deltas(self, kind: type, bodies: list[bytes], t_ns: list[Nanoseconds]) -> None:
            raise KeyError("x")

        def feed(self, data: bytes, t_ns: Nanoseconds) -> list[Event]:
            if self.where == "feed":
                raise KeyError("x")
            return []

        def missed(self, n_bytes: int, t_ns: Nanoseconds) -> list[Event]:
            raise KeyError("x")

        def close(self, ending: str, t_ns: Nanoseconds) -> list[Event]:
            raise KeyError("x")

    for where in ("feed", "close", "missed"):
        monkeypatch.setattr("qm_proxy.exchange.decoder_for", lambda *_, where=where, **__: Failing(where))
        scene = Scene().answer().read(100, b"x").read(110, b"y")
        if where == "missed":
            scene.exchange.see(Skipped(at(120), 0, "upstream", 1))
        record = scene.end(130).record
        assert (record.ending, record.bytes_out, record.undecoded) == (
            "complete",
            2 + (where == "missed"),
            "the answer: KeyError",
        )
        assert scene.troubles == ["decoder: KeyError", "undecoded"]


# --- what is asked of others ----------------------------------------------------------------------------------------------


def test_company_is_counted_before_oneself() -> None:
    def others_of(model: str) -> int:
        assert model == "tiny"
        assert scene is None or scene.told.opened_ == []
        return 2

    scene: Scene | None = None
    scene = Scene(others_of=others_of).answer(ms=3000)
    slow = DONE.replace(b"190000000", b"3000000000")
    record = scene.read(3000, native("a")).read(3100, slow).end(3100).record
    assert record.queue_s == pytest.approx(2.83)
    assert (record.slow_because or "").endswith("behind 2 other requests for tiny.")


TOO_LONG = (
    b'{"error":"{\\"error\\":{\\"code\\":400,\\"message\\":\\"request (701 tokens) exceeds the available context size\\",'
    b'\\"type\\":\\"exceed_context_size_error\\",\\"n_prompt_tokens\\":701,\\"n_ctx\\":512}}"}'
)


@pytest.mark.parametrize(
    ("target", "body", "answer", "window"),
    [
        (b"/api/chat", b'{"model":"m","options":{"num_ctx":2048}}', None, 2048),
        (b"/api/chat", b'{"model":"m","options":{"num_ctx":"x"}}', None, 8192),
        (b"/v1/chat/completions", b'{"model":"m","options":{"num_ctx":2048}}', None, 8192),
        (b"/api/chat", b'{"model":"m"}', TOO_LONG, 512),
        (b"/api/tags", b"", None, None),
    ],
)
def test_the_window(target: bytes, body: bytes, answer: bytes | None, window: int | None) -> None:
    def window_of(model: str | None) -> int | None:
        assert model == "m"
        return 8192

    scene = Scene(target, body, window_of=window_of).answer(400 if answer else 200, b"application/json")
    assert scene.read(101, answer or b"{}").end(101).record.context_window_tokens == window


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", None),
        (b"garbage", None),
        (b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
    ],
)
def test_the_clients_trace(sent: bytes, trace: str | None) -> None:
    assert Scene(headers=((b"Traceparent", sent),)).end(3, "client_eof", clean=False).record.trace_id == trace


def test_the_instant_is_the_machines_unless_told() -> None:
    exchange = Exchange(RequestHead(at(1), at(0), 0, "GET", b"/", ()), Told())
    assert exchange.started_at.endswith("Z")


def test_sleep_is_marked() -> None:
    scene = Scene().answer().read(100, native("a"))
    scene.exchange.suspended()
    record = scene.read(120, native("b")).read(130, DONE).end(130).record
    assert record.series is not None
    assert record.series.suspended == [1]
    assert record.itl is None


def test_a_whole_answer() -> None:
    body = DONE.replace(b'"content":""', b'"content":"hello"').strip()
    scene = (
        Scene(body=b'{"model":"tiny","stream":false}')
        .answer(200, b"application/json; charset=utf-8", ms=190)
        .read(190, body)
        .end(190)
    )
    record = scene.record
    assert (record.streamed, record.ttft_s, record.itl, record.chunks, record.output_tokens) == (False, None, None, 1, 4)
    assert (record.prefill_s, record.ending, record.withheld_tokens) == (0.07, "complete", None)


def test_a_whole_answer_of_a_client_that_had_sent_its_fin_is_complete() -> None:
    body = DONE.replace(b'"content":""', b'"content":"hello"').strip()
    scene = Scene(body=b'{"model":"tiny","stream":false}').answer(200, b"application/json", ms=190).read(190, body)
    assert scene.end(191, "client_eof").record.ending == "complete"


def test_an_unfinished_stream_shows_its_cut_to_the_detectors() -> None:
    watcher = Watcher(9)
    streamed(Scene(detectors=watched(watcher)), done=False).end(300, "client_reset", clean=False)
    assert [event.ending for event in watcher.seen if isinstance(event, Cut)] == ["client_disconnect"]
    assert not any(isinstance(event, ToolCall) for event in watcher.seen)


# --- anything in any order ------------------------------------------------------------------------------------------------

BYTES = st.sampled_from([b"", b"x", b"{", native("a"), DONE, b"data: [DONE]\n\n", b'{"error":"died"}\n', b"\xff\x00\n", b"[]\n"])
HOWS = st.sampled_from(["framing", "client_eof", "client_reset", "upstream_eof", "upstream_reset", "closed", "broken"])
TYPES = st.sampled_from([b"application/x-ndjson", b"application/json", b"text/event-stream", b"text/plain", b""])
HAPPENINGS = st.one_of(
    st.tuples(st.just("request"), BYTES),
    st.tuples(st.just("asked")),
    st.tuples(
        st.just("head"), st.sampled_from([101, 200, 204, 301, 404, 500]), TYPES, st.sampled_from([b"", b"gzip", b"zstd", b"?"])
    ),
    st.tuples(st.just("body"), BYTES),
    st.tuples(st.just("body"), BYTES),
    st.tuples(st.just("end"), HOWS, st.booleans()),
    st.tuples(st.just("skipped"), st.sampled_from(["client", "upstream"]), st.integers(0, 9999)),
    st.tuples(st.just("broken"), st.sampled_from(["client", "upstream"])),
    st.tuples(st.just("written"), st.one_of(st.none(), st.integers(0, 10**9))),
    st.tuples(st.sampled_from(["client_slow", "client_ready", "tick", "suspended", "refused", "cut", "shutdown", "abandon"])),
)
TARGETS = st.sampled_from(
    [b"/api/chat", b"/v1/chat/completions", b"/v1/messages", b"/v1/responses", b"/api/embed", b"/api/pull", b"/"]
)


@settings(max_examples=200)
@given(TARGETS, st.lists(HAPPENINGS, max_size=25), st.booleans())
def test_whatever_happens_there_is_one_story(target: bytes, happenings: list[tuple[Any, ...]], capture: bool) -> None:
    scene = Scene(target, None, capture=capture, detectors=watched(Watcher()))
    exchange = scene.exchange
    for i, (what, *given_) in enumerate(happenings):
        t = at(10 + 30 * i)
        match what:
            case "request":
                exchange.see(RequestBody(t, 0, given_[0]))
            case "asked":
                exchange.see(RequestEnd(t, 0))
            case "head":
                headers = ((b"content-type", given_[1]), (b"content-encoding", given_[2]))
                exchange.see(ResponseHead(t, 0, given_[0], headers))
            case "body":
                exchange.see(ResponseBody(t, 0, given_[0]))
            case "end":
                exchange.see(ResponseEnd(t, 0, given_[1], given_[0]))
            case "skipped":
                exchange.see(Skipped(t, 0, given_[0], given_[1]))
            case "broken":
                exchange.see(Broken(t, 0, given_[0], "?"))
            case "written":
                exchange.written(t, given_[0])
            case "suspended":
                exchange.suspended()
            case "refused":
                exchange.refused("refused", t)
            case _:
                getattr(exchange, what)(t)
    exchange.abandon(at(9999))
    record = scene.record
    assert scene.told.calls.count("opened") == scene.told.calls.count("closed") == 1
    assert scene.told.calls[0] in ("opened", "progress")
    assert scene.told.calls[-1] == "closed"
    assert scene.told.closed_ == [record]
    rows = (record.queue_s, record.load_s, record.prefill_s, record.decode_s, record.client_wait_s, record.unexplained_s)
    assert sum(row or 0.0 for row in rows) == pytest.approx(record.total_s, abs=1e-9)
    assert set(scene.troubles) <= {"undecoded"}
    json.dumps(record_json(record), allow_nan=False)
    chunks = chunks_json(record)
    assert (chunks is None) == (record.chunks == 0)
    assert chunks is None or len(chunks["arrival_ns"]) == record.chunks == sum(n for _, n in chunks["kinds"])
