"""Says from time to time how far a transfer is: one may take longer than a stage may keep silent."""

from __future__ import annotations

import time
from contextvars import copy_context
from functools import partial
from typing import Any

from fsspec.callbacks import Callback

from trimtab import progress

EVERY_S = 30.0


class Moving(Callback):
    """Hears of the bytes of all files of a transfer, on whichever thread."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.bytes, self.last = what, 0, time.monotonic()
        self.say = partial(copy_context().run, progress.emit, "note")

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        """The ears for one file."""
        return _File(self)

    def moved(self, more: int) -> None:
        self.bytes += more
        if time.monotonic() - self.last >= EVERY_S:
            self.last = time.monotonic()
            self.say(text=f"{self.what}: {self.bytes / 2**20:.0f} MiB so far")


class _File(Callback):
    def __init__(self, whole: Moving) -> None:
        super().__init__()
        self.whole = whole

    def relative_update(self, inc: int = 1) -> None:
        self.whole.moved(inc)
