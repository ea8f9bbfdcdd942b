from __future__ import annotations

import string

import pytest

from probes.agent.phrases import PHRASES, REFERENCE_WORDS
from probes.agent.tools import DECOYS, REAL, TRAPS


def _fields(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


@pytest.mark.parametrize("key", sorted({**PHRASES, **REFERENCE_WORDS}))
def test_every_wording_of_a_sentence_says_the_same_things(key: str) -> None:
    variants = {**PHRASES, **REFERENCE_WORDS}[key]
    assert len(variants) >= 4
    assert len(set(variants)) == len(variants)
    if key == "need.flag":
        assert all(_fields(variant) == {"id", "value"} for variant in variants)
    elif not key.startswith("decoy"):
        assert len({frozenset(_fields(variant)) for variant in variants}) == 1, key


def test_no_sentence_names_the_tool_that_would_help() -> None:
    names = [name for name in (*REAL, *DECOYS, *TRAPS) if "_" in name]
    assert not [(key, name) for key, variants in PHRASES.items() for variant in variants for name in names if name in variant]
