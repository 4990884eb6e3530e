"""What a run looks at before it uses a cluster's nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.estimate import Need, preflight
from trimtab.run.nodes import arrived, libraries

TWO_NODES = """
import os, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run import nodes
from trimtab.run.joining import ray_at

root = Path(sys.argv[1])
cluster = Cluster()
for name in ("first", "second"):
    (root / name).mkdir()
    os.chdir(root / name)
    cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
    if name == "first":
        ray = ray_at(cluster.address)
        nodes.suited(ray, Compute(storage=Path("/proc/self/cwd/storage")))
        print("one node is never refused")
cluster.wait_for_nodes()
nodes.suited(ray, Compute(storage=root / "storage"))
print("a folder that both reach is fine", sorted(p.name for p in (root / "storage").iterdir()))
try:
    nodes.suited(ray, Compute(storage=Path("/proc/self/cwd/storage")))
except ResourceError as error:
    print("refused:", error)
print(nodes.offered(ray)["CPU"])
ray.shutdown()
cluster.shutdown()
"""
OWN = """
import psutil
from tests.listening import beyond
from trimtab.run.joining import ray_at

ray = ray_at("local")
assert ray.get(ray.remote(lambda: 1).remote()) == 1
mine = psutil.Process()
found = [mine, *mine.children(recursive=True)]
print(sum(one.status == psutil.CONN_LISTEN for p in found for one in p.net_connections("inet")) > 5, beyond(found))
ray.shutdown()
"""


def done(script: str, *arguments: Path) -> list[str]:
    """What a script says that starts Ray, or the end of its errors."""
    checkout = Path(__file__).parents[2]
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given |= {"RAY_TMPDIR": "/tmp/rn", "PYTHONPATH": f"{checkout / 'platform'}{os.pathsep}{checkout}"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, env=given, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.strip().splitlines()


def test_a_job_that_was_sent_keeps_its_results_out_of_its_own_folder(tmp_path: Path) -> None:
    unpacked = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / ".trimtab"
    with pytest.raises(ResourceError, match="goes with it; set compute.storage or TRIMTAB_STORAGE"):
        preflight(Need(0, 0), Compute(storage=unpacked), free=Need(None, None))
    assert not unpacked.exists()
    preflight(Need(0, 0), Compute(storage=tmp_path / "kept"), free=Need(None, None))


def test_another_trimtab_than_the_sender_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_SENT_BY", "trimtab 99.0, Ray 2.60.0, Python 3.11.9")
    with pytest.raises(ResourceError, match=f"has trimtab {trimtab.__version__}, the job was checked by trimtab 99.0"):
        arrived(Compute(storage=tmp_path))
    monkeypatch.setenv("TRIMTAB_SENT_BY", f"trimtab {trimtab.__version__}, Ray 2.60.0, Python 3.12.1")
    arrived(Compute(storage=tmp_path))


def test_builds_for_devices_are_one_version() -> None:
    found = libraries()
    assert found["trimtab"] == trimtab.__version__
    assert "+" not in "".join(found.values())
    assert found["torch"].count(".") == 2


@pytest.mark.ray
def test_storage_that_only_one_node_sees_is_refused(tmp_path: Path) -> None:
    """Each node has a current folder of its own, which /proc/self/cwd is to every process of it."""
    first, both, refused, cpus = done(TWO_NODES, tmp_path)
    assert (first, both, cpus) == ("one node is never refused", "a folder that both reach is fine []", "2.0")
    assert refused.startswith("refused: storage /proc/self/cwd/storage: 1 of 2 nodes (")
    assert "set compute.storage or TRIMTAB_STORAGE to a folder that all nodes reach" in refused


@pytest.mark.ray
def test_a_cluster_of_our_own_listens_on_this_machine_alone() -> None:
    assert done(OWN) == ["True {}"]
