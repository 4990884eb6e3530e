"""Dashboards of a storage folder: optuna-dashboard, MLflow and Ray, on this machine alone; and pages of searches."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.errors import TrimtabError
from trimtab.run.track_words import default_uri, without_password
from trimtab.run_log import tail
from trimtab.search.job import study_url

HOST = "127.0.0.1"
PORTS = {"optuna": 8080, "mlflow": 5000}
PATIENCE, RAY_PATIENCE, STEP = 120.0, 40.0, 0.2
OPTUNA = "import sys, optuna_dashboard as d; d.run_server(sys.argv[1], host=sys.argv[2], port=int(sys.argv[3]))"
RAY = "import ray, sys; print(ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR').dashboard_url)"
OWN = ("MLFLOW_", "OPTUNA_", "GUNICORN_", "UVICORN_")
"""Settings of the user's that a dashboard must not take for its own."""


@dataclass(frozen=True)
class Started:
    """A dashboard that runs, kept until its standard input closes."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def answers(self) -> bool:
        """Whether its page comes. Raises TrimtabError when it has ended."""
        if self.process.poll() is not None:
            raise TrimtabError(f"the dashboard {self.name} has ended; the end of its log:\n{tail(self.log)}")
        asked = urllib.request.Request(self.url, headers={"Accept-Encoding": "gzip"})
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.status == 200
        except (OSError, gzip.BadGzipFile):
            return False


@dataclass
class Dashboards:
    """What is there: addresses by name, or why there is none; pages of searches."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)

    def wait(self) -> None:
        """Until the process is stopped. Raises TrimtabError when a dashboard ends by itself."""
        while self.started:
            for one in self.started:
                if one.process.poll() is not None:
                    one.answers()
            time.sleep(1)


@contextmanager
def dashboards(storage: Path) -> Iterator[Dashboards]:
    """Start what the storage has data for; all of it ends with the context, or with this process however it ends."""
    storage = storage.expanduser().resolve()
    shown, uri = Dashboards(), default_uri(storage)
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (storage / "optuna.db").exists() or os.environ.get("TRIMTAB_STUDIES"):
            command = [sys.executable, "-c", OPTUNA, study_url(storage), HOST]
            _start(shown, stack, "optuna", command=command, logs=logs)
        else:
            shown.lines.append(("optuna", f"no search in {storage} yet; trimtab tune FILE makes one"))
        if uri.startswith("http"):
            shown.lines.append(("mlflow", f"{without_password(uri)} (MLFLOW_TRACKING_URI)"))
        elif uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
            shown.lines.append(("mlflow", f"nothing tracked at {uri} yet; trimtab report --sync makes up for it"))
        else:
            _start(shown, stack, "mlflow", command=_mlflow(storage), logs=logs, MLFLOW_BACKEND_STORE_URI=uri)
        shown.lines.append(("ray", ray_dashboard(os.environ.get("RAY_ADDRESS"))))
        _settle(shown)
        pages = sorted((storage / "searches").glob("*/report.html"), key=lambda page: -page.stat().st_mtime)
        shown.lines += [("page", str(page)) for page in pages]
        yield shown


def _mlflow(storage: Path) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST]
    return [*command, "--artifacts-destination", (storage / "mlartifacts").as_uri(), "--port"]


def _start(
    shown: Dashboards, stack: ExitStack, name: str, *, command: Sequence[str], logs: Path, **settings: str
) -> None:
    port, log = free_port(PORTS[name]), logs / f"{name}.log"
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    env = {key: value for key, value in os.environ.items() if not key.startswith(OWN)} | quiet | settings
    keeping = [sys.executable, "-m", "trimtab.search.kept", *command, str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            keeping, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, cwd=logs, start_new_session=True
        )
    stack.callback(process.wait)
    stack.callback(process.stdin.close)
    shown.started.append(Started(name, f"http://{HOST}:{port}/", process, log))


def _settle(shown: Dashboards) -> None:
    """Wait until every dashboard answers; one that does not is told with the end of its log."""
    end = time.monotonic() + PATIENCE
    for one in shown.started:
        while not one.answers():
            if time.monotonic() > end:
                raise TrimtabError(f"the dashboard {one.name} does not answer at {one.url}:\n{tail(one.log)}")
            time.sleep(STEP)
    shown.lines[:0] = [(one.name, one.url) for one in shown.started]


def free_port(wished: int) -> int:
    """The port wished for, or any that is free."""
    for port in (wished, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise TrimtabError(f"no port is free on {HOST}")


def ray_dashboard(address: str | None) -> str:
    """Where Ray's dashboard is for a cluster, by default the one on this machine; or how to have one."""
    if address and address.startswith(("http://", "https://")):
        return without_password(address)
    url = _asked_of_ray(address or "auto")
    if url is None and address:
        return f"no cluster answers at RAY_ADDRESS={address}"
    if url is None:
        start = "RAY_AUTH_MODE=token ray start --head --include-dashboard=true"
        return (
            f"no cluster runs; a run starts its own, without one. To have one: ray get-auth-token --generate; {start}"
        )
    if url in ("", "None"):
        return "a cluster runs, without a dashboard; start its head with --include-dashboard=true"
    asks = " (it asks for the cluster's token: ray get-auth-token)"
    return f"http://{url}/{asks * (os.environ.get('RAY_AUTH_MODE') == 'token')}"


def _asked_of_ray(address: str) -> str | None:
    """Host and port of a cluster's dashboard; None where no cluster answers."""
    host, _, port = address.rpartition(":")
    if host and "://" not in address:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError):
            return None
    asked = [sys.executable, "-c", RAY, address]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=RAY_PATIENCE, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    return (told.stdout.split() or [""])[-1]
