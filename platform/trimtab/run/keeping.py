"""A run's log, kept in a remote storage while the run is on."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from trimtab.errors import ResourceError
from trimtab.run.log import LOG, Listener
from trimtab.run.remote import files_in
from trimtab.run.store import store_of

LOGS_EVERY_S = 30.0


def kept(folder: Path, remote: str | None) -> list[Listener]:
    """A listener that keeps a run's log in the remote storage; what stands there of it is fetched first.

    Raises ResourceError where that cannot be read.
    """
    return [] if remote is None else [_Kept(folder, remote)]


class _Kept:
    def __init__(self, folder: Path, remote: str) -> None:
        self.folder, self.under, self.store = folder, f"runs/{folder.name}", store_of(remote)
        self.sizes: dict[str, int] = {}
        self.over = threading.Event()
        if not (folder / LOG).exists():
            there = self.store.sizes(self.under)
            self.store.get({f"{self.under}/{name}": folder / name for name in there})
        self.thread = threading.Thread(target=self._keep, name="keeps the run's log", daemon=True)
        self.thread.start()

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("event") == "run_end":
            self.over.set()
            self.thread.join()

    def _keep(self) -> None:
        while not self.over.wait(LOGS_EVERY_S):
            self._push()
        self._push()

    def _push(self) -> None:
        with suppress(ResourceError, OSError):  # the log here is the truth, and is tried again
            files = {f"{self.under}/{name}": path for name, path in files_in(self.folder).items()}
            sizes = {name: path.stat().st_size for name, path in files.items()}
            changed = {name for name, size in sizes.items() if self.sizes.get(name) != size}
            if changed:
                self.store.put({name: files[name] for name in changed})
            self.sizes = sizes
