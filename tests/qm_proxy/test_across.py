from __future__ import annotations

from typing import Any

import pytest

from qm_proxy.across import Across
from qm_proxy.detect.suite import Suite
from qm_proxy.events import HostSample, Nanoseconds, Residency, ResidentModel
from qm_proxy.findings import Finding
from qm_proxy.record import Progress

S = 1_000_000_000


class Reloads:
    """Stands in the place of the detector: says what it shall, remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.says: list[Finding] = []

    def opened(self, opened: Any) -> None:
        self.heard.append("opened")

    def progress(self, progress: Any) -> None:
        self.heard.append("progress")

    def closed(self, record: Any) -> list[Finding]:
        self.heard.append("closed")
        return self.says

    def see(self, event: Any) -> None:
        self.heard.append(type(event).__name__)

    def tick(self, now_ns: int) -> list[Finding]:
        self.heard.append("tick")
        return self.says


class Scene:
    def __init__(self) -> None:
        self.suite = Suite()
        self.reload, self.hung = Reloads(), Reloads()
        self.suite.reload = self.reload  # type: ignore[assignment]
        self.suite.hung_slot = self.hung  # type: ignore[assignment]
        self.told: list[Finding] = []
        self.attached: list[Finding] = []
        self.across = Across(self.suite, self.told.append, self.attached.append)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_reload_enters_the_record_before_others_see_it(scene: Scene, make: Any) -> None:
    opened = make.opened(placed=make.placed("s1"))
    record = make.record(opened)
    scene.reload.says = [Finding("model.reload", "suspect", "It was loaded again.", opened.t_ns + 2 * S)]
    scene.across.opened(opened)
    scene.across.closed(record)
    [finding] = record.findings
    assert finding is scene.told[0]
    assert (finding.exchange_id, finding.session_id, finding.t_s) == (opened.id, "s1", 2.0)
    assert finding.id
    assert scene.attached == []
    assert scene.hung.heard == ["opened", "closed"]


def test_what_a_finding_has_already_is_kept(scene: Scene, make: Any) -> None:
    opened = make.opened()
    scene.reload.says = [
        Finding("model.reload", "info", "x", opened.t_ns - S, id="f1"),
        Finding("model.reload", "info", "x", 0, t_s=7.0),
    ]
    scene.across.closed(make.record(opened))
    assert (scene.told[0].id, scene.told[0].t_s) == ("f1", 0.0)
    assert scene.told[1].t_s == 7.0
    assert len({f.id for f in scene.told}) == 2


def test_a_hung_slot_goes_to_the_exchange_that_waits(scene: Scene) -> None:
    scene.hung.says = [Finding("model.hung", "violation", "It hangs.", 5, exchange_id="x1")]
    scene.across.tick(Nanoseconds(9))
    assert scene.attached == scene.hung.says
    assert scene.told == []


def test_who_hears_of_what(scene: Scene, make: Any) -> None:
    scene.across.see(HostSample(Nanoseconds(1)))
    scene.across.see(Residency(Nanoseconds(2), (ResidentModel("m", "", None, None, None, None),)))
    scene.across.progress(Progress("x", Nanoseconds(3), "answering", 1, 0.1, 0.1, None))
    scene.across.found(make.finding())
    assert scene.reload.heard == ["Residency"]
    assert scene.hung.heard == ["HostSample", "Residency", "progress"]


def test_which_other_requests_began_in_a_span(scene: Scene, make: Any) -> None:
    own, other, listing, later = (
        make.opened(t_ns=Nanoseconds(100)),
        make.opened(t_ns=Nanoseconds(200), model="big"),
        make.opened(t_ns=Nanoseconds(250), operation=None, route="/api/tags", model=None),
        make.opened(t_ns=Nanoseconds(301), model=None, route="/api/embed"),
    )
    for opened in (own, other, listing, later):
        scene.across.opened(opened)
    between = scene.across.beside(own.id)
    assert between(100, 300).started == ("big",)
    assert between(100, 301).started == ("big", "/api/embed")
    assert between(302, 400).started == ()
    assert scene.across.beside(other.id)(0, 250).started == (own.model,)
    assert between(100, 300).client_slow_ns is None, "nobody said"
    assert scene.across.beside(own.id, lambda began, ended: ended - began)(100, 300).client_slow_ns == 200


def test_with_the_real_detectors_nothing_is_found_in_quiet_traffic(make: Any) -> None:
    told: list[Finding] = []
    across = Across(Suite(), told.append, told.append)
    for _ in range(5):
        opened = make.opened()
        across.opened(opened)
        across.tick(opened.t_ns)
        across.closed(make.record(opened))
    assert told == []


def test_starts_are_bounded(scene: Scene, make: Any) -> None:
    for n in range(1000):
        scene.across.opened(make.opened(t_ns=Nanoseconds(n)))
    assert len(scene.across.beside("x")(0, 2000).started) == 256
