"""What stands there before anything is measured: server, model, what else is loaded. Shared by the three probes.

Refuses in words what cannot be measured: an unknown model (near names), one that only embeds, one that runs in the cloud.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from probes.ask import Answer, Ask, Probe, Stopped, Wait
from probes.result import Target
from qm_proxy.errors import InvalidMeasurement, QmError, SettingsError, UpstreamError, UpstreamRefused

__all__ = ["Resident", "Survey", "hung", "residents", "restore", "survey", "unload"]

_UNLOAD_S = 30.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Resident:
    """One line of /api/ps."""

    name: str
    digest: str
    size: int | None
    size_vram: int | None
    context_tokens: int | None
    pinned: bool = False  # kept loaded for ever: its end lies more than a year ahead

    def load(self) -> dict[str, object]:
        """The request that loads it again, without options, as the user's own clients do."""
        return {"model": self.name, **({"keep_alive": -1} if self.pinned else {})}


@dataclass(slots=True)
class Survey:
    """The model and its server as found."""

    target: Target
    model_info: dict[str, Any]
    loaded: list[Resident]  # before we came
    blob: str | None = None  # the weights' file, where it can be read from here
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def lazy(self) -> bool:
        """Does its runner take memory as tokens come (Apple's), not for the whole window at the load?"""
        return self.target.runner == "mlx"

    @property
    def others(self) -> list[Resident]:
        return [resident for resident in self.loaded if not self.is_ours(resident)]

    def is_ours(self, resident: Resident) -> bool:
        """Two names on one file share a runner, and /api/ps shows only one of them: the digest decides where it can."""
        same_name = _plain(resident.name) == _plain(self.target.name)
        return same_name or (bool(resident.digest) and resident.digest == self.target.digest)

    def ours(self, found: list[Resident]) -> Resident | None:
        return next((resident for resident in found if self.is_ours(resident)), None)


def survey(model: str, endpoint: str) -> Probe[Survey]:
    """Ask version, tags, show and ps. Raises SettingsError for a model that cannot be probed."""
    version = yield Ask("P0/version", "/api/version", method="GET", silence_s=30)
    if version.ending == "upstream_unreachable":
        raise Stopped("upstream", f"the upstream does not answer: {version.why}")
    if version.status is None:
        raise _stranger(endpoint, f"GET /api/version: {version.why}")
    tags = yield Ask("P0/tags", "/api/tags", method="GET", silence_s=30)
    listed = [entry for entry in _list(tags, "models") if isinstance(entry.get("name"), str)]
    show = yield Ask("P0/show", "/api/show", {"model": model, "verbose": True}, silence_s=60)
    numbered = version.document.get("version") if isinstance(version.document, dict) else None
    if not isinstance(numbered, str) and not (show.ok and isinstance(show.document, dict)):
        raise _stranger(endpoint, f"GET /api/version: {'no version in it' if version.ok else version.why}")
    if not show.ok or not isinstance(show.document, dict):
        raise _unknown(model, [entry["name"] for entry in listed], show)
    document = show.document
    capabilities = [str(item) for item in document.get("capabilities") or []]
    entry = next((entry for entry in listed if _plain(entry["name"]) == _plain(model)), {})
    if document.get("remote_model") or document.get("remote_host") or model.endswith(("-cloud", ":cloud")):
        raise SettingsError(
            f"{model} runs in the cloud: its load, memory and speed are not this machine's.", remedy="Name a local model."
        )
    if capabilities and "completion" not in capabilities:
        raise SettingsError(
            f"{model} does not generate text (it can: {', '.join(capabilities)}).", remedy="Name a model with completion."
        )
    loaded = yield from residents("P0/ps")
    info = document.get("model_info")
    info = info if isinstance(info, dict) else {}
    details = document.get("details")
    details = details if isinstance(details, dict) else {}
    architecture = info.get("general.architecture")
    template = document.get("template")
    kind = str(details.get("format") or "").lower()
    target = Target(
        endpoint=endpoint,
        name=model,
        ollama_version=numbered if isinstance(numbered, str) else None,
        digest=entry.get("digest"),
        runner="gguf" if kind == "gguf" else "mlx" if kind in ("safetensors", "mlx") else "unknown",
        family=details.get("family") or None,
        architecture=architecture if isinstance(architecture, str) else None,
        parameter_size=details.get("parameter_size") or None,
        quantization=details.get("quantization_level") or None,
        weights_bytes=entry.get("size") if isinstance(entry.get("size"), int) else None,
        capabilities=capabilities,
        advertised_context_tokens=_integer(info.get(f"{architecture}.context_length")),
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None,
        parameters=document.get("parameters") if isinstance(document.get("parameters"), str) else None,
    )
    modelfile = document.get("modelfile")
    found = Survey(target, info, loaded, _blob(modelfile) if isinstance(modelfile, str) else None)
    target.was_loaded = found.ours(loaded) is not None
    if found.others:
        names = ", ".join(resident.name for resident in found.others)
        found.warnings.append(("other_models_loaded", f"Also loaded: {names}. They share memory and, if used, time."))
    return found


def residents(key: str) -> Probe[list[Resident]]:
    """What is loaded now. An answer that cannot be read counts as an error: nothing loaded would be a claim."""
    answer = yield Ask(key, "/api/ps", method="GET", silence_s=30)
    if not answer.ok:
        raise Stopped("upstream", f"/api/ps does not answer: {answer.why}")
    return [
        Resident(
            name=str(entry.get("name") or entry.get("model") or ""),
            digest=str(entry.get("digest") or ""),
            size=_integer(entry.get("size")),
            size_vram=_integer(entry.get("size_vram")),
            context_tokens=_integer(entry.get("context_length")),
            pinned=_far(entry.get("expires_at")),
        )
        for entry in _list(answer, "models")
    ]


def unload(key: str, found: Survey) -> Probe[None]:
    """Unload our model and wait until it is gone: the answer itself proves nothing, a busy client may hold it."""
    for attempt in range(3):  # the first may meet a queued request of another client and be undone by it
        yield Ask(f"{key}/unload/{attempt}", "/api/generate", {"model": found.target.name, "keep_alive": 0}, silence_s=60)
        for poll in range(int(_UNLOAD_S / 3 / _POLL_S)):
            if found.ours((yield from residents(f"{key}/ps/{attempt}.{poll}"))) is None:
                return
            yield Wait(f"{key}/wait/{attempt}.{poll}", _POLL_S)
    raise InvalidMeasurement(
        f"{found.target.name} stays loaded {_UNLOAD_S:.0f} s after it was told to unload: another client uses it.",
        remedy="Stop the other client, or run again when it is idle.",
    )


def restore(found: Survey) -> Probe[None]:
    """P9: leave what was loaded loaded, and nothing else: with the window it had, and for ever what was pinned."""
    mine = found.ours(found.loaded)
    if mine is not None:
        yield Ask("P9/restore", "/api/generate", mine.load(), silence_s=300)
    else:
        yield Ask("P9/restore", "/api/generate", {"model": found.target.name, "keep_alive": 0}, silence_s=60)
    now = yield from residents("P9/ps")
    for resident in found.others:
        if all(other.name != resident.name for other in now):
            yield Ask(f"P9/reload/{resident.name}", "/api/generate", resident.load(), silence_s=300)
    if not found.loaded:
        return
    now = yield from residents("P9/windows")
    for resident in found.loaded:
        again = next((other for other in now if other.name == resident.name), None)
        if again is not None and resident.context_tokens and again.context_tokens != resident.context_tokens:
            body = {**resident.load(), "options": {"num_ctx": resident.context_tokens}}
            yield Ask(f"P9/window/{resident.name}", "/api/generate", body, silence_s=300)


def hung(model: str, answer: Answer) -> UpstreamError:
    """The error for a model that accepts requests and sends nothing: asking again would only wait again."""
    place = "fell silent in mid-answer" if answer.chunks else "accepted a request and sent nothing"
    return UpstreamError(
        f"{model} {place}: {answer.why}; it hangs.", remedy=f"Free it with: qm-proxy doctor --unhang {model}", hung=True
    )


def _stranger(endpoint: str, found: str) -> QmError:
    return UpstreamError(
        f"What answers at {endpoint} is not Ollama ({found}).", remedy="Give the address of Ollama itself with --upstream."
    )


def _unknown(model: str, names: list[str], show: Answer) -> QmError:
    if show.status != 404:
        return UpstreamRefused(f"/api/show of {model} was refused: {show.why}.", status=show.status, body=show.error)
    near = difflib.get_close_matches(model, names, n=3, cutoff=0.4) or [name for name in names if _plain(model)[:4] in name][:3]
    have = (
        f"Near names here: {', '.join(near)}." if near else (f"Here are: {', '.join(names[:5])}." if names else "None is here.")
    )
    return SettingsError(f"There is no model {model!r} on this server. {have}", remedy=f"Get it with: ollama pull {model}")


def _blob(modelfile: str) -> str | None:
    """What FROM names, when it is a path: whether that file is here is the machine's to say."""
    lines = (line.removeprefix("FROM ").strip() for line in modelfile.splitlines() if line.startswith("FROM "))
    return next((line for line in lines if line.startswith("/")), None)


def _list(answer: Answer, name: str) -> list[dict[str, Any]]:
    entries = answer.document.get(name) if isinstance(answer.document, dict) else None
    return [entry for entry in entries or [] if isinstance(entry, dict)]


def _plain(name: str) -> str:
    return name.removesuffix(":latest").lower()


def _far(instant: object) -> bool:
    """`keep_alive: -1` is shown as an instant some centuries ahead."""
    year = instant[:4] if isinstance(instant, str) else ""
    return year.isdigit() and int(year) > datetime.now(UTC).year + 1


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
