"""Tells why a model that had been loaded was loaded again: which client and which option forced it, and what stops it.

Looks across exchanges: fed with `opened`, `closed` and `see(Residency)` in the order in which they happen; pure, no clock.

Rules that hold here (Ollama 0.33; research/ollama-live-facts.md A22, A23 and ollama-wire.md 3.7):

- A load is one when `load_duration` is long (`_LOAD_S`, and ten times what is usual for the warm model); the first load of a
  model in our sight is no finding. Where a route tells no durations (/v1), a changed window in `/api/ps` tells.
- These options belong to the runner and reload it when they change, also when they come and go: `RUNNER_OPTIONS`. `/v1` routes
  have none of them, so a native client with `num_ctx` and a /v1 client without it take turns in reloading.
- A cause is named only if it was seen: another value of an option, another model loaded in between, `keep_alive: 0`, an idle time
  longer than `keep_alive`, a crash. Else it is "unknown".
- `lost_s` is the server's load time. It contains the wait for the model's running requests, which cannot be told apart.

`behind(exchange_id)` says who was in flight on the same model when an exchange came: behind whom it may have queued.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from qm_proxy.events import Asked, Nanoseconds, Residency
from qm_proxy.findings import Finding, Severity
from qm_proxy.record import Opened, Record

__all__ = ["RUNNER_OPTIONS", "Neighbour", "Reload", "keep_alive_s"]

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu", "use_mlock", "numa", "shift")

_LOAD_S = 0.1
_TIMES_WARM = 10
_MODELS, _IN_FLIGHT, _CLOSED = 256, 4_096, 4_096
_DEFAULT_KEEP_ALIVE_S = 300.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SETTING = {
    "num_ctx": "give both clients the same num_ctx, or none and set OLLAMA_CONTEXT_LENGTH or the Modelfile's num_ctx",
    "evicted": "raise OLLAMA_MAX_LOADED_MODELS if memory allows, or use one model for both",
    "idle": "raise keep_alive in the request, or OLLAMA_KEEP_ALIVE",
    "unloaded": "stop the client that sends keep_alive 0",
    "crash": "look into Ollama's log for the reason of the crash",
}


@dataclass(slots=True)
class Neighbour:
    """Another exchange on the same model."""

    exchange_id: str
    client: str
    t_ns: Nanoseconds


@dataclass(slots=True)
class _Use:
    """The last time that a model answered."""

    exchange_id: str
    client: str
    options: dict[str, object]
    native: bool
    ended_ns: int
    keep_alive: str | None
    crashed: bool


@dataclass(slots=True)
class _Model:
    last: _Use | None = None
    warm: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    window: int | None = None  # of the loaded runner, as last seen
    window_before: int | None = None
    changed_ns: int = 0
    present: bool | None = None
    gone_ns: int | None = None  # when it was first seen not to be loaded any more
    unloaded_by: str | None = None  # a client that asked for it
    in_flight: dict[str, Neighbour] = field(default_factory=dict)


class Reload:
    """One for the whole observer."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._behind: OrderedDict[str, list[Neighbour]] = OrderedDict()
        self._loads: deque[tuple[int, str]] = deque(maxlen=64)  # which model was loaded when

    def opened(self, opened: Opened) -> None:
        """A request came in."""
        if opened.model is None or opened.operation is None:
            return
        model = self._model(opened.model)
        self._behind[opened.id] = list(model.in_flight.values())[:16]
        if len(self._behind) > _CLOSED:
            self._behind.popitem(last=False)
        if len(model.in_flight) < _IN_FLIGHT:
            model.in_flight[opened.id] = Neighbour(opened.id, opened.client, opened.t_ns)
        if opened.asked is not None and opened.asked.keep_alive is not None and keep_alive_s(opened.asked.keep_alive) == 0:
            model.unloaded_by = opened.client

    def behind(self, exchange_id: str) -> list[Neighbour]:
        """Who was in flight on the same model when this exchange came, oldest first."""
        return self._behind.get(exchange_id, [])

    def see(self, event: Residency) -> None:
        """What is loaded now."""
        loaded = {model.name.removesuffix(":latest"): model.context_window for model in event.models}
        for name, model in self._models.items():
            bare = name.removesuffix(":latest")
            present = bare in loaded
            if model.present and not present:
                model.gone_ns = event.t_ns
            model.present = present
            window = loaded.get(bare)
            if window is not None and window != model.window:
                if model.window is not None:
                    model.window_before, model.changed_ns = model.window, event.t_ns
                model.window = window

    def closed(self, record: Record) -> list[Finding]:
        """An exchange is over; if it made the model load again, here is why."""
        opened = record.opened
        if opened is None or record.model is None or record.operation is None:
            return []
        model = self._model(record.model)
        model.in_flight.pop(record.id, None)
        ended_ns = opened.t_ns + round(record.total_s * 1e9)
        found = self._judge(model, record, opened, ended_ns)
        if record.load_s is not None and not self._is_load(model, record.load_s):
            model.warm.append(record.load_s)
        if record.ending not in ("upstream_unreachable", "upstream_error") or record.ttft_s is not None or record.error:
            asked = opened.asked
            model.last = _Use(
                record.id,
                opened.client,
                _options(asked),
                opened.dialect == "ollama",
                max(ended_ns, model.last.ended_ns if model.last is not None else 0),
                (asked.keep_alive if asked else None) or (model.last.keep_alive if model.last is not None else None),
                bool(record.error and "unexpected" in record.error),
            )
        return found

    # --- the verdict

    def _judge(self, model: _Model, record: Record, opened: Opened, ended_ns: int) -> list[Finding]:
        loaded = record.load_s is not None and self._is_load(model, record.load_s)
        changed = record.load_s is None and model.window_before is not None and opened.t_ns <= model.changed_ns <= ended_ns
        last, gone = model.last, model.gone_ns
        others = {name for t_ns, name in self._loads if last is not None and t_ns >= last.ended_ns - 1 and name != record.model}
        if loaded:
            self._loads.append((ended_ns, record.model or ""))
            model.gone_ns = None
        if last is None or not (loaded or changed):
            return []
        cause, evidence = self._cause(model, last, opened, gone, others)
        if cause == "unknown" and opened.t_ns < last.ended_ns:
            return []  # it came while another's answer was under way: both waited for one load, or for a slot
        evidence |= {
            "model": record.model,
            "lost_s": None if record.load_s is None else round(record.load_s, 3),
            "forced_by": opened.client,
            "previous_client": last.client,
            "previous_exchange": last.exchange_id,
            "waiting": [neighbour.client for neighbour in list(model.in_flight.values())[:8]],
        }
        if changed:
            evidence["window_before"], evidence["window"] = model.window_before, model.window
            model.window_before = None
        severity: Severity = "info" if cause == "idle" else "suspect"
        lost = "" if record.load_s is None else f" in {record.load_s:.1f} s"
        setting = _SETTING.get(str(evidence.get("option") or cause))
        if cause == "option" and setting is None:
            setting = f"give both clients the same {evidence['option']}"
        if setting is not None:
            evidence["setting"] = setting
        says = f"{record.model} was loaded again{lost}, because {self._because(cause, evidence, opened, last)}"
        says += f"; {setting}." if setting is not None else "."
        evidence["cause"] = cause
        return [Finding("model.reload", severity, says, opened.t_ns, evidence, exchange_id=record.id)]

    def _cause(
        self, model: _Model, last: _Use, opened: Opened, gone_ns: int | None, others: set[str]
    ) -> tuple[str, dict[str, object]]:
        options, native = _options(opened.asked), opened.dialect == "ollama"
        for name in RUNNER_OPTIONS:
            before, now = last.options.get(name), options.get(name)
            if before != now:
                return "option", {"option": name, "from": before, "to": now, "native": native, "previous_native": last.native}
        unloaded, model.unloaded_by = model.unloaded_by, None
        if last.crashed:
            return "crash", {}
        if unloaded is not None:
            return "unloaded", {"unloaded_by": unloaded}
        idle_s = (opened.t_ns - last.ended_ns) / 1e9
        if others:
            return "evicted", {"evicted_by": sorted(others)[:4], "idle_s": round(max(idle_s, 0.0), 1)}
        keep = keep_alive_s(last.keep_alive) if last.keep_alive is not None else None
        if idle_s >= (keep if keep is not None and keep >= 0 else _DEFAULT_KEEP_ALIVE_S) * 0.98:
            return "idle", {"idle_s": round(idle_s, 1), "keep_alive": last.keep_alive}
        return "unknown", {"idle_s": round(max(idle_s, 0.0), 1), "seen_gone": gone_ns is not None}

    @staticmethod
    def _because(cause: str, evidence: dict[str, object], opened: Opened, last: _Use) -> str:
        if cause == "option":
            before, now = evidence["from"], evidence["to"]
            return (
                f"{opened.client} asks for {evidence['option']} {'unset' if now is None else now}"
                f" and {last.client} had {'left it unset' if before is None else before}"
            )
        if cause == "evicted":
            return f"{', '.join(map(str, evidence['evicted_by']))} had taken its place"  # type: ignore[call-overload]
        return {
            "crash": "its runner had died",
            "unloaded": f"{evidence.get('unloaded_by')} had unloaded it with keep_alive 0",
            "idle": f"it had been idle for {evidence.get('idle_s')} s, longer than its keep_alive",
        }.get(cause, "of something that was not seen")

    @staticmethod
    def _is_load(model: _Model, load_s: float) -> bool:
        warm = sorted(model.warm)
        return load_s >= max(_LOAD_S, _TIMES_WARM * warm[len(warm) // 2] if warm else 0.0)

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
            if len(self._models) > _MODELS:
                self._models.popitem(last=False)
        else:
            self._models.move_to_end(name)
        return model


def keep_alive_s(value: str) -> float | None:
    """Seconds of a `keep_alive`: a number, or a Go duration ("1h30m"); negative is for ever; `None` if it is neither."""
    text = value.strip().strip('"')
    try:
        return float(text)
    except ValueError:
        pass
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.lstrip("+-"):
        return None
    return (-1 if text.startswith("-") else 1) * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _options(asked: Asked | None) -> dict[str, object]:
    """The options of a native request that belong to the runner. `shift` is on unless said otherwise."""
    if asked is None or asked.dialect != "ollama" or asked.options is None:
        return {}
    return {
        name: asked.options[name]
        for name in RUNNER_OPTIONS
        if name in asked.options and asked.options[name] is not None and not (name == "shift" and asked.options[name] is True)
    }
