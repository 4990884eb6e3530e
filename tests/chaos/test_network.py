"""Nodes with addresses of their own, in network namespaces joined by a bridge; one of them is cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.nodes import LONG, Place, same
from tests.chaos.test_nodes import QUICK
from tests.conftest import Tiny
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
RAY = str(Path(sys.executable).with_name("ray"))
SHARED = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
"""Where Ray keeps its files; a node has its own in place of it."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """A bridge, and a head on it in this namespace; nodes are plugged in with namespaces of their own."""

    def __init__(self) -> None:
        self.name, self.net = f"tt{os.getpid()}", f"10.213.{os.getpid() % 250}"
        self.processes: list[subprocess.Popen[str]] = []
        self.spaces: list[str] = []
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"{self.net}.1:{self.port}"

    def up(self) -> None:
        try:
            ip("link", "add", self.name, "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network can be made here: {getattr(error, 'stderr', None) or error}")
        ip("addr", "add", f"{self.net}.1/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        settings = json.dumps(QUICK | {"health_check_timeout_ms": 4000})
        head = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        head += ["--dashboard-agent-listen-port=0"]
        self._start([], f"{self.net}.1", *head, f"--system-config={settings}")

    def plug_in(self) -> str:
        """A node with one CPU; the name of its cable."""
        number = len(self.spaces) + 2
        space = cable = f"{self.name}n{number}"
        self.spaces.append(space)
        ip("netns", "add", space)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", self.name, "up")
        inside = ["netns", "exec", space, "ip"]
        ip(*inside, "addr", "add", f"{self.net}.{number}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip(*inside, "link", "set", device, "up")
        own = ["ip", "netns", "exec", space, "sh", "-c", f'mount -t tmpfs tmpfs {SHARED} && exec "$@"', "sh"]
        self._start(own, f"{self.net}.{number}", f"--address={self.address}", "--num-cpus=1")
        return cable

    def _start(self, within: list[str], address: str, *options: str) -> None:
        command = [*within, RAY, "start", "--block", f"--node-ip-address={address}", "--object-store-memory=80000000"]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
        process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert any("Ray runtime started" in line for line in process.stdout or ()), "the node has not started"

    def down(self) -> None:
        for cable in self.spaces:
            subprocess.run(["ip", "link", "set", cable, "up"], check=False, capture_output=True)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.communicate(timeout=60)
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.name], check=False, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.up()
        yield network
    finally:
        network.down()


def test_a_node_that_is_cut_off_is_replaced_and_nothing_changes(network: Network, tiny: Tiny, tmp_path: Path) -> None:
    cables = [network.plug_in() for _ in range(2)]
    place = Place.of(tiny, tmp_path)
    place.hold(3)
    driver = place.driver(network.address, "train", "held", workers=2)
    place.held(3, driver)
    ip("link", "set", cables[1], "down")
    network.plug_in()
    place.go_on(3)
    _, errors = driver.communicate(timeout=LONG)
    assert driver.returncode == 0, errors
    assert same(place.weights("held"), place.weights("train"))
    assert "going on from step 3:" in (place.artifact("held") / "log.txt").read_text()
