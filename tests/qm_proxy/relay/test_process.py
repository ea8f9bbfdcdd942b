"""The configuration that a relay process is given."""

from __future__ import annotations

import asyncio

import pytest

from qm_proxy.errors import SettingsError
from qm_proxy.relay.addresses import Upstream
from qm_proxy.relay.loop import RelayLoop
from qm_proxy.relay.process import Config, new_loop


@pytest.mark.parametrize("upstream", [Upstream(host="box", port=1), Upstream(unix="/run/ollama.sock")])
def test_configuration_round_trip(upstream: Upstream) -> None:
    config = Config(
        upstream=upstream, relay=3, listen_fds=[4, 5], listen=["[::1]:0"], pipe_fd=6, control_fd=7, guard=True, reply="m:f"
    )
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"upstream": 1}', '{"upstream": {"x": 1}}', '{"upstream": {"host": "h"}, "no": 1}']
)
def test_a_configuration_that_cannot_be_read(text: str) -> None:
    with pytest.raises(SettingsError):
        Config.from_json(text)


def test_the_loop() -> None:
    for name, kind in (("asyncio", asyncio.SelectorEventLoop), ("own", RelayLoop), (None, RelayLoop)):
        loop = new_loop(name)
        assert type(loop) is kind
        loop.close()
    with pytest.raises(SettingsError, match="no loop called 'trio'"):
        new_loop("trio")
