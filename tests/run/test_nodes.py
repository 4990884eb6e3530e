"""What a run looks at before it uses a cluster's nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.listening import outward

import trimtab
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run.estimate import Need, preflight
from trimtab.run.nodes import arrived, libraries

TWO_NODES = """
import os, sys
from pathlib import Path
os.environ["RAY_raylet_start_wait_time_s"] = "150"
from ray.cluster_utils import Cluster
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.run import nodes
from trimtab.run.joining import ray_at

root = Path(sys.argv[1])
cluster, small = Cluster(), {"object_store_memory": 80 * 2**20, "dashboard_agent_listen_port": 0}
for name in ("first", "second"):
    (root / name).mkdir()
    os.chdir(root / name)
    cluster.add_node(num_cpus=1, include_dashboard=False, **small)
    if name == "first":
        ray = ray_at(cluster.address)
        nodes.suited(ray, Compute(storage=Path("/proc/self/cwd/storage")))
        print("one node is never refused")
cluster.wait_for_nodes()
nodes.suited(ray, Compute(storage=root / "storage"))
print("a folder that both reach is fine", sorted(p.name for p in (root / "storage").iterdir()))
for storage in ("/proc/self/cwd/storage", "file:///proc/self/cwd/storage", "memory://storage"):
    try:
        nodes.suited(ray, Compute(storage=storage))
    except ResourceError as error:
        print("refused:", error)
(root / "trimtab").mkdir()
(root / "trimtab" / "__init__.py").write_text("raise ImportError('none here')")
os.environ["PYTHONPATH"] = str(root)
cluster.add_node(num_cpus=1, include_dashboard=False, **small)
cluster.wait_for_nodes()
try:
    nodes.suited(ray, Compute(storage=root / "storage"))
except ResourceError as error:
    print("refused:", error)
ray.shutdown()
cluster.shutdown()
"""
OWN = """
import sys
import psutil
from tests.listening import beyond
from trimtab.compute import Compute
from trimtab.parts import LabelSpec
from trimtab.run.on_ray import RayRunner
from trimtab.stages._base import stage

mine = psutil.Process()

@stage(version=1, on="workers")
def met(spec, out, *, compute, pid=mine.pid):
    import torch.distributed as dist

    dist.barrier(dist.new_group())
    mine = psutil.Process(pid)
    found = [mine, *mine.children(recursive=True)]
    ports = sum(one.status == psutil.CONN_LISTEN for p in found for one in p.net_connections("inet"))
    (out / str(dist.get_rank())).write_text(f"{dist.get_world_size()} {ports > 10} {beyond(found)}")
    dist.barrier()
    return {}

run = RayRunner(Compute(storage=sys.argv[1], workers=2, groups=1, cpus_per_worker=0.5), sink=lambda event: None)
made = run(met, LabelSpec())
run.wait()
print((made.path / "0").read_text())
"""

STUCK = """
import os, signal, threading
from ray._private import services
from trimtab.run.joining import ray_at

popen, stopped = services.ConsolePopen, []

def start(command, **options):
    process = popen(command, **options)
    if command[0].endswith("/raylet"):
        stopped.append(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(35, os.kill, (process.pid, signal.SIGCONT)).start()
    return process

services.ConsolePopen = start
ray = ray_at("local")
print(ray.get(ray.remote(lambda: os.getppid()).remote()) == stopped[0])
ray.shutdown()
"""
KILLED = """
import os
import psutil
from ray._private import services
from trimtab.run.joining import ray_at

popen, started = services.ConsolePopen, []

def start(command, **options):
    process = popen(command, **options)
    if command[0].endswith("/raylet"):
        started.append(process)
        if len(started) == 1:
            process.kill()
    return process

services.ConsolePopen = start
ray = ray_at("local")
print(ray.get(ray.remote(lambda: os.getppid()).remote()) == started[1].pid)
print([process.name() for process in psutil.Process().children()].count("gcs_server"))
ray.shutdown()
"""


def done(script: str, *arguments: Path, within: Sequence[str] = ()) -> list[str]:
    """What a script says that starts Ray, or the end of its errors."""
    checkout = Path(__file__).parents[2]
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given |= {"PYTHONPATH": f"{checkout / 'platform'}{os.pathsep}{checkout}"}
    command = [*within, sys.executable, "-c", script, *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        given["RAY_TMPDIR"] = folder
        ended = subprocess.run(command, env=given, check=False, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.strip().splitlines()


@pytest.mark.ray
def test_a_cluster_of_our_own_may_take_longer_to_start_than_ray_gives_it() -> None:
    assert done(STUCK) == ["True"]


@pytest.mark.ray
def test_a_cluster_of_our_own_whose_raylet_ends_while_it_starts_is_started_again() -> None:
    assert done(KILLED) == ["True", "1"]


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
def test_storage_that_only_one_node_sees_and_a_node_without_trimtab_are_refused(tmp_path: Path) -> None:
    """Each node has a current folder of its own, which /proc/self/cwd is to every process of it."""
    first, both, refused, by_url, in_memory, without = done(TWO_NODES, tmp_path)
    assert (first, both) == ("one node is never refused", "a folder that both reach is fine []")
    assert refused.startswith("refused: storage /proc/self/cwd/storage: 1 of 2 nodes (")
    assert "set compute.storage or TRIMTAB_STORAGE to a folder that all nodes reach" in refused
    assert by_url.startswith("refused: storage file:///proc/self/cwd/storage: 1 of 2 nodes (")
    assert in_memory.startswith("refused: storage memory://storage is the memory of one process; set compute.storage")
    assert without == f"refused: a node cannot run trimtab {trimtab.__version__}: ImportError: none here"


@pytest.mark.ray
def test_a_cluster_of_our_own_and_its_groups_listen_on_this_machine_alone(tmp_path: Path) -> None:
    assert done(OWN, tmp_path, within=outward()) == ["2 True {}"]
