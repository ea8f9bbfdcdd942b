"""What /api/show tells of a model."""

from __future__ import annotations

import asyncio
import json

from tests.probes.sim.conftest import Running
from tests.probes.sim.test_management import call


def test_show(running: Running) -> None:
    async def main() -> None:
        async with running("steady", "north-mini-code-1.0:mlx-mxfp8") as sim:
            shown = json.loads((await call(sim, "/api/show", {"model": "steady"})).body)
            assert list(shown) == ["modelfile", "parameters", "template", "details", "model_info", "capabilities", "modified_at"]
            assert shown["model_info"]["tokenizer.ggml.tokens"] is None  # arrays are blank unless verbose
            assert list(shown["model_info"]) == sorted(shown["model_info"])
            verbose = json.loads((await call(sim, "/api/show", {"name": "steady", "verbose": True})).body)
            assert verbose["model_info"]["tokenizer.ggml.tokens"]
            assert verbose["model_info"]["llama.context_length"] == 131_072
            assert verbose["tensors"]
            north = json.loads((await call(sim, "/api/show", {"model": "north-mini-code-1.0:mlx-mxfp8"})).body)
            assert north["details"]["format"] == "safetensors"
            assert north["model_info"]["north.context_length"] == 500_000
            for body, status, said in (
                ({"model": "nope"}, 404, "model 'nope' not found"),
                ({}, 400, "model is required"),
                (b"", 400, "missing request body"),
                (b"[]", 400, "json: cannot unmarshal array into Go value of type api.Request"),
            ):
                answer = await call(sim, "/api/show", body)
                assert (answer.status, json.loads(answer.body)["error"]) == (status, said)

    asyncio.run(main())


def test_layers_and_per_layer_heads_are_shown_only_verbosely(running: Running) -> None:
    from probes.sim.personas import Persona

    model = Persona.model_validate(
        {"name": "m", "kv_heads": [8, 0, 8], "layers": 3, "model_info": {"llama.attention.sliding_window": 512}}
    )

    async def main() -> None:
        async with running(model) as sim:
            plain = json.loads((await call(sim, "/api/show", {"model": "m"})).body)["model_info"]
            verbose = json.loads((await call(sim, "/api/show", {"model": "m", "verbose": True})).body)["model_info"]
            assert plain["llama.attention.head_count_kv"] is None
            assert verbose["llama.attention.head_count_kv"] == [8, 0, 8]
            assert plain["llama.attention.sliding_window"] == 512

    asyncio.run(main())
