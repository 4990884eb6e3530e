"""The event log of a run: events.jsonl in the run's folder is the truth, and every listener hears the same."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
LOG = "events.jsonl"


class EventLog:
    """Appends events to the run's log, one JSON object a line, and passes them on; any thread may speak."""

    def __init__(self, folder: Path, listeners: Iterable[Callable[[Event], None]] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.listeners = folder, list(listeners)
        self._lock = threading.Lock()
        self._file = (folder / LOG).open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        event = {"time": time.time(), **event}
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps(finite(event), default=str) + "\n")
                self._file.flush()
            for listener in self.listeners:
                listener(event)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def finite(value: Any) -> Any:
    """The value with what JSON cannot hold (NaN, infinities) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
