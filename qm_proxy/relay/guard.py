"""Ends an answer on the observer's order, at a chunk boundary, so that the client sees a complete answer. Off by default.

Rules that hold here:

- Only with the guard on do a relay's connections look into their bytes at all (`GuardedSplice` instead of `Splice`).
- An order names a connection and the number of its exchange. It is carried out at the first boundary of that response,
  at once if the stream stands at one. What cannot be ended cleanly (not chunked, over already, not understood) is left
  alone, and the refusal is counted.
- A cut closes the upstream with a reset, so that the model stops, and the client with FIN behind the last chunk.
"""

from __future__ import annotations

import socket
import time

from qm_proxy.relay.chunks import Requests, Responses
from qm_proxy.relay.farewell import Farewell
from qm_proxy.relay.pipe import Kind, orders
from qm_proxy.relay.splice import End, Shared, Splice, abort

__all__ = ["GuardedSplice", "Orders"]


class _GuardedClient(End):
    __slots__ = ()

    splice: GuardedSplice

    def _pass_on(self, data: memoryview, t_ns: int) -> None:
        self.splice.requests.feed(bytes(data))  # before its answer can come
        super()._pass_on(data, t_ns)


class _GuardedUpstream(End):
    __slots__ = ()

    splice: GuardedSplice

    def _pass_on(self, data: memoryview, t_ns: int) -> None:
        splice = self.splice
        cut = splice.responses.feed(bytes(data), splice.ordered_exchange)
        if cut is None:
            super()._pass_on(data, t_ns)
            splice.look_at_order()
        else:
            if cut:
                super()._pass_on(data[:cut], t_ns)
            splice.carry_out()


class GuardedSplice(Splice):
    """A splice whose answers can be ended."""

    __slots__ = ("ordered_bytes", "ordered_exchange", "orders", "requests", "responses")

    client_end = _GuardedClient
    upstream_end = _GuardedUpstream

    def __init__(self, shared: Shared, number: int, client: socket.socket, upstream: socket.socket, orders: Orders) -> None:
        self.requests = Requests()
        self.responses = Responses(self.requests)
        self.orders = orders
        self.ordered_exchange: int | None = None
        self.ordered_bytes = b""
        super().__init__(shared, number, client, upstream)

    def order(self, exchange: int, data: bytes) -> None:
        """End this exchange with these bytes: now, or at its next boundary."""
        if self.ordered_exchange is not None or self.upstream.eof:
            self.orders.refused += 1
            return
        self.ordered_exchange, self.ordered_bytes = exchange, data
        if self.responses.at_boundary(exchange):
            self.carry_out()
        else:
            self.look_at_order()

    def look_at_order(self) -> None:
        """Give up an order that can no longer be carried out."""
        exchange = self.ordered_exchange
        if exchange is not None and (self.responses.unfit(exchange) or self.ended):
            self.ordered_exchange = None
            self.orders.refused += 1

    def carry_out(self) -> None:
        """The stream stands at a boundary of the ordered exchange."""
        data = self.ordered_bytes
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self.client.reset or self.ended:
            return
        waiting = self.client.backlog or b""
        self.orders.carried_out += 1
        self.shared.tap.add(Kind.CUT, self.number, time.monotonic_ns(), self.upstream.seen, 0, data)
        self._drop(self.upstream, abort)
        self.ended = True  # the farewell has it now
        Farewell(self.shared, self.number, self.client.sock, waiting + chunk + b"0\r\n\r\n")


class Orders:
    """Reads the pipe's way back and hands each order to its connection."""

    def __init__(self, shared: Shared, pipe: socket.socket) -> None:
        self.carried_out = 0
        self.refused = 0
        self._shared = shared
        self._pipe = pipe
        self._held = bytearray()

    def ready(self, events: int) -> None:
        try:
            data = self._pipe.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._shared.readiness.forget(self._pipe.fileno())
            return
        self._held += data
        for number, exchange, words in orders(self._held):
            connection = self._shared.connections.get(number)
            if isinstance(connection, GuardedSplice):
                connection.order(exchange, words)
            else:
                self.refused += 1

    def failed(self) -> None: ...
