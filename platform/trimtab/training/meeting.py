"""Where the ranks of a group meet: a cluster at 127.0.0.1 is this machine alone, and none of it is open to others."""

from __future__ import annotations

import socket
import sys
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.util import get_node_ip_address
from torch.distributed import TCPStore

from trimtab.training.world import stay


class Meeting(TorchConfig):
    """torch.distributed as Ray Train joins it, but for where it listens."""

    @property
    def backend_cls(self) -> type[Here]:
        return Here


class Here(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_stay)
        super().on_start(worker_group, backend_config)


def _stay() -> None:
    """In each worker, before it joins. Workers of other clusters have to be reached from other nodes."""
    if get_node_ip_address() == "127.0.0.1":
        stay()
        sys.modules["torch.distributed.rendezvous"].TCPStore = _store


def _store(host_name: str, port: int, *, is_master: bool, **given: Any) -> TCPStore:
    """A store whose server listens where it is looked for; torch's own listens on every interface."""
    if is_master:
        given["master_listen_fd"] = socket.create_server((host_name, port)).detach()
    return TCPStore(host_name, port, is_master=is_master, **given)
