from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from probes.sim.server import SimulatedOllama
from qm_proxy.doctor import Check, examine, unhang
from qm_proxy.errors import SettingsError, UpstreamRefused, UpstreamUnreachable
from qm_proxy.settings import Settings, load


def _settings(**flags: Any) -> Settings:
    free = {"listen": "127.0.0.1:0", "console": "127.0.0.1:0", "db": "off", "upstream": "http://127.0.0.1:1"}
    return load(free | flags)


def _checks(**flags: Any) -> dict[str, Check]:
    found = list(examine(_settings(**flags)))
    assert len({c.name for c in found}) == len(found)
    assert all(c.remedy or c.state != "bad" for c in found)
    assert not any(c.remedy for c in found if c.state == "good")
    return {c.name: c for c in found}


@pytest.fixture
def upstream() -> Iterator[Callable[[dict[str, object]], str]]:
    """Starts an HTTP server that answers these paths (a str is sent as it is, an int as a status); its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(paths: dict[str, object]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = paths.get(self.path, 404)
                body = what.encode() if isinstance(what, str) else json.dumps(what).encode()
                self.send_response(what if isinstance(what, int) else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# --- the upstream -----------------------------------------------------------------------------------------------------


def test_nothing_there() -> None:
    check = _checks()["upstream"]
    assert check.state == "bad"
    assert "does not answer" in check.found
    assert "ollama serve" in check.remedy


async def test_the_simulated_ollama_is_in_order() -> None:
    import asyncio

    async with SimulatedOllama(["steady"], speed=50.0) as sim:
        found = await asyncio.to_thread(_checks, upstream=sim.url)
        assert (found["upstream"].state, found["models"].state) == ("good", "good")
        assert "1 installed, 0 loaded" in found["models"].found
        assert await asyncio.to_thread(unhang, sim.url, "steady") == "unload"
        with pytest.raises(UpstreamRefused, match="404"):
            await asyncio.to_thread(unhang, sim.url, "not-here")


def test_unhang_of_nothing() -> None:
    with pytest.raises(UpstreamUnreachable):
        unhang("http://127.0.0.1:1", "m")
    with pytest.raises(SettingsError):
        unhang("https://127.0.0.1:1", "m")


def test_small_windows_and_half_loaded_models_are_noted(upstream: Callable[[dict[str, object]], str]) -> None:
    loaded = [
        {"name": "small", "context_length": 4096, "size": 100, "size_vram": 100},
        {"name": "half", "context_length": 65536, "size": 100, "size_vram": 50},
        {"name": "cpu", "context_length": 65536, "size": 100, "size_vram": 0},
        {"name": "unsaid"},
    ]
    url = upstream({"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": loaded}, "/api/ps": {"models": loaded}})
    found = _checks(upstream=url)
    assert found["upstream"].found.endswith("Ollama 0.33.0")
    assert "OLLAMA_CONTEXT_LENGTH" in found["window of small"].remedy
    assert "50%" in found["memory of half"].found
    assert {name for name in found if name.startswith(("window", "memory"))} == {"window of small", "memory of half"}


def test_no_model_installed(upstream: Callable[[dict[str, object]], str]) -> None:
    url = upstream({"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": None}, "/api/ps": {"models": []}})
    check = _checks(upstream=url)["models"]
    assert (check.state, check.found) == ("note", "none installed")


@pytest.mark.parametrize("lists", [{"models": {"a": 1}}, {"models": "x"}, [1, 2], 500, "<html>"])
def test_lists_that_are_not_ollamas_are_no_crash(upstream: Callable[[dict[str, object]], str], lists: object) -> None:
    found = _checks(upstream=upstream({"/api/version": {"version": "1"}, "/api/tags": lists, "/api/ps": lists}))
    assert found["models"].state == "note"


def test_models_that_are_no_objects_are_passed_over(upstream: Callable[[dict[str, object]], str]) -> None:
    lists = {"models": ["a", 3, None]}
    found = _checks(upstream=upstream({"/api/version": {"version": "1"}, "/api/tags": lists, "/api/ps": lists}))
    assert found["models"].found == "3 installed, 3 loaded"


def test_something_else_answers_there(upstream: Callable[[dict[str, object]], str]) -> None:
    check = _checks(upstream=upstream({}))["upstream"]
    assert (check.state, "not Ollama" in check.remedy) == ("bad", True)


def test_something_that_is_no_http_answers_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        check = _checks(upstream=f"http://127.0.0.1:{listener.getsockname()[1]}")["upstream"]
        thread.join(10)
    assert check.state == "bad"


def test_an_upstream_that_is_no_address() -> None:
    check = _checks(upstream="https://example.org")["upstream"]
    assert (check.state, check.found) == ("bad", "https://example.org")


def test_a_unix_socket(tmp_path: Path) -> None:
    assert _checks(upstream=f"unix:{tmp_path}/no.sock")["upstream"].state == "bad"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "o.sock"))
        assert _checks(upstream=f"unix:{tmp_path}/o.sock")["upstream"].state == "good"


# --- the machine ------------------------------------------------------------------------------------------------------


def test_a_taken_port_and_one_that_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = _checks(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        assert (found["proxy port"].state, "--listen" in found["proxy port"].remedy) == ("bad", True)
        assert found["console port"].state == "good"
        found = _checks(console=f"127.0.0.1:{taken.getsockname()[1]}")
        assert (found["console port"].state, "--console" in found["console port"].remedy) == ("bad", True)
    assert _checks(listen="127.0.0.1:99999")["proxy port"].state == "bad"
    assert _checks(listen="127.0.0.1:http")["proxy port"].state == "bad"
    assert _checks(console="off")["console port"].found == "off"


def test_a_port_that_a_running_qm_proxy_holds_is_no_fault(upstream: Callable[[dict[str, object]], str]) -> None:
    url = upstream({"/healthz": {"name": "qm-proxy"}})
    check = _checks(console=url.removeprefix("http://"))["console port"]
    assert (check.state, "running qm-proxy" in check.found) == ("good", True)


def test_the_database(tmp_path: Path) -> None:
    assert _checks()["database"].state == "good"
    found = _checks(db=str(tmp_path / "not" / "yet" / "qm.db"))["database"]
    assert found.state in ("good", "note")
    assert "free" in found.found
    assert list(tmp_path.iterdir()) == []  # looking makes nothing


def test_clock_descriptors_and_python_are_looked_at() -> None:
    found = _checks()
    assert list(found)[:2] == ["python", "event loop"]
    assert found["clock"].found.startswith("steps of ")
    assert found["descriptors"].state in ("good", "note")
