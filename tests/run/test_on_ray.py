from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.compute import Compute
from trimtab.errors import ResourceError, StageError
from trimtab.run.artifact import PlanRunner
from trimtab.run.on_ray import RayRunner, fitting
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
    ("fields", "resources", "count"),
    [
        ({}, {"CPU": 2}, 2),
        ({"workers": 2}, {"CPU": 5}, 2),
        ({"cpus_per_worker": 2}, {"CPU": 5, "GPU": 1}, 1),
        ({"gpus_per_worker": 0.5}, {"CPU": 16, "GPU": 2}, 4),
        ({"gpus_per_worker": 0}, {"CPU": 3, "GPU": 1}, 3),
        ({"workers": 4, "min_workers": 2}, {"CPU": 3}, 1),
        ({"workers": 4, "min_workers": 2}, {"CPU": 9}, 2),
    ],
)
def test_as_many_groups_as_fit(fields: dict, resources: dict, count: int) -> None:
    assert fitting(Compute(**fields), resources) == count


def test_a_group_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(ResourceError, match="4 workers need 4 CPUs .* there are 2 and 0 GPUs"):
        fitting(Compute(workers=4), {"CPU": 2})
    with pytest.raises(ResourceError, match="3 workers need 3 CPUs .* there are 2 and 0 GPUs"):
        fitting(Compute(workers=4, min_workers=3), {"CPU": 2})
    with pytest.raises(ValueError, match="min_workers is 3, more than workers, which is 2"):
        Compute(workers=2, min_workers=3)
