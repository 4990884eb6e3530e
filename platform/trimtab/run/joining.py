"""Ray, joined or started here: what it reads from the environment, whom its signals reach, where it listens."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from trimtab.compute import Compute
from trimtab.run.localhost import alone

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
LOCAL = {"RAY_AUTH_MODE": "token", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_prestart_worker_first_driver": "0"}


def initialised() -> bool:
    """Whether this process is at a cluster."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def address_of(compute: Compute) -> str:
    return compute.address or os.environ.get("RAY_ADDRESS") or "local"


def ray_at(address: str) -> Any:
    """Ray, initialised. What it reads from the environment must stand before it is imported.

    A cluster of our own gets a token of its own, unless the caller has imported Ray and so settled how it is guarded.
    """
    own = address == "local" and "ray" not in sys.modules
    settings = SETTINGS | (LOCAL | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return ray
    local = {"include_dashboard": False, "object_store_memory": 256 * 2**20} if address == "local" else {}
    with _apart(), alone(address) as placed:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local, **placed)
    return ray


@contextmanager
def _apart() -> Iterator[None]:
    """Signals stay ours while Ray starts. Raises KeyboardInterrupt where SIGTERM comes before it has.

    Ray's processes get groups of their own, since a signal to our group, as of Ctrl-C, is for us, and we end Ray; the
    handler of SIGTERM that Ray puts in place ends the process where it stands.
    """
    from ray._private import services

    popen, handler = services.ConsolePopen, signal.getsignal(signal.SIGTERM)
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        services.ConsolePopen = popen
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
