"""The demo's clients: plain sockets, times taken when bytes were read. The same code asks through the proxy and directly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from qm_proxy.demo.scenes import Scene

__all__ = ["Heard", "play", "send"]


@dataclass(slots=True)
class Heard:
    """What one client saw: ns stamps of its request and of each read that brought records."""

    label: str
    sent_ns: int
    reads_ns: list[int] = field(default_factory=list)
    body: bytes = b""
    left: bool = False


async def send(base: str, scene: Scene, label: str) -> Heard:
    """Send `scene` and read its answer to the end; times are taken when the bytes were read."""
    url = urlsplit(base)
    body = json.dumps(scene.body).encode()
    headers = {
        "Host": url.netloc,
        "User-Agent": f"{scene.agent} {label}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Sim-Label": label,
    } | scene.headers
    head = f"POST {scene.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    heard = Heard(label, time.monotonic_ns())
    try:
        writer.write(head.encode() + body)
        while data := await _read(reader, scene.patience_s):
            heard.reads_ns.append(time.monotonic_ns())
            heard.body += data
            if scene.leave_after is not None and len(heard.reads_ns) >= scene.leave_after:
                heard.left = True
                break
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return heard


async def _read(reader: asyncio.StreamReader, patience_s: float | None) -> bytes:
    """The next bytes; nothing at the end, or when the client's patience is over."""
    try:
        return await asyncio.wait_for(reader.read(65536), patience_s)
    except TimeoutError:
        return b""


async def play(base: str, scene: Scene, label: str) -> list[Heard]:
    """All requests of one scene, one after the other; each has a label of its own, `label` and a number behind it."""
    if scene.turns > 1:
        return await _agent(base, scene, label)
    heard = []
    for n in range(scene.aborts):
        heard.append(await send(base, replace(scene, leave_after=3), f"{label}.abort{n}"))
    bodies = [scene.body | {"options": scene.body.get("options", {}) | options} for options in scene.variations] or [scene.body]
    for n, body in enumerate(bodies):
        heard.append(await send(base, replace(scene, body=body), f"{label}.{n}"))
    return heard


async def _agent(base: str, scene: Scene, label: str) -> list[Heard]:
    """An agent's session: ask, do what the model calls (every result is the same failure), ask again."""
    messages = list(scene.body["messages"])
    heard: list[Heard] = []
    for turn in range(scene.turns):
        step = replace(scene, body=scene.body | {"messages": messages})
        one = await send(base, step, f"{label}.{turn}")
        heard.append(one)
        answer = json.loads(one.body.partition(b"\r\n\r\n")[2])["message"]
        calls = answer.get("tool_calls") or []
        if not calls:
            break
        results = [{"role": "tool", "tool_name": c["function"]["name"], "content": "1 failed: expected 4, got 5"} for c in calls]
        messages = [*messages, answer, *results]
    return heard
