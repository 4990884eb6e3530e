"""A rank's signs of life while it runs a stage: memory, step, whether it gets on; and the stacks when it does not."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from trimtab.progress import Sink
from trimtab.training.postmortem import Beat

SOON_S = 0.05
"""After this long the first one: of a stage that is over by then, nobody asks."""
EVERY_S = 1.0
STDERR = 2


class Vitals:
    """Sends a Beat soon and then every second from a thread, for as long as the block lasts.

    Within it a crash, and `hang_s` seconds in which this rank says nothing, leave the stacks of all threads on stderr:
    written from C, so that no lock of Python's can hold them up.
    """

    def __init__(self, send: Callable[[Beat], Any], *, hang_s: float | None) -> None:
        self.send, self.hang_s = send, hang_s
        self.step: int | None = None
        self.heard = 0
        self._armed = -1
        self._over = threading.Event()
        self._process = psutil.Process()
        self._thread = threading.Thread(target=self._work, name="vitals", daemon=True)

    def __enter__(self) -> Vitals:
        faulthandler.enable(file=STDERR, all_threads=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def hearing(self, sink: Sink) -> Sink:
        """The sink, with every event noted as a sign that this rank gets on."""

        def hear(event: dict[str, Any]) -> None:
            self.heard += 1
            self.step = event.get("done", event.get("step", self.step))
            sink(event)

        return hear

    def _work(self) -> None:
        pause = SOON_S
        while not self._over.wait(pause):
            self._beat()
            pause = EVERY_S

    def _beat(self) -> None:
        heard = self.heard
        if self.hang_s is not None and heard != self._armed:
            faulthandler.dump_traceback_later(self.hang_s, file=STDERR)
            self._armed = heard
        free, total = memory()
        held, now = self._process.memory_info().rss, time.time()
        self.send(Beat(now, held, free, total, self.step, heard))


def memory() -> tuple[int, int]:
    """Bytes left, and bytes there are: of the container where it has a limit, else of the machine."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import estimate_available_memory

    machine, total = psutil.virtual_memory(), get_system_memory()
    return min(machine.available, estimate_available_memory()) if total < machine.total else machine.available, total
