"""The desk: where the driver leaves stages for its groups of workers, and hears how they ended."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.training.postmortem import KEPT, UNANSWERED, Beat, End, Gone, Log, Place, examined, lengths, printed

SILENT_S = 2.5
"""After this long without a sign of life a rank is taken for dead, where another has met what may be its end."""
UNKNOWN = "; which of them the others wait for is not known"


@dataclass
class _Group:
    """A group of workers as the desk sees it. Workers started together share a `life`; a new one may replace it.

    Of the stage that it is at: `ends` and `beats` by rank, `last` what went wrong last, `moved` when it last got on,
    `idle` how long it had not when the watchdog ended it, `failures` lives it cost, nodes taken away not counted,
    `before` how long its logs were when it was given out, `aways` the logs that are not where the driver's folder is.
    """

    life: str | None = None
    size: int = 1
    places: list[Place] = field(default_factory=list)
    broken: bool = False
    number: int = -1
    task: dict[str, Any] | None = None
    attempt: int = 0
    failures: int = 0
    before: dict[str, int] = field(default_factory=dict)
    aways: dict[int, Log] = field(default_factory=dict)
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
        old, before = self.groups[group], lengths(Path(task["out"]))
        new = {"number": old.number + 1, "task": task, "before": before}
        self.groups[group] = _Group(old.life, old.size, old.places, old.broken, **new)
        await self._change()

    async def begin(self, group: int, life: str, size: int | None = None, *, place: Place | None = None) -> None:
        """Workers of a new life are there (each says so): what an earlier life had begun, it has not finished."""
        at = self.groups[group]
        if at.life != life:
            at.places = []
            self._renew(at, life, size or at.size)
        if place:
            at.places.append(place)
        await self._change()

    def _renew(self, at: _Group, life: str, size: int) -> None:
        over, why = self._over(at), f": {at.last.told.splitlines()[0]}" if at.last and at.broken else ""
        at.life, at.broken, at.size = life, False, size
        if over or not at.task:
            return
        for told in (at.ends, at.beats, at.aways):
            told.clear()
        at.attempt, at.taken, at.idle = at.attempt + at.taken, False, None
        at.before = lengths(Path(at.task["out"]))
        if at.attempt:
            text = f"attempt {at.attempt + 1}, with {size} workers that replace those before{why}"
            self._tell(at, {"event": "stage_restart", "attempt": at.attempt, "workers": size, "text": text})

    async def begun(self, group: int) -> None:
        """Wait for a group's first workers."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.groups[group].life is not None)

    async def close(self) -> None:
        """There will be nothing more: workers that are free, or get free, end."""
        self.closed = True
        await self._change()

    async def next(
        self, group: int, life: str, after: int, *, rank: int = 0, end: End | None = None
    ) -> tuple[int, dict[str, Any] | None]:
        """The stage to run after number `after`, of which `end` says how it ended on this rank.

        A new life (-1) gets the unfinished one again, a lost one nothing. None once the desk is closed.
        """
        if end is not None:
            await self.end(group, rank, ticket=(life, after), end=end)
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
        if end.error is not None and not (at.examined == at.life and at.last and at.last.cause != "exception"):
            at.last = end  # but what a rank meets once another was found dead is not why
        await self._change()

    async def work(self, group: int, task: dict[str, Any]) -> tuple[End, list[dict[str, Any]]]:
        """Give a stage, wait for its outcome, and tell what was said and not asked for yet.

        One call, for calls are what a stage that does little costs.
        """
        await self.give(group, task)
        return await self.outcome(group), await self.said()

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

    async def failures(self, group: int) -> int | None:
        """How many lives the group's stage has cost; None where it was begun and none failed."""
        at = self.groups[group]
        return None if at.failures == 0 and (at.taken or at.attempt) else at.failures

    async def away(self, group: int, rank: int, *, ticket: tuple[str, int], log: Log) -> None:
        """A rank at a stage does not see the driver's folder."""
        at = self.groups[group]
        if ticket == (at.life, at.number):
            at.aways[rank] = log

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

    async def hangs(self, group: int) -> list[Place]:
        """The group's stage is to be ended since it hangs: where its workers are."""
        at = self.groups[group]
        now = time.monotonic()
        at.idle, at.moved = now - at.moved, now
        return at.places

    async def died(self, group: int, gone: dict[int, Gone]) -> None:
        """Ray Train found workers failed, and will start the group again or give it up: why is told, once a life.

        A stage whose worker ran out of memory is over: the same again would end the same.
        """
        at = self.groups[group]
        at.broken = True
        if not at.taken or self._over(at) or at.examined == at.life:
            return
        at.examined = at.life
        at.failures += not any(found.preempted for found in gone.values())
        lost = {rank: found for rank, found in gone.items() if found.dead or found.kind == UNANSWERED}
        hung = None
        if at.idle is not None:
            behind = self._behind(at)
            hung = f"no rank of its stage got on for {at.idle:.0f} s" + (UNKNOWN if behind is None else "")
            lost = {behind or 0: Gone("", "")}
        elif not lost:
            lost = await self._silent(at)
        logs = await self._read(at, at.aways.keys() & (at.aways if hung else lost).keys())
        for rank, found in lost.items():
            log = logs.get(rank) if rank in at.aways else printed(Path(at.task["out"]), rank, at.before)
            death = examined(rank, found, at.beats.get(rank, ()), printed=log, hung=hung)
            self._tell(at, death.as_event())
            at.last = End.died(death, logs)
            if death.cause == "out of memory":
                at.ends[rank] = at.last
        await self._change()

    async def _read(self, at: _Group, ranks: Collection[int]) -> dict[int, str]:
        """What ranks printed elsewhere, of those whose logs can be had."""
        found = await asyncio.gather(*(at.aways[rank].read() for rank in ranks))
        return {rank: text for rank, text in zip(ranks, found, strict=True) if text is not None}

    async def _silent(self, at: _Group) -> dict[int, Gone]:
        """Ranks of which nothing is heard any more, when others met errors that may be echoes of their end."""
        waiting = {rank: len(beats) and beats[-1] for rank, beats in at.beats.items() if rank not in at.ends}
        await asyncio.sleep(SILENT_S)
        if self._over(at):
            return {}
        still = {rank for rank, last in waiting.items() if at.beats[rank][-1] is last}
        return {rank: Gone("", "") for rank in still - at.ends.keys()}

    def _behind(self, at: _Group) -> int | None:
        """The one rank that has come less far than all others; None where it cannot be told."""
        left = [rank for rank in range(at.size) if rank not in at.ends]
        steps = {rank: at.beats[rank][-1].step if rank in at.beats else -1 for rank in left}
        if len(left) > 1 and None in steps.values():
            return None
        last = [rank for rank in left if steps[rank] == min(steps.values())]
        return last[0] if len(last) == 1 else None

    def _tell(self, at: _Group, event: dict[str, Any]) -> None:
        self.events.append({"time": time.time(), "stage_id": at.task["stage_id"], **event})

    async def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    async def said(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events
