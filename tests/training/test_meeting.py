"""Where a training listens: on this machine alone, unless its ranks are on several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from tests.listening import beyond, outward

ALONE = """
import psutil, torch.distributed as dist
from tests.listening import beyond
from trimtab.training.world import join

join()
dist.barrier(dist.new_group())
mine = psutil.Process()
print(sum(one.status == psutil.CONN_LISTEN for one in mine.net_connections("inet")) > 0, beyond([mine]))
"""


@pytest.mark.slow
def test_the_ranks_of_a_group_meet_where_they_look_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes the store that it is given, and lets it listen on a socket of ours."""
    import torch.distributed as dist

    from trimtab.training.meeting import _store

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(import_module("torch.distributed.rendezvous"), "TCPStore", _store)
    store, _, _ = next(dist.rendezvous(f"tcp://127.0.0.1:{port}", 0, 1))
    dist.TCPStore("127.0.0.1", port).set("said", "by another")
    assert store.get("said") == b"by another"
    assert port not in beyond([psutil.Process()])


@pytest.mark.slow
def test_a_training_in_this_process_listens_on_this_machine_alone() -> None:
    checkout = Path(__file__).parents[2]
    given = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    given["PYTHONPATH"] = f"{checkout / 'platform'}{os.pathsep}{checkout}"
    command = [*outward(), sys.executable, "-c", ALONE]
    assert subprocess.run(command, env=given, check=True, capture_output=True, text=True).stdout == "True {}\n"
