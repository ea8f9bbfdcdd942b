"""The machine beside the stream: memory, swap, pressure, GPU. Sampled once a second while streams run: under 0.5 % of a core.

What cannot be read is `None`. Sources: psutil; Linux PSI (`/proc/pressure/memory`, some avg10); NVML when its Python binding
is installed; amdgpu's sysfs files; Intel's counters of thermal throttling (`package_throttle_count` of each package below
`/sys/devices/system/cpu`). Apple's GPU has no unprivileged counter for load; its memory is the machine's own.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from qm_proxy.events import HostSample, Nanoseconds

__all__ = ["Host"]

_PSI = Path("/proc/pressure/memory")
_DRM = Path("/sys/class/drm")
_CPU = Path("/sys/devices/system/cpu")


class Host:
    """Takes one `HostSample` a call; keeps what rates need between calls. Call `sample` at most once a second."""

    def __init__(self, *, psi: Path = _PSI, drm: Path = _DRM, cpu: Path = _CPU) -> None:
        import psutil

        self._psutil = psutil
        self._psi = psi if psi.exists() else None
        self._amd = next((d for d in sorted(drm.glob("card*/device")) if (d / "gpu_busy_percent").exists()), None)
        self._nvml = _nvml()
        self._hot = _throttle_counters(cpu)
        self._throttles: int | None = None
        self._swapped_in: tuple[float, int] | None = None
        psutil.cpu_percent(None)

    def sample(self) -> HostSample:
        memory = self._psutil.virtual_memory()
        swap = self._psutil.swap_memory()
        gpu, used, total, throttled = self._gpu()
        return HostSample(
            t_ns=Nanoseconds(time.monotonic_ns()),
            cpu=self._psutil.cpu_percent(None) / 100,
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            swap_used=swap.used,
            swap_in_per_s=self._swap_rate(int(swap.sin)),
            pressure=self._pressure(),
            gpu=gpu,
            gpu_memory_used=used,
            gpu_memory_total=total,
            gpu_throttled=throttled,
            cpu_throttled=self._cpu_throttled(),
        )

    def _cpu_throttled(self) -> bool | None:
        """Did the kernel count a throttling since the last sample? `None` the first time, and where it counts none."""
        if not self._hot:
            return None
        try:
            now = sum(int(counter.read_text()) for counter in self._hot)
        except (OSError, ValueError):
            return None
        before, self._throttles = self._throttles, now
        return None if before is None else now > before

    def _swap_rate(self, swapped_in: int) -> float | None:
        """Bytes per second swapped in since the last sample; `None` the first time."""
        now = time.monotonic()
        before, self._swapped_in = self._swapped_in, (now, swapped_in)
        if before is None or now <= before[0]:
            return None
        return max(0, swapped_in - before[1]) / (now - before[0])

    def _pressure(self) -> float | None:
        if self._psi is None:
            return None
        try:
            first = self._psi.read_text().split("avg10=", 1)[1]
            return float(first.split(None, 1)[0]) / 100
        except (OSError, IndexError, ValueError):
            return None

    def _gpu(self) -> tuple[float | None, int | None, int | None, bool | None]:
        """(busy 0–1, bytes used, bytes in all, throttled) of the first GPU; all `None` where there is none to read."""
        if self._nvml is not None:
            with contextlib.suppress(Exception):  # a foreign binding: any failure of it means "cannot be read"
                n, handle = self._nvml
                memory = n.nvmlDeviceGetMemoryInfo(handle)
                reasons = n.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
                slowed = n.nvmlClocksThrottleReasonHwSlowdown | n.nvmlClocksThrottleReasonSwThermalSlowdown
                busy = n.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                return busy, int(memory.used), int(memory.total), bool(reasons & slowed)
        if self._amd is not None:
            with contextlib.suppress(OSError, ValueError):
                busy = int((self._amd / "gpu_busy_percent").read_text()) / 100
                used = int((self._amd / "mem_info_vram_used").read_text())
                total = int((self._amd / "mem_info_vram_total").read_text())
                return busy, used, total, None
        return None, None, None, None


def _throttle_counters(cpu: Path) -> list[Path]:
    """One counter for each package: its cores all show the same one."""
    packages: dict[str, Path] = {}
    for counter in sorted(cpu.glob("cpu[0-9]*/thermal_throttle/package_throttle_count")):
        with contextlib.suppress(OSError):
            package = (counter.parent.parent / "topology" / "physical_package_id").read_text()
            packages.setdefault(package, counter)
    return list(packages.values())


def _nvml() -> tuple[Any, Any] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # not installed, no driver, no device: all mean that there is no NVIDIA GPU to read
        return None
