"""What the server has and holds: /api/tags, /api/ps, /api/show, /v1/models, and the bodies of the routes that change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from probes.sim.gojson import encode
from probes.sim.personas import Persona, canonical
from probes.sim.scheduler import Scheduler

__all__ = ["Library", "digest"]


def digest(persona: Persona) -> str:
    """A digest as stable as the persona."""
    return hashlib.sha256(persona.model_dump_json().encode()).hexdigest()


class Library:
    """The models of one server, by name."""

    def __init__(self, personas: Iterable[Persona], scheduler: Scheduler, version: str) -> None:
        self._personas = {p.full_name: p for p in personas}
        self._digests = {name: digest(p) for name, p in self._personas.items()}
        self._scheduler = scheduler
        self.version = version

    def find(self, name: str) -> Persona | None:
        return self._personas.get(canonical(name)) if name else None

    def add(self, name: str, persona: Persona) -> None:
        full = canonical(name)
        self._personas[full] = persona
        self._digests[full] = digest(persona)

    def remove(self, name: str) -> bool:
        self._digests.pop(canonical(name), None)
        return self._personas.pop(canonical(name), None) is not None

    @property
    def names(self) -> list[str]:
        return list(self._personas)

    def _newest_first(self) -> list[tuple[str, Persona]]:
        return sorted(self._personas.items(), key=lambda item: item[1].modified_at, reverse=True)

    def tags(self) -> str:
        models = [
            {
                "name": name,
                "model": name,
                "modified_at": p.modified_at,
                "size": p.memory.weights_bytes,
                "digest": self._digests[name],
                "details": {
                    **self._details(p),
                    "context_length": p.context.trained,
                    "embedding_length": p.details.embedding_length,
                },
                "capabilities": list(p.capabilities),
            }
            for name, p in self._newest_first()
        ]
        return encode({"models": models})

    def ps(self) -> str:
        models = []
        for runner in sorted(self._scheduler.loaded.values(), key=lambda r: -r.expires_unix):
            size, size_vram = runner.sizes()
            name = canonical(runner.name)
            models.append(
                {
                    "name": name,
                    "model": name,
                    "size": size,
                    "digest": self._digests.get(name, ""),
                    "details": self._details(runner.persona),
                    "expires_at": rfc3339_float(runner.expires_unix),
                    "size_vram": size_vram,
                    "context_length": runner.launch.window,
                }
            )
        return encode({"models": models})

    def show(self, name: str, *, verbose: bool) -> str:
        p = self._personas[canonical(name)]
        info = self.model_info(p)
        if not verbose:
            info = {key: None if isinstance(value, list) else value for key, value in info.items()}
        shown: dict[str, Any] = {
            "modelfile": modelfile(canonical(name), self._digests[canonical(name)], p.template),
            "parameters": 'stop                           "<|end|>"',
            "template": p.template,
            "details": self._details(p),
            "model_info": dict(sorted(info.items())),
        }
        if verbose:
            shape = [p.details.embedding_length, 32_000]
            shown["tensors"] = [{"name": "token_embd.weight", "type": p.details.quantization_level, "shape": shape}]
        shown["capabilities"] = list(p.capabilities)
        shown["modified_at"] = p.modified_at
        return encode(shown)

    def openai_models(self) -> str:
        data = [self._openai(name, p) for name, p in self._newest_first()]
        return encode({"object": "list", "data": data or None}) + "\n"

    def openai_model(self, name: str) -> str:
        return encode(self._openai(name, self._personas[canonical(name)])) + "\n"

    @staticmethod
    def _openai(name: str, p: Persona) -> dict[str, Any]:
        created = int(datetime.fromisoformat(p.modified_at[:19] + "+00:00").timestamp())
        return {"id": name, "object": "model", "created": created, "owned_by": "library"}

    @staticmethod
    def _details(p: Persona) -> dict[str, Any]:
        d = p.details
        return {
            "parent_model": "", "format": d.format, "family": d.family, "families": [d.family],
            "parameter_size": d.parameter_size, "quantization_level": d.quantization_level,
        }  # fmt: skip

    @staticmethod
    def model_info(p: Persona) -> dict[str, Any]:
        """Derived from the persona, then what its file says."""
        a = p.details.family
        scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(p.details.parameter_size[-1:], 1.0)
        number = p.details.parameter_size.rstrip("KMB")
        info: dict[str, Any] = {
            "general.architecture": a,
            "general.file_type": 15,
            "general.parameter_count": int(float(number or 0) * scale),
            "general.quantization_version": 2,
            f"{a}.context_length": p.context.trained,
            f"{a}.embedding_length": p.details.embedding_length,
            f"{a}.block_count": p.layers,
            f"{a}.attention.head_count": p.heads,
            f"{a}.attention.head_count_kv": list(p.kv_heads) if isinstance(p.kv_heads, tuple) else p.kv_heads,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": ["<|begin|>", "<|end|>"],
        }
        return {key: value for key, value in (info | p.model_info).items() if value is not None or key not in info}


def modelfile(name: str, blob: str, template: str) -> str:
    head = '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
    return f"{head}# FROM {name}\n\nFROM /root/.ollama/models/blobs/sha256-{blob}\nTEMPLATE {template}\n"


def rfc3339_float(unix: float) -> str:
    from probes.sim.clock import rfc3339

    return rfc3339(int(unix * 1e9))
