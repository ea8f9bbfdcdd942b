"""Nobody is shut out: axe-core finds no serious fault on any view, in either theme. axe-core (MPL) is fetched, never shipped."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.servant import Servant

from .conftest import Window, ask, chat, start_inspections, until


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checker's script, from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core cannot be fetched")
    place = tmp_path_factory.mktemp("axe")
    got = subprocess.run([npm, "pack", "--silent", "axe-core@4"], cwd=place, capture_output=True, text=True, timeout=90)
    if got.returncode:
        pytest.skip(f"npm could not fetch axe-core: {got.stderr.strip()[-200:]}")
    (packed,) = place.glob("axe-core-*.tgz")
    with tarfile.open(packed) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def faults(page: Any, axe: str) -> list[str]:
    """What axe calls serious or critical here."""
    page.evaluate(f"void window.axe || {axe}\n;1") if not page.evaluate("'axe' in window") else None
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations)")
    return [
        f"{v['id']} ({v['impact']}): {node['target']} {node.get('failureSummary', '')}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_fault_on_any_view(
    axe: str,
    make_sim: Callable[..., Any],
    serving: Callable[..., Servant],
    open_window: Callable[..., Window],
    dark: bool,
    tmp_path: Path,
) -> None:
    sim = make_sim(personas=["steady", "staller", "tool-user", "looper"], speed=4.0)
    served = serving(sim.url, poll=0.2)
    window = open_window(f"{served.console}/", dark=dark)
    page = window.page
    page.wait_for_selector(".paste .lines pre")
    found = {"empty": faults(page, axe)}
    tools = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object", "properties": {}}}}]
    ask(served.proxy, "/v1/chat/completions", chat("staller", "one", 70), x_session_id="ses_1")
    ask(served.proxy, "/v1/chat/completions", chat("tool-user", "two", 70, tools=tools), x_session_id="ses_2")
    ask(served.proxy, "/v1/chat/completions", chat("looper", "three", 400), x_session_id="ses_3")
    until(page, "document.querySelectorAll('.a-closed a.xrow').length === 3")
    page.wait_for_selector(".models li")
    items = served.ask("/api/v1/exchanges")["items"]
    details = [f"exchange/{x['id']}" for x in items] + [f"session/{x['session_id']}" for x in items]
    for view in ["now", "exchanges", "sessions", "models", "probes", "health", "connect", *details]:
        page.evaluate(f"location.hash = '#/{view}'")
        page.wait_for_selector(f"main[data-view={view.split('/')[0]}] .panel")
        until(page, "!document.querySelector('[aria-busy=true]') && !document.querySelector('.vega:empty')")
        found[view] = faults(page, axe)
    told = [f"{view}: {fault}" for view, some in found.items() for fault in some]
    assert not told, "\n".join(told)


def test_no_serious_fault_where_runs_are_shown(
    axe: str, make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    """The list of runs, one with its report, and two side by side: in both themes."""
    sim = make_sim(personas=["steady", "staller"], speed=20.0)
    served = serving(sim.url)
    window = open_window(f"{served.console}/#/probes")
    page = window.page
    page.wait_for_selector("#link.on")
    start_inspections(page, "steady", "staller")
    until(page, "document.querySelectorAll('main table .pill.good').length === 2")
    b, a = (run["id"] for run in served.ask("/api/v1/runs")["items"])
    told = []
    for theme in ("light", "dark"):
        for view in ("probes", f"run/{a}", f"compare/{a}/{b}"):
            page.evaluate(f"location.hash = '#/{view}'")
            page.wait_for_selector(f"main[data-view={view.split('/')[0]}] .panel")
            until(page, "!document.querySelector('[aria-busy=true]') && !document.querySelector('.vega:empty')")
            told += [f"{theme} {view}: {fault}" for fault in faults(page, axe)]
        page.click("#theme")
    assert not told, "\n".join(told)
