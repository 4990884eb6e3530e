"""A search of 16 trials against 16 independent runs of a plain serial script (bench/serial.py), as ratios in one run.

Trials are those of tune/logconf.yaml on one seed; the script trains supervisor, student and ceiling anew for every one
of them. A search's time is from the start of its command to the end of its last trial; the final evaluation, which the
script has not, is left out and told beside. Writes bench/results/tune.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from trimtab.search.load import load_search
from trimtab.stages.report import as_written

BENCH = Path(__file__).parent
FILE = BENCH.parent / "tune" / "logconf.yaml"
TRIALS = 16


def run(command: list[str], **environment: str) -> float:
    """Wall seconds of a command."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return time.perf_counter() - start


def search(storage: str, *overrides: str) -> dict[str, Any]:
    """What a search took, and what its trials said."""
    started = time.time()
    whole = run([sys.executable, "-m", "trimtab", "tune", str(FILE), *overrides, f"set.compute.storage={storage}"])
    events = [json.loads(line) for line in _log(Path(storage)).read_text().splitlines()]
    ends = [event for event in events if event["event"] == "trial_end"]
    asked = {event["trial"]: event["values"] for event in events if event["event"] == "trial_start"}
    return {
        "seconds": max(event["time"] for event in ends) - started,
        "with_final": whole,
        "pruned": sum(event["status"] == "pruned" for event in ends),
        "trials": len(ends),
        "beyond_stages": _beyond(Path(storage), events),
        "values": [asked[trial] for trial in sorted(asked)],
    }


def _log(storage: Path) -> Path:
    """The log of the search itself: its folder has no number of a trial."""
    (folder,) = (storage / "searches").iterdir()
    return storage / "runs" / folder.name / "events.jsonl"


def _beyond(storage: Path, events: list[dict[str, Any]]) -> float:
    """Seconds a trial from its start to its end that no stage took, over trials that neither waited nor were first."""
    found = []
    for event in events:
        if event["event"] != "trial_end" or event["status"] != "done":
            continue
        log = storage / "runs" / f"{_log(storage).parent.name}-t{event['trial']:04d}" / "events.jsonl"
        said = [json.loads(line) for line in log.read_text().splitlines()]
        if any(one["event"] == "stage_wait" for one in said):
            continue
        stages = sum(one["seconds"] for one in said if one["event"] == "stage_end" and one["status"] == "done")
        began = next(one["time"] for one in events if one["event"] == "trial_start" and one["trial"] == event["trial"])
        found.append(event["time"] - began - stages)
    return statistics.median(found)


def serial(values: dict[str, Any], folder: Path) -> float:
    """One trial as the plain script does it, all of it."""
    job = load_search(FILE).job(values, [0])
    file = folder / "trial.yaml"
    pipeline = {"kind": job.pipeline.kind} | as_written(job.pipeline)
    student = {"students": {"logconf": pipeline["students"]["logconf"]}}
    file.write_text(yaml.safe_dump(json.loads(json.dumps(pipeline | student | {"validation": None}, default=list))))
    command = [sys.executable, str(BENCH / "serial.py"), str(file), str(folder / "cache")]
    return run(command, OMP_NUM_THREADS=str(os.cpu_count()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serial", type=int, default=4, help="of the 16 trials, how many the script runs; scaled up")
    count = parser.parse_args().serial
    plain, found = ["scheduler={kind: none}"], {}
    for name, overrides in (("sharing", plain), ("sharing_and_asha", [])):
        with tempfile.TemporaryDirectory() as storage:
            found[name] = search(storage, f"budget.trials={TRIALS}", "seeds=[0]", "final.seeds=[100]", *overrides)
    with tempfile.TemporaryDirectory() as folder:
        each = [serial(values, Path(folder)) for values in found["sharing"]["values"][:count]]
    scripts = statistics.mean(each) * TRIALS
    for one in found.values():
        del one["values"]
    result = {
        "machine": {"cores": os.cpu_count()},
        "serial": {"seconds_each": each, "scaled_to_16": scripts},
        **found,
        "ratio_to_serial": {name: one["seconds"] / scripts for name, one in found.items()},
        "target": {"sharing": 0.35, "sharing_and_asha": 0.2, "beyond_stages_seconds": 1.0},
    }
    path = BENCH / "results" / "tune.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
