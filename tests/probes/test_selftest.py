"""The ruler's own bookkeeping; the whole selftest is a command that CI runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from probes.checks import SelfTest
from probes.selftest import _audit, _cliff_check, _coverage, _persona, _rates, _reader, _word_of, selftest
from probes.sim.personas import Persona
from probes.stats.intervals import clopper_pearson
from qm_proxy.errors import SettingsError


def test_error_rates_hold_in_process() -> None:
    test = SelfTest()
    _rates(test, 1, 200)
    assert test.ok, [check for check in test.checks if not check.within]


def test_a_planted_cliff_is_checked_over_sockets() -> None:
    test = SelfTest()
    result = asyncio.run(_audit(_reader("m", law="cliff", base=1.0, floor=0.0, at=3000), 2))
    _cliff_check(test, "cliff", 3000, result)
    _cliff_check(test, "elsewhere", 6000, result)
    _word_of(test, "verdict", "cliff", result)
    assert [check.within for check in test.checks] == [True, False, True]


def test_exact_coverage_is_exact() -> None:
    assert _coverage(clopper_pearson, 1, 0.5) == pytest.approx(1.0)


def test_a_bad_file_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    said: list[str] = []
    for name, text, words in (
        ("broken.json", "{", "is not JSON"),
        ("wrong.json", '[{"name": "x", "decode": {"token_ms": -3}}]', "decode.token_ms"),
        ("empty.json", "[]", "holds no persona"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(SettingsError, match=words):
            asyncio.run(selftest(personas=path, on_check=said.append))
    with pytest.raises(SettingsError, match="cannot be read"):
        asyncio.run(selftest(personas=tmp_path / "nowhere.json", on_check=said.append))
    assert said == []


def test_a_persona_of_the_users_that_says_little_is_measured_all_the_same() -> None:
    test = SelfTest()
    laws = {"load": {"cold_ms": 40}, "prefill": {"fixed_ms": 2, "tokens_per_s": 60_000}, "decode": {"token_ms": 5.0}}
    persona = Persona.model_validate({"name": "brief", "answer_tokens": 40, **laws})
    asyncio.run(_persona(test, persona, 2, lambda text: None))
    decode = next(check for check in test.checks if check.name == "brief: decode")
    assert isinstance(decode.planted, float)
    assert decode.planted == pytest.approx(5.0, rel=0.05)
    said: list[str] = []
    sloping = Persona.model_validate({**persona.model_dump(exclude_defaults=True), "accuracy": {"law": "flat", "base": 0.5}})
    asyncio.run(_persona(test, sloping, 2, said.append))
    assert said == ["brief: not audited; a quick audit judges cliffs below 8 192 tokens and flat accuracy from 0.95"]
