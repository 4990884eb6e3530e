"""What running on Ray costs beside the work itself. Parts: stages, checkpoint, submit. Writes results/cluster.json.

stages: a graph of 1,000 stages that do nothing, on one worker and in the driver: milliseconds a stage, the driver's
memory; beside it a plain Ray actor that is called as often. checkpoint: a training of SmolLM2-135M with all weights,
with checkpoints and without: seconds of one, and its share of the interval that is the default. submit: from the
command to the first stage on a cluster that is up.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from trimtab.environment import settle

settle()

from noop import lay_out, nothing, nothing_here  # noqa: E402

from trimtab.compute import Compute  # noqa: E402
from trimtab.run.log import EventLog  # noqa: E402
from trimtab.run.on_ray import RayRunner  # noqa: E402

BENCH = Path(__file__).parent
JOB = BENCH.parent / "jobs" / "quickstart.yaml"
RESULTS = BENCH / "results" / "cluster.json"
COUNT = 1000
TARGETS = {"stage_ms": 10, "first_stage_s": 15, "checkpoint_share": 0.05}


class Watched:
    """Listens to a run: when stages ended, and the memory of this process then."""

    def __init__(self) -> None:
        import psutil

        self.process = psutil.Process()
        self.began: float | None = None
        self.ended: list[float] = []
        self.memory: list[int] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "stage_start" and self.began is None:
            self.began = time.perf_counter()
        if event["event"] == "stage_end":
            self.ended.append(time.perf_counter())
            self.memory.append(self.process.memory_info().rss)

    def found(self) -> dict[str, float]:
        count = len(self.ended)
        tenth = count // 10
        grown = (self.memory[-1] - self.memory[tenth]) / (count - tenth)
        return {
            "stages": count,
            "ms_a_stage": 1000 * (self.ended[-1] - self.began) / count,
            "ms_a_stage_of_the_last_tenth": 1000 * (self.ended[-1] - self.ended[-1 - tenth]) / tenth,
            "driver_mib_after_a_tenth": self.memory[tenth] / 2**20,
            "driver_mib_at_the_end": self.memory[-1] / 2**20,
            "driver_kib_a_stage": grown / 2**10,
        }


def graph(storage: Path, called: Any, count: int = COUNT) -> dict[str, float]:
    """A graph of stages through RayRunner, with a log and metrics as a run has them."""
    from trimtab.run.gauges import Gauges

    watched = Watched()
    with closing(EventLog(storage / "runs" / "bench", [watched, Gauges()])) as log:
        run = RayRunner(Compute(storage=storage, groups=1), sink=log)
        start = time.perf_counter()
        lay_out(run, count, called)
        planned = time.perf_counter() - start
        run.wait()
        seconds = time.perf_counter() - start
    again = RayRunner(Compute(storage=storage, groups=1))
    start = time.perf_counter()
    lay_out(again, count, called)
    assert not again.pending
    return watched.found() | {"plan_s": planned, "all_s": seconds, "rerun_s": time.perf_counter() - start}


def plain(count: int = COUNT) -> float:
    """Milliseconds of a call of a Ray actor that does nothing, one after the other."""
    import ray

    actor = ray.remote(num_cpus=0)(Plain).remote()
    ray.get(actor.nothing.remote())
    start = time.perf_counter()
    for _ in range(count):
        ray.get(actor.nothing.remote())
    return 1000 * (time.perf_counter() - start) / count


class Plain:
    def nothing(self) -> None: ...


def stages() -> dict[str, Any]:
    from trimtab.run.joining import ray_at

    with tempfile.TemporaryDirectory() as place:
        here = graph(Path(place, "here"), nothing_here)
        ray = ray_at("local")
        call = plain()
        workers = graph(Path(place, "workers"), nothing)
        ray.shutdown()
    return {
        "on_a_worker": workers,
        "in_the_driver": here,
        "plain_actor_call_ms": call,
        "target_ms": TARGETS["stage_ms"],
    }


def checkpoint() -> dict[str, Any]:
    """Four steps with a checkpoint after each, and four without."""
    from trimtab.data.builtin import BUILTIN
    from trimtab.parts import TrainSpec
    from trimtab.stages.train import train
    from trimtab.training.trainers._base import House

    seconds, save = [], House._save_checkpoint

    def timed(self: House, *given: Any) -> None:
        start = time.perf_counter()
        save(self, *given)
        seconds.append(time.perf_counter() - start)

    House._save_checkpoint = timed
    spec = TrainSpec(model="builtin:smollm2-135m", batch_size=16, num_train_epochs=1, max_length=32)
    task = BUILTIN["valence"]
    labelled = [row for _, row in task.rows(task.file())][:64]
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place, "rows")
        rows.mkdir()
        lines = [{"id": str(i), "text": row["text"], "label": row["label"]} for i, row in enumerate(labelled)]
        (rows / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        took = {}
        for name, steps in (("without", None), ("with", 1)):
            out = Path(place, name)
            out.mkdir()
            compute = Compute(backend="inline", storage=Path(place), checkpoint_steps=steps)
            start = time.perf_counter()
            train(spec, out, compute=compute, data=rows, partial=Path(place, "partial"))
            took[name] = time.perf_counter() - start
        newest = max(Path(place, "partial").glob("step-*"))
        size = sum(file.stat().st_size for file in newest.iterdir())
    one, between = statistics.median(seconds), 60 * Compute().checkpoint_minutes
    return {
        "seconds_each": seconds,
        "mib_each": size / 2**20,
        "default_interval_s": between,
        "share_at_default": one / (between + one),
        "training_s": took,
        "target_share": TARGETS["checkpoint_share"],
    }


def submit() -> dict[str, Any]:
    """Twice on one cluster; the second time its packages are there."""
    took = []
    with tempfile.TemporaryDirectory() as place, head(place) as address:
        for name in ("first", "second"):
            storage = f"compute.storage={place}/{name}"
            command = [sys.executable, "-m", "trimtab", "submit", str(JOB), storage, "--address", address, "--json"]
            start = time.perf_counter()
            sent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                if not any('"stage_start"' in line for line in sent.stdout or ()):
                    sys.exit(f"{' '.join(command)} ended with {sent.wait()} before a stage began")
                took.append(time.perf_counter() - start)
            finally:
                sent.send_signal(signal.SIGINT)
                sent.communicate()
                stop_jobs(address)
    return {"first_stage_s": took, "target_s": TARGETS["first_stage_s"]}


def stop_jobs(address: str) -> None:
    """End what was submitted, and wait for that."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    for job in client.list_jobs():
        client.stop_job(job.submission_id)
        while not client.get_job_status(job.submission_id).is_terminal():
            time.sleep(0.5)


@contextmanager
def head(place: str) -> Iterator[str]:
    """A cluster of this machine, guarded by a token, as the address that jobs are submitted to."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    process = subprocess.Popen([*command, f"--temp-dir={place}/r"], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not answers(port):
            if time.monotonic() > until:
                sys.exit("the cluster's dashboard does not answer")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/authentication_mode", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


PARTS = {"stages": stages, "checkpoint": checkpoint, "submit": submit}


def main() -> None:
    if not sys.argv[1:]:  # each in a process of its own: a process keeps the token of its first cluster
        sys.exit(max(subprocess.run([sys.executable, __file__, name], check=False).returncode for name in PARTS))
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:]:
        found |= {"machine": {"cores": os.cpu_count()}, name: PARTS[name]()}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({name: found[name]}, indent=1))


if __name__ == "__main__":
    main()
