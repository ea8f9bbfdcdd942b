"""A slot that hangs, and the user's way out: `qm-proxy doctor --unhang MODEL` frees it, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from qm_proxy.servant import Servant

MODEL = "hang-prone"


def ask(url: str) -> socket.socket:
    """A stream of the model, from the first byte on, if one comes."""
    where = urlsplit(url)
    peer = socket.create_connection((where.hostname, where.port))
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "go on"}]}).encode()
    peer.sendall(
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return peer


def whole(peer: socket.socket) -> bytes:
    got = b""
    while piece := peer.recv(65536):
        got += piece
    return got


@pytest.mark.timeout(120)
def test_doctor_frees_a_hung_slot(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
    sim = make_sim(personas=[MODEL], speed=2.0)
    proxy = serving(sim.url)
    while sum(bool(one.leaked_slot) for one in sim.sim.truth.generations()) < 2:  # both of its slots
        with ask(proxy.proxy) as leaver:
            leaver.settimeout(1)
            with contextlib.suppress(TimeoutError):  # it hangs already
                leaver.recv(100)
    with ask(proxy.proxy) as hangs:
        hangs.settimeout(1)
        with pytest.raises(TimeoutError):
            hangs.recv(1)
        done = subprocess.run(
            [sys.executable, "-m", "qm_proxy", "doctor", "--unhang", MODEL, "--upstream", sim.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{MODEL}: unload. The next request loads it afresh.\n"
    with ask(proxy.proxy) as again:
        again.settimeout(30)
        assert b'"done":true' in whole(again)
