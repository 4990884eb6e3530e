"""A notice that a node is taken away makes a checkpoint due, once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from trimtab import progress
from trimtab.compute import Compute
from trimtab.training.checkpoint import Checkpoints
from trimtab.training.notice import Notice, notice


@pytest.fixture
def told() -> Iterator[PreemptionContext]:
    """Where Ray Train tells its worker; of the rest of a worker's context this process has nothing."""
    before, told = context._train_context, PreemptionContext()
    rest: dict[str, Any] = dict.fromkeys(
        ("train_run_context", "distributed_context", "execution_context", "storage_context", "controller_actor")
    )
    context.set_train_context(context.TrainContext(**rest, dataset_shard_provider=None, preemption_context=told))
    yield told
    context.set_train_context(before)


def test_outside_of_ray_train_no_node_leaves() -> None:
    assert notice() is None


def test_a_notice_is_heeded_once_and_a_new_one_again(told: PreemptionContext, tmp_path: Path) -> None:
    compute = Compute(storage=tmp_path, checkpoint_steps=100)
    checkpoints, said = Checkpoints(tmp_path / "partial", tmp_path, {}, compute), []
    with progress.listening(said.append):
        assert notice() is None
        assert not checkpoints.due(1)
        told.preemption_info = PreemptionInfo(None, {"n1": [0]})
        assert notice() == Notice(("n1",), None)
        assert [checkpoints.due(step) for step in (2, 3, 100)] == [True, False, True]
        told.preemption_info = PreemptionInfo(1000 * int(time.time() + 60), {"n1": [0], "n2": [1]})
        assert [checkpoints.due(step) for step in (101, 102)] == [True, False]
    assert [(event["event"], event["nodes"]) for event in said] == [
        ("preemption", ["n1"]),
        ("preemption", ["n1", "n2"]),
    ]
    assert "a node is taken away at " in said[1]["text"]
    assert said[1]["deadline_ms"] == told.preemption_info.deadline_ms
