"""What ended a worker: judged by what Ray heard of it, by its last signs of life, and by the end of its log."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from trimtab.errors import OutOfMemory, TrimtabError
from trimtab.run_log import LOG, log_of

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
UNANSWERED = "WorkerHealthCheckTimeoutError"
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
}


@dataclass(frozen=True)
class Beat:
    """A sign of life: the bytes its process holds, those left and those there are on its node, the step it is at.

    `heard` counts what it has said so far.
    """

    time: float
    rss: int
    free: int
    total: int
    step: int | None
    heard: int


@dataclass(frozen=True)
class Place:
    """Where a worker is: its process, and its node by Ray's id."""

    pid: int
    node: str


class Log(Protocol):
    """What a rank prints where the driver sees no files."""

    async def read(self) -> str | None:
        """What it printed of its stage; None where that cannot be had."""
        ...


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


@dataclass(frozen=True)
class End:
    """How a stage ended on one rank: its metrics, or what error of which kind.

    `echo`: the error may only be what a rank sees of another's death, so it decides nothing while others still run.
    `rank`: where the error was met; the others may not have come as far. `cause`: an error, or what ended the worker.
    `logs`: what ranks printed whose files the driver does not see.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    kind: str = ""
    echo: bool = False
    rank: int = 0
    cause: Cause = "exception"
    logs: dict[int, str] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: Exception, rank: int = 0) -> End:
        kind = type(error).__name__
        if out_of_memory(kind, str(error)):
            text = f"{kind}: {error}" if str(error) else kind
            return cls(error=text, kind=OutOfMemory.__name__, rank=rank, cause="out of memory")
        echo = isinstance(error, RuntimeError | OSError) and not isinstance(error, TrimtabError)
        return cls(error=str(error), kind=kind, echo=echo, rank=rank)

    @classmethod
    def died(cls, death: Death, logs: dict[int, str]) -> End:
        kind = OutOfMemory.__name__ if death.cause == "out of memory" else "StageError"
        return cls(error=str(death), kind=kind, rank=death.rank, cause=death.cause, logs=logs)

    @property
    def told(self) -> str:
        """What went wrong, with the kind of an error that says too little without."""
        return f"{self.kind}: {self.error}" if self.cause == "exception" else str(self.error)


def examined(rank: int, gone: Gone, beats: Sequence[Beat], *, printed: str | None, hung: str | None = None) -> Death:
    """Judge a worker's end by what it `printed`, too, if that is known; `hung` shows why the watchdog ended it."""
    cause, shown_by = ("hang", hung) if hung else _cause(gone, beats, printed)
    last = beats[-1] if beats else None
    rss = [(round(beat.time - last.time, 1), round(beat.rss / 2**30, 3)) for beat in beats] if last else []
    free = round(last.free / 2**30, 3) if last else None
    return Death(rank, cause, shown_by, last.step if last else None, rss, free)


def _cause(gone: Gone, beats: Sequence[Beat], printed: str | None) -> tuple[Cause, str]:
    log = printed or ""
    if gone.kind == UNANSWERED:
        return "hang", "it did not answer Ray's health check"
    if gone.preempted or NODE.search(gone.text):
        return "lost node", "its node was taken away" if gone.preempted else "its node has died"
    if gone.kind == "OutOfMemoryError" or MONITOR.search(gone.text):
        return "out of memory", "Ray's memory monitor ended it, for its node ran low"
    if (crash := next(filter(None, (pattern.search(log) for pattern in CRASHES)), None)) is not None:
        return "segfault", crash[0]
    if (refusal := REFUSED.search(log)) is not None:
        return "out of memory", f"its log says: {refusal[0]}"
    if (abort := ABORT.search(log)) is not None:
        return "segfault", abort[0]
    if beats and _scarce(beats):
        return "out of memory", "its process was killed when next to nothing was left"
    return "killed", f"its process ended {'and its log is out of reach' if printed is None else 'without a word'}"


def _scarce(beats: Sequence[Beat]) -> bool:
    """Whether the memory left was next to none, or less than what the process last took within a beat."""
    last = beats[-1]
    growth = max((b.rss - a.rss for a, b in itertools.pairwise(beats)), default=0)
    return last.free < SCARCE * last.total or (growth > 2**28 and last.free < growth)


def lengths(out: Path) -> dict[str, int]:
    """How long the logs in a folder are, by name."""
    return {path.name: path.stat().st_size for path in out.glob(f"*{LOG}")}


def printed(out: Path, rank: int, before: Mapping[str, int]) -> str:
    """What a rank has printed since its logs were so long."""
    return since(out / log_of(rank), before.get(log_of(rank), 0))


def since(log: Path, before: int) -> str:
    """What a log says after so many bytes, the last MiB of it."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(before, log.stat().st_size - 2**20))
        return file.read().decode(errors="replace")
