"""`trimtab serve` as its user meets it: mistakes, ready, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from tests.listening import answer, beyond
from tests.ports import free_port
from tests.serving.kit import saved

FILE = Path(__file__).parents[2] / "serve" / "contrastive.yaml"
ARGS = "applications.0.args"


def start(*arguments: str) -> subprocess.Popen[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TRIMTAB_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", "serve", str(FILE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=given | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
def test_mistakes_are_listed_and_nothing_is_started() -> None:
    process = start("--json", f"{ARGS}.limits.m=1", f"{ARGS}.ensembles.contrast-smol.base=smoll", "http_options.port=x")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "3 mistakes" in err
    problems = json.loads(out.splitlines()[-1])["problems"]
    assert [next(word for word in ("limits.m:", "base:", "port:") if word in one) for one in sorted(problems)] == [
        *("base:", "limits.m:", "port:"),
    ]


@pytest.mark.slow
def test_other_machines_need_a_key() -> None:
    process = start("http_options.host=0.0.0.0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "TRIMTAB_API_KEYS holds no key" in " ".join(err.split())


@pytest.mark.ray
@pytest.mark.slow
def test_it_serves_until_it_is_stopped(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    process = start(
        f"http_options.port={free_port()}",
        f"{ARGS}.storage={tmp_path}",
        f"{ARGS}.models.smol={saved(tmp_path / 'base')}",
        f"{ARGS}.models.smol-22={saved(tmp_path / 'helper', layers=1)}",
    )
    ready, models, line = (process.stdout.readline().split(None, 1)[1].strip() for _ in range(3))
    assert models == "contrast-smol, smol, smol-22"
    started = psutil.Process(process.pid).children(recursive=True)
    assert httpx.get(f"{ready}/health", timeout=60).status_code == 200
    assert line.startswith(f"curl {ready}/v1/chat/completions ")
    done = subprocess.run(f"{line} -s", shell=True, capture_output=True, text=True, timeout=180, check=True)
    assert json.loads(done.stdout)["object"] == "chat.completion"
    for port, whose in beyond([psutil.Process(process.pid), *started]).items():
        assert "ServeReplica" in whose, "only what Ray Serve opens between nodes, which asks for the cluster's token"
        assert answer(port, "/ray.serve.ASGIService/HandleRequest") == grpc.StatusCode.UNAUTHENTICATED
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out, err) == (0, "", "")
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert gone
