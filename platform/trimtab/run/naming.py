"""A run that is given its id from outside: what has the same id again goes on with the same run.

Whoever starts a driver anew after it, its pod or its node was lost sets TRIMTAB_RUN_ID, and finds one run: one folder,
one log, one run of MLflow. A job that was changed since is another run. Without it every run gets an id of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trimtab.errors import JobError
from trimtab.run.lease import leased
from trimtab.run.log import LOCK, LOG, Event, finite, first_event, last_end, last_start, read_log, settling
from trimtab.run.remote import fetch_runs
from trimtab.spec import Method

RUN_ID = "TRIMTAB_RUN_ID"
USABLE = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")


def fresh_id(name: str) -> str:
    """An id that no other run has."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def described(name: str, job: Method) -> Event:
    """What makes a run one of the same job: in the log of every run."""
    return {"name": name, "kind": job.kind, "job": job.model_dump(mode="json")}


def given_id(storage: Path, own: Event, *, remote: str | None = None) -> str | None:
    """The id that the environment gives a run of this job, if any. Raises JobError for one that it cannot have.

    Where that is a run of another job, or of this one before it was changed, it is that name with a digest of the job,
    the same whenever this job is begun anew. What a remote storage knows of the run is fetched.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        return None
    if not USABLE.fullmatch(run_id):
        raise JobError([f"{RUN_ID} is {run_id!r}; use at most 128 letters, digits, '-', '_' and '.'"])
    fetch_runs(storage, remote, run_id)
    folder, text = storage / "runs" / run_id, json.dumps(finite(own), default=str, sort_keys=True)
    before = first_event(folder) if (folder / LOG).exists() else {}
    if not before or all(before.get(name) == value for name, value in json.loads(text).items()):
        return run_id
    run_id = f"{run_id[:119]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    fetch_runs(storage, remote, run_id)
    return run_id


def renamed(run_id: str | None) -> list[str]:
    """That a run has another id than the environment gave it."""
    given = os.environ.get(RUN_ID)
    if not given or run_id == given:
        return []
    return [f"{RUN_ID} is {given}, a run of another job or of this one before it was changed; this run is {run_id}"]


def is_done(storage: Path, run_id: str | None) -> bool:
    """Whether a run needs no more: what has no id of its own is judged by its stages alone."""
    if run_id is None:
        return True
    folder = storage / "runs" / run_id
    end = last_end(folder) if (folder / LOG).exists() else None
    return end is not None and end["status"] == "done"


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Be the only process at a run, in its folder. Raises JobError where another is at it."""

    def refuse() -> None:
        who: dict[str, Any] = last_start(folder).get("owner", {}) if (folder / LOG).exists() else {}
        at = f" (process {who.get('pid')} on {who.get('host')})" if who else ""
        raise JobError([f"run {folder.name} is still going{at}; wait for it, or stop it"])

    with ExitStack() as held:
        with settling(folder.parents[1]):
            held.enter_context(leased(folder / LOCK, waits=refuse, stopped=lambda: False))
        yield folder


def told_of(folder: Path, registered: set[str]) -> set[str]:
    """Stages that a run's log has said all of: that they are there, and of some that their model was registered."""
    events = [event for event in read_log(folder) if event.get("event") in ("stage_end", "register")]
    there = {event["stage_id"] for event in events if event.get("status") in ("done", "cached")}
    return there - (registered - {event["stage_id"] for event in events if event["event"] == "register"})
