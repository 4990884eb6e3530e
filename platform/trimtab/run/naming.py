"""A run that is given its id from outside: what has the same id again goes on with the same run.

Whoever starts a driver anew after it, its pod or its node was lost sets TRIMTAB_RUN_ID, and finds one run: one folder,
one log, one run of MLflow. Without it every run gets an id of its own.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.errors import JobError
from trimtab.run.lease import leased
from trimtab.run.log import LOG, Event, finite, first_event, last_end, last_start, read_log
from trimtab.run.remote import fetch_runs
from trimtab.spec import Method

RUN_ID = "TRIMTAB_RUN_ID"
USABLE = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
LOCK = "run.lock"


def fresh_id(name: str) -> str:
    """An id that no other run has."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def described(name: str, job: Method) -> Event:
    """What makes a run one of the same job: in the log of every run."""
    return {"name": name, "kind": job.kind, "job": job.model_dump(mode="json")}


def given_id(storage: Path, own: Event, *, remote: str | None = None) -> str | None:
    """The id that the environment gives a run of this job, if any. Raises JobError for one that it cannot have.

    What a remote storage knows of that run is fetched.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id:
        return None
    if not USABLE.fullmatch(run_id):
        raise JobError([f"{RUN_ID} is {run_id!r}; use at most 128 letters, digits, '-', '_' and '.'"])
    fetch_runs(storage, remote, run_id)
    folder = storage / "runs" / run_id
    before = first_event(folder) if (folder / LOG).exists() else {}
    own = json.loads(json.dumps(finite(own), default=str))
    if other := [name for name in own if before and before.get(name) != own[name]]:
        raise JobError([f"{RUN_ID} is {run_id}, but that is a run of another job: {_apart(other, before, own)}"])
    return run_id


def _apart(names: list[str], before: Event, own: Event) -> str:
    if "job" in names and len(names) == 1:
        fields = sorted(f for f in {*before["job"], *own["job"]} if before["job"].get(f) != own["job"].get(f))
        return f"its {', '.join(fields)} differ; give this one another id, or the job as it was"
    return f"its {names[0]} is {before.get(names[0])!r}, not {own[names[0]]!r}; give this one another id"


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
        raise JobError([f"run {folder.name} is still going{at}; wait for it, stop it, or give this one another id"])

    with leased(folder / LOCK, waits=refuse, stopped=lambda: False):
        yield folder


def told_of(folder: Path, registered: set[str]) -> set[str]:
    """Stages that a run's log has said all of: that they are there, and of some that their model was registered."""
    events = [event for event in read_log(folder) if event.get("event") in ("stage_end", "register")]
    there = {event["stage_id"] for event in events if event.get("status") in ("done", "cached")}
    return there - (registered - {event["stage_id"] for event in events if event["event"] == "register"})
