"""One relay process for each kind of loop, shared by the cases: they must not disturb each other, and that is tested too."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.integration.transparency.rig import Address, RelayProcess, Wire, as_upstream, connect, listen

LOOPS = ["own", "asyncio"]


class Lab:
    """An upstream's listening socket and a relay in front of it."""

    def __init__(self, upstream: socket.socket, relay: RelayProcess) -> None:
        self.listener = upstream
        self.relay = relay

    @property
    def direct_address(self) -> Address:
        return self.listener.getsockname()

    def direct(self) -> Wire:
        return Wire(connect(self.direct_address), self.listener)

    def through(self) -> Wire:
        wire = Wire(connect(self.relay.address), self.listener)
        self.relay.connections += 1
        return wire

    def close(self) -> None:
        self.relay.close()
        self.listener.close()


@pytest.fixture(scope="session", params=LOOPS)
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    listener = listen()
    lab = Lab(listener, RelayProcess(as_upstream(listener.getsockname()), loop=request.param))
    yield lab
    lab.close()


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The shared relay; afterwards its descriptors, tasks and connections are back where they were."""
    before = shared_lab.relay.settled()
    descriptors = shared_lab.relay.descriptors()
    yield shared_lab
    after = shared_lab.relay.settled()
    assert {key: after[key] for key in ("sockets_watched", "tasks", "internal_failures")} == {
        key: before[key] for key in ("sockets_watched", "tasks", "internal_failures")
    }
    assert shared_lab.relay.descriptors() == descriptors


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_relay() -> Iterator[Callable[..., RelayProcess]]:
    """Relay processes of the test's own, ended afterwards."""
    made: list[RelayProcess] = []

    def make(*args: object, **options: object) -> RelayProcess:
        made.append(RelayProcess(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for relay in made:
        relay.close()


@pytest.fixture
def upstream_listener() -> Iterator[socket.socket]:
    listener = listen()
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def guarded_relay() -> Iterator[tuple[RelayProcess, socket.socket]]:
    """A relay with the guard on, and its upstream's listener."""
    listener = listen()
    relay = RelayProcess(as_upstream(listener.getsockname()), guard=True)
    yield relay, listener
    assert relay.settled()["internal_failures"] == 0
    relay.close()
    listener.close()
