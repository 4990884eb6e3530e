"""The event log of a run: events.jsonl in the run's folder is the truth, and every listener hears the same."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Any

from trimtab.progress import TROUBLES
from trimtab.run.lease import if_free, leased

Event = dict[str, Any]
Listener = Callable[[Event], None]
LOG = "events.jsonl"
LOCK = "run.lock"
"""What the process of a run holds locked for as long as it is at it, beside its log."""
LAST_BYTES = 1 << 16
FULL = (errno.ENOSPC, errno.EDQUOT)


class EventLog:
    """Appends events to the run's log, one JSON object a line, and passes them on; any thread may speak.

    A listener whose reader has gone away (a closed pipe) is not told any more: the run goes on. What a full disk does
    not take is written with the next event for which there is room.
    """

    def __init__(self, folder: Path, listeners: Iterable[Listener] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.listeners = folder, list(listeners)
        self._lock = threading.Lock()
        self._file = (folder / LOG).open("ab", buffering=0)
        self._owed = b"" if ends_whole(folder / LOG) else b"\n"

    def __call__(self, event: Event) -> None:
        event = {"time": time.time(), **event}
        with self._lock:
            if not self._file.closed:
                self._write(json.dumps(finite(event), default=str).encode() + b"\n")
            for listener in list(self.listeners):
                try:
                    listener(event)
                except BrokenPipeError:
                    self.listeners.remove(listener)

    def _write(self, line: bytes) -> None:
        self._owed += line
        try:
            while self._owed:
                self._owed = self._owed[self._file.write(self._owed) :]
        except OSError as error:
            if error.errno not in FULL:
                raise

    def close(self) -> None:
        with self._lock:
            self._file.close()


def ends_whole(log: Path) -> bool:
    """Whether the last line was written to its end."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def finite(value: Any) -> Any:
    """The value with what JSON cannot hold (NaN, infinities) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def read_log(folder: Path) -> Iterator[Event]:
    """The events of a run; a line that its writer did not finish is left out."""
    for line in (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
        yield from _parsed(line)


def _parsed(line: str) -> Iterator[Event]:
    try:
        event = json.loads(line)
    except ValueError:
        return
    if isinstance(event, dict):
        yield event


def first_event(folder: Path) -> Event:
    """What a run said first: who it is; empty where it came to say nothing."""
    with (folder / LOG).open(encoding="utf-8", errors="replace") as log:
        return next(_parsed(log.readline()), {})


def run_folders(storage: Path) -> list[Path]:
    """The folders of all runs, the one started last first."""
    folders = [log.parent for log in (storage / "runs").glob(f"*/{LOG}")]
    return sorted(folders, key=lambda folder: -first_event(folder).get("time", 0.0))


def has_ended(folder: Path) -> bool:
    """Whether the log says how the run ended and not that it, a search, went on after that."""
    with (folder / LOG).open("rb") as log:
        size, read = log.seek(0, os.SEEK_END), LAST_BYTES
        while True:
            log.seek(max(0, size - read))
            last = log.read()
            ended, begun = last.rfind(b'"event": "run_end"'), last.rfind(b'"event": "run_start"')
            if ended != begun or read >= size:
                return ended > begun
            read *= 4


def last_start(folder: Path) -> Event:
    """Who a run is and, where it went on after an end, who does it now."""
    return ([event for event in read_log(folder) if event.get("event") == "run_start"] or [{}])[-1]


def last_end(folder: Path) -> Event | None:
    """How a run ended; None while it goes on."""
    if not has_ended(folder):
        return None
    return [event for event in read_log(folder) if event.get("event") == "run_end"][-1]


def troubles(folder: Path) -> list[str]:
    """What befell a run's stages that went on in spite of it, since it was begun or last gone on with."""
    told: list[str] = []
    for event in read_log(folder):
        if event.get("event") == "run_start":
            told = []
        if event.get("event") in TROUBLES:
            told.append(f"{event['stage_id']}: {event['text']}")
    return told


def owner() -> dict[str, Any]:
    """This process, so that another can tell later whether it still lives."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def is_gone(who: dict[str, Any]) -> bool:
    """Whether a process of this machine seems to have ended; of other machines nothing is known.

    It is an estimate: the time at which a process began moves with the machine's clock, and what runs in a container of
    the same name is not seen.
    """
    import psutil

    if who.get("host") != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(who["pid"]).create_time() - who["born"]) > 1
    except psutil.Error:
        return True


def settle_runs(storage: Path) -> list[str]:
    """End the logs of runs whose process was killed, and remove the half-written folders it left; their run ids.

    Finished stages are never touched. A run of another machine is left alone, and so is one whose lock is held, since
    it is alive whatever clocks say, and one of another user who does not share it.
    """
    settled = []
    for folder in run_folders(storage):
        if not has_ended(folder) and is_gone(last_start(folder).get("owner", {})):
            with suppress(PermissionError), settling(storage), if_free(folder / LOCK) as free:
                if free and not has_ended(folder):
                    _settle(storage, folder)
                    settled.append(folder.name)
    return settled


def settling(storage: Path) -> AbstractContextManager[None]:
    """Be the only one that takes locks of runs: who settles one holds its lock, and is not to be taken for the run."""
    return leased(storage / "leases" / "settle.lock", waits=lambda: None, stopped=lambda: False)


def _settle(storage: Path, folder: Path) -> None:
    who = last_start(folder)["owner"]
    for aside in (storage / "artifacts").glob(".*"):
        if re.search(rf"\.{re.escape(who['host'])}-{who['pid']}-[0-9a-f]{{8}}$", aside.name):
            shutil.rmtree(aside, ignore_errors=True)
    end = {"time": time.time(), "event": "run_end", "status": "interrupted", "metrics": {}, "report": None}
    with closing(EventLog(folder)) as log:
        log(end)
