"""Two models measured A B B A and asked the same questions; files and run ids are compared as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from probes.abba import compare_targets, measure_both
from probes.commands import Options
from probes.result import Result, Run, Target
from probes.runner import Progress
from probes.sim.personas import Persona
from probes.sim.server import SimulatedOllama
from qm_proxy.errors import SettingsError


def persona(name: str, **laws: Any) -> Persona:
    base: dict[str, Any] = {
        "name": name,
        "load": {"cold_ms": 20},
        "prefill": {"fixed_ms": 1, "tokens_per_s": 60_000},
        "decode": {"token_ms": 0.6},
        "answer_tokens": 300,
        "accuracy": {"base": 1.0},
        "tokenizer": {"rule": "characters", "per_token": 4.0},
    }
    return Persona.model_validate({**base, **laws})


def test_a_known_loss_is_told_over_sockets() -> None:
    worse = persona("b", accuracy={"law": "cliff", "base": 1.0, "floor": 0.2, "at": 800}, memory={"weights_bytes": 2_000_000_000})

    told: list[Progress] = []

    async def main() -> Any:
        async with SimulatedOllama([persona("a"), worse]) as sim:
            options = Options("", sim.url, quick=True, seed=3, hardware="cpu:64GiB", max_tokens=1200, on_progress=told.append)
            made = await compare_targets("a", "b", options)
            order = [r.model for r in sim.truth.requests if (r.load_ns or 0) > 15_000_000 and (r.prompt_tokens or 0) > 100]
            return made, order

    made, order = asyncio.run(main())
    assert made.order == "ABBA"
    places = list(dict.fromkeys(progress.text.partition(": ")[0] for progress in told))
    assert places == ["1 of 6, a", "2 of 6, b", "3 of 6, b", "4 of 6, a", "5 of 6, a", "6 of 6, b"]
    assert any(progress.lasting and "prompt and" in progress.text for progress in told)
    lost = next(metric for metric in made.metrics if metric.name == "accuracy at 1200 tokens")
    assert lost.verdict == "B worse"
    assert made.exit_code == 1
    assert made.sentence.startswith("Yes, B trades context retention for headroom")
    firsts = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert [str(name)[0] for name in firsts][:3] == ["a", "b", "a"]


def stored(name: str, seed: int = 1) -> Result:
    return Result(run=Run(id=f"run-{name}", kind="audit", started_at="t", seed=seed), target=Target(endpoint="e", name=name))


def test_files_folders_and_run_ids(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(stored("a").to_json())
    runs = {"run-b": stored("b")}
    made = asyncio.run(compare_targets(str(tmp_path), "run-b", Options(""), find_run=runs.get))
    assert (made.a["name"], made.b["name"], made.order) == ("a", "b", "as measured")


def test_a_result_and_a_model_are_not_measured_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(stored("a", seed=77).to_json())
    with pytest.raises(SettingsError, match="--seed 77"):
        asyncio.run(compare_targets(str(path), "some:model", Options("")))
    path.write_text("{}")
    with pytest.raises(SettingsError, match="no qm-probes/1 result"):
        asyncio.run(compare_targets(str(path), "x", Options("")))


def test_a_model_that_fails_is_told() -> None:
    async def main() -> None:
        broken = persona("b", misbehaviour={"error_after": 2})
        async with SimulatedOllama([persona("a"), broken]) as sim:
            await measure_both("a", "b", Options("", sim.url, quick=True, hardware="cpu:64GiB", max_tokens=1024))

    with pytest.raises(Exception, match="b could not be inspected"):
        asyncio.run(main())
