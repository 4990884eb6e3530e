"""What grows with nodes and stages, measured small. Parts: nodes, desk, stages, tracking, store.

Writes results/scale.json.

nodes: 1 to 8 Ray nodes simulated on this machine, each with one worker of a training group, and 200 stages that do
nothing. desk: signs of life that the one actor takes to which all workers of a run report. stages: graphs of 250 to
2,000 of them in the driver: its memory, files, the time of a plan. tracking: the logs of such graphs replayed to
MLflow, with 20 points of a learning curve for each stage. store: log-probs of a reference model found in a folder of
many files. `table` prints what was found as Markdown.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from cluster import graph
from noop import lay_out, nothing, nothing_here

from trimtab.compute import Compute
from trimtab.models.logprob_store import Store, key
from trimtab.run.joining import LOCAL, SETTINGS, ray_at
from trimtab.run.log import LOG
from trimtab.run.on_ray import RayRunner
from trimtab.run.track_replay import Replay
from trimtab.run.track_words import connect
from trimtab.training.desk import Desk
from trimtab.training.postmortem import Beat

RESULTS = Path(__file__).parent / "results" / "scale.json"
NODES, STAGES, FILES = (1, 2, 4, 8), (250, 500, 1000, 2000), (100, 1000, 5000)
TRACKED, OF_NODES, POINTS, BEATS = (50, 100, 200), 200, 20, 5000
SMALL = {"object_store_memory": 80 * 2**20}


Points = Iterator[dict[str, float]]


def nodes() -> Points:
    for name, value in (SETTINGS | LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}).items():
        os.environ.setdefault(name, value)
    yield from map(on_nodes, NODES)


def on_nodes(count: int) -> dict[str, float]:
    """One worker on each node, all of one group."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=SMALL | {"num_cpus": 0, "include_dashboard": False})
    try:
        start = time.perf_counter()
        for _ in range(count):
            cluster.add_node(num_cpus=1, **SMALL)
        up = time.perf_counter() - start
        ray_at(cluster.address)
        control = psutil.Process(cluster.head_node.all_processes["gcs_server"][0].process.pid)
        before, began = control.memory_info().rss, control.cpu_times()
        with tempfile.TemporaryDirectory() as place:
            heard: list[float] = []
            start = time.perf_counter()
            run = RayRunner(
                Compute(storage=Path(place), address=cluster.address, workers=count, groups=1),
                sink=lambda event: heard.append(time.perf_counter()) if "stage" in event["event"] else None,
            )
            lay_out(run, OF_NODES, nothing)
            run.wait()
        spent = control.cpu_times()
        left = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
        return {
            "nodes": count,
            "nodes_up_s": up,
            "first_stage_s": heard[0] - start,
            "ms_a_stage": 1000 * (heard[-1] - heard[0]) / OF_NODES,
            "gcs_mib_before": before / 2**20,
            "gcs_mib_after": control.memory_info().rss / 2**20,
            "gcs_cpu_s": spent.user + spent.system - began.user - began.system,
            "object_store_kib": left / 2**10,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def desk() -> Points:
    """From one process, which may itself be what is slow."""
    ray = ray_at("local")
    told = ray.remote(num_cpus=0)(Desk).remote(1, 1)
    ray.get(told.begin.remote(0, "life", 1))
    beat = Beat(time.time(), 2**30, 2**30, 2**34, 1, 1)
    start = time.perf_counter()
    for _ in range(BEATS):
        told.beat.remote(0, 0, ticket=("life", -1), beat=beat)
    ray.get(told.idle.remote(0))
    seconds = time.perf_counter() - start
    ray.shutdown()
    yield {"beats": BEATS, "seconds": seconds, "beats_a_second": BEATS / seconds}


def stages() -> Points:
    yield from map(of_stages, STAGES)


def of_stages(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        found = graph(Path(place), nothing_here, count)
        files = [file for part in ("artifacts", "leases") for file in Path(place, part).rglob("*") if file.is_file()]
        log = Path(place) / "runs" / "bench" / LOG
        found |= {"files": len(files), "kib_of_files": sum(file.stat().st_size for file in files) / 2**10}
        return found | {"kib_of_log": log.stat().st_size / 2**10}


def tracking() -> Points:
    yield from map(of_tracking, TRACKED)


def of_tracking(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        graph(Path(place), nothing_here, count)
        log = Path(place) / "runs" / "bench"
        with_curves(log)
        uri = f"sqlite:///{place}/mlflow.db"
        connect(uri)
        start = time.perf_counter()
        events = Replay(log, uri).step()
        return {"stages": count, "events": events, "mlflow_s": time.perf_counter() - start}


def with_curves(log: Path) -> None:
    """The log as trainings would have left it."""
    lines = (log / LOG).read_text().splitlines()
    told = [json.dumps({"event": "run_start", "time": time.time(), "name": "bench", "kind": "bench", "job": {}})]
    for line in lines:
        event = json.loads(line)
        if event["event"] == "stage_end":
            for step in range(POINTS):
                said = {"event": "metrics", "time": event["time"], "stage_id": event["stage_id"], "step": step}
                told.append(json.dumps(said | {"values": {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}}))
        told.append(line)
    (log / LOG).write_text("\n".join(told) + "\n")


def store() -> Points:
    """64 completions of 32 tokens a file, as one batch of a reference model leaves them."""
    with tempfile.TemporaryDirectory() as place:
        keys: list[str] = []
        for count in FILES:
            while len(keys) < 64 * count:
                batch = [key("m", [len(keys) + i], [0]) for i in range(64)]
                Store(Path(place)).put({k: [-1.0] * 32 for k in batch})
                keys += batch
            memory, start = psutil.Process().memory_info().rss, time.perf_counter()
            opened = Store(Path(place))
            assert len(opened.get(keys)) == len(keys)
            seconds = time.perf_counter() - start
            grown = psutil.Process().memory_info().rss - memory
            yield {"files": count, "completions": len(keys), "open_s": seconds, "mib": grown / 2**20}
            del opened


def table(found: dict[str, Any]) -> str:
    """The points of every part as Markdown."""
    parts = []
    for name in filter(found.get, PARTS):
        points = found[name]
        rows = [list(points[0]), ["---"] * len(points[0]), *([f"{value:.4g}" for value in p.values()] for p in points)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


PARTS = {"nodes": nodes, "desk": desk, "stages": stages, "tracking": tracking, "store": store}


def main() -> None:
    asked = sys.argv[1:] or list(PARTS)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if asked == ["table"]:
        return print(table(found))
    for name in asked:
        found |= {"machine": {"cores": os.cpu_count()}, name: []}
        for point in PARTS[name]():
            found[name].append(point)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps({name: point}), flush=True)


if __name__ == "__main__":
    main()
