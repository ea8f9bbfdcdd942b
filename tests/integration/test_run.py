"""`qm-proxy run` with real processes: what the child did is told when it ends, however soon that is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from qm_proxy.cli import plan_of
from qm_proxy.run import run_command
from qm_proxy.settings import load

CHILD = """
import json, os, urllib.request
body = json.dumps({"model": "steady", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 5}})
request = urllib.request.Request(os.environ["OLLAMA_HOST"] + "/api/chat", body.encode())
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).read()
"""


def test_a_short_child_is_told_of_whole(make_sim: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    sim = make_sim(personas=["steady"], speed=50.0)
    flags = {"upstream": sim.url, "listen": "127.0.0.1:0", "console": "127.0.0.1:0", "db": "off", "grace": 2.0}
    assert run_command([sys.executable, "-c", CHILD], plan_of(load(flags), quiet=True)) == 0
    assert "1 answers (0 failed), 5 tokens" in capfd.readouterr().err
