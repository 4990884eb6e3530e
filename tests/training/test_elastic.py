"""A training whose node is taken away is told of it in time, goes on with the workers left, and finds the same."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import Tiny

from trimtab.compute import Compute
from trimtab.run.artifact import Artifact
from trimtab.run.joining import ray_at
from trimtab.run.local import LocalRunner
from trimtab.run.on_ray import RayRunner
from trimtab.stages._base import stage
from trimtab.stages.train import train

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
READY, SAVED = "within the third step", "the checkpoint is written"
FAR_MS = 600_000
PREEMPTION = 2
"""Ray's DrainNodeReason."""


@stage(version=1, on="workers", resumes=True)
def warned(spec: Any, out: Path, *, compute: Compute, data: Path, partial: Path) -> dict[str, float]:
    """Stage train: within its third step it waits for a notice, and once it has saved for a node's end."""
    import ray

    from trimtab import progress
    from trimtab.training import callbacks
    from trimtab.training.notice import notice

    due = callbacks.Keep.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            progress.emit("note", text=READY)
            end = time.monotonic() + 300
            while notice() is None and time.monotonic() < end:
                time.sleep(0.05)
        due(self, args, state, control, **kwargs)

    def on_save(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.emit("note", text=SAVED)
        end = time.monotonic() + 300
        while all(node["Alive"] for node in ray.nodes()) and time.monotonic() < end:
            time.sleep(0.2)

    callbacks.Keep.on_step_end, callbacks.Keep.on_save = on_step_end, on_save
    return train(spec, out, compute=compute, data=data, partial=partial)


@dataclass
class Ran:
    made: dict[str, Artifact] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture(scope="module")
def watched() -> Iterator[None]:
    """Drained nodes are looked for every second; a size that the cluster has no more is given up soon.

    Ray counts what a cluster has every 20 s.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
        yield


@pytest.fixture(scope="module")
def ran(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, watched: None) -> Iterator[Ran]:
    """Two nodes of one CPU; the one without this process is drained at the third step, and gone once that is saved."""
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    root, ran = tmp_path_factory.mktemp("elastic"), Ran()
    alone = LocalRunner(Compute(backend="inline", storage=root / "inline"))
    ran.made["inline"] = alone(train, tiny.spec(), data=tiny.given(alone.compute.artifacts))
    alone.wait()

    head = {"num_cpus": 1, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1)

    def hear(event: dict[str, Any]) -> None:
        ran.events.append(event)
        if event.get("text") == READY:
            until = int(time.time() * 1000) + FAR_MS
            assert cluster.head_node.get_gcs_client().drain_node(other.node_id, PREEMPTION, "", until)[0]
        elif event.get("text") == SAVED:
            cluster.remove_node(other, allow_graceful=False)

    try:
        ray_at(cluster.address)
        place = {"storage": root / "ray", "workers": 2, "min_workers": 1, "groups": 1}
        compute = Compute(**place, zero_stage=2, resume="never")
        runner = RayRunner(compute, sink=hear)
        ran.made["ray"] = runner(warned, tiny.spec(), data=tiny.given(compute.artifacts))
        runner.wait()
        yield ran
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_notice_makes_a_checkpoint_and_the_loss_of_the_node_is_told(ran: Ran) -> None:
    (told,) = ran.of("preemption")
    assert len(told["nodes"]) == 1
    (died,) = ran.of("worker_died")
    assert died["cause"] == "lost node"
    said = (ran.made["ray"].path / "log.txt").read_text()
    assert said.count("going on from step") == 1, "resume is never, which is said of the beginning"
    assert "going on from step 3:" in said


def test_the_training_goes_on_with_the_worker_that_is_left_and_finds_the_same(ran: Ran) -> None:
    (again,) = ran.of("stage_restart")
    assert (again["attempt"], again["workers"]) == (1, 1)
    one, other = (load_file(made.path / "model" / "model.safetensors") for made in ran.made.values())
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5
    assert not os.listdir(ran.made["ray"].root.parent / "partial")
