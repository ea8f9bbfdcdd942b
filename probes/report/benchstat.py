"""Lines that Go's benchstat reads, under the names of Ollama's own bench, one line for each raw observation."""

from __future__ import annotations

import re

from probes.result import Result

__all__ = ["benchstat"]


def benchstat(result: Result) -> str:
    """Steps load, coldstart, prefill, generate and ttft, in ns/op and tokens/s. Points only: benchstat has its own statistics."""
    inspected = result.inspector
    name = re.sub(r"\s+", "_", result.target.name)
    lines = [
        f"# {result.tool.get('name', 'qm-proxy')} {result.tool.get('version', '')}, digest {result.target.digest or 'unknown'}"
    ]
    if inspected is None:
        return "\n".join([*lines, "# no inspector section"]) + "\n"

    def line(step: str, n: int, ms: float, extra: str = "") -> None:
        lines.append(f"BenchmarkModel/name={name}/step={step} {n} {ms * 1e6:.0f} ns/op{extra}")

    for start in inspected.cold:
        if start.state in ("C0", "C1") and start.load is not None:
            line("load", start.load.n, start.load.value)
            if start.total is not None:
                line("coldstart", start.total.n, start.total.value)
    for point in inspected.prefill.points:
        line(
            f"prefill/tokens={point.tokens}",
            point.time.n,
            point.time.value / max(1, point.tokens),
            f" {point.rate.value:.2f} token/sec",
        )
    for cell in inspected.decode.cells:
        line(
            f"generate/depth={cell.depth_tokens}",
            cell.rate.n,
            cell.server_ms_per_token.value,
            f" {cell.rate.value:.2f} token/sec",
        )
    if inspected.ttft_any is not None:
        line("ttft", inspected.ttft_any.n, inspected.ttft_any.value)
    return "\n".join(lines) + "\n"
