"""Where to listen, and every form that OLLAMA_HOST may have."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qm_proxy.errors import PortInUse, SettingsError
from qm_proxy.relay.addresses import BACKLOG, Upstream, bind, is_loopback, listens_at, name_of, parse_upstream

FORMS = {
    "": ("127.0.0.1", 11434),
    "1.2.3.4": ("1.2.3.4", 11434),
    ":1234": ("127.0.0.1", 1234),
    "1.2.3.4:1234": ("1.2.3.4", 1234),
    "example.com": ("example.com", 11434),
    "example.com:1234": ("example.com", 1234),
    "localhost": ("localhost", 11434),
    "example.com:": ("example.com", 11434),
    ":66000": ("127.0.0.1", 11434),
    ":-1": ("127.0.0.1", 11434),
    ":12ab": ("127.0.0.1", 11434),
    "host:٣": ("host", 11434),
    "[::1]": ("::1", 11434),
    "[::1]:1337": ("::1", 1337),
    "::1": ("::1", 11434),
    "[::]": ("::1", 11434),
    "::": ("::1", 11434),
    "[::]:1234": ("::1", 1234),
    "fe80::1": ("fe80::1", 11434),
    "0.0.0.0": ("127.0.0.1", 11434),
    "0.0.0.0:80": ("127.0.0.1", 80),
    " 1.2.3.4 ": ("1.2.3.4", 11434),
    ' "1.2.3.4:5" ': ("1.2.3.4", 5),
    "'1.2.3.4'": ("1.2.3.4", 11434),
    "http://1.2.3.4": ("1.2.3.4", 80),
    "http://1.2.3.4:4321": ("1.2.3.4", 4321),
    "http://1.2.3.4:4321/": ("1.2.3.4", 4321),
    "HTTP://box": ("box", 80),
    "http://[::1]": ("::1", 80),
    "http://[::1]:11434//": ("::1", 11434),
    "http://": ("127.0.0.1", 80),
    "http://box:99999": ("box", 80),
    "box/": ("box", 11434),
}


@pytest.mark.parametrize("text", FORMS)
def test_upstream_is_read_as_ollama_reads_it(text: str) -> None:
    host, port = FORMS[text]
    assert parse_upstream(text) == Upstream(host=host, port=port)


@pytest.mark.parametrize("text", ["unix:/run/ollama.sock", "unix:///run/ollama.sock", "'unix:/run/ollama.sock'"])
def test_upstream_on_a_unix_socket(text: str) -> None:
    upstream = parse_upstream(text)
    assert upstream == Upstream(unix="/run/ollama.sock")
    assert upstream.url == "unix:/run/ollama.sock"


def test_url_of_an_upstream() -> None:
    assert Upstream(host="box", port=1).url == "http://box:1"
    assert Upstream(host="::1", port=1).url == "http://[::1]:1"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("https://box", "TLS proxy"),
        ("https://box:443/", "TLS proxy"),
        ("HTTPS://box", "TLS proxy"),
        ("ollama.com", "TLS proxy"),
        ("ftp://box", "TLS proxy"),
        ("http://box/ollama", "adds the path"),
        ("box:11434/v1", "adds the path"),
        ("unix:", "unix:/path"),
        (":0", "11434"),
        ("a:b:c", "host:port"),
        ("http://user:secret@box", "host:port"),
        ("http://box?x=1", "host:port"),
        ("two words", "host:port"),
    ],
)
def test_what_a_splice_cannot_reach_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(SettingsError) as failure:
        parse_upstream(text)
    assert failure.value.exit_code == 2
    assert failure.value.remedy is not None
    assert advice in failure.value.remedy


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("box.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.5", False),
        ("::ffff:192.168.1.5", False),
        ("fe80::1%eth0", False),
        ("example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback(where: str, expected: bool) -> None:
    assert is_loopback(where) is expected


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(undo: ExitStack, address: str, **options: int) -> list[socket.socket]:
    return [undo.enter_context(listener) for listener in bind(address, **options)]


def test_bind_one_address(undo: ExitStack) -> None:
    (listener,) = bound(undo, "127.0.0.1:0")
    host, port = listener.getsockname()
    assert host == "127.0.0.1"
    assert port > 0
    assert not listener.getblocking()
    assert name_of(listener) == f"127.0.0.1:{port}"
    assert is_loopback(listener)
    assert BACKLOG == 4096
    undo.enter_context(socket.create_connection((host, port)))


def test_bind_v6(undo: ExitStack) -> None:
    (listener,) = bound(undo, "[::1]:0")
    assert name_of(listener) == f"[::1]:{listener.getsockname()[1]}"
    assert is_loopback(listener)


def test_bind_localhost_on_both_families(undo: ExitStack) -> None:
    listeners = bound(undo, "localhost:0")
    assert {listener.family for listener in listeners} == {socket.AF_INET, socket.AF_INET6}
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert all(is_loopback(listener) for listener in listeners)


def test_bind_all_interfaces(undo: ExitStack) -> None:
    for address in (":0", "*:0"):
        listeners = bound(undo, address)
        assert {name_of(listener).rpartition(":")[0] for listener in listeners} == {"0.0.0.0", "[::]"}
        assert not any(is_loopback(listener) for listener in listeners)


def test_bind_without_a_port_takes_the_default(undo: ExitStack) -> None:
    (free,) = bound(undo, "127.0.0.1:0")
    port = free.getsockname()[1]
    free.close()
    (listener,) = bound(undo, "127.0.0.1", default_port=port)
    assert listener.getsockname()[1] == port
    listener.close()
    (listener,) = bound(undo, str(port))
    assert listener.getsockname() == ("127.0.0.1", port)


def test_bind_a_taken_port(undo: ExitStack) -> None:
    (first,) = bound(undo, "127.0.0.1:0")
    with pytest.raises(PortInUse) as failure:
        bind(name_of(first))
    assert name_of(first) in str(failure.value)
    assert failure.value.remedy is not None


def test_bind_of_a_pair_leaves_nothing_when_one_is_taken(undo: ExitStack) -> None:
    (six,) = bound(undo, "[::1]:0")
    port = six.getsockname()[1]
    with pytest.raises(PortInUse):
        bind(f"localhost:{port}")
    six.close()
    bound(undo, f"localhost:{port}")


def test_bind_without_ipv6(undo: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    make = socket.socket

    def without_v6(family: int = -1, *rest: int, **options: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return make(family, *rest, **options)

    monkeypatch.setattr(socket, "socket", without_v6)
    assert [listener.family for listener in bound(undo, "localhost:0")] == [socket.AF_INET]
    with pytest.raises(SettingsError):
        bind("[::1]:0")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:", "192.0.2.1:0", "no\0host:1", "a:b:c:1", "unix:", "http://x:1"]
)
def test_bind_what_is_no_address_of_ours(address: str) -> None:
    with pytest.raises(SettingsError) as failure:
        bind(address)
    assert not isinstance(failure.value, PortInUse)


def test_bind_a_unix_socket(undo: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "qm.sock"
    (listener,) = bound(undo, f"unix:{path}")
    assert name_of(listener) == f"unix:{path}"
    assert is_loopback(listener)
    with pytest.raises(PortInUse):
        bind(f"unix:{path}")
    assert path.exists()


def test_bind_over_a_stale_unix_socket(undo: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "qm.sock"
    bind(f"unix:{path}")[0].close()
    assert path.exists()
    bound(undo, f"unix:{path}")


def test_bind_never_removes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    with pytest.raises(SettingsError):
        bind(f"unix:{path}")
    assert path.read_text() == "text"


@pytest.mark.parametrize("path", ["missing/dir/qm.sock", "x" * 200])
def test_bind_a_unix_path_that_cannot_be(tmp_path: Path, path: str) -> None:
    with pytest.raises(SettingsError):
        bind(f"unix:{tmp_path / path}")


def test_an_upstream_that_is_the_proxy_itself(undo: ExitStack, tmp_path: Path) -> None:
    (listener,) = bound(undo, "127.0.0.1:0")
    port = listener.getsockname()[1]
    assert listens_at(Upstream(host="127.0.0.1", port=port), [listener])
    assert listens_at(Upstream(host="localhost", port=port), [listener])
    assert not listens_at(Upstream(host="127.0.0.1", port=port % 65535 + 1), [listener])
    assert not listens_at(Upstream(host="192.0.2.1", port=port), [listener])
    assert not listens_at(Upstream(unix="/x"), [listener])
    assert not listens_at(Upstream(host="no\0host", port=port), [listener])
    everywhere = bound(undo, ":0")
    assert listens_at(Upstream(host="127.0.0.1", port=everywhere[0].getsockname()[1]), everywhere)
    assert not listens_at(Upstream(host="192.0.2.1", port=everywhere[0].getsockname()[1]), everywhere)
    (unix,) = bound(undo, f"unix:{tmp_path / 'a.sock'}")
    (tmp_path / "b.sock").symlink_to(tmp_path / "a.sock")
    assert listens_at(Upstream(unix=str(tmp_path / "b.sock")), [unix])
    assert not listens_at(Upstream(unix=str(tmp_path / "c.sock")), [unix])
