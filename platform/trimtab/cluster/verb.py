"""trimtab submit as functions: look at the cluster, send, describe."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from trimtab.cluster.connection import Cluster, Lost
from trimtab.cluster.offer import Offer, offer, suited
from trimtab.cluster.parcel import mib
from trimtab.cluster.submission import Submission

UNDER_WAY = ("PENDING", "RUNNING")
PAUSES_S = (1, 3, 10)


@dataclass(frozen=True)
class Sent:
    """A job on a cluster: its id, and whether it was under way already."""

    job: str
    found: bool


def described(sent: Submission) -> dict[str, Any]:
    """What would be sent, in plain types; N is the first number that no job of the cluster has."""
    job, parcels = f"{sent.stem}-N", [one for one in (sent.parcel, sent.code) if one]
    return {
        "submission_id": job,
        "entrypoint": sent.entrypoint,
        "metadata": sent.metadata,
        "runtime_env": sent.runtime_env(job, "a folder of the files below"),
        "travels": {one.what: {"files": len(one.files), "bytes": one.size, "size": mib(one.size)} for one in parcels},
        "files": sent.parcel.sizes,
    }


def examined(cluster: Cluster, sent: Submission) -> Offer:
    """What the cluster offers. Raises ResourceError, with numbers, where that is too little for the plan."""
    there = offer(cluster)
    suited(there, sent.compute, sent.need(there.total("CPU")), worker=sent.worker)
    return there


def under_way(jobs: dict[str, str], sent: Submission) -> str | None:
    """The attempt at this very job that is pending or running, among a cluster's jobs."""
    return next((job for _, job in _attempts(sent, jobs) if jobs[job] in UNDER_WAY), None)


def submit(cluster: Cluster, sent: Submission) -> Sent:
    """Send a job as the next attempt at it; one that is under way is not sent twice.

    A request whose answer gets lost is not made again before the cluster was asked whether it has come. Raises Lost.
    """
    tried: set[str] = set()
    for pause in (*PAUSES_S, None):
        jobs = cluster.jobs()
        if running := under_way(jobs, sent):
            return Sent(running, found=running not in tried)
        attempts = _attempts(sent, jobs)
        job = f"{sent.stem}-{attempts[0][0] + 1 if attempts else 1}"
        try:
            return Sent(_send(cluster, sent, job), found=False)
        except Lost:
            tried.add(job)
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def _send(cluster: Cluster, sent: Submission, job: str) -> str:
    with sent.parcel.laid_out() as folder:
        said = {"runtime_env": sent.runtime_env(job, str(folder)), "metadata": dict(sent.metadata)}
        return cluster.submit(entrypoint=sent.entrypoint, submission_id=job, **said)


def _attempts(sent: Submission, jobs: dict[str, str]) -> list[tuple[int, str]]:
    """Numbers and ids of the attempts at this job, the last first."""
    found = [re.fullmatch(rf"{re.escape(sent.stem)}-(\d+)", job) for job in jobs]
    return sorted(((int(one[1]), one[0]) for one in found if one), reverse=True)
