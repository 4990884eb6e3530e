"""What ended a worker: judged by what Ray heard of it, by its last signs of life, and by the end of its log."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.run_log import log_of

Cause = Literal["out of memory", "segfault", "killed", "lost node", "hang", "exception"]
KEPT = 12
"""Signs of life that are kept of each rank."""
SCARCE = 0.05
REFUSED = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|out of memory|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
    r"|Cannot allocate memory|Unable to allocate",
    re.IGNORECASE,
)
MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
MONITOR = re.compile(r"NODE_OUT_OF_MEMORY|running low on memory", re.IGNORECASE)
NODE = re.compile(r"node has died|node it was running on|node was (terminated|preempted)|NodeDiedError", re.IGNORECASE)
CRASHES = (re.compile(r"Fatal Python error: (?!Aborted)[^\n]+"), re.compile(r"\*\*\* SIG(?:SEGV|BUS|ILL|FPE)[^\n]*"))
ABORT = re.compile(r"Fatal Python error: Aborted|\*\*\* SIGABRT[^\n]*")
WAYS = {
    "out of memory": "lower compute.micro_batch and compute.inference_batch, raise compute.zero_stage, set "
    "compute.activation_checkpointing, or give its node more memory",
    "segfault": "a compiled library crashed and its log ends with the stack; compare the versions that "
    "`trimtab doctor` shows on every node",
    "killed": "look for who did it in the kernel's log of its node (dmesg) and in what else runs there",
    "lost node": "raise compute.max_failures, or compute.max_preemptions where nodes are taken away on purpose",
    "hang": "its log ends with the stack of every thread: find the rank that waits for no other; raise "
    "compute.hang_minutes if it was only slow",
    "exception": "its log says where",
}


@dataclass(frozen=True)
class Beat:
    """A sign of life: the bytes its process holds, those left and those there are on its node, the step it is at.

    `heard` counts what it has said so far; `since` is where in its log this attempt begins.
    """

    time: float
    rss: int
    free: int
    total: int
    step: int | None
    heard: int
    pid: int
    node: str
    since: int = 0


@dataclass(frozen=True)
class Gone:
    """What Ray says of a worker: an error's type and text; `dead` where its process is no more."""

    kind: str
    text: str
    dead: bool = True
    preempted: bool = False


@dataclass(frozen=True)
class Death:
    """How a worker ended: why, what shows it, where it was, what its process held (GiB, by seconds before the last)."""

    rank: int
    cause: Cause
    shown_by: str
    step: int | None = None
    rss: list[tuple[float, float]] = field(default_factory=list)
    free: float | None = None

    def as_event(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("rank", "cause", "shown_by", "step", "rss", "free")}
        return {"event": "worker_died", **told, "way_out": WAYS[self.cause], "text": self.brief}

    @property
    def brief(self) -> str:
        at = f" at step {self.step}" if self.step is not None else ""
        return f"rank {self.rank} died{at}: {self.cause} ({self.shown_by})"

    def __str__(self) -> str:
        held = ", ".join(f"{size:.2f}" for _, size in self.rss)
        span = f" over the last {-self.rss[0][0]:.0f} s" if len(self.rss) > 1 else ""
        left = f"; {self.free:.2f} GiB were left on its node" if self.free is not None else ""
        memory = f"\n  it held {held} GiB{span}{left}" if held else ""
        return f"{self.brief}{memory}\n  way out: {WAYS[self.cause]}"


def out_of_memory(kind: str, text: str) -> bool:
    """Whether an error, by its type's name and its text, says that memory was refused: by CUDA, torch or Python."""
    return kind in MEMORY_ERRORS or bool(REFUSED.search(text))


def examined(rank: int, gone: Gone, beats: Sequence[Beat], *, out: Path, idle: float | None = None) -> Death:
    """Judge a worker's end; `idle`: seconds that its stage had not got on when the watchdog ended it."""
    cause, shown_by = _cause(gone, beats, _log(out, rank, beats), idle)
    last = beats[-1] if beats else None
    rss = [(round(beat.time - last.time, 1), round(beat.rss / 2**30, 3)) for beat in beats] if last else []
    free = round(last.free / 2**30, 3) if last else None
    return Death(rank, cause, shown_by, last.step if last else None, rss, free)


def _cause(gone: Gone, beats: Sequence[Beat], log: str, idle: float | None) -> tuple[Cause, str]:
    if idle is not None:
        return "hang", f"no rank of its stage got on for {idle:.0f} s"
    if gone.kind == "WorkerHealthCheckTimeoutError":
        return "hang", "it did not answer Ray's health check"
    if out_of_memory(gone.kind, "" if gone.dead else gone.text):
        return "out of memory", _line(gone.text)
    if not gone.dead:
        return "exception", f"{gone.kind}: {_line(gone.text)}"
    if gone.preempted or NODE.search(gone.text):
        return "lost node", "its node was taken away" if gone.preempted else "its node has died"
    if MONITOR.search(gone.text):
        return "out of memory", "Ray's memory monitor ended it, for its node ran low"
    if (crash := next(filter(None, (pattern.search(log) for pattern in CRASHES)), None)) is not None:
        return "segfault", crash[0]
    if (refusal := REFUSED.search(log)) is not None:
        return "out of memory", f"its log says: {refusal[0]}"
    if (abort := ABORT.search(log)) is not None:
        return "segfault", abort[0]
    if beats and _scarce(beats):
        return "out of memory", "its process was killed when next to nothing was left"
    return "killed", "its process ended without a word"


def _scarce(beats: Sequence[Beat]) -> bool:
    """Whether the memory left was next to none, or less than what the process last took within a beat."""
    last = beats[-1]
    growth = max((b.rss - a.rss for a, b in itertools.pairwise(beats)), default=0)
    return last.free < SCARCE * last.total or (growth > 2**28 and last.free < growth)


def _log(out: Path, rank: int, beats: Sequence[Beat]) -> str:
    """What a rank has printed in this attempt."""
    path = out / log_of(rank)
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(beats[-1].since if beats else 0)
        return file.read().decode(errors="replace")


def _line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
