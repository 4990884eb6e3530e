"""A lease on a stage: of all processes that share a storage folder, one at a time makes an artifact.

The lease is a lock on an open file, which the kernel lets go of when its holder ends, however it ends. The file itself
stays: if it were removed, one process could hold the lock of the file that is gone and another that of a new one.
Where a file system keeps locks on each node alone, a lease counts among the processes of a node.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import Stopped

EVERY_S = 0.1


@contextmanager
def leased(path: Path, *, waits: Callable[[], None], stopped: Callable[[], bool]) -> Iterator[None]:
    """Hold the lease while the block runs; `waits` is called once where another has it.

    Raises Stopped when `stopped` says so meanwhile.
    """
    file = _opened(path)
    try:
        told = False
        while not _locked(file):
            if stopped():
                raise Stopped(f"{path.stem}: it was stopped while another process made it")
            if not told:
                waits()
                told = True
            time.sleep(EVERY_S)
        yield
    finally:
        os.close(file)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lease while the block runs unless another has it; whether it is held."""
    file = _opened(path)
    try:
        yield _locked(file)
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
