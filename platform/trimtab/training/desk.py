"""The desk: where the driver leaves stages for its groups of workers, and hears how they ended."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import OutOfMemory, TrimtabError
from trimtab.training.postmortem import KEPT, Beat, Cause, Death, Gone, examined, out_of_memory

SILENT_S = 2.5
"""After this long without a sign of life a rank is taken for dead, where another has met what may be its end."""


@dataclass(frozen=True)
class End:
    """How a stage ended on one rank: its metrics, or what error of which kind.

    `echo`: the error may only be what a rank sees of another's death, so it decides nothing while others still run.
    `rank`: where the error was met; the others may not have come as far. `cause`: see postmortem.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    kind: str = ""
    echo: bool = False
    rank: int = 0
    cause: Cause = "exception"

    @classmethod
    def failed(cls, error: Exception, rank: int = 0) -> End:
        kind = type(error).__name__
        if out_of_memory(kind, str(error)):
            text = f"{kind}: {error}" if str(error) else kind
            return cls(error=text, kind=OutOfMemory.__name__, rank=rank, cause="out of memory")
        echo = isinstance(error, RuntimeError | OSError) and not isinstance(error, TrimtabError)
        return cls(error=str(error), kind=kind, echo=echo, rank=rank)

    @classmethod
    def died(cls, death: Death) -> End:
        kind = OutOfMemory.__name__ if death.cause == "out of memory" else "StageError"
        return cls(error=str(death), kind=kind, rank=death.rank, cause=death.cause)


@dataclass
class _Group:
    """A group of workers as the desk sees it. Workers started together share a `life`; a new one may replace it.

    Of the stage that it is at: `ends` and `beats` by rank, `last` what went wrong last, `moved` when it last got on,
    `idle` how long it had not when the watchdog ended it.
    """

    life: str | None = None
    size: int = 1
    broken: bool = False
    number: int = -1
    task: dict[str, Any] | None = None
    attempt: int = 0
    taken: bool = False
    ends: dict[int, End] = field(default_factory=dict)
    beats: dict[int, deque[Beat]] = field(default_factory=dict)
    last: End | None = None
    moved: float = 0.0
    idle: float | None = None
    examined: str | None = None


class Desk:
    """An async Ray actor: the driver gives stages to groups and awaits outcomes, workers fetch them and end them."""

    def __init__(self, groups: int, workers: int) -> None:
        self.groups = [_Group(size=workers) for _ in range(groups)]
        self.events: list[dict[str, Any]] = []
        self.closed = False
        self.changed = asyncio.Condition()

    async def _change(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def give(self, group: int, task: dict[str, Any]) -> None:
        """The next stage of a group."""
        old = self.groups[group]
        self.groups[group] = _Group(old.life, old.size, broken=old.broken, number=old.number + 1, task=task)
        await self._change()

    async def begin(self, group: int, life: str, size: int | None = None) -> None:
        """Workers of a new life are there (each says so): what an earlier life had begun, it has not finished."""
        at = self.groups[group]
        if at.life == life:
            return
        over = self._over(at)
        at.life, at.broken, at.size = life, False, size or at.size
        if not over:
            at.ends.clear()
            at.beats.clear()
            at.attempt, at.taken, at.idle = at.attempt + at.taken, False, None
        if at.task and not over and at.attempt:
            text = f"attempt {at.attempt + 1}, with {at.size} workers that replace those before"
            self._tell(at, {"event": "stage_restart", "attempt": at.attempt, "workers": at.size, "text": text})
        await self._change()

    async def begun(self, group: int) -> None:
        """Wait for a group's first workers."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.groups[group].life is not None)

    async def close(self) -> None:
        """There will be nothing more: workers that are free, or get free, end."""
        self.closed = True
        await self._change()

    async def next(self, group: int, life: str, after: int) -> tuple[int, dict[str, Any] | None]:
        """The stage to run after number `after`; a new life (-1) gets the unfinished one again, a lost one nothing.

        None once the desk is closed.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or self._waits(self.groups[group], life, after))
        at = self.groups[group]
        if self.closed:
            return after, None
        at.taken, at.moved = True, time.monotonic()
        return at.number, at.task | {"attempt": at.attempt, "ticket": (life, at.number)}

    def _waits(self, at: _Group, life: str, after: int) -> bool:
        return at.life == life and not at.broken and at.number > after and not self._over(at)

    async def end(self, group: int, rank: int, *, ticket: tuple[str, int], end: End) -> None:
        """How a stage ended on a rank. After an error in a group of several, that life is given nothing more."""
        at = self.groups[group]
        if ticket[0] == at.life:
            at.broken = at.broken or (end.error is not None and at.size > 1)
        if ticket != (at.life, at.number):
            return
        at.ends[rank] = end
        if end.error is not None:
            at.last = end
        await self._change()

    async def work(self, group: int, task: dict[str, Any]) -> End:
        """Give a stage and wait for its outcome: one call, for calls are what a stage that does little costs."""
        await self.give(group, task)
        return await self.outcome(group)

    async def outcome(self, group: int) -> End:
        """How the group's stage ended: as on rank 0, or the error that says most."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._over(self.groups[group]))
        ends = self.groups[group].ends
        failed = sorted((end.echo, rank) for rank, end in ends.items() if end.error is not None)
        return ends[failed[0][1] if failed else 0]

    def _over(self, at: _Group) -> bool:
        return len(at.ends) == at.size or any(end.error is not None and not end.echo for end in at.ends.values())

    async def trouble(self, group: int) -> End | None:
        """What went wrong last with the group's stage, for when nobody is left to say more."""
        return self.groups[group].last

    async def untouched(self, group: int) -> bool:
        """Whether no worker has come for the group's stage yet."""
        at = self.groups[group]
        return not at.taken and at.attempt == 0

    async def beat(self, group: int, rank: int, *, ticket: tuple[str, int], beat: Beat) -> None:
        """A sign of life of a rank that is at a stage."""
        at = self.groups[group]
        if ticket != (at.life, at.number):
            return
        kept = at.beats.setdefault(rank, deque(maxlen=KEPT))
        if kept and beat.heard != kept[-1].heard:
            at.moved = time.monotonic()
        kept.append(beat)

    async def idle(self, group: int) -> float:
        """Seconds since any rank of the group's stage last got on; 0 while none is at it."""
        at = self.groups[group]
        busy = at.taken and not self._over(at) and at.examined != at.life
        return time.monotonic() - at.moved if busy else 0.0

    async def hangs(self, group: int) -> list[Beat]:
        """The group's stage is to be ended since it hangs: the last sign of life of each of its ranks."""
        at = self.groups[group]
        now = time.monotonic()
        at.idle, at.moved = now - at.moved, now
        return [beats[-1] for beats in at.beats.values()]

    async def died(self, group: int, gone: dict[int, Gone]) -> None:
        """Ray Train found workers failed, and will start the group again or give it up: why is told, once a life.

        A stage whose worker ran out of memory is over: the same again would end the same.
        """
        at = self.groups[group]
        if not at.taken or self._over(at) or at.examined == at.life:
            return
        at.examined = at.life
        lost = {rank: found for rank, found in gone.items() if found.dead or found.kind.endswith("TimeoutError")}
        if not lost and at.idle is None:
            lost = await self._silent(at)
        if at.idle is not None and at.beats:
            behind = min(at.beats, key=lambda rank: (at.beats[rank][-1].heard, rank))
            lost = {behind: gone.get(behind, Gone("", ""))}
        out = Path(at.task["out"])
        for rank, found in lost.items():
            death = examined(rank, found, at.beats.get(rank, ()), out=out, idle=at.idle)
            self._tell(at, death.as_event())
            at.last = End.died(death)
            if death.cause == "out of memory":
                at.ends[rank] = at.last
        await self._change()

    async def _silent(self, at: _Group) -> dict[int, Gone]:
        """Ranks of which nothing is heard any more, when others met errors that may be echoes of their end."""
        waiting = {rank: len(beats) and beats[-1] for rank, beats in at.beats.items() if rank not in at.ends}
        await asyncio.sleep(SILENT_S)
        return {rank: Gone("", "") for rank, last in waiting.items() if at.beats[rank][-1] is last}

    def _tell(self, at: _Group, event: dict[str, Any]) -> None:
        self.events.append({"time": time.time(), "stage_id": at.task["stage_id"], **event})

    async def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    async def said(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events
