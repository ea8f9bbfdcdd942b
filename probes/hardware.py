"""The machine that runs the model: read where we are on it, or described by the user.

Descriptions: `apple:64GiB`, `nvidia:24GiB`, `amd:16GiB`, `cpu:32GiB`, optionally `nvidia:24GiB+64GiB` (device + RAM), or a
JSON file of `Host`'s fields. Sources: psutil; NVML when installed; amdgpu's sysfs; Apple's unified memory is the RAM.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from pathlib import Path
from urllib.parse import urlsplit

from probes.result import Gpu, Host
from qm_proxy.errors import SettingsError

__all__ = ["describe", "hardware_class", "read_host"]

_UNITS = {"gib": 1024**3, "gb": 1024**3, "g": 1024**3, "tib": 1024**4, "mib": 1024**2}  # people say GB and mean GiB of RAM
_LEAST, _MOST = 256 * 1024**2, 64 * 1024**4
_DRM = Path("/sys/class/drm")
_SHAPING = (
    "OLLAMA_NUM_PARALLEL",
    "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_FLASH_ATTENTION",
    "OLLAMA_CONTEXT_LENGTH",
    "OLLAMA_MAX_LOADED_MODELS",
)


def describe(text: str) -> Host:
    """A machine told by `--hardware`. Raises SettingsError with the grammar when it cannot be understood."""
    found = re.fullmatch(
        r"(apple|nvidia|amd|cpu)[:=](\d+(?:\.\d+)?)\s*([a-z]+)(?:\+(\d+(?:\.\d+)?)\s*([a-z]+))?", text.strip().lower()
    )
    if found:
        kind, amount, unit, more, more_unit = found.groups()
        if more is not None and kind in ("apple", "cpu"):
            raise SettingsError(
                f"The hardware {text!r} has a second amount, but {kind} has one memory.", remedy=f"Write {kind}:{amount}{unit}."
            )
        if unit in _UNITS and (more_unit is None or more_unit in _UNITS):
            first = int(float(amount) * _UNITS[unit])
            ram = int(float(more) * _UNITS[str(more_unit)]) if more is not None else None
            for size in (first, *([ram] if ram is not None else [])):
                if not _LEAST <= size <= _MOST:
                    raise SettingsError(
                        f"The hardware {text!r} has {size / _UNITS['gib']:,.2g} GiB of memory.", remedy="Give 256 MiB to 64 TiB."
                    )
            return _described(kind, first, ram, text)
    elif Path(text).is_file():
        try:
            host = Host.model_validate(json.loads(Path(text).read_text(encoding="utf-8")))
        except (OSError, ValueError) as cause:
            words = "; ".join(str(cause).split("\n")[1:3]) if hasattr(cause, "error_count") else str(cause)
            raise SettingsError(f"The hardware file {text} cannot be used: {words}.") from cause
        sizes = [host.memory_bytes, *(gpu.memory_bytes for gpu in host.gpus)]
        if not any(sizes) or any(size is not None and size < 0 for size in sizes):
            raise SettingsError(
                f"The hardware file {text} tells no memory.",
                remedy='It needs {"memory_bytes": …} or {"gpus": [{"name": …, "memory_bytes": …}]}.',
            )
        host.described = text
        host.hardware_class = host.hardware_class or hardware_class(host)
        return host
    raise SettingsError(
        f"The hardware {text!r} is not understood.",
        remedy="Write apple:64GiB, nvidia:24GiB+64GiB, amd:16GiB, cpu:32GiB or a JSON file.",
    )


def _described(kind: str, first: int, ram: int | None, text: str) -> Host:
    if kind == "apple":
        host = Host(
            described=text, memory_bytes=first, unified=True, gpus=[Gpu(name="Apple", vendor="apple", memory_bytes=first)]
        )
    elif kind == "cpu":
        host = Host(described=text, memory_bytes=first)
    else:
        gpu = Gpu(name=kind.upper(), vendor="nvidia" if kind == "nvidia" else "amd", memory_bytes=first)
        host = Host(described=text, memory_bytes=ram, gpus=[gpu])
    host.hardware_class = hardware_class(host)
    return host


def read_host(upstream: str) -> Host:
    """This machine. When the upstream is elsewhere, its memory is unknown and `local` is false."""
    import psutil

    name = urlsplit(upstream if "//" in upstream else f"//{upstream}").hostname or ""
    local = name in ("localhost", "127.0.0.1", "::1") or name.startswith("127.")
    if not local:
        return Host(local=False)
    memory = psutil.virtual_memory()
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    gpus = _nvidia() or _amd()
    if apple:
        gpus = [Gpu(name=platform.processor() or "Apple", vendor="apple", memory_bytes=memory.total)]
    load: float | None = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    battery = None
    with contextlib.suppress(Exception):  # sensors differ by platform; what fails is unknown
        state = psutil.sensors_battery()
        battery = None if state is None or state.power_plugged is None else not state.power_plugged
    host = Host(
        os=f"{platform.system()} {platform.release()}",
        cpu=platform.processor() or platform.machine(),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count(),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        unified=apple,
        gpus=gpus,
        load_average=load,
        swap_used_bytes=psutil.swap_memory().used,
        on_battery=battery,
        local=True,
        environment={name: os.environ[name] for name in _SHAPING if name in os.environ},
    )
    host.hardware_class = hardware_class(host)
    return host


def hardware_class(host: Host) -> str | None:
    """Advice only: which tier is worth testing on so much memory. The largest of RAM (unified) and device memory."""
    sizes = [size for size in (host.memory_bytes, *(gpu.memory_bytes for gpu in host.gpus)) if size]
    if not sizes:
        return None
    gib = round(max(sizes) / 1024**3)
    return "Constrained" if gib <= 15 else "Mainstream" if gib <= 32 else "Workstation" if gib <= 96 else "Frontier"


def _nvidia() -> list[Gpu]:
    with contextlib.suppress(Exception):  # not installed, no driver, no device: no NVIDIA GPU that we can read
        import pynvml

        pynvml.nvmlInit()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            found.append(
                Gpu(
                    name=name.decode() if isinstance(name, bytes) else str(name),
                    vendor="nvidia",
                    memory_bytes=int(memory.total),
                    used_bytes=int(memory.used),
                    driver=str(pynvml.nvmlSystemGetDriverVersion()),
                )
            )
        return found
    return []


def _amd(drm: Path = _DRM) -> list[Gpu]:
    found = []
    for device in sorted(drm.glob("card*/device")):
        with contextlib.suppress(OSError, ValueError):
            total = int((device / "mem_info_vram_total").read_text())
            used = int((device / "mem_info_vram_used").read_text())
            found.append(Gpu(name=device.parent.name, vendor="amd", memory_bytes=total, used_bytes=used))
    return found
