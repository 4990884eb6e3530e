"""Several Ray nodes on this machine: one is lost, a driver is killed, the head is; what is found stays the same."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.chaos.nodes import LONG, Place, events, same, until
from tests.conftest import Tiny

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
QUICK |= {"gcs_rpc_server_reconnect_timeout_s": 20, "metrics_report_interval_ms": 2500}
SMALL = {"object_store_memory": 80 * 2**20, "num_cpus": 1}


class Nodes:
    """A head that runs nothing, and two nodes with one CPU each."""

    def __init__(self) -> None:
        self.start()
        self.grow()

    def start(self) -> None:
        from ray.cluster_utils import Cluster

        head = SMALL | {"num_cpus": 0, "include_dashboard": False, "dashboard_agent_listen_port": 0}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": QUICK})
        self.address = self.cluster.address

    def grow(self) -> None:
        for _ in range(2):
            self.cluster.add_node(**SMALL)

    def metrics_port(self, of: str) -> int:
        return next(node.metrics_export_port for node in self.cluster.list_all_nodes() if node.node_id == of)

    def replace_one(self, but: str) -> None:
        """One dies without a word, but not the one of this id; another is added."""
        node = next(node for node in self.cluster.worker_nodes if node.node_id != but)
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**SMALL)

    def lose_head(self) -> None:
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def stop(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.stop()


def scraped(port: int, *wanted: str) -> dict[tuple[str, ...], float] | None:
    """Our own metrics by name and tags, as Prometheus reads them from a node; None until the wanted one is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_trimtab_")]
    except OSError:
        return None
    found = {}
    for line in lines:
        name, tags, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
        own = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found[name, *(own[key] for key in ("label", "stage", "status") if key in own)] = float(value)
    return found if wanted in found else None


class Lost:
    """A run of two trainings, in the second of which a node was lost; and what could be scraped before."""

    def __init__(self, place: Place, nodes: Nodes) -> None:
        self.place = place
        place.hold(3)
        driver = place.driver(nodes.address, "train", "held", workers=2)
        place.held(3, driver)
        said, self.events = events(driver), []
        while not self.events or self.events[-1].get("label") != "held":
            self.events.append(next(said))
        own = self.events[-1]["node"]
        self.scraped = until(lambda: scraped(nodes.metrics_port(own), "ray_trimtab_training_loss", "held"))
        nodes.replace_one(but=own)
        place.go_on(3)
        self.events += said
        self.errors = driver.stderr.read()
        self.code = driver.wait(LONG)


@pytest.fixture(scope="module")
def lost(nodes: Nodes, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return Lost(Place.of(tiny, tmp_path_factory.mktemp("lost")), nodes)


def test_a_node_lost_in_the_middle_is_replaced_and_nothing_changes(lost: Lost) -> None:
    assert lost.code == 0, lost.errors
    assert same(lost.place.weights("held"), lost.place.weights("train"))
    said = (lost.place.artifact("held") / "log.txt").read_text()
    assert said.count("going on from step") == 1
    assert "going on from step 3:" in said


def test_metrics_are_exported_with_ray_s_own(lost: Lost) -> None:
    assert lost.scraped["ray_trimtab_stages_total", "train", "done"] == 1
    assert lost.scraped["ray_trimtab_training_step", "train"] == 8
    said = [e["values"] for e in lost.events if e["event"] == "metrics" and e["stage_id"].startswith("train-")]
    for name in ("loss", "grad_norm"):
        assert lost.scraped[f"ray_trimtab_training_{name}", "train"] == pytest.approx(said[-1][name], rel=1e-5)
    assert lost.scraped["ray_trimtab_training_loss", "held"] > 0


def test_of_two_drivers_one_trains_and_when_it_or_the_head_is_killed_another_goes_on(
    nodes: Nodes, tiny: Tiny, tmp_path: Path
) -> None:
    place = Place.of(tiny, tmp_path)
    place.hold(3)
    first = place.driver(nodes.address, "held")
    place.held(3, first)
    second = place.driver(nodes.address, "held")
    assert next(event for event in events(second) if event["event"].startswith("stage_"))["event"] == "stage_wait"
    place.hold(6)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    place.go_on(3)
    place.held(6, second)

    nodes.lose_head()
    second.communicate(timeout=LONG)
    assert second.returncode != 0
    nodes.stop()
    nodes.start()
    place.go_on(6)
    third = place.driver(nodes.address, "held")
    assert any(event["event"] == "nodes_wait" for event in events(third))
    nodes.grow()
    _, errors = third.communicate(timeout=LONG)
    assert third.returncode == 0, errors
    log = (place.artifact("held") / "log.txt").read_text()
    assert "going on from step 6:" in log
    undisturbed = tiny.trained(tiny.spec(), tiny.compute(zero_stage=2))
    assert same(place.weights("held"), load_file(undisturbed / "model" / "model.safetensors"))
