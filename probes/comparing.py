"""Two finished runs compared beside live traffic: in a process of its own, because SciPy and resampling have no place in ours.

`python -m probes.comparing` reads `{"a": result, "b": result, "force": bool}` from stdin and prints `{"comparison": …}` or
`{"error": …}`. Console and MCP ask `compared`; the numbers are those of the `compare` command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from qm_proxy.errors import InvalidMeasurement, QmError, SettingsError

__all__ = ["compared", "main"]

PATIENCE_S = 60.0


async def compared(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, *, names: tuple[str, str], force: bool = False
) -> dict[str, Any]:
    """The `Comparison` of two rows of runs, as JSON. Raises `QmError`: no such run, no result, or not comparable."""
    for name, row in zip(names, (a, b), strict=True):
        if row is None:
            raise SettingsError(f"There is no run {name!r}.")
        if not row.get("result"):
            raise SettingsError(f"The run {name!r} is {row['state']} and has no result.")
    assert a is not None
    assert b is not None
    asked = json.dumps({"a": a["result"], "b": b["result"], "force": force}).encode()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "probes.comparing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(asked), PATIENCE_S)
    finally:
        if process.returncode is None:  # too slow, or nobody waits any more
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    try:
        told: dict[str, Any] = json.loads(out)
    except ValueError as exc:
        raise SettingsError("The comparison ended without an answer.", remedy="Try qm-proxy compare.") from exc
    if "error" in told:
        raise InvalidMeasurement(told["error"])
    found: dict[str, Any] = told["comparison"]
    return found


def main() -> None:
    from probes.compare import compare
    from probes.result import Result

    asked = json.load(sys.stdin)
    try:
        one, other = (Result.from_json(json.dumps(asked[name])) for name in ("a", "b"))
        made = compare(one, other, force=asked["force"])
    except QmError as exc:
        print(json.dumps({"error": str(exc)}))
        return
    except ValueError:
        print(json.dumps({"error": "One of the two is no result of a probe that this version can read."}))
        return
    print(json.dumps({"comparison": made.model_dump(mode="json", by_alias=True)}))


if __name__ == "__main__":
    main()
