"""A job whose driver and workers do not see one another's files: run with a file system of its own over its mirror."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trimtab.compute import Compute
from trimtab.errors import StageError
from trimtab.run.on_ray import RayRunner
from trimtab.run.remote import fetched, look
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage


class Plain(Spec):
    text: str = "a b c"


@stage(version=1, on="driver")
def words(spec: Plain, out: Path, *, compute: Compute) -> Metrics:
    (out / "deep").mkdir()
    (out / "deep" / "words").write_text(spec.text)
    return {}


@stage(version=1, on="workers", resumes=True)
def count(spec: Plain, out: Path, *, compute: Compute, rows: Path, partial: Path) -> Metrics:
    """Both ranks read the words; rank 1 dies the first time, when rank 0 has written something that is not to stay."""
    import ctypes

    import torch.distributed as dist

    rank, died = dist.get_rank(), compute.storage / "died"
    found = (rows / "words").read_text().split()
    if not died.exists():
        if rank == 0:
            (out / "torn").write_text("x")
        dist.barrier()
        if rank == 1:
            died.touch()
            ctypes.string_at(0)
        dist.barrier()
    if rank == 0:
        (out / "model").mkdir()
        (out / "model" / "weights").write_text(" ".join(reversed(found)))
        print("counted", flush=True)
    dist.barrier()
    return {"words": len(found)}


@stage(version=1, on="workers")
def fails(spec: Plain, out: Path, *, compute: Compute, rows: Path) -> Metrics:
    """After a word on the second rank."""
    import torch.distributed as dist

    if dist.get_rank() == 1:
        print("the word of rank 1")
        raise KeyError("what breaks")
    dist.barrier()
    return {}


@stage(version=1, on="driver")
def read(spec: Plain, out: Path, *, compute: Compute, model: Path) -> Metrics:
    (out / "report.html").write_text((model / "weights").read_text())
    return {}


if __name__ == "__main__":
    events = []
    compute = Compute(storage=sys.argv[1], workers=2, groups=1, cpus_per_worker=0.5)
    run = RayRunner(compute, sink=events.append)
    made = run(words, Plain())
    counted = run(count, Plain(), rows=made / "deep")
    last = run(read, Plain(), model=counted / "model")
    look(node.artifact for node in run.nodes.values())
    was_here = counted.here
    pending = len(run.pending)
    run.wait()
    said = {"pending": pending, "metrics": counted.metrics(), "report": (fetched(last) / "report.html").read_text()}
    said |= {"files": sorted(p.name for p in fetched(counted).iterdir()), "folder": str(run.compute.storage)}
    said |= {"died": [event["cause"] for event in events if event["event"] == "worker_died"]}
    ends = [event for event in events if event["event"] == "stage_end"]
    said |= {"was_here": was_here, "ends": [event["status"] for event in ends]}
    if pending:
        run = RayRunner(compute)
        run(fails, Plain(), rows=made / "deep")
        try:
            run.wait()
        except StageError as error:
            said |= {"error": str(error)}
    print(json.dumps(said))
