"""What clusters do to workers, on a real one: memory refused, a crash, a hang, a death that is not the last."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trimtab.compute import Compute
from trimtab.errors import StageError
from trimtab.progress import TROUBLES
from trimtab.run.artifact import Artifact
from trimtab.run.on_ray import RayRunner
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
HANG_S = 12.0
MIB = 2**20


class Named(Spec):
    name: str
    batch_size: int = 8


@stage(version=1, on="workers")
def fated(spec: Named, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    """Something befalls rank 1 while rank 0 waits for it; what is called `once` only in the first attempt."""
    import torch.distributed as dist

    from trimtab import progress

    rank, mark = dist.get_rank(), compute.storage / f"{spec.name}.met"
    progress.emit("progress", done=2 + rank, total=8, tokens_per_s=0)
    if rank == 1 and not (spec.name.endswith("once") and mark.exists()):
        mark.write_text("")
        FATES[spec.name](compute)
    dist.barrier()
    return {"micro_batch": float(compute.micro_batch or 0)}


def refused(compute: Compute) -> None:
    """40 MiB a row, where the process may have 100 MiB more."""
    import resource

    import torch

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 100 * MIB, limits[1]))
    try:
        torch.empty((compute.micro_batch or 4) * 40 * MIB, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def lives() -> None:
    """Three seconds in pieces: where all stands still for a while, signs of life are sent in those that are left."""
    import time

    for _ in range(12):
        time.sleep(0.25)


def crashes(compute: Compute) -> None:
    import ctypes

    lives()
    ctypes.string_at(0)


def sleeps(compute: Compute) -> None:
    import time

    time.sleep(600)


def killed(compute: Compute) -> None:
    import os
    import signal

    lives()
    os.kill(os.getpid(), signal.SIGKILL)


FATES = {"memory": refused, "crash once": crashes, "hang once": sleeps, "killed": killed}


@dataclass
class Ran:
    made: dict[str, Artifact]
    events: list[dict[str, Any]] = field(default_factory=list)
    error: StageError | None = None

    def of(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        stage_id = self.made[name].id
        return [e for e in self.events if e.get("stage_id") == stage_id and e["event"] in kinds]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One group of two workers, in which every stage may cost one life; the second death in the last is too many."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ran = Ran({})
    compute = Compute(
        storage=tmp_path_factory.mktemp("faults"),
        workers=2,
        groups=1,
        cpus_per_worker=0.5,
        max_failures=1,
        hang_minutes=HANG_S / 60,
    )
    runner = RayRunner(compute, sink=ran.events.append)
    last: dict[str, Artifact] = {}
    for name in FATES:
        ran.made[name] = runner(fated, Named(name=name), label=name, after=last)
        last = {"a": ran.made[name]}
    try:
        runner.wait()
    except StageError as error:
        ran.error = error
    return ran


def test_memory_that_is_refused_halves_the_micro_batch_and_the_same_stage_goes_on(ran: Ran) -> None:
    (retry,) = ran.of("memory", "stage_retry")
    assert (retry["micro_batch"], retry["accumulation"], retry["cause"]) == (2, 2, "out of memory")
    assert "can't allocate memory" in retry["why"]
    assert ran.made["memory"].metrics() == {"micro_batch": 2.0}
    assert not ran.of("memory", "worker_died"), "an exception kills no worker"


def test_a_crash_is_told_with_its_rank_step_and_memory_and_leaves_its_stack(ran: Ran) -> None:
    (died,) = ran.of("crash once", "worker_died")
    assert (died["cause"], died["rank"], died["step"]) == ("segfault", 1, 3)
    assert "Segmentation fault" in died["shown_by"]
    assert died["rss"][-1][1] > 0.1
    assert "string_at" in (ran.made["crash once"].path / "rank1.log.txt").read_text()
    assert ran.made["crash once"].ready


def test_what_befell_a_stage_stands_in_its_record_and_is_told_before_its_end(ran: Ran) -> None:
    again = ("worker_died", "stage_restart")
    for name, kinds in (("memory", ("stage_retry",)), ("crash once", again), ("hang once", again)):
        befell = ran.of(name, *TROUBLES)
        assert tuple(event["event"] for event in befell) == kinds
        assert ran.made[name].record()["befell"] == [event["text"] for event in befell]
        told = [e["event"] for e in ran.events if e.get("stage_id") == ran.made[name].id]
        assert told[-1] == "stage_end" and told.count("stage_end") == 1
        assert told.count("progress") >= 1


def test_a_hang_in_a_collective_ends_and_every_rank_leaves_its_stacks(ran: Ran) -> None:
    (died,) = ran.of("hang once", "worker_died")
    assert died["cause"] == "hang"
    assert "no rank of its stage got on for" in died["shown_by"]
    logs = [(ran.made["hang once"].path / name).read_text() for name in ("log.txt", "rank1.log.txt")]
    assert "Timeout" in logs[0] and "barrier" in logs[0]
    assert "Timeout" in logs[1] and "in sleeps" in logs[1]
    assert ran.made["hang once"].ready


def test_a_stage_that_is_begun_again_says_so_and_each_may_be_as_often(ran: Ran) -> None:
    assert [len(ran.of(name, "stage_restart")) for name in FATES] == [0, 1, 1, 1]
    (again,), (died,) = (ran.of("hang once", kind) for kind in ("stage_restart", "worker_died"))
    assert (again["attempt"], again["workers"]) == (1, 2)
    assert again["text"] == f"attempt 2, with 2 workers that replace those before: {died['text']}"


def test_the_last_death_fails_the_stage_with_its_post_mortem(ran: Ran) -> None:
    assert ran.error is not None
    assert ran.error.cause == "killed"
    said = str(ran.error)
    assert f"stage {ran.made['killed'].id} (killed) failed" in said
    assert "its workers died: rank 1 died at step 3: killed (its process ended without a word)" in said
    assert "it held 0." in said and "GiB were left on its node" in said
    assert "way out: look for who did it" in said
    assert len(ran.of("killed", "worker_died")) == 2
    end = ran.of("killed", "worker_died", "stage_end")[-1]
    assert (end["event"], end["status"], end["cause"]) == ("stage_end", "failed", "killed")
