"""The process: orders, hand-over, shutdown, and machines that run out of descriptors."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qm_proxy.relay.addresses import Upstream, bind
from qm_proxy.relay.pipe import Kind, Reader
from qm_proxy.relay.process import Config
from tests.integration.transparency.cases import ANSWER, OK, RECORD, STREAM_HEAD, chunk, get, post
from tests.integration.transparency.conftest import Lab
from tests.integration.transparency.rig import ROOT, Address, RelayProcess, Side, Wire, as_upstream, connect, listen, pattern

MakeRelay = Callable[..., RelayProcess]


@pytest.fixture
def relay(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> RelayProcess:
    return make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name)


@pytest.fixture
def streaming(relay: RelayProcess, upstream_listener: socket.socket) -> Iterator[Wire]:
    """A wire in mid-stream."""
    wire = Wire(connect(relay.address), upstream_listener)
    wire.client.send(post())
    assert wire.upstream.read(len(post())) == post()
    wire.upstream.send(STREAM_HEAD + chunk(RECORD))
    wire.client.read(len(STREAM_HEAD + chunk(RECORD)))
    yield wire
    wire.close()


def exchanged(wire: Wire) -> bool:
    wire.client.send(post())
    asked = wire.upstream.read(len(post())) == post()
    wire.upstream.send(OK)
    return asked and wire.client.read(len(OK)) == OK


# --- orders ------------------------------------------------------------------------------------------------------------------


def test_a_stream_ends_within_the_grace(relay: RelayProcess, streaming: Wire) -> None:
    relay.say(stop=60)
    relay.stats()
    with pytest.raises(ConnectionRefusedError):
        connect(relay.address)
    streaming.upstream.send(b"0\r\n\r\n")
    assert streaming.client.read(5) == b"0\r\n\r\n"
    streaming.client.close()
    assert streaming.upstream.ended() == "eof"
    streaming.close()
    assert relay.heard() == {"drained": True}
    assert relay.process.wait(10) == 0
    assert Kind.SHUTDOWN not in [record.kind for record in relay.copy.wait_for(Kind.CLOSED, 1)]


@pytest.mark.parametrize("grace_s", [0, 0.2])
def test_what_outlasts_the_grace_is_cut_and_looks_cut(relay: RelayProcess, streaming: Wire, grace_s: float) -> None:
    relay.say(stop=grace_s)
    assert streaming.client.ended() == "reset"
    assert streaming.upstream.ended() == "reset"
    assert relay.heard() == {"drained": True}
    assert relay.process.wait(10) == 0
    assert [record.kind for record in relay.copy.wait_for(Kind.CLOSED, 1)][-2:] == [Kind.SHUTDOWN, Kind.CLOSED]
    assert relay.copy.wait_for(Kind.STATS, 0)[-1].kind is Kind.STATS


def test_a_second_stop_shortens_the_grace(relay: RelayProcess, streaming: Wire) -> None:
    relay.say(stop=600)
    relay.say(stop=0)
    assert streaming.client.ended() == "reset"
    assert relay.process.wait(10) == 0


def test_a_connection_is_ended_gently(relay: RelayProcess, streaming: Wire, upstream_listener: socket.socket) -> None:
    """By number, when the observer knows that nothing is under way: FIN to both, the others stay."""
    idle = Wire(connect(relay.address), upstream_listener)
    assert exchanged(idle)
    relay.say(end=[2, 99])
    assert idle.client.ended() == "eof"
    assert idle.upstream.ended() == "eof"
    idle.close()
    assert exchanged(streaming)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_supervisors(relay: RelayProcess, streaming: Wire, number: signal.Signals) -> None:
    relay.process.send_signal(number)
    assert exchanged(streaming)
    assert relay.stats()["connections_open"] == 1


def test_a_dead_supervisor_lets_streams_end(relay: RelayProcess, streaming: Wire) -> None:
    relay._lines.close()
    relay.control.close()
    while True:  # it accepts no more as soon as it knows
        try:
            connect(relay.address).close()
        except ConnectionError:
            break
    streaming.upstream.send(b"0\r\n\r\n")
    assert streaming.client.read(5) == b"0\r\n\r\n"
    streaming.client.close()
    assert streaming.upstream.ended() == "eof"
    streaming.close()
    assert relay.process.wait(10) == 0


def test_nonsense_on_the_control_line_is_passed_over(relay: RelayProcess, streaming: Wire) -> None:
    relay.control.sendall(b'nonsense\n[1]\n{"unknown": 1}\n{"end": 7}\n{"stop": "soon"}\n\xff\n{"end": ["x", null]}\n')
    assert relay.stats()["internal_failures"] == 0
    assert exchanged(streaming)


def test_a_relay_without_clients_ends_at_once(relay: RelayProcess) -> None:
    relay.say(drain=True)
    assert relay.heard() == {"drained": True}
    assert relay.process.wait(10) == 0


def test_stats_come_every_second(relay: RelayProcess) -> None:
    stats = [json.loads(record.data) for record in relay.copy.wait_for(Kind.STATS, 0, 2)]
    for one in stats:
        assert one["rss_bytes"] > 1 << 20
        assert one["connections_open"] == 0
        assert one["loop_lag_max_ms"] >= 0
        assert one["dropped_batches"] == 0
    assert stats[1]["cpu_s"] >= stats[0]["cpu_s"] > 0


# --- hand-over -----------------------------------------------------------------------------------------------------------------


def test_a_new_relay_takes_the_port(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    listeners = bind("127.0.0.1:0")
    upstream = as_upstream(upstream_listener.getsockname())
    old = make_relay(upstream, listeners=listeners, loop=loop_name, number=1)
    kept = Wire(connect(old.address), upstream_listener)
    assert exchanged(kept)
    new = make_relay(upstream, listeners=listeners, loop=loop_name, number=2)
    old.say(drain=True)
    old.stats()
    for _ in range(20):
        fresh = Wire(connect(old.address), upstream_listener)
        assert exchanged(fresh)
        fresh.close()
    assert exchanged(kept)
    kept.close()
    assert old.process.wait(10) == 0
    new.settled()
    assert new.copy.wait_for(Kind.CLOSED, 20)
    assert {head.relay for head in new.copy.heads} == {2}
    for listener in listeners:
        listener.close()


def test_two_relays_share_a_port(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    listeners = bind("127.0.0.1:0")
    upstream = as_upstream(upstream_listener.getsockname())
    both = [make_relay(upstream, listeners=listeners, loop=loop_name, number=n) for n in (1, 2)]
    wires = [Wire(connect(both[0].address), upstream_listener) for _ in range(50)]
    assert all(exchanged(wire) for wire in wires)
    assert sum(relay.stats()["connections_total"] for relay in both) == 50
    for wire in wires:
        wire.close()
    for listener in listeners:
        listener.close()


def test_a_new_observer_reads_on_from_the_same_pipe(relay: RelayProcess, streaming: Wire) -> None:
    """The observer dies within a batch; the next one, on the same socket, finds the next whole batch."""
    relay.copy.wait_for(Kind.UPSTREAM_DATA, 1)
    relay.copy.pause()
    for _ in range(300):
        streaming.upstream.send(chunk(pattern(3000)))
        streaming.client.read(len(chunk(pattern(3000))))
    relay.stats()
    reader = Reader()
    torn = relay.pipe.recv(100)  # the dying one had taken this much
    assert len(torn) == 100
    found = []
    relay.pipe.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while data := relay.pipe.recv(1 << 16):
            found += reader.feed(data)
    assert found
    assert reader.skipped_bytes > 0
    assert all(record[0] in set(Kind) for batch in found for record in batch.records())


# --- addresses -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream_on", ["unix", "tcp"])
@pytest.mark.parametrize("listen_on", ["unix", "127.0.0.1:0", "[::1]:0"])
def test_every_kind_of_address(
    make_relay: MakeRelay, tmp_path: Path, loop_name: str, listen_on: str, upstream_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with listen(str(tmp_path / "up.sock") if upstream_on == "unix" else ("127.0.0.1", 0)) as listener:
        where = f"unix:{tmp_path / 'in.sock'}" if listen_on == "unix" else listen_on
        relay = make_relay(as_upstream(listener.getsockname()), loop=loop_name, listen=[where])
        wire = Wire(connect(relay.address), listener)
        assert exchanged(wire)
        data = pattern(3_000_000)
        wire.client.sock.settimeout(10)
        sent = wire.client.push_until_stuck()
        assert len(wire.upstream.read(sent)) == sent
        wire.upstream.send(data[:100])
        wire.upstream.fin()
        assert wire.client.rest() == data[:100]
        assert wire.client.end == "eof"
        wire.client.close()
        assert wire.upstream.ended() == "eof"
        wire.close()
        assert relay.settled()["internal_failures"] == 0


def test_a_unix_backlog_that_is_full_is_waited_for(make_relay: MakeRelay, tmp_path: Path, loop_name: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "up.sock"))
    listener.listen(0)
    relay = make_relay(Upstream(unix=str(tmp_path / "up.sock")), loop=loop_name)
    clients = [connect(relay.address) for _ in range(8)]
    while relay.stats()["connections_open"] < 8:
        pass
    for n, client in enumerate(clients):
        client.sendall(b"%d" % n)
    listener.settimeout(10)
    heard = []
    for _ in clients:
        upstream, _ = listener.accept()
        upstream.settimeout(10)
        heard.append(upstream.recv(1))
        upstream.close()
    assert sorted(heard) == [b"%d" % n for n in range(8)]
    for client in clients:
        client.close()
    listener.close()
    relay.settled()


@pytest.fixture
def silent() -> Iterator[Address]:
    """An upstream that does not answer: its backlog is full, so the kernel drops what comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        with contextlib.suppress(TimeoutError):
            while True:
                waiting.append(socket.socket())
                waiting[-1].settimeout(0.1)
                waiting[-1].connect(listener.getsockname())
        yield listener.getsockname()
        for sock in waiting:
            sock.close()


def test_a_client_that_resets_while_upstream_is_silent(make_relay: MakeRelay, silent: Address, loop_name: str) -> None:
    relay = make_relay(as_upstream(silent), loop=loop_name)
    descriptors = relay.descriptors()
    client = Side(connect(relay.address))
    client.send(post())
    relay.copy.wait_for(Kind.OPENED, 1)
    client.reset()
    assert [record.kind for record in relay.copy.wait_for(Kind.CLOSED, 1)] == [Kind.OPENED, Kind.CLIENT_RESET, Kind.CLOSED]
    relay.settled()
    assert relay.descriptors() == descriptors


def test_a_stop_while_upstream_is_silent(make_relay: MakeRelay, silent: Address, loop_name: str) -> None:
    relay = make_relay(as_upstream(silent), loop=loop_name)
    client = Side(connect(relay.address))
    relay.copy.wait_for(Kind.OPENED, 1)
    relay.say(stop=0)
    assert client.ended() == "eof"
    client.close()
    assert relay.process.wait(10) == 0


def test_a_port_in_use_is_said(upstream_listener: socket.socket) -> None:
    taken = upstream_listener.getsockname()
    config = Config(upstream=Upstream(host="127.0.0.1", port=1), listen=[f"127.0.0.1:{taken[1]}"])
    command = [sys.executable, "-m", "qm_proxy.relay", config.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert done.returncode == 2
    assert f"127.0.0.1:{taken[1]}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["{"], ["{}"], ['{"upstream": {"host": "h", "port": 1}, "wrong": 1}']])
def test_a_configuration_that_cannot_be_read_is_said(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "qm_proxy.relay", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- bad times -----------------------------------------------------------------------------------------------------------------


def test_no_descriptors_left(make_relay: MakeRelay, upstream_listener: socket.socket, loop_name: str) -> None:
    """Clients beyond the limit wait or are refused with the reason; those inside go on; nothing spins, nothing dies."""
    limited = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    relay = make_relay(as_upstream(upstream_listener.getsockname()), loop=loop_name, before=limited)
    first = Wire(connect(relay.address), upstream_listener)
    clients = [connect(relay.address) for _ in range(60)]
    for client in clients:
        client.sendall(get(b"/"))
    stats = json.loads(relay.copy.wait_for(Kind.STATS, 0, 1)[-1].data)
    assert stats["accept_failures"] + stats["refused_total"] > 0
    assert exchanged(first)
    loops = relay.stats()["accept_failures"]
    relay.copy.wait_for(Kind.STATS, 0, 2)
    assert relay.stats()["accept_failures"] - loops < 30  # a tenth of a second between two tries: it does not spin
    for client in clients:
        client.close()
    upstream_listener.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            upstream_listener.accept()[0].close()
    while relay.stats()["connections_open"] > 1:
        pass
    assert exchanged(first)
    first.close()
    said = [json.loads(record.data).get("accept_error") for record in relay.copy.of(0)]
    assert set(said) <= {None, "Too many open files"}
    late = Wire(connect(relay.address), upstream_listener)
    assert exchanged(late)
    late.close()
    assert relay.settled()["internal_failures"] == 0


def test_the_descriptor_limit_is_raised(make_relay: MakeRelay, upstream_listener: socket.socket) -> None:
    limited = ["sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh"]
    relay = make_relay(as_upstream(upstream_listener.getsockname()), before=limited)
    limits = Path(f"/proc/{relay.process.pid}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard
    assert int(soft) > 64


def test_a_stopped_and_continued_relay(relay: RelayProcess, streaming: Wire) -> None:
    """A machine that slept: what waited goes on."""
    relay.process.send_signal(signal.SIGSTOP)
    streaming.client.send(post())
    streaming.upstream.send(ANSWER)
    assert streaming.client.is_quiet()
    relay.process.send_signal(signal.SIGCONT)
    assert streaming.upstream.read(len(post())) == post()
    assert streaming.client.read(len(ANSWER)) == ANSWER


@pytest.mark.parametrize("seed", range(4))
def test_anything_in_any_order_leaves_nothing_behind(lab: Lab, seed: int) -> None:
    """Forty wires, two thousand random steps: whatever happens, nothing hangs, fails or stays."""
    chance = random.Random(seed)
    data = pattern(3_000_000, seed)
    wires: list[Wire] = []
    steps = ["up", "down", "read up", "read down", "client fin", "upstream fin", "client goes", "upstream goes", "new"]
    weights = [20, 20, 12, 12, 1, 1, 2, 2, 6]
    for _ in range(2000):
        step = chance.choices(steps, weights)[0]
        if step == "new" or not wires:
            if len(wires) < 40:
                wires.append(lab.through())
            continue
        wire = chance.choice(wires)
        side = wire.client if step in ("up", "read down", "client fin", "client goes") else wire.upstream
        try:
            side.sock.setblocking(False)
            if step in ("up", "down"):
                side.sock.send(data[: chance.choice([1, 100, 70_000, 3_000_000])])
            elif step.startswith("read"):
                side.sock.recv(chance.choice([1, 1000, 10_000_000]))
            elif step.endswith("fin"):
                side.fin()
            else:
                chance.choice([side.reset, side.close])()
                if chance.random() < 0.5:
                    (wire.upstream if side is wire.client else wire.client).sock.close()
                    wires.remove(wire)
                elif wire.client.sock.fileno() < 0 and wire.upstream.sock.fileno() < 0:
                    wires.remove(wire)
        except OSError:
            pass
    for wire in wires:
        wire.close()
    assert lab.relay.settled()["connections_open"] == 0


def test_the_process_needs_no_more_than_its_sockets(lab: Lab) -> None:
    """No thread, no child: a splice and nothing else."""
    status = Path(f"/proc/{lab.relay.process.pid}/status").read_text()
    assert "Threads:\t1\n" in status
    children = Path(f"/proc/{lab.relay.process.pid}/task/{lab.relay.process.pid}/children").read_text()
    assert children.strip() == ""


def test_a_side_can_be_told_apart(lab: Lab) -> None:
    """The copy names the client's address and keeps each side's bytes and offsets."""
    wire = lab.through()
    name = wire.client.sock.getsockname()
    assert exchanged(wire)
    wire.client.close()
    Side(wire.upstream.sock).rest()
    wire.close()
    records = lab.relay.copy.wait_for(Kind.CLOSED, lab.relay.connections)
    assert [(record.kind, record.offset, record.data) for record in records] == [
        (Kind.OPENED, 0, f"{name[0]}:{name[1]}".encode()),
        (Kind.CONNECTED, 0, b""),
        (Kind.CLIENT_DATA, 0, post()),
        (Kind.UPSTREAM_DATA, 0, OK),
        (Kind.CLIENT_EOF, len(post()), b""),
        (Kind.UPSTREAM_EOF, len(OK), b""),
        (Kind.CLOSED, 0, b""),
    ]
