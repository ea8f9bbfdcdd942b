"""Serves the live page: its files, the charts' specifications, and Vega's bundle. No user's data passes here.

Rules that hold here:

- Everything comes from this origin, under a Content-Security-Policy without `unsafe-inline` and `unsafe-eval`: a prompt that
  found its way into the page as HTML could run nothing. Vega therefore interprets its expressions (`ast: true`).
- The files are read once, compressed once, and bear an ETag: a reload costs a 304 each.
- The document carries its styles and the theme's few lines within it, named by their hashes in its policy: the first paint
  waits for one answer, not for five, which is what it takes on a busy machine.
- Vega's bundle is made by vl_convert, which takes a second and 60 MB: in a process of its own, when the first chart asks, and
  kept under the platform's cache directory by version.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qm_proxy import charts
from qm_proxy.clients import CLIENTS

__all__ = ["CSP", "cache_directory", "page_routes"]

CSP = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",  # exported pictures
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # keep, but ask first: the ETag makes asking cheap
    "vary": "accept-encoding",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_PAGE = Path(__file__).with_name("page")
_CHARTS = Path(charts.__file__).parent
_BUNDLE_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is sent: plain, compressed, and its name for caches."""

    kind: str
    plain: bytes
    packed: bytes
    etag: str
    policy: str = CSP


def _file(kind: str, plain: bytes, policy: str = CSP) -> _File:
    return _File(kind, plain, gzip.compress(plain, 6, mtime=0), f'"{hashlib.sha256(plain).hexdigest()[:24]}"', policy)


def _document(files: dict[str, _File]) -> _File:
    """index.html with the styles and the classic script it names put within it, and a policy that allows exactly these."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def within(tag: str, paths: list[str]) -> str:
        text = "".join(files[path].plain.decode() for path in paths)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = files["/page/index.html"].plain.decode()
    html = re.sub(r'<script src="([^"]+)"></script>', lambda m: within("script", [m[1]]), html)
    sheets = r'(?:<link rel="stylesheet" href="[^"]+">\s*)+'
    html = re.sub(sheets, lambda m: within("style", re.findall(r'href="([^"]+)"', m[0])) + "\n", html)
    allowed = (f"{tag}-src 'self' {' '.join(found)}" for tag, found in hashes.items())
    return _file(_TYPES[".html"], html.encode(), "; ".join((CSP, *allowed)))


def _answer(request: Request, file: _File) -> Response:
    headers = _HEADERS | {"etag": file.etag, "content-type": file.kind, "content-security-policy": file.policy}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", "") and len(file.packed) < len(file.plain):
        return Response(file.packed, headers=headers | {"content-encoding": "gzip"})
    return Response(file.plain, headers=headers)


def _read(directory: Path, suffixes: tuple[str, ...]) -> dict[str, _File]:
    """Every file below `directory` with one of these endings, by its path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            found[path.relative_to(directory).as_posix()] = _file(_TYPES[path.suffix], path.read_bytes())
    return found


def cache_directory() -> Path:
    """The platform's directory for what can be made again (XDG, macOS Caches, Windows AppData); not created here."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qm-proxy"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "qm-proxy" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qm-proxy"


class _Bundle:
    """Vega's script: from memory, else from the cache directory, else made; made once however many ask."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: _File | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> _File:
        async with self._lock:
            if self._made is None:
                self._made = _file(_TYPES[".js"], await self._script())
            return self._made

    async def _script(self) -> bytes:
        try:
            path = self._directory / f"vega-{version('vl-convert-python')}.js"
        except PackageNotFoundError as exc:
            raise HTTPException(503, "Charts need vl-convert-python, which is not installed: pip install it") from exc
        with contextlib.suppress(OSError):
            if kept := await run_in_threadpool(path.read_bytes):
                return kept
        script = await self._make()
        with contextlib.suppress(OSError):  # a cache that cannot be written costs a second at the next start
            await run_in_threadpool(_keep, path, script)
        return script

    @staticmethod
    async def _make() -> bytes:
        code = "import sys; from qm_proxy.charts.render import bundle; sys.stdout.buffer.write(bundle().encode())"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), _BUNDLE_PATIENCE_S)
        except TimeoutError as exc:
            process.kill()
            raise HTTPException(503, f"Vega's bundle was not made within {_BUNDLE_PATIENCE_S:g} s; ask again") from exc
        if process.returncode or not out:
            last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise HTTPException(503, f"Vega's bundle could not be made: {last or 'no output'}")
        return out


def _keep(path: Path, script: bytes) -> None:
    """Write beside, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as beside:
            beside.write(script)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _clients_json(proxy: str | None, console: str | None) -> dict[str, Any]:
    """The lines to paste, for each client: what `qm-proxy clients` prints."""
    if proxy is None or console is None:
        return {"proxy": proxy, "console": console, "items": []}
    items = [
        {
            "name": c.name,
            "title": c.title,
            "dialect": c.dialect,
            "point": c.point(proxy),
            "mcp": None if c.mcp is None else c.mcp(console),
            "run": f"qm-proxy run -- {c.commands[0]}" if c.commands else None,
        }
        for c in CLIENTS
    ]
    return {"proxy": proxy, "console": console, "items": items}


def page_routes(urls: Callable[[], tuple[str | None, str | None]], cache: Path | None = None) -> list[Route]:
    """`/`, `/page/…` and `/api/v1/clients`. `urls` tells the proxy's and the console's."""
    files = {f"/page/{name}": file for name, file in _read(_PAGE, (".html", ".css", ".js", ".svg")).items()}
    files |= {f"/page/charts/{name}": file for name, file in _read(_CHARTS, (".json",)).items()}
    files["/"] = _document(files)
    del files["/page/index.html"]
    bundle = _Bundle(cache or cache_directory())

    async def file(request: Request) -> Response:
        found = files.get(request.url.path)
        if found is None:
            raise HTTPException(404, f"The page has no file {request.url.path!r}")
        return _answer(request, found)

    async def vega(request: Request) -> Response:
        return _answer(request, await bundle.get())

    async def clients(_: Request) -> Response:
        body = json.dumps(_clients_json(*urls()), separators=(",", ":"))
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    return [
        Route("/", file),
        Route("/page/vega.js", vega),
        Route("/page/{path:path}", file),
        Route("/api/v1/clients", clients),
    ]
