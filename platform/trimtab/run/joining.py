"""Ray, joined or started here: what it reads from the environment, whom its signals reach, where it listens."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.compute import Compute
from trimtab.errors import ClusterError
from trimtab.run.localhost import alone

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
JOINED = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
"""Times that Ray looks for a cluster, each up to 40 s where nothing answers; by itself 20."""
STARTS_WITHIN_S = 150.0
"""How long the processes of a cluster of our own may take to come up; Ray itself gives them 30 s, too few where the
machine is busy."""
STARTS = 3
"""Times that a cluster of our own is started: a raylet whose agents do not come up within 15 s ends itself."""
TOKEN = (
    "set RAY_AUTH_TOKEN to the cluster's token, or RAY_AUTH_TOKEN_PATH to a file that holds it (on the cluster: "
    "ray get-auth-token)"
)
LOCAL = {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_prestart_worker_first_driver": "0"}


class RayletDied(Exception):
    """The first process of a node that was to start."""


def initialised() -> bool:
    """Whether this process is at a cluster."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def address_of(compute: Compute | None = None) -> str:
    """The cluster to join, or "local". Raises ClusterError for a dashboard's address, which lets nobody join."""
    address = (compute and compute.address) or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        said = "compute.address" if compute and compute.address else "RAY_ADDRESS"
        raise ClusterError(
            f"{said} begins with {address.partition('//')[0]}// and so is a dashboard's, which takes jobs and lets "
            "nobody join: send the file there with trimtab submit, or name the head, as HOST:6379"
        )
    return address


def settle_token() -> None:
    """Use a token wherever there is one: Ray ignores it for a given address unless the mode is set.

    It must stand before Ray is imported.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def settle_ray(address: str) -> None:
    """What Ray reads from the environment, which must stand before it is imported.

    A cluster of our own gets a token of its own, unless the caller has imported Ray and so settled how it is guarded.
    """
    own = address == "local" and "ray" not in sys.modules
    settings = SETTINGS | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {})
    if address != "local":
        settle_token()
        settings |= JOINED
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def ray_at(address: str, **further: Any) -> Any:
    """Ray, initialised, with what else to tell ray.init. Raises ClusterError."""
    settle_ray(address)
    import ray

    if ray.is_initialized():
        return ray
    if address == "local":
        further |= {"include_dashboard": False, "object_store_memory": 256 * 2**20}
    for _ in range(STARTS):
        try:
            _init(ray, address, further)
        except RayletDied as error:
            died = error
        else:
            return ray
    raise ClusterError(f"Ray did not start here, {STARTS} times ({died}); see whether the machine is overloaded")


def _init(ray: Any, address: str, further: dict[str, Any]) -> None:
    with _apart(), alone(address) as placed:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **further, **placed)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ClusterError(
                f"no Ray cluster lets us in at {address} ({error}); see that compute.address or RAY_ADDRESS names its "
                f"head, as HOST:6379, and {TOKEN}"
            ) from error


@contextmanager
def _apart() -> Iterator[None]:
    """Signals stay ours while Ray starts. Raises KeyboardInterrupt where SIGTERM comes before it has.

    Ray's processes get groups of their own, since a signal to our group, as of Ctrl-C, is for us, and we end Ray; the
    handler of SIGTERM that Ray puts in place ends the process where it stands.
    """
    from ray._private import services

    popen, ask, handler = services.ConsolePopen, services.get_node, signal.getsignal(signal.SIGTERM)
    started: list[subprocess.Popen[bytes]] = []

    def start(*said: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*said, process_group=0, **options))
        return started[-1]

    services.ConsolePopen, services.get_node = start, partial(_patient, ask, started)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    except RayletDied:
        for process in started:
            process.kill()
            process.wait()
        raise
    finally:
        services.ConsolePopen, services.get_node = popen, ask
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _patient(ask: Callable[..., Any], started: Sequence[subprocess.Popen[bytes]], *asked: Any) -> Any:
    """What is known of a node, which may have to come up first. Raises RuntimeError where it does not, RayletDied."""
    until = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            return ask(*asked)
        except RuntimeError as error:
            if any(process.poll() is not None for process in started if str(process.args[0]).endswith("/raylet")):
                raise RayletDied(str(error)) from error
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
