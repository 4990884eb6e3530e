"""How a running stage speaks: events go to whatever sink the runner set; without one they are dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Sink = Callable[[dict[str, Any]], None]
TROUBLES = {"stage_retry": "retry", "worker_died": "died", "checkpoint_left": "left", "stage_restart": "again"}
"""Events of a stage that goes on in spite of something, and a word for each; their `text` says of what."""
_sink: ContextVar[Sink | None] = ContextVar("sink", default=None)


@contextmanager
def listening(sink: Sink) -> Iterator[None]:
    """Send every event emitted inside the block to `sink`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


class Noting:
    """A sink that also keeps what befell each stage that went on in spite of it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.befell: dict[str, list[str]] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in TROUBLES:
            self.befell.setdefault(event["stage_id"], []).append(event["text"])
        self.sink(event)


def emit(event: str, **fields: Any) -> None:
    """Say something: `progress` (done, total, tokens_per_s), `metrics` (step, values), `note` (text)."""
    sink = _sink.get()
    if sink:
        sink({"event": event, "time": time.time(), **fields})


class Meter:
    """Counts work done and tokens, and emits `progress` at most every `every` seconds and at the end."""

    def __init__(self, total: int, every: float = 0.5) -> None:
        self.total, self.every = total, every
        self.done = self.tokens = 0
        self.start = self.last = time.monotonic()

    def add(self, done: int, tokens: int = 0) -> None:
        self.done += done
        self.tokens += tokens
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            rate = self.tokens / max(now - self.start, 1e-9)
            emit("progress", done=self.done, total=self.total, tokens_per_s=round(rate, 1))
