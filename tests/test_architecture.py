"""The import law, the mirror of tests, and the lateness of heavy packages: the structure as a test."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    "waterfall": ("terminal",),
    "reading": ("errors", "ids", "measure", "store.sqlite", "terminal", "waterfall"),
    "terminal": ("nouns", "measure", "store.queries"),
    "__main__": ("cli",),
    "__init__": (),
}
# What the three probes share: statistics, the result's shape, asking, padding text, and looking at the server.
_ASKING = ("probes.stats", "probes.result", "probes.ask", "probes.padding", "probes.survey", "nouns", "measure", "detect", "beside")
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
