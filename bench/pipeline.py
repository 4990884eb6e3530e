"""The quickstart against the same experiment as a plain serial script: total and by stage, as ratios in one run.

Also: one more method on a finished experiment, and a rerun with nothing to do. Writes bench/results/pipeline.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
JOB = BENCH.parent / "jobs" / "quickstart.yaml"
ONE_MORE = "students.entropy={model: {source: 'builtin:smollm2-135m', layers: 28}, tune: {kind: top, layers: 2}, "
ONE_MORE += "learning_rate: 5.0e-4, num_train_epochs: 2, warmup_ratio: 0.1, max_length: 32, objective: {kind: entropy}}"


def timed(command: list[str], **environment: str) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a command, and the JSON lines it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return seconds, [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def run(storage: str, *overrides: str) -> tuple[float, list[dict[str, Any]]]:
    trimtab = [sys.executable, "-m", "trimtab", "run", str(JOB), *overrides, f"compute.storage={storage}", "--json"]
    return timed(trimtab)


def by_stage(events: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of the stages of each kind, added up (they overlap in time)."""
    kinds = {e["stage_id"]: e["stage"] for e in events if e["event"] == "stage_start"}
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event["event"] == "stage_end" and event["status"] == "done":
            seconds[kinds[event["stage_id"]]] += event["seconds"]
    return dict(seconds)


def main() -> None:
    threads = str(os.cpu_count())
    with tempfile.TemporaryDirectory() as storage, tempfile.TemporaryDirectory() as cache:
        serial, printed = timed([sys.executable, str(BENCH / "serial.py"), str(JOB), cache], OMP_NUM_THREADS=threads)
        first, events = run(storage)
        more, added = run(storage, ONE_MORE)
        again, _ = run(storage, ONE_MORE)
    result = {
        "machine": {"cores": os.cpu_count(), "serial_threads": int(threads)},
        "seconds": {"serial": serial, "first_run": first, "one_more_method": more, "nothing_to_do": again},
        "ratio_to_serial": {"first_run": first / serial, "one_more_method": more / serial},
        "target": {"first_run": 1.0, "one_more_method": 0.35, "nothing_to_do_seconds": 3.0},
        "stage_seconds": {"serial": printed[-1]["seconds"], "first_run": by_stage(events), "added": by_stage(added)},
        "accuracy": {
            "serial": printed[-1]["accuracy"],
            "trimtab": {
                k.removesuffix("/accuracy"): v for k, v in events[-1]["metrics"].items() if k.endswith("accuracy")
            },
        },
    }
    path = BENCH / "results" / "pipeline.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
