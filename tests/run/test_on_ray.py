from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trimtab.compute import Compute
from trimtab.errors import ResourceError, StageError
from trimtab.run.artifact import PlanRunner
from trimtab.run.on_ray import RayRunner, _come, counted
from trimtab.run.order import Order, urgency
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage


class Named(Spec):
    name: str


@stage(version=1, on="driver")
def light(spec: Named, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    if spec.name == "bad":
        raise RuntimeError("bad luck")
    return {"inputs": len(after)}


@stage(version=1, on="workers")
def heavy(spec: Named, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    return {}


def test_the_stage_that_most_wait_for_starts_first(tmp_path: Path) -> None:
    run = PlanRunner(Compute(storage=tmp_path))
    alone = run(heavy, Named(name="alone"), after={})
    trunk = run(heavy, Named(name="trunk"), after={})
    middle = run(heavy, Named(name="middle"), after={"a": trunk})
    run(light, Named(name="end"), after={"a": middle, "b": alone})
    nodes = list(run.nodes.values())
    assert [urgency(nodes)[a.id] for a in (alone, trunk, middle)] == [1, 2, 1]
    order = Order(nodes)
    taken = [order.take("workers"), order.take("workers"), order.take("workers")]
    assert [n.spec.name if n else None for n in taken] == ["trunk", "alone", None]
    order.done(taken[0])
    assert order.take("driver") is None
    last = order.take("workers")
    assert last.spec.name == "middle"
    order.done(last)
    order.done(taken[1])
    assert order.take("driver").spec.name == "end"
    assert order.left == 0


def test_light_stages_need_no_cluster_and_a_failure_keeps_what_is_finished(tmp_path: Path) -> None:
    run = RayRunner(Compute(storage=tmp_path))
    good = run(light, Named(name="good"), after={})
    bad = run(light, Named(name="bad"), after={"a": good})
    never = run(light, Named(name="never"), after={"a": bad})
    with pytest.raises(StageError, match="bad luck"):
        run.wait()
    assert [a.ready for a in (good, bad, never)] == [True, False, False]


@pytest.mark.parametrize(
    ("fields", "nodes", "count"),
    [
        ({}, [{"CPU": 2}], 2),
        ({"workers": 2}, [{"CPU": 5}], 2),
        ({"workers": 2}, [{"CPU": 3}, {"CPU": 2}], 2),
        ({"workers": 3, "cpus_per_worker": 2}, [{"CPU": 3}, {"CPU": 3}, {"CPU": 2}], 1),
        ({"cpus_per_worker": 0.1}, [{"CPU": 1}], 10),
        ({"cpus_per_worker": 2}, [{"CPU": 5, "GPU": 1}], 1),
        ({"gpus_per_worker": 0.5}, [{"CPU": 16, "GPU": 2}], 4),
        ({"gpus_per_worker": 0.6}, [{"CPU": 16, "GPU": 2}], 2),
        ({"gpus_per_worker": 2}, [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 5}, {"CPU": 8}], 2),
        ({"gpus_per_worker": 0}, [{"CPU": 3, "GPU": 1}], 3),
        ({"workers": 4, "min_workers": 2}, [{"CPU": 3}], 1),
        ({"workers": 4, "min_workers": 2}, [{"CPU": 9}], 2),
    ],
)
def test_as_many_groups_as_fit(fields: dict, nodes: list[dict], count: int) -> None:
    assert counted(Compute(grows=False, **fields), nodes, print) == count


@pytest.mark.parametrize(
    ("fields", "nodes", "words"),
    [
        ({"workers": 4}, [{"CPU": 2}], "4 workers of 1 CPUs and 0 GPUs .* room for 2 on 1 node, .* 2 CPUs and 0 GPUs"),
        ({"workers": 4, "min_workers": 3}, [{"CPU": 2}], "3 workers .* room for 2"),
        ({"gpus_per_worker": 2}, [{"CPU": 8, "GPU": 1}] * 4, "1 worker .* room for 0 on 4 nodes, .* 8 CPUs and 1 GPUs"),
        ({"workers": 3, "cpus_per_worker": 2}, [{"CPU": 3}] * 2, "3 workers of 2 CPUs .* room for 2 on 2 nodes"),
        ({"cpus_per_worker": 4}, [{"CPU": 2, "GPU": 8}, {"CPU": 32}], "room for 0 on 2 nodes, .* 2 CPUs and 8 GPUs"),
        ({}, [{}], "room for 0 on 1 node, .* 0 CPUs"),
        ({}, [], "room for 0 on 0 nodes, .* 0 CPUs"),
    ],
)
def test_a_group_that_no_nodes_hold_is_refused_with_numbers_or_waited_for(
    fields: dict, nodes: list[dict], words: str
) -> None:
    with pytest.raises(ResourceError, match=words):
        counted(Compute(grows=False, **fields), nodes, print)
    told = []
    assert counted(Compute(grows=True, **fields), nodes, told.append) == 1
    assert [event["event"] for event in told] == ["nodes_wait"]


def test_a_group_has_no_more_workers_at_least_than_at_most() -> None:
    with pytest.raises(ValueError, match="min_workers is 3, more than workers, which is 2"):
        Compute(workers=2, min_workers=3)


@dataclass
class Coming:
    """A group whose workers come, or whose thread has ended without them."""

    begun: bool
    thread: threading.Thread = field(default_factory=threading.Thread)

    def up(self) -> None:
        pass


def test_stages_go_to_groups_whose_workers_came_or_to_one_that_says_why_none_did() -> None:
    waits = threading.current_thread()
    came, failed, coming = Coming(begun=True), Coming(begun=False), Coming(begun=False, thread=waits)
    for group, others, offered in (
        (came, [failed, coming], True),
        (failed, [came], False),
        (failed, [coming], False),
        (failed, [Coming(begun=False)], True),
    ):
        free = queue.SimpleQueue()
        _come(group, [group, *others], free)
        assert free.empty() != offered
