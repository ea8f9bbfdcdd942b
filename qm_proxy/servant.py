"""A `serve` of our own as a child process: for `demo`, `run` and tests. It is started, asked, and ended by its id."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self

from qm_proxy.errors import QmError, SettingsError, UpstreamError

__all__ = ["READY", "Servant", "ask"]

READY = re.compile(r"^qm-proxy ready: proxy (?P<proxy>\S+) -> (?P<upstream>\S+), console (?P<console>\S+)$")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a http_proxy variable is not meant for loopback


class Servant:
    """Runs `qm_proxy.supervisor` with a plan, until closed. `proxy` and `console` are URLs (`console` may be `None`)."""

    def __init__(self, plan: dict[str, Any], *, patience_s: float = 30.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qm_proxy.supervisor", json.dumps(plan | {"ends_with_stdin": True})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,  # held open: should we be killed, it closes, and the proxy ends too
            start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on, in order
        )
        self._token: str | None = plan.get("console_token")
        self.proxy, self.console = self._await_ready(patience_s)

    def _await_ready(self, patience_s: float) -> tuple[str, str | None]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            readable, _, _ = select.select([self.process.stdout], [], [], 0.2)
            if readable:
                text = self.process.stdout.readline().decode("utf-8", "replace").strip()
                if match := READY.match(text):
                    console = match["console"]
                    return match["proxy"], None if console == "off" else console
                if not text and self.process.poll() is not None:
                    break
            elif self.process.poll() is not None:
                break
        self.process.kill()
        _, err = self.process.communicate()
        said = err.decode("utf-8", "replace").strip().removeprefix("qm-proxy: ")
        kind = SettingsError if self.process.returncode == 2 else UpstreamError
        raise kind(said or "The proxy did not get ready.")

    def ask(self, path: str) -> Any:
        """A JSON document of the console. Raises `QmError` when the console is off or answers with a problem."""
        if self.console is None:
            raise QmError("The console is off.")
        return ask(self.console, path, token=self._token)

    def close(self, *, patience_s: float = 30.0) -> int:
        """End it as a user would (SIGTERM), wait, and return its exit code."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(console: str, path: str, *, patience_s: float = 10.0, token: str | None = None) -> Any:
    """GET `path` of a console; its JSON. Raises `QmError` with the problem's own words."""
    request = urllib.request.Request(console + path, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with _DIRECT.open(request, timeout=patience_s) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        with contextlib.suppress(ValueError, AttributeError, OSError):
            detail = json.loads(exc.read()).get("detail")
            raise QmError(f"{path}: {detail}", status=exc.code) from exc
        raise QmError(f"{path}: HTTP {exc.code}", status=exc.code) from exc
    except (OSError, ValueError, http.client.HTTPException) as exc:  # the last: something that is no console answers there
        raise QmError(f"{console} does not answer: {exc}") from exc
