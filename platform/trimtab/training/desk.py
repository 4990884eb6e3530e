"""The desk: where the driver leaves stages for its groups of workers, and hears how they ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from trimtab.errors import TrimtabError


@dataclass(frozen=True)
class End:
    """How a stage ended on one rank: its metrics, or what error of which kind.

    `echo`: the error may only be what a rank sees of another's death, so it decides nothing while others still run.
    `rank`: where the error was met; the others may not have come as far.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    kind: str = ""
    echo: bool = False
    rank: int = 0

    @classmethod
    def failed(cls, error: Exception, rank: int = 0) -> End:
        echo = isinstance(error, RuntimeError | OSError) and not isinstance(error, TrimtabError)
        return cls(error=str(error), kind=type(error).__name__, echo=echo, rank=rank)


@dataclass
class _Group:
    """A group of workers as the desk sees it. Workers started together share a `life`; a new one may replace it."""

    life: str | None = None
    broken: bool = False
    number: int = -1
    task: dict[str, Any] | None = None
    attempt: int = 0
    taken: bool = False
    ends: dict[int, End] = field(default_factory=dict)
    last_error: str = ""


class Desk:
    """An async Ray actor: the driver gives stages to groups and awaits outcomes, workers fetch them and end them."""

    def __init__(self, groups: int, workers: int) -> None:
        self.workers = workers
        self.groups = [_Group() for _ in range(groups)]
        self.events: list[dict[str, Any]] = []
        self.closed = False
        self.changed = asyncio.Condition()

    async def _change(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def give(self, group: int, task: dict[str, Any]) -> None:
        """The next stage of a group."""
        old = self.groups[group]
        self.groups[group] = _Group(life=old.life, broken=old.broken, number=old.number + 1, task=task)
        await self._change()

    async def begin(self, group: int, life: str) -> None:
        """Workers of a new life are there (each says so): what an earlier life had begun, it has not finished."""
        at = self.groups[group]
        if at.life == life:
            return
        at.life, at.broken = life, False
        if not self._over(at):
            at.ends.clear()
            at.attempt, at.taken = at.attempt + at.taken, False
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
        at.taken = True
        return at.number, at.task | {"attempt": at.attempt, "ticket": (life, at.number)}

    def _waits(self, at: _Group, life: str, after: int) -> bool:
        return at.life == life and not at.broken and at.number > after and not self._over(at)

    async def end(self, group: int, rank: int, *, ticket: tuple[str, int], end: End) -> None:
        """How a stage ended on a rank. After an error in a group of several, that life is given nothing more."""
        at = self.groups[group]
        if ticket[0] == at.life:
            at.broken = at.broken or (end.error is not None and self.workers > 1)
        if ticket != (at.life, at.number):
            return
        at.ends[rank] = end
        if end.error is not None:
            at.last_error = f"{end.kind}: {end.error}"
        await self._change()

    async def outcome(self, group: int) -> End:
        """How the group's stage ended: as on rank 0, or the error that says most."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._over(self.groups[group]))
        ends = self.groups[group].ends
        failed = sorted((end.echo, rank) for rank, end in ends.items() if end.error is not None)
        return ends[failed[0][1] if failed else 0]

    def _over(self, at: _Group) -> bool:
        return len(at.ends) == self.workers or any(end.error is not None and not end.echo for end in at.ends.values())

    async def trouble(self, group: int) -> str:
        """The last error that a rank of the group's stage met, for when nobody is left to say more."""
        return self.groups[group].last_error

    async def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    async def said(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events
