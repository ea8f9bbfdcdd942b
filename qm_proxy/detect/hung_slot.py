"""Flags a model that answers nobody any more: Ollama 0.33 loses a parallel slot when a fast stream is aborted.

The server shows no error and `/api/ps` is healthy; requests for the model wait for ever (research/ollama-live-facts.md 0.1).
What is seen together tells it, and nothing less: a request that has waited for long without a byte, and for many times what a
request of its size usually waits; no other answer of the model under way; an abort as the last thing that ended on it; the model
listed as loaded since the request came. A machine that does nothing shortens the wait, one that works hard makes it longer.

Looks across exchanges: fed with `opened`, `progress`, `closed` and `see` (host samples, what is loaded) as they happen, and asked
by `tick`. Told once for each hang; never freed by itself: the remedy unloads the model for everybody, and that is for the user.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from qm_proxy.events import HostSample, Nanoseconds, Residency
from qm_proxy.findings import Finding
from qm_proxy.record import Opened, Progress, Record

__all__ = ["HungSlot", "remedy"]

_PATIENCE_S = 20.0  # without a byte, at least
_BLIND_PATIENCE_S = 120.0  # where nothing is known of the model's usual wait or of the machine's load
_BUSY_PATIENCE_S = 600.0  # where nothing is known of the model's usual wait, and the machine works
_TIMES_USUAL, _TIMES_USUAL_IDLE = 10, 3  # of what a request of this size waits
_LARGE = 4_096  # bytes of a request from which on its wait follows its size
_KNOWN = 3  # answers after which a model's usual wait is known
_IDLE_CPU, _IDLE_GPU = 0.25, 0.10
_ABORTS_NS = 600_000_000_000
_MODELS, _IN_FLIGHT = 256, 4_096
_ABORTED = ("client_disconnect", "guard_cut", "shutdown")
_SAMPLES = 8


def remedy(model: str) -> str:
    """What frees the model."""
    return f"run `qm-proxy doctor --unhang {model}`, which unloads it; the next request loads it again"


@dataclass(slots=True)
class _Waiting:
    opened: Opened
    answered: bool = False


@dataclass(slots=True)
class _Model:
    in_flight: OrderedDict[str, _Waiting] = field(default_factory=OrderedDict)
    waits: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=32))  # seconds to first byte, bytes asked
    aborts: deque[tuple[int, str, str]] = field(default_factory=lambda: deque(maxlen=64))  # when, exchange, client
    last_was_abort: bool = False
    loaded_ns: int | None = None  # last seen loaded
    told: bool = False


class HungSlot:
    """One for the whole observer."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._models: OrderedDict[str, _Model] = OrderedDict()
        self._of: dict[str, str] = {}
        self._samples: deque[HostSample] = deque(maxlen=_SAMPLES)

    def opened(self, opened: Opened) -> None:
        if opened.model is None or opened.operation is None or len(self._of) >= _IN_FLIGHT:
            return
        self._model(opened.model).in_flight[opened.id] = _Waiting(opened)
        self._of[opened.id] = opened.model

    def progress(self, progress: Progress) -> None:
        """Bytes of an answer have come."""
        if progress.chunks or progress.phase in ("thinking", "answering"):
            self._answers(progress.id)

    def closed(self, record: Record) -> None:
        name = self._of.pop(record.id, None)
        if name is None:
            return
        model = self._model(name)
        waiting = model.in_flight.pop(record.id, None)
        if waiting is None:
            return
        ended_ns = waiting.opened.t_ns + round(record.total_s * 1e9)
        began = record.ttft_s is not None or record.chunks > 0
        if record.ending in _ABORTED:
            model.aborts.append((ended_ns, record.id, record.client))
            if began or not model.told:
                model.last_was_abort = True
        elif began or record.http_status is not None:
            model.last_was_abort = False
            model.told = False
        if record.ttft_s is not None:
            model.waits.append((record.ttft_s, max(record.bytes_in, 1)))

    def see(self, event: HostSample | Residency) -> None:
        if isinstance(event, HostSample):
            self._samples.append(event)
            return
        loaded = {model.name.removesuffix(":latest") for model in event.models}
        for name, model in self._models.items():
            if name.removesuffix(":latest") in loaded:
                model.loaded_ns = event.t_ns

    def tick(self, t_ns: Nanoseconds) -> list[Finding]:
        """Has a model been silent for too long?"""
        found: list[Finding] = []
        for name, model in self._models.items():
            if model.told or not model.last_was_abort or not model.in_flight:
                continue
            if any(waiting.answered for waiting in model.in_flight.values()):
                continue
            oldest = next(iter(model.in_flight.values())).opened
            idle = self._idle(oldest.t_ns)
            waited_s = (t_ns - oldest.t_ns) / 1e9
            if waited_s < self._patience(model, oldest, idle) or model.loaded_ns is None or model.loaded_ns <= oldest.t_ns:
                continue
            model.told = True
            found.append(self._finding(name, model, oldest, waited_s, idle, t_ns))
        return found

    def _patience(self, model: _Model, oldest: Opened, idle: bool | None) -> float:
        """Seconds after which a wait is no wait any more."""
        if len(model.waits) >= _KNOWN:
            usual = sorted(wait for wait, _ in model.waits)[len(model.waits) // 2]
            size = oldest.asked.body_bytes if oldest.asked is not None else 0
            by_size = max((wait / n_bytes for wait, n_bytes in model.waits if n_bytes >= _LARGE), default=0.0) * size
            return max(self._patience_s, (_TIMES_USUAL_IDLE if idle else _TIMES_USUAL) * max(usual, by_size))
        if idle:
            return self._patience_s
        return _BLIND_PATIENCE_S if idle is None else _BUSY_PATIENCE_S

    def _finding(self, name: str, model: _Model, oldest: Opened, waited_s: float, idle: bool | None, t_ns: int) -> Finding:
        recent = [abort for abort in model.aborts if t_ns - abort[0] <= _ABORTS_NS]
        last = model.aborts[-1]
        waits = f"{len(model.in_flight)} waiting, the first for {waited_s:.0f} s without a byte"
        says = f"{name} answers nobody ({waits}) since {last[2]} broke off an answer, and Ollama reports nothing wrong; "
        says += f"{remedy(name)}."
        evidence: dict[str, object] = {
            "model": name,
            "waited_s": round(waited_s, 1),
            "waiting": list(model.in_flight)[:8],
            "last_abort": last[1],
            "last_abort_client": last[2],
            "aborts_in_10_min": len(recent),
            "machine_idle": idle,
            "remedy": remedy(name),
        }
        return Finding("model.hung", "violation", says, t_ns, evidence, exchange_id=oldest.id)

    def _answers(self, exchange_id: str) -> None:
        name = self._of.get(exchange_id)
        if name is None:
            return
        model = self._model(name)
        waiting = model.in_flight.get(exchange_id)
        if waiting is not None and not waiting.answered:
            waiting.answered = True
            model.told = False

    def _idle(self, since_ns: int) -> bool | None:
        """Does the machine do nothing? By the last samples since the request came; `None` if there are too few."""
        samples = [sample for sample in self._samples if sample.t_ns > since_ns][-4:]
        cpus = [sample.cpu for sample in samples if sample.cpu is not None]
        if len(cpus) < 3:
            return None
        gpus = [sample.gpu for sample in samples if sample.gpu is not None]
        return sorted(cpus)[len(cpus) // 2] < _IDLE_CPU and (not gpus or sorted(gpus)[len(gpus) // 2] < _IDLE_GPU)

    def _model(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model()
            if len(self._models) > _MODELS:
                old = next((known for known, its in self._models.items() if not its.in_flight and known != name), None)
                if old is not None:
                    del self._models[old]
        return model
