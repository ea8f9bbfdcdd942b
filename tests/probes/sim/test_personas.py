"""Persona files: what is stated is consistent, what is wrong is told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

import probes.sim.personas as module
from probes.sim.library import Library
from probes.sim.personas import Accuracy, builtin, canonical, load_file, schema
from probes.sim.repertoire import make
from qm_proxy.errors import SettingsError

HOME = Path(module.__file__).parent
SHIPPED = (
    "steady", "jittery", "staller", "looper", "thinker", "tool-user", "bad-tools", "short-window", "native-strict", "hang-prone",
    "mid-crash", "queue-one-slot", "north-mini-code-1.0:mlx-mxfp8", "north-mini-code-1.0:mlx-mxfp4",
)  # fmt: skip


def test_the_published_schema_is_current() -> None:
    assert json.loads((HOME / "persona.schema.json").read_text()) == schema()


def test_what_ships_is_valid_by_the_schema_and_by_its_policies() -> None:
    validator = validator_for(schema())
    for file in sorted((HOME / "personas").glob("*.json")):
        validator.validate(json.loads(file.read_text()))
    for persona in builtin():
        make(persona)
        assert persona.description
        assert persona.truth()["name"] == persona.full_name
    names = [p.name for p in builtin()]
    assert len(set(names)) == len(names)
    assert set(SHIPPED) <= set(names)


def test_kv_from_show_is_the_stated_kv() -> None:
    """The formula for full attention, keys and values in 16 bits: what a measurement predicts from /api/show."""
    for persona in builtin():
        info = Library.model_info(persona)
        a = info["general.architecture"]
        heads = info[f"{a}.attention.head_count"]
        width = info.get(f"{a}.attention.key_length", info[f"{a}.embedding_length"] // heads)
        layers = info[f"{a}.block_count"] // info.get(f"{a}.full_attention_interval", 1)
        if "completion" in persona.capabilities:
            assert layers * info[f"{a}.attention.head_count_kv"] * 2 * width * 2 == persona.memory.kv_bytes_per_token, (
                persona.name
            )


def test_the_model_of_the_post() -> None:
    """Its numbers, as the post gives them."""
    post = builtin(["north-mini-code-1.0:mlx-mxfp8"])[0]
    assert int(post.load.cold_ms) == 2924
    assert int(post.prefill.ms(123, 0) + post.prefill.first_touch_ms) == 797
    assert post.prefill.tokens_per_s == 3000
    spikes = post.decode.stalls
    assert len(spikes.at) == 3
    mean = post.decode.token_ms + 3 * spikes.ms / (post.answer_tokens - 1)
    assert round(mean, 1) == 16.5
    assert round(post.answer_tokens / ((post.answer_tokens - 1) * mean / 1000), 1) == 60.8
    near_empty = post.memory.weights_bytes + post.memory.kv(123 + post.answer_tokens)
    assert near_empty == 31_675_383_808
    assert round(near_empty / 2**30, 1) == 29.5
    assert round(100 * near_empty / (64 * 2**30)) == 46
    assert post.context.trained == 500_000
    text = "x" * round(829 * 5.62)
    assert post.tokenizer.count(text) == 829
    assert post.tokenizer.count(text + "y" * round(5.62 * 1305)) == 829 + 1305


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"name": "x", "tokenms": 3}, "tokenms: Extra inputs are not permitted"),
        ({"name": "x", "decode": {"token_ms": 0}}, "decode.token_ms"),
        ({"name": "a b"}, "name"),
        ({}, "name: Field required"),
        ({"name": "x", "context": {"trained": 10, "automatic": 20}}, "larger than context.trained"),
        ({"name": "x", "rules": [{"when": {"user": "("}, "say": {}}]}, "rules.0.when.user"),
        ({"name": "x", "thinking": {"endless": True}}, "capability thinking"),
        (3, "the whole"),
    ],
)
def test_mistakes_are_named(item: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([item]))
    with pytest.raises(SettingsError) as wrong:
        load_file(file)
    assert said in str(wrong.value)
    assert str(file) in str(wrong.value)
    assert "--schema" in str(wrong.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_file(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SettingsError, match="is not JSON"):
        load_file(tmp_path / "broken.json")
    with pytest.raises(SettingsError, match="no persona 'nobody'"):
        builtin(["nobody"])


def test_one_persona_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    file.write_text('{"name": "x"}')
    assert [p.full_name for p in load_file(file)] == ["x:latest"]


@pytest.mark.parametrize(
    ("name", "full"), [("tiny", "tiny:latest"), ("tiny:8b", "tiny:8b"), ("host:5000/team/tiny", "host:5000/team/tiny:latest")]
)
def test_canonical_names(name: str, full: str) -> None:
    assert canonical(name) == full


def test_accuracy_laws() -> None:
    cliff = Accuracy(law="cliff", base=0.97, floor=0.2, at=1000)
    assert [cliff.at_tokens(n) for n in (1, 1000, 1001)] == [0.97, 0.97, 0.2]
    dip = Accuracy(law="dip", base=1, floor=0.3, at=100, to=200)
    assert [dip.at_tokens(n) for n in (99, 100, 200, 201)] == [1, 0.3, 0.3, 1]
    slope = Accuracy(law="slope", base=1, floor=0, at=1000, to=16_000)
    assert slope.at_tokens(500) == 1
    assert slope.at_tokens(4000) == pytest.approx(0.5)
    assert slope.at_tokens(99_000) == 0
    assert Accuracy(base=0.6).at_tokens(10**6) == 0.6
