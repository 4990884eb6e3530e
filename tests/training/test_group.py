"""Training groups on a real Ray cluster: two workers against one, a death, a failure. One cluster for all of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trimtab.compute import Compute
from trimtab.errors import StageError
from trimtab.parts import FeatureSpec, LabelSpec
from trimtab.run.artifact import Artifact, PlanRunner
from trimtab.run.local import LocalRunner
from trimtab.run.on_ray import RayRunner
from trimtab.stages._base import stage
from trimtab.stages.features import features
from trimtab.stages.label import label
from trimtab.stages.train import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@stage(version=1, on="workers")
def processes(spec, out, *, compute, after, since=None):
    """Each rank leaves its process id; above temperature 1, rank 1 dies the first time, while rank 0 waits for it."""
    import torch.distributed as dist

    rank, dead = dist.get_rank(), after / "dead"
    if spec.temperature > 1 and rank == 1 and not dead.exists():
        dead.write_text("")
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.temperature > 1 and rank == 0:
        with (out / "attempts").open("a") as file:
            file.write("x")
    dist.barrier()
    (out / str(rank)).write_text(str(os.getpid()))
    return {"ended": 1.0}


@stage(version=1, on="workers")
def breaks(spec, out, *, compute, after):
    """Rank 1 breaks before rank 0 has said anything."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        time.sleep(2)
    print("something was said before")
    raise KeyError("what breaks")


@dataclass
class Ran:
    """What one run left: its artifacts by name, the events it heard, and the error it ended with."""

    made: dict[str, Artifact]
    events: list[dict] = field(default_factory=list)
    error: Exception | None = None


def lay_out(run: PlanRunner, tiny, root: Path) -> dict[str, Artifact]:
    weak, test = tiny.given(root / "artifacts"), tiny.given(root / "artifacts", "test")
    spec = {"learning_rate": 1e-3, "eval_fraction": 0.25}
    xent = run(train, tiny.spec(**spec), data=weak, oracle=test)
    logconf = run(train, tiny.spec(objective={"kind": "logconf", "buffer": 24}, **spec), data=weak)
    labels = run(label, LabelSpec(), model=xent, data=test)
    wanted = FeatureSpec(model=tiny.spec().model, keep="tokens", without_top=2)
    return {"xent": xent, "logconf": logconf, "labels": labels, "states": run(features, wanted, rows=test)}


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory) -> Ran:
    """One worker, in this process."""
    root = tmp_path_factory.mktemp("alone")
    runner = LocalRunner(Compute(backend="inline", storage=root))
    made = lay_out(runner, tiny, root)
    runner.wait()
    return Ran(made)


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory) -> Ran:
    """Two workers under Ray Train; then a stage in which one dies, and one that raises."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    root, ran = tmp_path_factory.mktemp("together"), Ran({})
    compute = Compute(storage=root, workers=2, groups=1, zero_stage=2, micro_batch=4, cpus_per_worker=0.5)
    runner = RayRunner(compute, sink=ran.events.append)
    ran.made = lay_out(runner, tiny, root)
    first = runner(processes, LabelSpec(temperature=0.5), after=ran.made["xent"])
    before = runner(processes, LabelSpec(), after=ran.made["labels"], since=first)
    killed = runner(processes, LabelSpec(temperature=2), after=before)
    broken = runner(breaks, LabelSpec(), after=killed)
    ran.made |= {"first": first, "before": before, "killed": killed, "broken": broken}
    try:
        runner.wait()
    except StageError as error:
        ran.error = error
    return ran


@pytest.mark.parametrize("name", ["xent", "logconf"])
def test_two_workers_train_what_one_trains(alone, together, name):
    one, two = (load_file(ran.made[name].path / "model" / "model.safetensors") for ran in (alone, together))
    assert one.keys() == two.keys()
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5


def test_the_objective_matters(together):
    xent, logconf = (load_file(together.made[n].path / "model" / "model.safetensors") for n in ("xent", "logconf"))
    assert max((xent[key] - logconf[key]).abs().max().item() for key in xent) > 1e-4


def test_curves_are_those_of_one_worker(alone, together):
    for name in ("xent", "logconf"):
        one, two = ((ran.made[name].path / "metrics.jsonl").read_text().splitlines() for ran in (alone, together))
        for left, right in zip(map(json.loads, one), map(json.loads, two), strict=True):
            assert left["step"] == right["step"]
            assert right["values"] == pytest.approx(left["values"], abs=1e-4)


def test_what_workers_say_arrives(together):
    xent = together.made["xent"].id
    said = [event for event in together.events if event.get("stage_id") == xent]
    steps = [event["step"] for event in said if event["event"] == "metrics" and "loss" in event["values"]]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    assert {"stage_start", "progress", "metrics", "stage_end"} <= {event["event"] for event in said}
    assert any("oracle/accuracy" in event["values"] for event in said if event["event"] == "metrics")


def test_ranks_share_the_rows_and_all_come_back_in_order(tiny, alone, together):
    one, two = (tiny.table(ran.made["labels"].path) for ran in (alone, together))
    assert [row["id"] for row in two] == [row["id"] for row in tiny.table(tiny.test)]
    for left, right in zip(one, two, strict=True):
        assert right["soft_label"] == pytest.approx(left["soft_label"], abs=1e-5)
    labels = together.made["labels"].id
    totals = {e["total"] for e in together.events if e["event"] == "progress" and e["stage_id"] == labels}
    assert totals == {20}


def test_states_of_two_ranks_are_those_of_one(tiny, alone, together):
    from trimtab.models.features import States

    ids = [row["id"] for row in tiny.table(tiny.test)]
    one, two = (States(ran.made["states"].path).rows(ids) for ran in (alone, together))
    for left, right in zip(one, two, strict=True):
        assert left.shape == right.shape
        assert (left - right).abs().max() < 1e-5


@pytest.mark.chaos
def test_a_dead_worker_is_replaced_and_the_stage_runs_again(together):
    before, killed = together.made["before"].path, together.made["killed"].path
    assert (before / "dead").exists()
    assert (killed / "attempts").read_text() == "x"
    assert (killed / "1").read_text() != (before / "1").read_text()
    assert together.made["killed"].metrics() == {"ended": 1.0}


def test_stages_in_a_row_use_the_same_processes(together):
    first, before = together.made["first"].path, together.made["before"].path
    assert [(first / rank).read_text() for rank in "01"] == [(before / rank).read_text() for rank in "01"]


def test_a_failed_stage_is_named_with_the_end_of_its_log(together):
    broken = together.made["broken"]
    assert broken.id in str(together.error)
    assert "KeyError: 'what breaks'" in str(together.error)
    assert "something was said before" in str(together.error)
    assert not broken.ready


def test_finished_stages_stay_finished(together):
    assert all(made.ready for name, made in together.made.items() if name != "broken")
