from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from qm_proxy import courtesy

ASK = """
import json, os, threading
from qm_proxy import courtesy
before = os.getpriority(os.PRIO_PROCESS, 0)
courtesy.stand_back()
told = []
thread = threading.Thread(target=lambda: told.append(courtesy.attributes()))
thread.start(); thread.join()
policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
print(json.dumps([os.getpriority(os.PRIO_PROCESS, 0) - before, policy, courtesy.attributes(), told[0]]))
"""


def test_it_stands_behind_all_others_and_so_do_its_threads() -> None:
    said = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=60)
    nicer, policy, own, threads = json.loads(said.stdout)
    assert 0 < nicer <= courtesy.NICE
    if policy is not None:
        assert policy == 3  # SCHED_BATCH
    assert own == threads
    if own is not None:
        assert own[5] in (courtesy.SLICE_NS, 0)  # 0: a kernel before 6.12


@pytest.mark.skipif(platform.system() != "Linux", reason="asks the kernel")
def test_a_recent_kernel_grants_the_slice() -> None:
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if release < (6, 12) or platform.machine() not in ("x86_64", "aarch64", "riscv64"):
        pytest.skip("this kernel knows no slices")
    said = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=60)
    own = json.loads(said.stdout)[2]
    assert own is None or own[5] == courtesy.SLICE_NS  # None: a sandbox forbids the call


def test_where_the_call_is_not_known_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    assert courtesy.attributes() is None
    courtesy._ask_for_slice()
