"""One row for each statistic of a Result: path, value, interval, level, method, n, unit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from probes.result import Result

__all__ = ["csv_rows"]

_FIELDS = ("value", "lo", "hi", "level", "method", "n", "unit")


def csv_rows(result: Result) -> str:
    """RFC 4180, with a header; unmeasured things have no row."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("model", "path", *_FIELDS))
    for path, found in _statistics(result.model_dump(mode="json", by_alias=True, exclude_none=True), ""):
        lo, hi = found.get("ci") or (None, None)
        level, method, n, unit = (found.get(name) for name in ("level", "method", "n", "unit"))
        writer.writerow((result.target.name, path, found["value"], lo, hi, level, method, n, unit))
    return out.getvalue()


def _statistics(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that has the form of a statistic, with its place in the document."""
    if isinstance(value, dict):
        if {"value", "method", "n", "unit"} <= value.keys():
            yield path, value
            return
        for name, item in value.items():
            yield from _statistics(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _statistics(item, f"{path}[{index}]")
