"""`qm-proxy sim`: the simulated Ollama alone, or the list of its personas and their truth.

`run` is what the command line calls; it returns when SIGINT or SIGTERM comes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from collections.abc import Sequence
from pathlib import Path

from probes.sim.personas import Persona, builtin, load_file, schema
from probes.sim.server import SimulatedOllama
from qm_proxy.errors import SettingsError

__all__ = ["chosen", "listing", "run", "serve"]


def run(
    listen: str = "127.0.0.1:11434",
    personas_file: Path | None = None,
    *,
    list_only: bool = False,
    schema_only: bool = False,
    as_json: bool = False,
    speed: float = 1.0,
    seed: int = 0,
    slots: int | None = None,
    max_loaded: int = 3,
    truth: Path | None = None,
) -> int:
    """Exit code. Prints the list, the schema, or one line when it listens. Raises SettingsError and PortInUse."""
    if schema_only:
        print(json.dumps(schema(), indent=2))
        return 0
    personas = chosen(personas_file)
    if list_only:
        print(json.dumps([p.truth() for p in personas], indent=2, ensure_ascii=False) if as_json else listing(personas))
        return 0
    if speed <= 0:
        raise SettingsError("--speed must be above 0.")
    host, port = address(listen)
    sim = SimulatedOllama(
        personas, host=host, port=port, speed=speed, seed=seed, slots=slots, max_loaded=max_loaded, truth_file=truth
    )
    asyncio.run(serve(sim))
    return 0


async def serve(sim: SimulatedOllama) -> None:
    """Until a signal asks to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stopped.set)
    await sim.start()
    gc.collect()
    gc.freeze()  # what is here stays: no collection of it in the middle of a stream
    print(f"qm-proxy sim ready: {sim.url}, {len(sim.personas)} models", flush=True)
    try:
        await stopped.wait()
    finally:
        await sim.stop()


def chosen(file: Path | None) -> list[Persona]:
    """Those that ship, and the file's; one of the same name replaces."""
    found = {p.full_name: p for p in builtin()}
    if file is not None:
        found |= {p.full_name: p for p in load_file(file)}
    return list(found.values())


def address(listen: str) -> tuple[str, int]:
    """HOST:PORT, :PORT or [v6]:PORT."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"--listen {listen!r} is not HOST:PORT.")
    return host.strip("[]") or "127.0.0.1", int(port)


_COLUMNS = ("model", "load", "prefill", "ms/token", "spread", "stalls", "slots", "window", "what it shows")


def listing(personas: Sequence[Persona]) -> str:
    """Personas and their truth as a table of plain text."""
    rows = [_COLUMNS, *(_row(p) for p in personas)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS) - 1)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _row(p: Persona) -> tuple[str, ...]:
    s = p.decode.stalls
    stalls = "-"
    if s.at or s.every or s.per_1000:
        where = f"{s.per_1000:g}/1000" if s.per_1000 else ",".join(map(str, s.at)) + (f",+{s.every}" if s.every else "")
        stalls = f"{s.ms:g} ms @{where}"
    first = f"+{p.prefill.first_touch_ms:g} ms" if p.prefill.first_touch_ms else ""
    return (
        p.name,
        f"{p.load.cold_ms:g} ms",
        f"{p.prefill.tokens_per_s:g}/s{first}",
        f"{p.decode.token_ms:g}",
        f"{p.decode.spread:.0%}" if p.decode.spread else "-",
        stalls,
        str(p.slots),
        str(p.context.automatic),
        p.description,
    )
