"""Follow a job's log to its end: a lost connection is taken up where it broke, and no line comes twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.cluster.connection import Cluster, Lost
from trimtab.errors import ClusterError
from trimtab.run.log import Event, Listener

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

PATIENCE_S = 600.0
"""A cluster that does not answer for so long is given up."""
QUIET_S = 60.0
"""After so long without a word the connection is made anew, since a dead one says nothing either.

Each time twice as long, up to MOST_QUIET_S, while nothing breaks: the log is told from its start again. Ray's dashboard
answers no pings, by which a line that lives would be known.
"""
MOST_QUIET_S = 600.0
PAUSES_S = (0.5, 1, 2, 5, 10)
STOPPED = 130


@dataclass
class Ending:
    """What became of a job: its exit code, what Ray says of it, and the last event that it told."""

    job: str
    code: int
    message: str
    last: Event | None


@dataclass
class Log:
    """The lines of a job's log: events for the display, all else as it is."""

    heard: Listener
    printed: Callable[[str], None]
    seen: int = 0
    """Characters taken so far: every connection tells the log from its start."""
    rest: str = ""
    last: Event | None = None
    _skip: int = field(default=0, init=False)

    def anew(self) -> None:
        """A connection begins."""
        self._skip = self.seen

    def take(self, piece: str) -> None:
        new = piece[self._skip :]
        self._skip = max(0, self._skip - len(piece))
        self.seen += len(new)
        *lines, self.rest = (self.rest + new).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        if self.rest:
            self._line(self.rest)
        self.rest = ""

    def _line(self, line: str) -> None:
        before, event = parted(line)
        if before.strip() or event is None:
            self.printed(before)
        if event is not None:
            self.last = event if event["event"] in ("done", "error") else self.last
            self.heard(event)


def parted(line: str) -> tuple[str, Event | None]:
    """A line as what another process had begun to write in it, and the event that it ends with, if any."""
    start = line.find('{"')
    try:
        event: Any = json.loads(line[start:]) if start >= 0 else None
    except ValueError:
        event = None
    return (line[:start], event) if isinstance(event, dict) and "event" in event else (line, None)


def follow(
    cluster: Cluster, job: str, log: Log, *, lost: Callable[[str], None], patience: float = PATIENCE_S
) -> Ending:
    """Tell a job's log until it ends; `lost` hears of a connection that broke.

    Raises ClusterError for a job that is not known, or when the cluster does not answer for long; the job goes on.
    """
    since, failures, quiet = time.monotonic(), 0, QUIET_S
    while True:
        before, why, whole = log.seen, "", False
        try:
            whole = asyncio.run(_tail(cluster, job, log, quiet))
        except Lost as error:
            why = str(error)
        try:
            details = cluster.info(job)
            if details.status.is_terminal():
                if whole or failures >= len(PAUSES_S):
                    log.close()
                    return _ending(job, details, log.last)
                why = why or "the job ended, its log did not"
            since = time.monotonic()
        except Lost as error:
            why = str(error)
        quiet = QUIET_S if why else min(2 * quiet, MOST_QUIET_S)
        failures = 0 if log.seen > before or not why else failures + 1
        if failures <= 1:
            since = time.monotonic()
        if why and failures <= 1:
            lost(why)
        if time.monotonic() - since > patience:
            raise ClusterError(f"the cluster has not answered for {patience / 60:.0f} minutes ({why}); {job} may go on")
        time.sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)] if why else PAUSES_S[0])


async def _tail(cluster: Cluster, job: str, log: Log, quiet: float) -> bool:
    """Whether the log was told to its end, and did not just fall silent."""
    log.anew()
    async with aclosing(cluster.tail(job)) as pieces:
        while True:
            try:
                log.take(await asyncio.wait_for(anext(pieces), quiet))
            except StopAsyncIteration:
                return True
            except TimeoutError:
                return False


def _ending(job: str, details: JobDetails, last: Event | None) -> Ending:
    status, code = str(details.status), details.driver_exit_code
    usual = {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status, 1)
    told = (details.message or "").partition("\n")[0]
    return Ending(job, usual if status != "FAILED" or code is None or not 0 < code < 256 else code, told, last)
