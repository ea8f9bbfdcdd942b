"""Machines described and machines read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probes.hardware import _amd, describe, hardware_class, read_host
from probes.result import Host
from qm_proxy.errors import SettingsError

GIB = 1024**3


def test_the_posts_machine() -> None:
    host = describe("apple:64GiB")
    assert (host.memory_bytes, host.unified, host.hardware_class) == (64 * GIB, True, "Workstation")
    assert host.gpus[0].vendor == "apple"


def test_a_card_with_and_without_ram() -> None:
    both = describe("nvidia:24GiB+64GiB")
    assert (both.gpus[0].memory_bytes, both.memory_bytes, both.unified) == (24 * GIB, 64 * GIB, False)
    assert describe("amd=16GB").memory_bytes is None
    assert describe("cpu:32GiB").gpus == []


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_text(json.dumps({"memory_bytes": 8 * GIB}))
    assert describe(str(path)).hardware_class == "Constrained"
    path.write_text("{")
    with pytest.raises(SettingsError, match="cannot be used"):
        describe(str(path))


@pytest.mark.parametrize("text", ["", "nvidia:-3GiB", "apple", "apple:64", "tpu:64GiB", "nvidia:24parsec", "/no/such/file"])
def test_what_is_not_understood_names_the_grammar(text: str) -> None:
    with pytest.raises(SettingsError, match="apple:64GiB"):
        describe(text)


@pytest.mark.parametrize(("gib", "name"), [(15, "Constrained"), (16, "Mainstream"), (33, "Workstation"), (97, "Frontier")])
def test_classes(gib: int, name: str) -> None:
    assert hardware_class(Host(memory_bytes=gib * GIB)) == name
    assert hardware_class(Host()) is None


def test_this_machine_is_read_and_another_one_is_not() -> None:
    here = read_host("http://127.0.0.1:11434")
    assert here.local
    assert (here.memory_bytes or 0) > 0
    there = read_host("http://10.1.2.3:11434")
    assert (there.local, there.memory_bytes) == (False, None)
    assert read_host("localhost:11434").local


def test_amd_cards_are_read_from_sysfs(tmp_path: Path) -> None:
    card = tmp_path / "card0" / "device"
    card.mkdir(parents=True)
    (card / "mem_info_vram_total").write_text("17163091968\n")
    (card / "mem_info_vram_used").write_text("1000\n")
    (tmp_path / "card1" / "device").mkdir(parents=True)
    assert [(gpu.name, gpu.memory_bytes, gpu.used_bytes) for gpu in _amd(tmp_path)] == [("card0", 17163091968, 1000)]


@pytest.mark.parametrize("text", ["apple:0GiB", "apple:99999999TiB", "nvidia:24GiB+0GiB", "apple:64GiB+32GiB", "cpu:8GiB+8GiB"])
def test_amounts_that_no_machine_has_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"Give|Write"):
        describe(text)


@pytest.mark.parametrize("content", ["{}", "[]", '{"memory_bytes": -5}', '{"memory_bytes": "much"}', '{"gpus": [{"name": "x"}]}'])
def test_a_file_that_tells_no_memory_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "host.json"
    path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        describe(str(path))
    assert "\n" not in str(caught.value)
