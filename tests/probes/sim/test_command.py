"""`qm-proxy sim`: the list, the schema, a real process that listens and stops on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from probes.sim.command import address, chosen, listing, run
from probes.sim.personas import builtin, schema
from qm_proxy.errors import PortInUse, SettingsError

ROOT = Path(__file__).parents[3]


def test_the_list_shows_every_persona_and_its_truth(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(list_only=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(builtin()) + 1
    assert lines[0].split()[:3] == ["model", "load", "prefill"]
    post = next(line for line in lines if line.startswith("north-mini-code-1.0:mlx-mxfp8"))
    assert "2924.2 ms" in post
    assert "3000/s+751.3 ms" in post
    assert "90 ms @61,163,255" in post


def test_list_and_schema_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    run(list_only=True, as_json=True)
    assert [p["name"] for p in json.loads(capsys.readouterr().out)] == [p.full_name for p in builtin()]
    run(schema_only=True)
    assert json.loads(capsys.readouterr().out) == schema()


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"name": "mine"}, {"name": "steady", "decode": {"token_ms": 3}}]))
    found = {p.name: p for p in chosen(file)}
    assert len(found) == len(builtin()) + 1
    assert found["steady"].decode.token_ms == 3
    assert "mine" in listing(list(found.values()))


@pytest.mark.parametrize(
    ("listen", "found"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":0", ("127.0.0.1", 0)), ("[::1]:5", ("::1", 5)), ("0.0.0.0:5", ("0.0.0.0", 5))],
)
def test_addresses(listen: str, found: tuple[str, int]) -> None:
    assert address(listen) == found


@pytest.mark.parametrize("listen", ["here", "host:port", "host:99999", ""])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(SettingsError, match="is not HOST:PORT"):
        address(listen)


def test_bad_settings() -> None:
    with pytest.raises(SettingsError, match="speed"):
        run(speed=0)
    with pytest.raises(SettingsError, match="cannot be read"):
        run(personas_file=Path("/nonexistent/personas.json"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_listens_and_stops(sign: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "probes.sim", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("qm-proxy sim ready: http://127.0.0.1:")
        url = line.split()[3].rstrip(",")
        with urllib.request.urlopen(f"{url}/api/version") as answer:
            assert json.load(answer)["version"]
        taken = subprocess.run(
            [sys.executable, "-m", "probes.sim", url.removeprefix("http://")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert taken.returncode == PortInUse.exit_code == 2
        assert "cannot listen on 127.0.0.1" in taken.stderr
        os.kill(process.pid, sign)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
