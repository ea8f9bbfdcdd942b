"""Two models side by side, measured in the order A B B A, so that what drifts with time hits both alike.

Speed and memory are inspected four times; the audit asks both the same questions, a fixed number at fixed lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from probes.commands import Options, audit_context, inspect_model
from probes.compare import Comparison, compare
from probes.result import InspectorSection, Result
from probes.runner import Progress
from qm_proxy.errors import InvalidMeasurement, SettingsError

__all__ = ["compare_targets", "measure_both"]

PAIRED, PAIRED_QUICK = 60, 24


async def compare_targets(
    a: str, b: str, options: Options, *, find_run: Callable[[str], Result | None] | None = None, force: bool = False
) -> Comparison:
    """`a` and `b`: each a result file, a run id (looked up by `find_run`) or a model to measure now.

    Raises SettingsError when one is a model and the other is not: then measure the model with the other's seed first.
    """
    known = [_known(text, find_run) for text in (a, b)]
    first, second = known
    if first is not None and second is not None:
        return compare(first, second, force=force)
    if first is None and second is None:
        one, other = await measure_both(a, b, options)
        return compare(one, other, order="ABBA", force=force)
    given, model = (a, b) if first is not None else (b, a)
    seed = (first or second).run.seed if (first or second) is not None else 0  # type: ignore[union-attr]
    raise SettingsError(
        f"{given} is a result and {model} a model: they were not measured alike.",
        remedy=f"Measure {model} with --seed {seed} --out DIR and compare the two results, or name both models.",
    )


async def measure_both(a: str, b: str, options: Options) -> tuple[Result, Result]:
    """Inspect A B B A, then audit A and B on the same questions. Raises InvalidMeasurement when a part fails."""
    seed = options.seed if options.seed is not None else 1
    n = PAIRED_QUICK if options.quick else PAIRED

    places = iter(range(1, 7))

    def part(model: str) -> Options:
        told = options.on_progress
        place = f"{next(places)} of 6, {model}: "

        def tell(progress: Progress) -> None:
            if told is not None:
                told(dataclasses.replace(progress, text=place + progress.text))

        return dataclasses.replace(options, model=model, seed=seed, out=None, compat=None, paired=n, on_progress=tell)

    inspected = [await inspect_model(part(model)) for model in (a, b, b, a)]
    for result in inspected:
        if result.inspector is None or result.run.state != "complete":
            raise InvalidMeasurement(f"{result.target.name} could not be inspected: {result.run.reason or 'stopped'}.")
    audits = [await audit_context(part(model)) for model in (a, b)]
    made = []
    for first, again, audited in ((inspected[0], inspected[3], audits[0]), (inspected[1], inspected[2], audits[1])):
        result = first.model_copy(deep=True)
        assert result.inspector is not None
        assert again.inspector is not None
        _pool(result.inspector, again.inspector)
        result.audit = audited.audit
        result.target.thinking = audited.target.thinking
        made.append(result)
    return made[0], made[1]


def _pool(into: InspectorSection, more: InspectorSection) -> None:
    """Add the second block's samples to the first's; the comparison reads samples, not the statistics of one block."""
    for cell, other in zip(into.decode.cells, more.decode.cells, strict=False):
        cell.samples_ms += other.samples_ms
        cell.paces_ms += other.paces_ms
    for point in into.prefill.points:
        for other_point in more.prefill.points:
            if abs(other_point.tokens / point.tokens - 1) <= 0.03:
                point.samples_ms += other_point.samples_ms
                break
    for start, other_start in zip(into.cold, more.cold, strict=False):
        if start.state == other_start.state:
            start.samples_ms += other_start.samples_ms


def _known(text: str, find_run: Callable[[str], Result | None] | None) -> Result | None:
    path = Path(text)
    for candidate in (path, path / "result.json"):
        if candidate.is_file():
            try:
                return Result.from_json(candidate.read_bytes())
            except ValueError as cause:
                raise SettingsError(f"{candidate} is no qm-probes/1 result: {cause}.") from cause
    return find_run(text) if find_run is not None else None
