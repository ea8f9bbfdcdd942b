"""The commands as a user types them, as processes, against a simulated Ollama."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama

SCRIPT = """
import sys, typer
from probes.cli import attach
from qm_proxy.errors import QmError
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
attach(app)
try:
    app()
except QmError as exc:
    print(f"qm-proxy: {exc}", file=sys.stderr)
    sys.exit(exc.exit_code)
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def persona(**laws: Any) -> Persona:
    base: dict[str, Any] = {
        "name": "m:1b",
        "load": {"cold_ms": 20},
        "prefill": {"fixed_ms": 1, "tokens_per_s": 60_000},
        "decode": {"token_ms": 0.6},
        "answer_tokens": 300,
        "accuracy": {"base": 1.0},
    }
    return Persona.model_validate({**base, **laws})


async def run(sim: SimulatedOllama, *arguments: str, interrupt_when: Callable[[], bool] | None = None) -> Ran:
    environment = {**os.environ, "OLLAMA_HOST": sim.url, "COLUMNS": "100"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    if interrupt_when is not None:
        await sim.truth.when(interrupt_when)
        process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    return Ran(process.returncode or 0, out.decode(), err.decode())


def with_sim(work: Callable[[SimulatedOllama], Awaitable[Any]], **laws: Any) -> Any:
    async def main() -> Any:
        async with SimulatedOllama([persona(**laws)]) as sim:
            return await work(sim)

    return asyncio.run(main())


def test_audit_prints_json_and_nothing_else_and_tells_the_cost_first() -> None:
    ran = with_sim(lambda sim: run(sim, "audit", "m:1b", "--quick", "--max-tokens", "2048", "--seed", "3", "--json"))
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["audit"]["verdict"] == "limit not reached"
    assert document["run"]["seed"] == 3
    assert "prompt and" in ran.err.splitlines()[0]


def test_ctrl_c_keeps_what_there_is_and_the_next_call_goes_on(tmp_path: Path) -> None:
    async def work(sim: SimulatedOllama) -> tuple[Ran, Ran]:
        arguments = ("audit", "m:1b", "--quick", "--max-tokens", "2048", "--seed", "3", "--out", str(tmp_path))
        first = await run(sim, *arguments, interrupt_when=lambda: len(sim.truth.requests) >= 18)
        return first, await run(sim, *arguments, "--json")

    first, second = with_sim(work, decode={"token_ms": 5})
    assert first.code == 130, first.err
    assert "This run was interrupted" in first.out
    document = json.loads(second.out)
    assert second.code == 0
    assert document["run"]["replayed"] >= 10
    assert document["audit"]["verdict"] == "limit not reached"
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("inspect", "n:1b"), 2, "ollama pull n:1b"),
        (("inspect", "m:1b", "--format", "pdf"), 2, "no format"),
        (("inspect", "m:1b", "--compat", "other"), 2, "--compat quantamind"),
        (("inspect", "m:1b", "--hardware", "tpu"), 2, "apple:64GiB"),
        (("inspect", "m:1b", "--upstream", "http://127.0.0.1:9"), 5, "Nothing answers"),
        (("gate", "/none", "--rules", "/none"), 2, "cannot be read"),
        (("compare", "pyproject.toml", "m:1b"), 2, "no qm-probes/1 result"),
    ],
)
def test_bad_input_has_clear_words_and_the_right_code(arguments: tuple[str, ...], code: int, words: str) -> None:
    import re

    ran = with_sim(lambda sim: run(sim, *arguments))
    assert ran.code == code, ran.err
    assert re.search(words, ran.err), ran.err
    assert "Traceback" not in ran.err


def test_a_dry_run_says_the_cost_and_generates_nothing() -> None:
    async def work(sim: SimulatedOllama) -> tuple[Ran, list[str]]:
        ran = await run(sim, "report", "m:1b", "--quick", "--dry-run")
        return ran, [request.path for request in sim.truth.requests]

    ran, paths = with_sim(work)
    assert ran.code == 0
    assert [line.split(":")[0] for line in ran.out.splitlines()] == ["inspect", "audit", "agent"]
    assert not {"/api/generate", "/api/chat"} & set(paths)


@pytest.mark.parametrize("command", ["inspect", "audit", "agent", "report", "compare", "gate", "selftest"])
def test_help_fits_and_shows_an_example(command: str) -> None:
    ran = with_sim(lambda sim: run(sim, command, "--help"))
    assert ran.code == 0
    assert "Example:" in ran.out
    assert len(ran.out.splitlines()) <= 50
