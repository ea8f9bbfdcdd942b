from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qm_proxy.beside.host
from qm_proxy.beside.host import Host

NOWHERE = Path("/nowhere/at/all")


@pytest.fixture(autouse=True)
def _no_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm_proxy.beside.host, "_nvml", lambda: None)


def test_a_sample_of_this_machine() -> None:
    host = Host(psi=NOWHERE, drm=NOWHERE)
    first, second = host.sample(), host.sample()
    assert first.t_ns <= second.t_ns
    assert first.memory_used is not None
    assert first.memory_total is not None
    assert 0 < first.memory_used < first.memory_total
    assert second.cpu is not None
    assert 0 <= second.cpu <= 1
    assert first.swap_in_per_s is None  # a rate needs two looks
    assert second.swap_in_per_s is not None
    assert second.swap_in_per_s >= 0
    assert first.pressure is None
    assert (first.gpu, first.gpu_memory_used, first.gpu_memory_total, first.gpu_throttled) == (None, None, None, None)


def test_swapping_in_is_a_rate_and_never_negative() -> None:
    host = Host(psi=NOWHERE, drm=NOWHERE)
    assert host._swap_rate(1000) is None
    assert (host._swap_rate(5000) or 0) > 0
    assert host._swap_rate(10) == 0  # the counter began anew


@pytest.mark.parametrize(
    ("text", "pressure"),
    [
        ("some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0 avg300=0 total=0\n", 0.125),
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", 0.0),
        ("some avg10=\n", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_memory_pressure(tmp_path: Path, text: str, pressure: float | None) -> None:
    psi = tmp_path / "memory"
    psi.write_text(text)
    assert Host(psi=psi, drm=NOWHERE).sample().pressure == pressure


def test_pressure_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    psi = tmp_path / "memory"
    psi.write_text("some avg10=1.00 ")
    host = Host(psi=psi, drm=NOWHERE)
    psi.unlink()
    assert host.sample().pressure is None


def _card(drm: Path, name: str, **files: object) -> None:
    device = drm / name / "device"
    device.mkdir(parents=True)
    for file, value in files.items():
        (device / file).write_text(f"{value}\n")


def test_an_amd_gpu(tmp_path: Path) -> None:
    _card(tmp_path, "card0")  # a display without counters
    _card(tmp_path, "card1", gpu_busy_percent=37, mem_info_vram_used=5_000, mem_info_vram_total=8_000)
    sample = Host(psi=NOWHERE, drm=tmp_path).sample()
    assert (sample.gpu, sample.gpu_memory_used, sample.gpu_memory_total) == (0.37, 5_000, 8_000)
    assert sample.gpu_throttled is None


def test_half_an_amd_gpu_is_none(tmp_path: Path) -> None:
    _card(tmp_path, "card0", gpu_busy_percent="?")
    assert Host(psi=NOWHERE, drm=tmp_path).sample().gpu is None


class Nvml:
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonSwThermalSlowdown = 32

    def __init__(self, reasons: int = 0, *, fails: bool = False) -> None:
        self.reasons, self.fails = reasons, fails

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        if self.fails:
            raise RuntimeError("GPU is lost")
        return SimpleNamespace(used=10, total=80)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return self.reasons

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=90)


@pytest.mark.parametrize(("reasons", "throttled"), [(0, False), (1, False), (8, True), (32 | 1, True)])
def test_an_nvidia_gpu(monkeypatch: pytest.MonkeyPatch, reasons: int, throttled: bool) -> None:
    monkeypatch.setattr(qm_proxy.beside.host, "_nvml", lambda: (Nvml(reasons), "handle"))
    sample = Host(psi=NOWHERE, drm=NOWHERE).sample()
    assert (sample.gpu, sample.gpu_memory_used, sample.gpu_memory_total, sample.gpu_throttled) == (0.9, 10, 80, throttled)


def test_a_gpu_that_is_lost_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm_proxy.beside.host, "_nvml", lambda: (Nvml(fails=True), "handle"))
    sample = Host(psi=NOWHERE, drm=NOWHERE).sample()
    assert (sample.gpu, sample.gpu_memory_total) == (None, None)
    assert sample.memory_total


def test_a_cpu_that_is_throttled(tmp_path: Path) -> None:
    counters = []
    for number, package in ((0, 0), (1, 0), (2, 1)):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "physical_package_id").write_text(f"{package}\n")
        (tmp_path / f"cpu{number}" / "thermal_throttle").mkdir()
        counters.append(tmp_path / f"cpu{number}" / "thermal_throttle" / "package_throttle_count")
        counters[-1].write_text("7\n")
    (tmp_path / "cpufreq").mkdir()
    host = Host(psi=NOWHERE, drm=NOWHERE, cpu=tmp_path)
    assert host._hot == [counters[0], counters[2]]
    assert [host.sample().cpu_throttled, host.sample().cpu_throttled] == [None, False]
    counters[2].write_text("9\n")
    assert host.sample().cpu_throttled is True
    counters[0].write_text("")
    assert host.sample().cpu_throttled is None
    assert Host(psi=NOWHERE, drm=NOWHERE, cpu=NOWHERE).sample().cpu_throttled is None


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="Linux only")
def test_the_swap_counter_is_the_kernels() -> None:
    import psutil

    pages = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())["pswpin"]
    assert psutil.swap_memory().sin == int(pages) * 4096
