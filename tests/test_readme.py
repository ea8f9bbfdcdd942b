"""The README cannot lie: its commands exist, its links lead somewhere, its make targets are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from qm_proxy.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_named_is_one() -> None:
    named = set(re.findall(r"qm-proxy ([a-z]+)\b", README)) | set(re.findall(r"`([a-z]+)`(?= ·|,| \()", README)) & COMMANDS
    unknown = {name for name in named if name not in COMMANDS and name not in ("ready", "side")}
    assert not unknown


def test_every_command_there_is_is_named() -> None:
    silent = {name for name in COMMANDS if not re.search(rf"\b{name}\b", README)}
    assert not silent


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\.?[a-z-]+)", README)):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"README says make {target}"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_flags_named_exist() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    options = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    for flag in set(re.findall(r"`(--[a-z-]+)", README)):
        assert flag in options, flag
