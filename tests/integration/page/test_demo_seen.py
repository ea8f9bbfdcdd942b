"""The demo as a user sees it: the page is open while `qm-proxy demo` plants its faults, and shows each when it happens."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from .conftest import Window, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
KINDS = {"loop.token": "a loop", "stall": "a stall", "tool.unknown": "a bad call", "context.truncated": "a truncation"}
_SEEN = """
window.qmSeen = {};
new MutationObserver(() => {
  for (const li of document.querySelectorAll(".a-found li[data-key]")) window.qmSeen[li.dataset.key] ??= Date.now() / 1000;
}).observe(document, { subtree: true, childList: true });
"""


@pytest.fixture
def console() -> Iterator[str]:
    """`qm-proxy demo`, until the test has seen what it wants."""
    command = [sys.executable, "-m", "qm_proxy", "demo"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert demo.stdout is not None
    try:
        yield demo.stdout.readline().split()[-1]
    finally:
        demo.terminate()
        demo.communicate(timeout=90)


def _ask(console: str, path: str) -> Any:
    with _DIRECT.open(f"{console}/api/v1/{path}", timeout=20) as answer:
        return json.load(answer)


def test_each_planted_fault_is_on_the_page(console: str, open_window: Callable[..., Window]) -> None:
    """Prints how long after it happened (start of its request + `t_s`) each stood in the list of findings."""
    window = open_window("about:blank")
    page = window.page
    page.context.add_init_script(_SEEN)
    page.goto(f"{console}/")
    page.wait_for_selector("#link.on")
    for kind in KINDS:
        until(
            page,
            f"[...document.querySelectorAll('.a-found .pill')].some((p) => p.textContent === '{kind}')",
            "document.querySelector('.a-found').innerText",
        )
    seen: dict[str, float] = page.evaluate("window.qmSeen")
    started: dict[str, float] = {}
    told: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for found in _ask(console, "findings?limit=500")["items"]:
        if found["kind"] not in told or found["id"] not in seen or found["t_s"] is None:
            continue
        x = found["exchange_id"]
        if x not in started:
            at = _ask(console, f"exchanges/{x}")["started_at"]
            started[x] = datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
        told[found["kind"]].append(seen[found["id"]] - started[x] - found["t_s"])
    for kind, name in KINDS.items():
        assert told[kind], f"{name} was planted and is on no page"
        worst = 1e3 * max(told[kind])
        print(f"{name} ({kind}): {len(told[kind])} seen, {1e3 * min(told[kind]):.0f} to {worst:.0f} ms after they happened")
    assert window.complaints() == []
