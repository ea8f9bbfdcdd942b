"""The ledger of a selftest: each quantity with what was planted, what was found, the error, and whether that is within."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from probes.stats.intervals import upper_limit

__all__ = ["FLOOR_MS", "WITHIN", "Check", "SelfTest"]

WITHIN = 0.02  # relative, or
FLOOR_MS = 1.0


@dataclass(frozen=True, slots=True)
class Check:
    """One quantity. `error` is found - planted for numbers, 0 or 1 for words. Field names are CONTRACT's."""

    name: str
    planted: float | str | None
    found: float | str | None
    error: float | None
    unit: str
    within: bool
    rule: str = ""  # what `planted` is when it is no planted value: "at most", "at least"

    @property
    def words(self) -> str:
        """One line for a person: expected, found, error."""
        expected = f"{self.rule or 'planted'} {_plain(self.planted)}"
        error = (
            f", error {self.error:+.3g}" if isinstance(self.planted, float) and self.error is not None and not self.rule else ""
        )
        if error and isinstance(self.planted, float) and self.planted and self.error is not None:
            error += f" ({self.error / self.planted:+.2%})"
        unit = f" {self.unit}" if self.unit else ""
        return f"{'ok ' if self.within else 'OUT'} {self.name}: {expected}, found {_plain(self.found)}{unit}{error}"


def _plain(value: float | str | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else f"{value:.6g}"


@dataclass(slots=True)
class SelfTest:
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    seed: int = 0

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.within for check in self.checks)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def number(
        self, name: str, planted: float, found: float | None, unit: str, *, share: float = WITHIN, floor: float = 0.0
    ) -> None:
        """Within `share` of the truth or `floor`, whichever is more."""
        error = None if found is None else found - planted
        within = error is not None and abs(error) <= max(share * abs(planted), floor)
        self.checks.append(Check(name, planted, found, error, unit, within))

    def word(self, name: str, planted: str, found: str | None) -> None:
        self.checks.append(Check(name, planted, found, 0.0 if planted == found else 1.0, "", planted == found))

    def bound(self, name: str, most: float, found: float, unit: str) -> None:
        """A rate that must not exceed `most`."""
        self.checks.append(Check(name, most, found, max(0.0, found - most), unit, found <= most, "at most"))

    def share(self, name: str, least: float, hits: int, n: int) -> None:
        """A share that the runs must not contradict: its upper 95 % limit reaches `least`."""
        found = hits / n if n else None
        error = None if found is None else min(0.0, found - least)
        self.checks.append(
            Check(f"{name} ({hits} of {n})", least, found, error, "share", n > 0 and upper_limit(hits, n) >= least, "at least")
        )

    def as_json(self) -> list[dict[str, Any]]:
        """CONTRACT's `[{name, planted, found, error, unit, within}]`."""
        return [
            {"name": c.name, "planted": c.planted, "found": c.found, "error": c.error, "unit": c.unit, "within": c.within}
            for c in self.checks
        ]
