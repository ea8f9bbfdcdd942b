"""The page cache of a file of ours: full after reading, empty after eviction, unknown where it cannot be asked."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from probes.ask import Ask, Probe
from probes.pagecache import evict, resident_share
from probes.runner import Runner
from tests.probes.fakes import FakeModel


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and posix_fadvise")
def test_a_read_file_is_resident_until_it_is_evicted(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 3_000_000)
    assert resident_share(path) == 1.0
    assert evict(path)
    after = resident_share(path)
    assert after is not None
    assert after <= 1.0  # a memory file system keeps its pages


def test_what_cannot_be_asked_is_unknown(tmp_path: Path) -> None:
    assert resident_share(tmp_path / "none") is None
    assert not evict(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert resident_share(empty) in (0.0, None)


def test_the_runner_looks_locally_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 100_000)

    def look() -> Probe[object]:
        answer = yield Ask("P2/cache", str(path), {"evict": False}, method="LOCAL")
        return answer.document

    model = FakeModel()
    found = asyncio.run(Runner(model.ask).run(look())).section
    assert isinstance(found, dict)
    assert set(found) == {"before", "evicted", "resident"}
    assert model.asked == []
