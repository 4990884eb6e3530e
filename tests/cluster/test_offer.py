"""What a cluster must have, with the numbers of what it lacks."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from trimtab.cluster.offer import Offer, suited
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.estimate import Need

GIB = 2**30
NODES = ({"CPU": 2.0, "memory": 4.0 * GIB}, {"CPU": 6.0, "GPU": 1.0, "memory": 8.0 * GIB})
NOTHING = Need(0, 0)


def there(**said: Any) -> Offer:
    return Offer(**({"nodes": NODES, "python": "3.11.9", "ray": version("ray")} | said))


def test_a_plan_that_fits_is_let_through() -> None:
    suited(there(), Compute(workers=8, gpus_per_worker=0), Need(12 * GIB, None))
    suited(there(), Compute(), Need(None, None))
    assert str(there()).startswith("2 nodes, 8 CPUs, 1 GPUs, 12.0 GiB of memory")


@pytest.mark.parametrize(
    ("compute", "need", "words"),
    [
        ({"workers": 9, "gpus_per_worker": 0}, NOTHING, "9 workers of 1 CPUs and 0 GPUs .* room for 8 on 2 nodes"),
        ({"workers": 2, "cpus_per_worker": 4, "gpus_per_worker": 0}, NOTHING, "room for 1 on 2 nodes, .* 6 CPUs"),
        ({"workers": 2}, NOTHING, "2 workers of 1 CPUs and 1 GPUs .* room for 1 on 2 nodes"),
        ({}, Need(13 * GIB, 0), "memory: the plan needs 13.0 GiB, there is 12.0 GiB"),
    ],
)
def test_what_it_lacks_is_told_with_numbers_unless_it_grows(compute: dict, need: Need, words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        suited(there(), Compute(**compute), need)
    suited(there(), Compute(**compute, grows=True), need)


def test_a_worker_has_room_on_one_node() -> None:
    suited(there(), Compute(), Need(12 * GIB, 0), worker=8 * GIB)
    with pytest.raises(ResourceError, match="one worker needs 9.0 GiB, no node has more than 8.0 GiB"):
        suited(there(), Compute(), Need(12 * GIB, 0), worker=9 * GIB)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"ray": "2.40.0"}, f"Ray 2.40.0 there, {version('ray')} here"),
        ({"python": "3.9.18"}, "Python 3.9.18 there; trimtab needs 3.11 to 3.12"),
        ({"python": "3.13.0"}, "Python 3.13.0 there"),
    ],
)
def test_other_versions_are_refused_even_where_it_grows(said: dict, words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        suited(there(**said), Compute(grows=True), NOTHING)
