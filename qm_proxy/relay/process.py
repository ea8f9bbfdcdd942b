"""A relay's process: its configuration, its loop, its life.

The supervisor starts it with a JSON configuration (`Config`) and speaks to it over a socket (`control.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import resource
import signal
import socket
from dataclasses import dataclass, field

from qm_proxy.errors import SettingsError
from qm_proxy.relay.addresses import Upstream, bind, name_of
from qm_proxy.relay.dial import Target
from qm_proxy.relay.loop import RelayLoop
from qm_proxy.relay.serve import Relay, Reply, plain_reply

__all__ = ["Config", "new_loop", "run"]

_PIPE_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Config:
    """What a relay is told at its start. Descriptors are inherited."""

    upstream: Upstream
    relay: int = 0
    listen_fds: list[int] = field(default_factory=list)
    listen: list[str] = field(default_factory=list)  # addresses to bind itself, beside the inherited sockets
    pipe_fd: int | None = None
    control_fd: int | None = None
    guard: bool = False
    reply: str | None = None  # "module:function" of a Reply; None: `plain_reply`
    loop: str | None = None  # "own" (loop.py says why) or "asyncio"; None: its own

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises SettingsError."""
        try:
            given = json.loads(text)
            upstream = Upstream(**given.pop("upstream"))
            return cls(upstream=upstream, **given)
        except (ValueError, TypeError, KeyError, AttributeError) as failure:
            raise SettingsError(f"The relay's configuration cannot be read: {failure!r}.") from failure

    def to_json(self) -> str:
        upstream = self.upstream
        where: dict[str, object] = (
            {"host": upstream.host, "port": upstream.port} if upstream.unix is None else {"unix": upstream.unix}
        )
        names = ("relay", "listen_fds", "listen", "pipe_fd", "control_fd", "guard", "reply", "loop")
        return json.dumps({"upstream": where, **{name: getattr(self, name) for name in names}})


def run(config: Config) -> int:
    """The life of a relay process. Returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C reaches the whole group; the supervisor speaks
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _raise_descriptor_limit()
    reply = _load(config.reply) if config.reply else plain_reply
    listeners = [socket.socket(fileno=fd) for fd in config.listen_fds]
    for address in config.listen:
        listeners += bind(address)
    pipe = None if config.pipe_fd is None else socket.socket(fileno=config.pipe_fd)
    control = None if config.control_fd is None else socket.socket(fileno=config.control_fd)
    loop = new_loop(config.loop)
    try:
        loop.run_until_complete(_live(config, listeners, pipe, control, reply))
    finally:
        loop.close()
    return 0


async def _live(
    config: Config, listeners: list[socket.socket], pipe: socket.socket | None, control: socket.socket | None, reply: Reply
) -> None:
    target = Target(config.upstream)
    await target.resolve()  # a failure shows in the answers, and is tried again with each connection
    if pipe is not None:
        pipe.setblocking(False)
        if pipe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _PIPE_BUFFER_BYTES:
            with contextlib.suppress(OSError):  # a stock Linux grants a tenth
                pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BUFFER_BYTES)
    relay = Relay(target, listeners, pipe=pipe, control=control, relay=config.relay, guard=config.guard, reply=reply)
    ready = {"ready": True, "listening": [name_of(listener) for listener in listeners]}
    gc.collect()
    gc.freeze()
    if control is None:
        print(json.dumps(ready), flush=True)
    relay.say(ready)
    await relay.closed.wait()
    await relay.finish()


def new_loop(name: str | None) -> asyncio.AbstractEventLoop:
    """The relay's own if not told otherwise. Raises SettingsError for a name that is neither."""
    if name in (None, "own"):
        return RelayLoop()
    if name != "asyncio":
        raise SettingsError(f"The relay has no loop called {name!r}.", remedy='Take "own" or "asyncio".')
    return asyncio.new_event_loop()


def _load(name: str) -> Reply:
    module, _, function = name.partition(":")
    try:
        reply: Reply = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as failure:
        raise SettingsError(f"The relay cannot load {name!r}: {failure}.") from failure
    return reply


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, 65536, 10240):  # macOS says "unlimited" and takes at most kern.maxfilesperproc
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):
            continue
        return
