"""aider, a real agent, gives the same answer through the proxy as directly, and takes the end that the guard gives a loop.

It lives in an environment of its own (its pins are not ours): `make .venv-aider`, or QM_AIDER=path of its command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.servant import Servant

ROOT = Path(__file__).parent.parent.parent


def _aider() -> str | None:
    own = ROOT / ".venv-aider" / "bin" / "aider"
    return os.environ.get("QM_AIDER") or (str(own) if own.exists() else shutil.which("aider"))


pytestmark = pytest.mark.skipif(_aider() is None, reason="aider is not installed: make .venv-aider (CI does)")


def start(url: str, home: Path, model: str = "steady") -> subprocess.Popen[str]:
    caches = home / ".aider" / "caches"
    caches.mkdir(parents=True)
    (caches / "model_prices_and_context_window.json").write_text("{}")  # else it looks for prices on the internet
    flags = "--yes-always --no-git --no-check-update --analytics-disable --no-show-model-warnings --no-show-release-notes"
    command = [
        _aider() or "",
        *flags.split(),
        "--no-pretty",
        "--no-detect-urls",
        "--map-tokens",
        "0",
        "--model",
        f"ollama_chat/{model}",
        "--message",
        "explain what a splice is",
    ]
    environment = os.environ | {"OLLAMA_API_BASE": url, "HOME": str(home), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return subprocess.Popen(
        command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_aider_through_and_direct(make_sim: Callable[..., Any], serving: Callable[..., Servant], tmp_path: Path) -> None:
    straight, behind = (make_sim(personas=["steady"], speed=20.0, seed=3) for _ in range(2))
    proxy = serving(behind.url)
    running = [start(straight.url, tmp_path / "straight"), start(proxy.proxy, tmp_path / "through")]
    said = [process.communicate(timeout=110)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    answers = [[line for line in text.splitlines() if len(line) > 60] for text in said]
    assert answers[0] == answers[1]
    assert any("sent" in line for line in said[1].splitlines())
    rows = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["operation"] == "chat"]
    assert [row["ending"] for row in rows] == ["complete"]
    assert rows[0]["output_tokens"] == behind.sim.truth.generations()[-1].sampled_tokens


def test_aider_takes_a_loop_that_the_guard_ends(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], tmp_path: Path
) -> None:
    proxy = serving(make_sim(personas=["looper"], speed=3.0).url, guard="cut")
    running = start(proxy.proxy, tmp_path / "guarded", "looper")
    said = running.communicate(timeout=110)[0]
    assert running.returncode == 0, said
    assert "Traceback" not in said
    assert "has hit a token limit" in said, "the finish reason is length, and aider says what that means"
    rows = [row for row in proxy.ask("/api/v1/exchanges")["items"] if row["operation"] == "chat"]
    assert [row["ending"] for row in rows] == ["guard_cut"]
    assert proxy.ask("/api/v1/status")["guard_cuts"]["cuts"] == 1
