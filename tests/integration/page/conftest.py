"""Real Chromium on the real page: a browser for the whole run, a fresh profile for each test, everything it complains of kept."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_WATCH = """
window.qmTrouble = [];
document.addEventListener("securitypolicyviolation",
  (e) => window.qmTrouble.push(`policy: ${e.violatedDirective} ${e.blockedURI}`));
window.qmLong = [];
new PerformanceObserver((list) => { for (const e of list.getEntries()) window.qmLong.push(Math.round(e.duration)); })
  .observe({ type: "longtask", buffered: true });
"""


def _chromium() -> str | None:
    given = os.environ.get("QM_CHROMIUM")
    return given or next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:  # ends with its module: while it lives, its loop counts as running, and async tests cannot
    path = _chromium()
    if path is None:
        pytest.skip("no Chromium: install Debian's chromium, or set QM_CHROMIUM")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, args=_FLAGS)
        yield started
        started.close()


@dataclass
class Window:
    """A tab, and what went wrong in it."""

    page: Any
    trouble: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """Errors of the console, uncaught exceptions, and breaches of the Content-Security-Policy."""
        breaches: list[str] = self.page.evaluate("window.qmTrouble")
        return self.trouble + breaches


@pytest.fixture
def open_window(browser: Any) -> Iterator[Callable[..., Window]]:
    """open_window(url, width=…, height=…, dark=…): a fresh profile each."""
    contexts = []

    def open_it(url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> Window:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        contexts.append(context)
        context.add_init_script(_WATCH)
        window = Window(context.new_page())
        window.page.set_default_timeout(30_000)
        window.page.on("console", lambda m: window.trouble.append(m.text) if m.type == "error" else None)
        window.page.on("pageerror", lambda e: window.trouble.append(f"uncaught: {e}"))
        window.page.goto(url)
        return window

    yield open_it
    for context in contexts:
        context.close()


def ask(url: str, path: str, body: dict[str, Any], agent: str = "opencode/1.18", **headers: str) -> bytes:
    """POST to the proxy and read the answer to its end."""
    request = urllib.request.Request(
        url + path,
        json.dumps(body).encode(),
        {"content-type": "application/json", "user-agent": agent, **{k.replace("_", "-"): v for k, v in headers.items()}},
    )
    with _DIRECT.open(request, timeout=60) as answer:
        read: bytes = answer.read()
        return read


def chat(model: str, text: str, tokens: int = 60, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": tokens, **more}


def until(page: Any, expression: str, tell: str = "location.hash") -> None:
    """Poll until this JavaScript is true (the browser's own waiting compiles strings, which the page's policy forbids)."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}; {page.evaluate(tell)!r}")


def start_inspections(page: Any, *models: str) -> None:
    """Start a quick inspection of each, as the page would."""
    start = """(model) => fetch("/api/v1/runs", {method: "POST", headers: {"content-type": "application/json"},
      body: JSON.stringify({kind: "inspect", model, quick: true})}).then((r) => r.ok)"""
    for model in models:
        for _ in range(100):  # the jobs come up a moment after the console
            if page.evaluate(start, model):
                break
            page.wait_for_timeout(100)
