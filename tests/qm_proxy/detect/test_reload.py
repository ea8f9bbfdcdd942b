from __future__ import annotations

from collections.abc import Callable

import pytest

from qm_proxy.detect.reload import Reload, keep_alive_s
from qm_proxy.events import Nanoseconds, Residency, ResidentModel
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Record

Make = Callable[..., Opened]
Close = Callable[..., Record]


def resident(at_s: float, **windows: int) -> Residency:
    models = tuple(ResidentModel(f"{name}:latest", "d", 1, 1, window, None) for name, window in windows.items())
    return Residency(Nanoseconds(round(at_s * 1e9)), models)


class Desk:
    """Runs exchanges one after the other."""

    def __init__(self, make_opened: Make, make_record: Close) -> None:
        self.reload = Reload()
        self._opened, self._record = make_opened, make_record
        self._n = 0

    def run(
        self,
        at_s: float,
        *,
        load_s: float | None = 0.002,
        total_s: float = 1.0,
        ending: str = "complete",
        error: str | None = None,
        **asked: object,
    ) -> list[Finding]:
        self._n += 1
        opened = self._opened(f"e{self._n}", at_s, **asked)
        self.reload.opened(opened)
        return self.reload.closed(self._record(opened, load_s=load_s, total_s=total_s, ending=ending, error=error))


@pytest.fixture
def desk(make_opened: Make, make_record: Close) -> Desk:
    return Desk(make_opened, make_record)


def test_the_first_load_is_no_finding_and_neither_is_a_warm_model(desk: Desk) -> None:
    assert desk.run(0, load_s=9.0) == []
    for i in range(1, 10):
        assert desk.run(i * 10.0, load_s=0.003 * (1 + i % 2)) == []


def test_which_client_and_which_option(desk: Desk) -> None:
    desk.run(0, load_s=3.0, client="aider", options={"num_ctx": 8192})
    desk.run(10, client="aider", options={"num_ctx": 8192, "temperature": 0.1})
    (finding,) = desk.run(20, load_s=4.2, client="opencode", options={"num_ctx": 16384})
    assert (finding.kind, finding.severity, finding.exchange_id) == ("model.reload", "suspect", "e3")
    evidence = finding.evidence
    assert (evidence["cause"], evidence["option"], evidence["from"], evidence["to"]) == ("option", "num_ctx", 8192, 16384)
    assert (evidence["forced_by"], evidence["previous_client"], evidence["lost_s"]) == ("opencode", "aider", 4.2)
    assert "same num_ctx" in str(evidence["setting"])
    assert "opencode" in finding.summary
    (back,) = desk.run(30, load_s=4.0, client="aider", options={"num_ctx": 8192})
    assert (back.evidence["from"], back.evidence["to"]) == (16384, 8192)


def test_a_native_window_against_an_automatic_one(desk: Desk) -> None:
    desk.run(0, load_s=3.0, client="aider", options={"num_ctx": 8192})
    (finding,) = desk.run(10, load_s=3.0, client="ollama", options=None)
    assert (finding.evidence["from"], finding.evidence["to"]) == (8192, None)
    assert "unset" in finding.summary


def test_v1_tells_no_durations_but_the_window_changes(desk: Desk, make_opened: Make, make_record: Close) -> None:
    desk.run(0, load_s=3.0, client="aider", options={"num_ctx": 8192})
    desk.reload.see(resident(1, m=8192))
    opened = make_opened("v1", 10, client="codex", dialect="openai-chat")
    desk.reload.opened(opened)
    desk.reload.see(resident(12, m=4096))
    (finding,) = desk.reload.closed(make_record(opened, load_s=None, total_s=5.0))
    assert (finding.evidence["window_before"], finding.evidence["window"], finding.evidence["lost_s"]) == (8192, 4096, None)
    assert (finding.evidence["option"], finding.evidence["to"]) == ("num_ctx", None)
    assert desk.run(20, load_s=None, client="codex", dialect="openai-chat") == []


def test_idle(desk: Desk) -> None:
    desk.run(0, load_s=3.0)
    (finding,) = desk.run(302, load_s=3.0)
    assert (finding.evidence["cause"], finding.severity) == ("idle", "info")
    desk.run(310, keep_alive="10m")
    (finding,) = desk.run(700, load_s=3.0)
    assert finding.evidence["cause"] == "unknown", "600 s had not passed"
    (finding,) = desk.run(1400, load_s=3.0)
    assert finding.evidence["cause"] == "idle"


def test_evicted(desk: Desk) -> None:
    desk.run(0, load_s=3.0)
    desk.run(10, load_s=2.0, model="other")
    (finding,) = desk.run(20, load_s=3.0)
    assert (finding.evidence["cause"], finding.evidence["evicted_by"]) == ("evicted", ["other"])
    assert "OLLAMA_MAX_LOADED_MODELS" in finding.summary


def test_unloaded_and_crashed(desk: Desk) -> None:
    desk.run(0, load_s=3.0)
    desk.run(5, client="cron", keep_alive="0")
    (finding,) = desk.run(10, load_s=3.0)
    assert (finding.evidence["cause"], finding.evidence["unloaded_by"]) == ("unloaded", "cron")
    desk.run(20, ending="upstream_error", error="an error was encountered while running the model: unexpected EOF")
    (finding,) = desk.run(30, load_s=3.0)
    assert finding.evidence["cause"] == "crash"


def test_a_cause_that_was_not_seen_is_not_named(desk: Desk) -> None:
    desk.run(0, load_s=3.0)
    (finding,) = desk.run(20, load_s=3.0)
    assert finding.evidence["cause"] == "unknown"
    assert "not seen" in finding.summary


def test_options_that_do_not_reload(desk: Desk) -> None:
    desk.run(0, load_s=3.0, options={"temperature": 0.0, "num_predict": 5, "shift": True})
    (finding,) = desk.run(20, load_s=3.0, options={"temperature": 1.0, "num_keep": 4, "stop": ["x"]})
    assert finding.evidence["cause"] == "unknown"
    (finding,) = desk.run(30, load_s=3.0, options={"shift": False})
    assert (finding.evidence["option"], finding.evidence["to"]) == ("shift", False)


def test_behind_whom(desk: Desk, make_opened: Make, make_record: Close) -> None:
    first, second, other = make_opened("a", 0, client="aider"), make_opened("b", 1, client="zed"), make_opened("c", 1, model="x")
    for opened in (first, second, other):
        desk.reload.opened(opened)
    assert [(n.exchange_id, n.client) for n in desk.reload.behind("b")] == [("a", "aider")]
    assert desk.reload.behind("a") == desk.reload.behind("c") == desk.reload.behind("nobody") == []
    desk.reload.closed(make_record(first))
    late = make_opened("d", 3)
    desk.reload.opened(late)
    assert [n.exchange_id for n in desk.reload.behind("d")] == ["b"]


def test_unreachable_and_other_requests_are_passed_over(desk: Desk, make_opened: Make, make_record: Close) -> None:
    assert desk.run(0, model=None) == []
    assert desk.run(1, load_s=None, ending="upstream_unreachable") == []
    assert desk.run(2, load_s=3.0) == [], "still the first load"


def test_memory_is_bounded(desk: Desk) -> None:
    for i in range(6000):
        desk.run(float(i), model=f"m{i}")
    assert len(desk.reload._models) <= 256
    assert len(desk.reload._behind) <= 4096


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("300", 300),
        ("-1", -1),
        ("0", 0),
        ("0s", 0),
        ("1.5s", 1.5),
        ("-1m", -60),
        ("soon", None),
        ("", None),
    ],
)
def test_keep_alive(text: str, seconds: float | None) -> None:
    assert keep_alive_s(text) == seconds
