"""`qm-proxy doctor`: is everything in place, and if not, what to do. Each check is small, bounded in time, and says a remedy.

It asks the upstream only what cannot load or change a model; `unhang` is the one exception, and only on request.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from qm_proxy.errors import QmError, SettingsError, UpstreamRefused, UpstreamUnreachable
from qm_proxy.relay.addresses import Upstream, parse_upstream
from qm_proxy.settings import Settings

__all__ = ["Check", "examine", "unhang"]

State = Literal["good", "note", "bad"]
PATIENCE_S = 3.0
DESCRIPTORS_WANTED = 4096
DISK_WANTED = 512 * 1024 * 1024
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a http_proxy variable is not meant for loopback


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `remedy` is empty when it is good."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Check]:
    """All checks, in the order a person would make them. Never raises."""
    yield _python()
    yield _uvloop()
    try:
        upstream = parse_upstream(settings.upstream)
    except SettingsError as exc:
        yield Check("upstream", "bad", settings.upstream, str(exc))
    else:
        yield from _upstream(upstream)
    yield from _ports(settings)
    yield _descriptors()
    yield _disk(settings.db)
    yield _clock()


def _python() -> Check:
    return Check("python", "good", sys.version.split()[0])


def _uvloop() -> Check:
    try:
        import uvloop  # noqa: F401 - is it there?
    except ImportError:
        return Check("event loop", "note", "asyncio", "pip install uvloop: about a third less CPU per token.")
    return Check("event loop", "good", f"uvloop {version('uvloop')}")


def _ask(upstream: Upstream, method: str, path: str, body: object = None, patience_s: float = PATIENCE_S) -> dict[str, object]:
    """One request to the upstream; its JSON. Raises `UpstreamUnreachable` or `UpstreamRefused`."""
    if upstream.unix is not None:
        raise UpstreamUnreachable("asking over a unix socket is not needed here")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(upstream.url + path, data=data, method=method)
    try:
        with _DIRECT.open(request, timeout=patience_s) as answer:
            found = json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as exc:
        text = exc.read(2000).decode("utf-8", "replace")
        raise UpstreamRefused(f"{upstream.url}{path} answered {exc.code}: {text}", status=exc.code, body=text) from exc
    except http.client.HTTPException as exc:
        raise UpstreamRefused(f"{upstream.url}{path} does not speak HTTP: {exc!r}") from exc
    except (OSError, ValueError) as exc:
        raise UpstreamUnreachable(f"{upstream.url}{path}: {exc}") from exc
    return found if isinstance(found, dict) else {}


def _upstream(upstream: Upstream) -> Iterator[Check]:
    if upstream.unix is not None:
        there = Path(upstream.unix).is_socket()
        remedy = "" if there else "Start Ollama on that socket, or give another --upstream."
        yield Check("upstream", "good" if there else "bad", f"unix:{upstream.unix}", remedy)
        return
    try:
        version = _ask(upstream, "GET", "/api/version").get("version")
    except UpstreamUnreachable:
        remedy = "Start Ollama (ollama serve, or its app), or give its address with --upstream or OLLAMA_HOST."
        yield Check("upstream", "bad", f"{upstream.url} does not answer", remedy)
        return
    except UpstreamRefused as exc:
        yield Check("upstream", "bad", str(exc), "Something answers there that is not Ollama: check --upstream.")
        return
    yield Check("upstream", "good", f"{upstream.url}, Ollama {version}")
    try:
        models = _ask(upstream, "GET", "/api/tags").get("models") or []
        loaded = _ask(upstream, "GET", "/api/ps").get("models") or []
    except QmError as exc:
        yield Check("models", "note", str(exc), "")
        return
    if not isinstance(models, list) or not isinstance(loaded, list):
        yield Check("models", "note", "the lists of models are not Ollama's", "Is this really Ollama? Check --upstream.")
        return
    if not models:
        yield Check("models", "note", "none installed", "ollama pull qwen3-coder, for example.")
    else:
        yield Check("models", "good", f"{len(models)} installed, {len(loaded)} loaded")
    for model in (one for one in loaded if isinstance(one, dict)):
        window = model.get("context_length")
        if isinstance(window, int) and window < 32768:
            yield Check(
                f"window of {model.get('name')}",
                "note",
                f"{window} tokens",
                "Coding agents need 32 k to 64 k: set OLLAMA_CONTEXT_LENGTH (or num_ctx in a Modelfile) and restart Ollama.",
            )
        size, vram = model.get("size"), model.get("size_vram")
        if isinstance(size, int) and isinstance(vram, int) and 0 < vram < size:
            yield Check(
                f"memory of {model.get('name')}",
                "note",
                f"{vram / size:.0%} on the GPU",
                "The rest runs on the CPU and is slow: a smaller quantisation or window would fit.",
            )


def _ports(settings: Settings) -> Iterator[Check]:
    for name, address in (("proxy port", settings.listen), ("console port", settings.console)):
        if address == "off" or address.startswith("unix:"):
            yield Check(name, "good", address)
            continue
        host, _, port = address.rpartition(":")
        host = host.strip("[]") or "0.0.0.0"
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, int(port)))
        except (OSError, ValueError, OverflowError) as exc:
            if _is_ours(settings.console):
                yield Check(name, "good", f"{address}, in use by a running qm-proxy")
            else:
                reason = exc.strerror if isinstance(exc, OSError) else str(exc)
                option = "--listen" if name == "proxy port" else "--console"
                yield Check(name, "bad", f"{address}: {reason}", f"Choose another with {option}.")
        else:
            yield Check(name, "good", f"{address} is free")


def _is_ours(console: str) -> bool:
    """Whether a qm-proxy answers at the console address."""
    if console == "off":
        return False
    host, _, port = console.rpartition(":")
    try:
        with _DIRECT.open(f"http://{host or '127.0.0.1'}:{port}/healthz", timeout=1) as answer:
            return b"qm-proxy" in answer.read(2000)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _descriptors() -> Check:
    if os.name != "posix":
        return Check("descriptors", "note", "not limited here")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = hard if hard != resource.RLIM_INFINITY else sys.maxsize
    if reachable >= DESCRIPTORS_WANTED:
        return Check("descriptors", "good", f"{soft} now, raised to {'unlimited' if reachable == sys.maxsize else reachable}")
    remedy = f"Two are needed for each connection: raise the hard limit (ulimit -Hn {DESCRIPTORS_WANTED})."
    return Check("descriptors", "note", f"at most {reachable}", remedy)


def _disk(db: Path | None) -> Check:
    if db is None:
        return Check("database", "good", "off: the last exchanges are kept in memory")
    place = db.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check("database", "bad", f"{place} is not writable", "Give another file with --db, or --db off.")
    free = shutil.disk_usage(place).free
    if free < DISK_WANTED:
        remedy = "Traffic goes on when the disk is full, but is not stored. Free some space or choose another --db."
        return Check("database", "note", f"{db}, {free // 2**20} MB free", remedy)
    return Check("database", "good", f"{db}, {free / 2**30:.1f} GB free")


def _clock() -> Check:
    """Resolution of the monotonic clock by which every token is stamped: the smallest step seen in 1 000 readings."""
    readings = [time.monotonic_ns() for _ in range(1000)]
    steps = [b - a for a, b in itertools.pairwise(readings) if b > a]
    if not steps:
        return Check("clock", "bad", "the monotonic clock stands still", "Times will be wrong on this machine.")
    smallest = min(steps)
    if smallest > 100_000:
        return Check("clock", "note", f"steps of {smallest / 1e6:.2f} ms", "Gaps below that cannot be told apart here.")
    return Check("clock", "good", f"steps of {smallest} ns")


def unhang(upstream_text: str, model: str) -> str:
    """Free a slot that hangs: unload the model (`keep_alive: 0`), which is what a stuck Ollama still answers to.

    Running requests of the model end first; the next request loads it again. Raises `UpstreamError`.
    """
    upstream = parse_upstream(upstream_text)
    answer = _ask(upstream, "POST", "/api/generate", {"model": model, "keep_alive": 0}, patience_s=30.0)
    return str(answer.get("done_reason") or "asked")
