"""A stage's log: all that is printed while it runs, by Python and by what lies below it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOG = "log.txt"


def log_of(rank: int) -> str:
    """The name of the log of one of a stage's workers; the first one's is the stage's."""
    return f"rank{rank}.{LOG}" if rank else LOG


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Everything written to this process's stdout and stderr goes to `path`, from Python and from below it."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)


def clear(out: Path) -> None:
    """Remove what an attempt left in a folder, but for its logs; several processes may at once."""

    def failed(call: Any, path: str, error: Any) -> None:
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    for left in out.iterdir():
        if left.is_dir():
            shutil.rmtree(left, onerror=failed)
        elif not left.name.endswith(LOG):
            left.unlink(missing_ok=True)


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
