"""The command as its user meets it, against a dashboard that tells a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cluster.heads import clean_environment
from tests.cluster.scripted_dashboard import TOKEN, Dashboard, serving

JOB = "quickstart-0123abcd-1"
STAGE = {"stage_id": "train-01", "label": "seed 0 / train naive"}
EVENTS = [
    {"event": "run_start", "time": 1.0, "run_id": JOB},
    {"event": "plan", "time": 1.0, "stages": [STAGE | {"stage": "train", "have": False}]},
    {"event": "stage_start", "time": 1.0, **STAGE},
    {"event": "stage_end", "time": 3.5, "status": "done", "seconds": 2.5, "metrics": {}, **STAGE},
    {
        "event": "done",
        "report": "/mnt/r.html",
        "ran": 1,
        "warnings": ["MLflow was down"],
        "table": [["who", "acc"], ["naive", "0.8"]],
    },
]
NOISE = ["2026-11-22 INFO -- Runtime env is setting up.", "[a] (pid=1) warning: {braces}"]
LOG = "\n".join([NOISE[0], *map(json.dumps, EVENTS[:3]), NOISE[1], *map(json.dumps, EVENTS[3:]), ""])


def trimtab(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    checkout = {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    command = [sys.executable, "-m", "trimtab", "submit", *arguments]
    given = clean_environment() | checkout | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=given, check=False, cwd=cwd)


def test_a_followed_job_looks_as_if_it_ran_here() -> None:
    with serving(Dashboard(LOG, breaks=[40, 300])) as dashboard:
        dashboard.jobs[JOB] = "RUNNING"
        done = trimtab("--follow", JOB, "--address", dashboard.url)
    assert done.returncode == 0, done.stderr
    out, err = done.stdout.splitlines(), done.stderr.splitlines()
    assert [line[9:] for line in out[:3]] == [
        "1 stages, 0 there already",
        "start  seed 0 / train naive",
        "done   seed 0 / train naive  2.5 s  (1/1)",
    ]
    assert [line.split() for line in out[3:5]] == [["who", "acc"], ["naive", "0.8"]]
    assert out[5:] == ["report:  /mnt/r.html", "MLflow was down"]
    assert [line for line in err if "connection lost" not in line] == [*NOISE, f"{JOB}: exit code 0; so it ended."]


def test_who_does_not_wait_is_told_commands_that_work_there() -> None:
    with serving(Dashboard(LOG)) as open_, serving(Dashboard(LOG, token=TOKEN)) as guarded:
        told = [
            trimtab("--follow", JOB, "--detach", "--address", one.url, RAY_AUTH_TOKEN=TOKEN) for one in (open_, guarded)
        ]
    stops = [done.stderr.splitlines()[-1].partition("To stop it:  ")[2] for done in told]
    assert stops == [
        f"ray job stop {JOB} --address {open_.url}",
        f"RAY_AUTH_MODE=token ray job stop {JOB} --address {guarded.url}",
    ]


def test_json_is_the_job_s_own() -> None:
    with serving(Dashboard(LOG, status="FAILED", exit_code=1)) as dashboard:
        dashboard.jobs[JOB] = "RUNNING"
        done = trimtab("--follow", JOB, "--json", RAY_API_SERVER_ADDRESS=dashboard.url)
    assert [json.loads(line) for line in done.stdout.splitlines()] == EVENTS
    assert done.returncode == 1
    assert done.stderr.splitlines() == [*NOISE, f"{JOB}: exit code 1; so it ended."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a job or search file, or --follow ID"),
        (["nothing.yaml"], "nothing.yaml: no such job or search file"),
        (["--follow", JOB], "which cluster? give --address"),
        (["--follow", JOB, "--address", "http://127.0.0.1:9"], "no cluster's dashboard answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_is_told_and_is_exit_code_2(arguments: list[str], said: str) -> None:
    done = trimtab(*arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_dry_run_asks_no_cluster_and_comes_soon(tmp_path: Path) -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    done = trimtab(str(jobs / "quickstart.yaml"), "compute.storage=/mnt/x", "--dry-run", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert said["entrypoint"] == "python -m trimtab run quickstart.yaml compute.storage=/mnt/x --json"
    assert said["files"] == {"quickstart.yaml": (jobs / "quickstart.yaml").stat().st_size}
    assert said["travels"]["code"]["bytes"] > 10**6
