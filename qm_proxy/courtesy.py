"""The observer's place on a machine whose cores belong to others: behind the relay, the clients and a model that runs on the CPU.

Niced, it gets what is left when all cores are busy, some tenth of one. As a batch task it pushes nobody aside when it wakes.
With a short slice it gives the core back within a tenth of a millisecond when somebody else wakes; the scheduler's own slice is
1.4 to 3 ms, which a token would wait. (Linux 6.12 and later take a slice from anybody: `sched_setattr(2)`, `sched_runtime`.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

__all__ = ["NICE", "SLICE_NS", "attributes", "stand_back"]

NICE = 10
SLICE_NS = 100_000
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}


def stand_back() -> None:
    """Do all of that as far as this machine knows it. Threads begun later inherit it. Raises nothing."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _ask_for_slice()


def _ask_for_slice() -> None:
    now = attributes()
    if now is not None:
        size, policy, flags, nice, priority, *_ = now
        _call(_SETATTR, ctypes.create_string_buffer(_ATTRIBUTES.pack(size, policy, flags, nice, priority, SLICE_NS, 0, 0)), 0)


def attributes() -> tuple[int, ...] | None:
    """(size, policy, flags, nice, priority, slice in ns, 0, 0) of the calling thread; None where it cannot be known. Before
    Linux 6.12 the slice is 0."""
    held = ctypes.create_string_buffer(_ATTRIBUTES.size)
    return _ATTRIBUTES.unpack(held.raw) if _call(_GETATTR, held, _ATTRIBUTES.size, 0) else None


def _call(numbers: dict[str, int], held: ctypes.Array[ctypes.c_char], *more: int) -> bool:
    number = numbers.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    try:
        return int(ctypes.CDLL(None).syscall(number, 0, held, *more)) == 0
    except (OSError, AttributeError):
        return False
