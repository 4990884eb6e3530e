"""Dashboards start for what is there, and none of them outlives the command that started it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.listening import beyond
from tests.searching import fill, search_of

from trimtab.errors import TrimtabError
from trimtab.search.dashboards import HOST, RAY, Started, dashboards, free_port, ray_dashboard

ELSEWHERE = "http://someone:secret@head:8265"


def soon(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 120
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_a_port_that_is_taken_is_not_taken_again() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (port, 0)
    assert free_port(port) == port


def test_an_empty_storage_says_what_is_missing_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", ELSEWHERE)
    with dashboards(tmp_path) as shown:
        lines = dict(shown.lines)
        assert shown.started == []
        shown.wait()
    assert lines["optuna"].endswith("trimtab tune FILE makes one")
    assert lines["mlflow"].startswith(f"nothing tracked at sqlite:///{tmp_path}/mlflow.db yet")
    assert lines["ray"] == "http://***@head:8265"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000")
    with dashboards(tmp_path) as shown:
        assert dict(shown.lines)["mlflow"] == "http://***@tracking:5000 (MLFLOW_TRACKING_URI)"


@pytest.mark.slow
def test_without_a_cluster_it_says_how_to_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    alone = f"import ray._private.services as found; found.find_gcs_addresses = set; {RAY}"
    monkeypatch.setattr("trimtab.search.dashboards.RAY", alone)
    assert "ray start --head" in ray_dashboard(None)
    assert ray_dashboard(f"{HOST}:1") == f"no cluster answers at RAY_ADDRESS={HOST}:1"


def test_a_dashboard_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", "print('no such table'); exit(3)"], stdout=out)
    process.wait()
    with pytest.raises(TrimtabError, match="optuna has ended.*\n.*no such table"):
        Started("optuna", f"http://{HOST}:1/", process, log).answers()


def test_what_is_kept_ends_with_all_that_it_started_when_the_pipe_closes() -> None:
    shell = "sleep 1000 & echo $!; exec sleep 1000"
    keeping = [sys.executable, "-m", "trimtab.search.kept", "sh", "-c", shell]
    with subprocess.Popen(keeping, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        started = int(process.stdout.readline())
        below = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(started)]
        assert len(below) >= 2
        process.stdin.close()
        assert soon(lambda: not any(_lives(one) for one in below))


def _lives(one: psutil.Process) -> bool:
    try:
        return one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dashboards_end_with_the_command_however_it_ends(tmp_path: Path, stop: signal.Signals) -> None:
    search = search_of(tmp_path)
    fill(search, 4)
    search.folder.mkdir(parents=True)
    (search.folder / "report.html").write_text("<html></html>")
    command = [sys.executable, "-m", "trimtab", "dashboard", "--storage", str(tmp_path)]
    env = os.environ | {
        "RAY_ADDRESS": ELSEWHERE,
        "MLFLOW_TRACKING_URI": "http://tracking:5000",
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
        said = dict(process.stdout.readline().split(None, 1) for _ in range(4))
        below = psutil.Process(process.pid).children(recursive=True)
        assert said["page"].strip() == str(search.folder / "report.html")
        url = said["optuna"].strip()
        with urllib.request.urlopen(f"{url}api/studies") as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == [search.id]
        assert beyond(below) == {}
        os.kill(process.pid, stop)
        assert process.wait(120) == (-stop if stop == signal.SIGKILL else 0)
        assert len(below) == 2
        assert soon(lambda: not any(_lives(one) for one in below))
