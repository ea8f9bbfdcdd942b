"""The parts of the supervisor that need no child; its life with children is in tests/integration/test_serve.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from qm_proxy import supervisor
from qm_proxy.errors import PortInUse, QmError, SettingsError, UpstreamIsProxy
from qm_proxy.relay.addresses import bind
from qm_proxy.supervisor import Child, Supervisor, serve


def _plan(**changes: Any) -> dict[str, Any]:
    return {"listen": "127.0.0.1:0", "console": None, "upstream": "http://127.0.0.1:1", "workers": 1, "grace": 1.0} | changes


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/x.sock", True),
        (":1", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.1.2:1", False),
    ],
)
def test_what_stays_on_this_machine(address: str, loopback: bool) -> None:
    assert supervisor._loopback_text(address) is loopback


def test_an_exposed_console_needs_a_token() -> None:
    with pytest.raises(SettingsError, match=r"without a token.*--console-token"):
        serve(_plan(console="0.0.0.0:0", console_token=None))


def test_an_exposed_proxy_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="upstream"):
        serve(_plan(listen="0.0.0.0:0", upstream="https://x"))
    assert "exposes Ollama" in capsys.readouterr().err


async def test_an_upstream_that_is_the_proxy_itself_is_refused_and_frees_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for plan in (_plan(listen=f"127.0.0.1:{port}"), _plan(console=f"127.0.0.1:{port}")):
        with pytest.raises(UpstreamIsProxy, match="this proxy itself"):
            Supervisor(plan | {"upstream": f"http://localhost:{port}"})
        socket.create_server(("127.0.0.1", port)).close()


async def test_a_taken_console_frees_the_proxy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        Supervisor(_plan(listen=f"127.0.0.1:{port}", console=f"127.0.0.1:{taken.getsockname()[1]}"))
    socket.create_server(("127.0.0.1", port)).close()


async def test_the_ready_line() -> None:
    made = Supervisor(_plan())
    try:
        port = made.listeners[0].getsockname()[1]
        assert made._ready_line() == f"qm-proxy ready: proxy http://127.0.0.1:{port} -> http://127.0.0.1:1, console off"
    finally:
        supervisor._close(made.listeners)
    made = Supervisor(_plan(console="127.0.0.1:0"))
    try:
        assert made._ready_line().endswith(f", console http://127.0.0.1:{made.console[0].getsockname()[1]}")
        made._stop()
        assert (made.stopping.is_set(), made.hurry.is_set()) == (True, False)
        made._stop()  # a second signal: no patience
        assert made.hurry.is_set()
    finally:
        supervisor._close(made.listeners + made.console)


def test_urls_to_paste(tmp_path: Path) -> None:
    unix = bind(f"unix:{tmp_path}/q.sock")
    assert supervisor._url(unix) == f"unix:{tmp_path}/q.sock"
    supervisor._close(unix)
    assert not (tmp_path / "q.sock").exists()
    with contextlib.suppress(QmError):  # a machine without IPv6
        six = bind("[::1]:0")
        assert supervisor._url(six).startswith("http://[::1]:")
        supervisor._close(six)


def test_a_pipe_waits_for_nobody() -> None:
    ours, theirs = supervisor._pipe()
    with ours, theirs:
        assert not ours.getblocking()
        assert not theirs.getblocking()
        ours.send(b"x")
        assert theirs.recv(9) == b"x"
        with pytest.raises(BlockingIOError):
            theirs.recv(9)


class Line:
    """A Child without a process: `far` is the child's end of its control line."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.child = Child("relay 1", None, near)  # type: ignore[arg-type]
        self.heard: list[dict[str, Any]] = []
        self.child.heard = self.heard.append


async def test_a_child_is_heard_line_by_line_however_they_are_cut() -> None:
    line = Line()
    listening = asyncio.ensure_future(line.child.listen())
    said = b'{"idle": {"1": [2]}}\nthis is no JSON\n{"ready": true}\n{"half": '
    for byte in said:
        line.far.send(bytes([byte]))
    async with asyncio.timeout(60):
        await line.child.ready.wait()
    line.far.close()
    async with asyncio.timeout(60):
        await listening
    assert line.heard == [{"idle": {"1": [2]}}, {"ready": True}]
    line.child.control.close()


async def test_a_child_is_told_and_given_descriptors() -> None:
    line = Line()
    line.child.say({"stop": 2.0})
    assert json.loads(line.far.recv(999)) == {"stop": 2.0}
    reading, writing = os.pipe()
    line.child.say({"pipe": 3}, writing)
    data, fds, _, _ = socket.recv_fds(line.far, 999, 4)
    assert (json.loads(data), len(fds)) == ({"pipe": 3}, 1)
    os.write(fds[0], b"through")
    assert os.read(reading, 99) == b"through"
    for fd in (*fds, reading, writing):
        os.close(fd)
    line.far.close()
    line.child.say({"stop": 0})  # gone: not an error here
    line.child.control.close()
    line.child.say({"stop": 0})


async def test_idle_connections_are_ended_at_once_when_it_stops() -> None:
    made, line = Supervisor(_plan()), Line()
    try:
        made.relays[4] = line.child
        made._end_idle({"idle": {"4": [7, 9], "5": [1]}})
        assert json.loads(line.far.recv(999)) == {"end": [7, 9]}
        made._end_idle({"ready": True})
    finally:
        supervisor._close(made.listeners)
        line.far.close()
        line.child.control.close()


def test_a_mistake_is_one_line_and_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["supervisor", json.dumps(_plan(upstream="https://x"))])
    with pytest.raises(SystemExit) as ended:
        supervisor.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("qm-proxy: ")
    assert len(err.splitlines()) == 1
