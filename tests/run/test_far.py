"""A Ray cluster whose workers do not see the driver's files: only a storage behind a URL is common to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
APART = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that knows nothing of the driver's file system."""
    if subprocess.run([*APART, "true"], capture_output=True, check=False).returncode:
        pytest.skip("file systems of one's own are not allowed here")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


def drive(address: str, url: str, mirror: Path) -> dict[str, Any]:
    """The job, by a driver whose mirror is empty and its own."""
    mirror.mkdir(exist_ok=True)
    script = f'mount -t tmpfs tmpfs "{mirror}" && exec "{sys.executable}" -m tests.run.far "{url}"'
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    environment = os.environ | {"TRIMTAB_MIRROR": str(mirror), "RAY_ADDRESS": address, "PYTHONPATH": path}
    done = subprocess.run(
        [*APART, "sh", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_stages_run_where_the_driver_s_files_are_not(address: str, tmp_path: Path) -> None:
    store, mirror = tmp_path / "store", tmp_path / "mirror"
    first = drive(address, store.as_uri(), mirror)
    assert (first["pending"], first["ends"]) == (3, ["done"] * 3)
    assert first["report"] == "c b a"
    assert first["metrics"] == {"words": 3}
    assert first["files"] == ["log.txt", "metrics.json", "model", "rank1.log.txt", "stage.json"]
    assert first["died"] == ["segfault"], "its log was read on its node"
    assert "KeyError: 'what breaks'" in first["error"]
    assert "the word of rank 1" in first["error"]
    there = Path(first["folder"])  # as the workers see it
    assert (there / "died").exists(), "a worker was killed on the way"
    left = {p.name.partition("-")[0] for p in (there / "artifacts").iterdir()}
    assert left == {"words", ".fails"}, "what failed is kept on its node"
    assert len(list(store.glob("artifacts/*/whole.json"))) == 3

    again = drive(address, store.as_uri(), mirror)
    assert (again["pending"], again["was_here"], again["ends"]) == (0, False, [])
    assert (again["report"], again["files"]) == (first["report"], first["files"])
