"""The import law, the mirror of tests, and the lateness of heavy packages: the structure as a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOUNS = ("errors", "events", "findings", "record", "sinks")
MODULES = sorted(p for package in ("qm_proxy", "probes") for p in (ROOT / package).rglob("*.py"))

# Who may import whom. A key is a module or package below qm_proxy (or probes.…); the longest key that fits a file rules it.
# "nouns" stands for all five; a package may always import itself.
LAW: dict[str, tuple[str, ...]] = {
    "errors": (),
    "events": ("errors",),
    "findings": ("errors", "events"),
    "record": ("errors", "events", "findings"),
    "sinks": ("errors", "events", "findings", "record"),
    "tasks": (),
    "ids": (),
    "clients": (),
    "wire": ("nouns",),
    "measure": ("nouns",),
    "detect": ("nouns", "measure"),
    "courtesy": (),
    "exchange": ("nouns", "wire", "measure", "detect", "ids"),
    "sessions": ("nouns", "measure", "detect", "ids"),
    "relay": ("errors", "tasks"),
    "relay.__main__": ("errors", "tasks", "wire.replies", "wire.routes"),
    "beside": ("nouns", "tasks"),
    "telemetry": ("nouns", "measure"),
    "store": ("nouns", "measure", "ids"),
    "charts": ("nouns", "measure"),
    "console": ("nouns", "measure", "store.queries", "telemetry.names", "charts", "tasks", "clients"),
    "settings": ("nouns",),
    "observer": ("nouns", "wire", "exchange", "relay.pipe", "detect", "sessions", "ids"),
    "guard": ("nouns", "detect"),
    "across": ("nouns", "detect", "ids"),
    "supervisor": ("errors", "tasks", "relay.addresses"),
    "wiring": ("*",),
    "cli": ("*",),
    "demo": ("*",),
    "doctor": ("errors", "settings", "relay.addresses", "tasks"),
    "servant": ("errors",),
    "run": ("errors", "clients", "servant", "terminal"),
    "waterfall": ("measure", "terminal"),
    "reading": ("errors", "ids", "measure", "store.merge", "store.sqlite", "terminal", "waterfall"),
    "terminal": ("nouns", "measure", "store.queries"),
    "__main__": ("cli",),
    "__init__": (),
}
# What the three probes share: statistics, the result's shape, asking, padding text, and looking at the server.
_ASKING = (
    "probes.stats",
    "probes.result",
    "probes.ask",
    "probes.padding",
    "probes.pace",
    "probes.spoken",
    "probes.survey",
    "nouns",
    "measure",
    "detect",
    "beside",
)
PROBES_LAW: dict[str, tuple[str, ...]] = {
    "stats": (),
    "inspector": _ASKING,
    "audit": _ASKING,
    "agent": _ASKING,
    "sim": ("nouns", "wire", "tasks"),
    "sim.agent_policies": ("probes.agent", "probes.ask", "nouns"),  # scripted agents play the Agent Report's world
    "sim.knowing": ("probes.audit.solver", "nouns"),  # personas that answer the Audit's questions know its key
}
HEAVY = ("mcp", "scipy", "vl_convert", "grpc", "sqlite_utils", "opentelemetry", "aiohttp")


def _dotted(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts)


@cache
def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("qm_proxy", "probes")}


def _rule(dotted: str) -> tuple[str, tuple[str, ...]] | None:
    root, _, rest = dotted.partition(".")
    law = LAW if root == "qm_proxy" else PROBES_LAW
    fitting = [key for key in law if rest == key or rest.startswith(key + ".")]
    return (key := max(fitting, key=len), law[key]) if fitting else None


def _allowed(imported: str, own: str, permitted: tuple[str, ...]) -> bool:
    names = [n for p in permitted for n in ([f"qm_proxy.{m}" for m in NOUNS] if p == "nouns" else [p])]
    full = [n if n.startswith(("qm_proxy.", "probes.")) else f"qm_proxy.{n}" for n in names]
    return (
        "*" in permitted
        or imported == "qm_proxy.__version__"
        or any(imported == n or imported.startswith(n + ".") for n in (own, *full))
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: _dotted(p))
def test_imports_follow_the_law(path: Path) -> None:
    dotted = _dotted(path)
    rule = _rule(dotted)
    if dotted.startswith("qm_proxy."):
        assert rule is not None, f"{dotted} has no row in the import law: give it one"
        banned = [i for i in _imports(path) if i.startswith("probes") and "*" not in rule[1]]
        assert not banned, f"{dotted} must not import the probes: {banned}"
    if rule is None:
        return
    key, permitted = rule
    own = f"{dotted.split('.')[0]}.{key.split('.')[0]}"
    broken = sorted(i for i in _imports(path) if not _allowed(i, own, permitted))
    assert not broken, f"{dotted} may import {permitted or 'nothing of ours'}, and imports {broken}"


def test_the_law_catches_a_breach(tmp_path: Path) -> None:
    assert not _allowed("qm_proxy.console.app", "qm_proxy.wire", LAW["wire"])
    assert _allowed("qm_proxy.events.Asked", "qm_proxy.wire", LAW["wire"])


# --- the mirror -------------------------------------------------------------------------------------------------------

# Modules that are only names and types: what they say is tested wherever it is used.
TYPES_ONLY = {
    "qm_proxy.errors",
    "qm_proxy.events",
    "qm_proxy.findings",
    "qm_proxy.record",
    "qm_proxy.sinks",
    "qm_proxy.detect.detector",
    "qm_proxy.wire.decoder",
}
_DEMO = "tests/integration/test_demo.py", "scenes, clients and judge of one program, driven as a process"
_TOOLS = "tests/integration/test_mcp.py", "spoken to by an MCP client"
_REPORT = "tests/probes/report/test_report.py", "one Result in, every format out: the parts are judged by the whole text"
# Module → the test that covers it, and why it has none of its own name.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "qm_proxy.wiring": ("tests/integration/test_serve.py", "the parts list of a process, driven as a process"),
    "qm_proxy.demo.scenes": _DEMO,
    "qm_proxy.demo.clients": _DEMO,
    "qm_proxy.demo.judge": _DEMO,
    "qm_proxy.demo.run": _DEMO,
    "qm_proxy.console.app": ("tests/qm_proxy/console/test_api.py", "routes and middleware, asked through them"),
    "qm_proxy.relay.control": ("tests/qm_proxy/relay/test_process.py", "orders to a relay, given to a real one"),
    "qm_proxy.relay.guard": ("tests/integration/transparency/test_guard.py", "cuts streams on real sockets, at every point"),
    "qm_proxy.telemetry.spans": ("tests/qm_proxy/telemetry/test_provider.py", "Record to spans, read where they are exported"),
    "qm_proxy.telemetry.prometheus": ("tests/qm_proxy/telemetry/test_metrics.py", "the text form of the metrics tested there"),
    "qm_proxy.wire.bodies": ("tests/qm_proxy/wire/test_ollama.py", "what the dialects share, tested in each"),
    "qm_proxy.wire.calls": ("tests/qm_proxy/wire/test_openai_chat.py", "tool calls in pieces, tested in each dialect"),
    "qm_proxy.wire.failures": ("tests/qm_proxy/wire/test_ollama.py", "errors of the dialects, tested in each"),
    "qm_proxy.wire.head": ("tests/qm_proxy/wire/test_http.py", "heads, read by the connection"),
    "qm_proxy.wire.chunked": ("tests/qm_proxy/wire/test_http.py", "the chunked coding, read by the connection"),
    "qm_proxy.wire.history": ("tests/qm_proxy/wire/test_request.py", "messages of a request"),
    "qm_proxy.wire.offered": ("tests/qm_proxy/wire/test_request.py", "tools that a request offers"),
    "probes.job": ("tests/integration/test_mcp.py", "a process of its own, started through the tools"),
    "probes.mcp_server": ("tests/integration/test_mcp.py", "spoken to by an MCP client"),
    **{f"probes.mcp_tools.{name}": _TOOLS for name in ("seen", "feed", "runs", "library")},
    "probes.mcp_pipe": ("tests/integration/test_mcp.py", "a process between a client and a console"),
    "probes.inspector.crosscheck": ("tests/probes/inspector/test_conclude.py", "one of the conclusions"),
    "probes.inspector.footprint": ("tests/probes/inspector/test_conclude.py", "one of the conclusions"),
    "probes.inspector.summaries": ("tests/probes/inspector/test_conclude.py", "one of the conclusions"),
    **{
        f"probes.report.{name}": _REPORT
        for name in (
            *("benchstat", "blocks", "compose", "csv", "definitions", "figures"),
            *("html", "markdown", "pictures", "practice", "terminal"),
        )
    },
}
MIRRORED = [
    p for p in MODULES if p.stem not in ("__init__", "__main__") and _dotted(p) not in TYPES_ONLY and _dotted(p) not in ELSEWHERE
]


def _mirror(path: Path) -> Path:
    inside = path.relative_to(ROOT)
    return ROOT / "tests" / inside.parent / f"test_{inside.name}"


@pytest.mark.parametrize("path", MIRRORED, ids=lambda p: _dotted(p))
def test_every_module_has_a_test_of_its_name(path: Path) -> None:
    mirror = _mirror(path)
    assert mirror.is_file(), f"{_dotted(path)} has no {mirror.relative_to(ROOT)}: write it, or say in ELSEWHERE what covers it"
    assert "def test_" in mirror.read_text()


def _path(dotted: str) -> Path | None:
    """The file of a module, or of the module that holds a name."""
    for name in (dotted, dotted.rpartition(".")[0]):
        stem = ROOT.joinpath(*name.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def _reached_from(test: Path) -> set[Path]:
    """Every module of ours that a test, or the conftest beside it, imports, directly or not."""
    found: set[Path] = set()
    todo = [test, *(c for c in [test.parent / "conftest.py"] if c.exists())]
    while todo:
        new = {p for name in _imports(todo.pop()) if (p := _path(name)) is not None} - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize("dotted", sorted(ELSEWHERE))
def test_what_is_tested_elsewhere_is(dotted: str) -> None:
    """The list stays honest: the module and its test exist, it has no test of its name, and that test reaches it."""
    covering, reason = ELSEWHERE[dotted]
    path, test = ROOT.joinpath(*dotted.split(".")).with_suffix(".py"), ROOT / covering
    assert path.is_file(), f"{dotted} is no more: take it out of ELSEWHERE"
    assert test.is_file()
    assert reason
    assert not _mirror(path).exists(), f"{dotted} has a test of its name now: take it out of ELSEWHERE"
    if "integration" not in test.parts and "process" not in test.stem:  # those start it as a process
        assert path in _reached_from(test), f"{covering} never imports {dotted}"


@pytest.mark.parametrize("dotted", sorted(TYPES_ONLY))
def test_what_is_called_types_only_has_no_logic(dotted: str) -> None:
    tree = ast.parse(ROOT.joinpath(*dotted.split(".")).with_suffix(".py").read_text())
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.For | ast.While | ast.Try | ast.With)]
    assert not branches, f"{dotted} decides something: it needs a test of its name"


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_relay_imports_nothing_heavy() -> None:
    loaded = _loaded_after("import qm_proxy.relay.__main__")
    assert not loaded & {*HEAVY, "pydantic", "starlette", "uvicorn", "typer", "rich", "msgspec", "httptools"}


def test_the_supervisor_imports_nothing_heavy() -> None:
    loaded = _loaded_after("import qm_proxy.supervisor")
    assert not loaded & {*HEAVY, "pydantic", "starlette", "uvicorn", "typer", "rich", "uvloop"}


def test_serve_is_ready_without_the_heavy_packages() -> None:
    loaded = _loaded_after("import qm_proxy.wiring, qm_proxy.cli")
    assert not loaded & {"mcp", "scipy", "vl_convert", "grpc"}
