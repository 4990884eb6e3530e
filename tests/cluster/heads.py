"""A head as a user starts it, `ray start --head`: on this machine only, with a token, ports of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests
from tests.ports import free_ports

from trimtab.run.joining import STARTS, STARTS_WITHIN_S

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A cluster of one node: `process` is the head's, all others are its children; drivers join it at `gcs`."""

    address: str
    gcs: str
    token: str
    folder: Path
    process: subprocess.Popen[bytes]

    def environment(self, **further: str) -> dict[str, str]:
        """Of somebody elsewhere who has the token."""
        return clean_environment() | {"RAY_AUTH_TOKEN": self.token} | further


def clean_environment() -> dict[str, str]:
    """Without what settles Ray, MLflow and trimtab, or leads to this checkout."""
    ours = ("RAY_", "MLFLOW_", "TRIMTAB_", "PYTHONPATH")
    given = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    return given | quiet | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def head(environment: Mapping[str, str] = {}, *, cpus: int = 2) -> Iterator[Head]:
    """A head, until the context ends; all that it started ends with it."""
    folder, token = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp")), secrets.token_hex(32)
    ports = free_ports(5)
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port")
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--object-store-memory={128 * 2**20}"]
    guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": str(folder)}
    guarded |= {"RAY_raylet_start_wait_time_s": f"{STARTS_WITHIN_S:.0f}"}
    given = clean_environment() | dict(environment) | guarded
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "head.log").open("wb"))
        for _ in range(STARTS):
            process = subprocess.Popen(command, env=given, stdout=log, stderr=log, cwd=folder)
            stack.callback(_end, process)
            started = Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", token, folder, process)
            if _comes_up(started):
                yield started
                return
    raise AssertionError((folder / "head.log").read_text())


def _comes_up(started: Head) -> bool:
    """Whether it takes jobs and has its node; if not it has ended, as Ray does when the machine is too busy."""
    until, headers = time.monotonic() + STARTS_WITHIN_S, {"Authorization": f"Bearer {started.token}"}
    while started.process.poll() is None:
        try:
            for path in ("api/jobs/", "api/v0/nodes"):
                answer = requests.get(f"{started.address}/{path}", headers=headers, timeout=30)
                answer.raise_for_status()
            if answer.json()["data"]["result"]["result"]:
                return True
        except requests.RequestException:
            pass
        assert time.monotonic() < until, (started.folder / "head.log").read_text()
        time.sleep(0.5)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The head and all that it started: at once, since what a head does to end well is not what is tested."""
    ours = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in ours:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.wait(30)
    psutil.wait_procs(ours, timeout=10)
