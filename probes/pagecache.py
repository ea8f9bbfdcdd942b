"""How much of a model's weights lies in the page cache, and how to put it out: what tells a disk-cold start from a warm one.

Linux only (mincore, posix_fadvise), and only where the blob can be read by us; elsewhere unknown, and said so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

__all__ = ["evict", "resident_share"]

_LOOK_BYTES = 1024**3
"""mincore is asked for so much of the file at a time: one byte of answer for each page."""


def resident_share(path: Path) -> float | None:
    """Share of the file's pages that are in memory; `None` where it cannot be asked."""
    try:
        size = path.stat().st_size
        libc = ctypes.CDLL(None, use_errno=True)
        page = mmap.PAGESIZE
        inside = 0
        with path.open("rb") as file:
            for start in range(0, size, _LOOK_BYTES):
                length = min(_LOOK_BYTES, size - start)
                writable = mmap.PROT_READ | mmap.PROT_WRITE  # private: nothing is written; ctypes wants it so
                with mmap.mmap(file.fileno(), length, flags=mmap.MAP_PRIVATE, prot=writable, offset=start) as view:
                    pages = (length + page - 1) // page
                    answer = (ctypes.c_ubyte * pages)()
                    first = ctypes.c_char.from_buffer(view)
                    failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), answer)
                    del first  # the mapping cannot be closed while it is pointed at
                    if failed:
                        return None
                    inside += sum(byte & 1 for byte in answer)
        return inside / max(1, (size + page - 1) // page)
    except (OSError, ValueError, AttributeError):
        return None


def evict(path: Path) -> bool:
    """Ask the kernel to drop the file's pages; true when it took the advice (pages mapped by others may stay)."""
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True
