"""The page is served whole, cheaply and under a strict policy; its files keep the rules that the policy relies on."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from qm_proxy.charts.render import names
from qm_proxy.clients import CLIENTS
from qm_proxy.console import page
from qm_proxy.console.api import http_problem

FILES = sorted(path for path in Path(page.__file__).with_name("page").rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
_ROOT = Path(page.__file__).with_name("page")


def _short(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    routes = page.page_routes(lambda: ("http://127.0.0.1:1", "http://127.0.0.1:2"), tmp_path / "cache")
    app = Starlette(routes=routes, exception_handlers={HTTPException: http_problem})
    return TestClient(app, base_url="http://127.0.0.1:2", headers={"accept-encoding": "identity"})


@pytest.mark.parametrize("path", FILES, ids=_short)
def test_every_file_is_served_as_it_is(client: TestClient, path: Path) -> None:
    name = _short(path)
    document = name == "index.html"
    answer = client.get("/" if document else f"/page/{name}")
    assert answer.status_code == 200
    if not document:  # the document carries others within it: the next test
        assert answer.content == path.read_bytes()
        assert answer.headers["content-security-policy"] == page.CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"].split(";")[0] in (
        "text/html", "text/css", "text/javascript", "image/svg+xml",
    )  # fmt: skip


def test_the_policy_allows_no_inline_and_no_eval() -> None:
    assert page.CSP.startswith("default-src 'self';")
    assert "unsafe" not in page.CSP
    assert "http" not in page.CSP
    assert "frame-ancestors 'none'" in page.CSP


def test_the_first_paint_waits_for_the_document_alone(client: TestClient) -> None:
    """Styles and the theme's script stand in it, allowed by their hashes and in no other way; what is deferred stays outside."""
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert '<link rel="stylesheet"' not in answer.text
    within = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL) for tag in ("style", "script")}
    assert within["style"] == ["".join((_ROOT / "style" / f"{name}.css").read_text() for name in ("base", "parts", "views"))]
    assert within["script"] == [(_ROOT / "theme.js").read_text()]
    for tag, texts in within.items():
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert policy[f"{tag}-src"] == " ".join(("'self'", *(f"'sha256-{value}'" for value in hashes)))
    assert answer.text.count("<script ") == 1
    assert '<script type="module" src="/page/main.js">' in answer.text


def test_compressed_and_not_sent_twice(client: TestClient) -> None:
    plain = client.get("/page/main.js")
    packed = client.get("/page/main.js", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content  # the client unpacks
    again = client.get("/page/main.js", headers={"if-none-match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get("/page/main.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py", "/page/lib", "/page/none.js"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", names())
def test_the_charts_are_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/charts/{name}.vl.json").json()["data"] == {"name": "rows"}


def test_the_lines_to_paste(client: TestClient) -> None:
    told = client.get("/api/v1/clients").json()
    assert (told["proxy"], told["console"]) == ("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert [item["name"] for item in told["items"]] == [c.name for c in CLIENTS]
    for item, known in zip(told["items"], CLIENTS, strict=True):
        assert item["point"] == known.point("http://127.0.0.1:1")
        assert item["mcp"] == (known.mcp and known.mcp("http://127.0.0.1:2"))


def test_vega_is_made_once_and_kept(client: TestClient, tmp_path: Path) -> None:
    first = client.get("/page/vega.js")
    assert first.status_code == 200
    assert "vegaEmbed" in first.text
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_text() == first.text
    kept.write_text("from the cache")
    routes = page.page_routes(lambda: (None, None), tmp_path / "cache")
    later = TestClient(Starlette(routes=routes))
    assert later.get("/page/vega.js").text == "from the cache"
    assert later.get("/api/v1/clients").json()["items"] == []


def test_a_bundle_that_cannot_be_made_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    answer = client.get("/page/vega.js")
    assert answer.status_code == 503
    assert "could not be made" in answer.json()["detail"]


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")

    async def make() -> bytes:
        return b"made"

    monkeypatch.setattr(page._Bundle, "_make", staticmethod(make))
    client = TestClient(Starlette(routes=page.page_routes(lambda: (None, None), tmp_path / "file" / "cache")))
    assert client.get("/page/vega.js").text == "made"


# --- the rules of the files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=_short)
def test_text_never_becomes_markup_or_code(path: Path) -> None:
    code = path.read_text()
    for banned in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'setAttribute("style"',
        "srcdoc",
    ):
        assert banned not in code, f"{banned}: what a user wrote could run"


@pytest.mark.parametrize("path", FILES, ids=_short)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", text)


def test_no_inline_script_style_or_handler() -> None:
    html = (_ROOT / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert not re.search(r"<style|\sstyle=|\son\w+=", html)


@pytest.mark.parametrize("path", SCRIPTS, ids=_short)
def test_every_import_exists(path: Path) -> None:
    for target in re.findall(r"""(?:from|import\()\s*"(\.[^"]+)\"""", path.read_text()):
        assert (path.parent / target).resolve().is_file(), target


def test_the_whole_page_is_small() -> None:
    plain = sum(len(path.read_bytes()) for path in FILES)
    packed = sum(len(gzip.compress(path.read_bytes())) for path in FILES)
    print(f"page: {plain} bytes, {packed} compressed, {len(FILES)} files")
    assert packed < 100_000
