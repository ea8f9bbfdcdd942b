"""`qm-proxy run -- COMMAND …`: one child pointed at the proxy, and what was seen when it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from qm_proxy.clients import environment_for
from qm_proxy.errors import QmError, SettingsError
from qm_proxy.servant import Servant, ask
from qm_proxy.terminal import seconds

__all__ = ["already_serving", "run_command"]

SETTLE_S = 0.5  # what closed with the child reaches the console a moment later


def run_command(command: list[str], plan: dict[str, Any]) -> int:
    """Run `command` with its own environment, serving first if nobody does. Returns the command's exit code.

    Raises `SettingsError` when the command is not found, or the console is off (then nothing could be told afterwards).
    """
    if shutil.which(command[0]) is None:
        raise SettingsError(f"The command {command[0]!r} was not found.", remedy="Is it installed and on the PATH?")
    if plan["console"] is None:
        raise SettingsError("run tells what was seen, and that needs the console.", remedy="Leave --console on.")
    began = datetime.now(UTC).isoformat()
    running = already_serving(plan["console"], plan["console_token"])
    servant = None if running else Servant(plan)
    proxy, console = running or (servant.proxy, servant.console or "")  # type: ignore[union-attr]
    print(f"qm-proxy: {command[0]} goes through {proxy}; look at {console}", file=sys.stderr)
    try:
        child = subprocess.Popen(command, env=os.environ | environment_for(command[0], proxy))
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                continue  # the child has had it too and decides itself
        time.sleep(SETTLE_S)
        _tell(console, began, plan["console_token"])
    finally:
        if servant is not None:
            servant.close()
    return code if code >= 0 else 128 - code


def already_serving(console: str, token: str | None = None) -> tuple[str, str] | None:
    """(proxy URL, console URL) of a qm-proxy that answers at this console address; `None` when none does."""
    host, _, port = console.rpartition(":")
    url = f"http://{host or '127.0.0.1'}:{port}"
    with contextlib.suppress(QmError):
        status = ask(url, "/api/v1/status", patience_s=1.0, token=token)
        if status.get("name") == "qm-proxy":
            return status["proxy"], url
    return None


def _tell(console: str, began: str, token: str | None) -> None:
    """The sum of what passed since `began`, to stderr."""
    try:
        rows = ask(console, f"/api/v1/exchanges?limit=500&since={quote(began)}", token=token)["items"]
    except QmError as exc:
        print(f"qm-proxy: what was seen cannot be told: {exc}", file=sys.stderr)
        return
    answers = [row for row in rows if row["operation"] is not None]
    if not answers:
        print(
            "qm-proxy: nothing went through the proxy. Did the command take its address? See: qm-proxy clients", file=sys.stderr
        )
        return
    failed = sum(row["ending"] not in ("complete", "client_disconnect") for row in answers)
    tokens = [row["output_tokens"] for row in answers if row["output_tokens"] is not None]
    first = sorted(row["ttft_s"] for row in answers if row["ttft_s"] is not None)
    findings = [finding for row in answers for finding in row["findings"]]
    calls = sum(len(row["tool_calls"]) for row in answers)
    middle = seconds(first[len(first) // 2]) if first else "–"
    print(
        f"qm-proxy: {len(answers)} answers ({failed} failed), {sum(tokens) if tokens else '–'} tokens, {calls} tool calls, "
        f"time to first token {middle} (median, n={len(first)}), {len(findings)} findings",
        file=sys.stderr,
    )
    for row in sorted((r for r in answers if r["slow_because"]), key=lambda r: -r["total_s"])[:3]:
        print(f"  slow: {seconds(row['total_s'])} {row['model']}: {row['slow_because']}", file=sys.stderr)
    for finding in findings[:10]:
        print(f"  {finding['severity']}: {finding['kind']}", file=sys.stderr)
