"""The ranks that run one stage together, whether Ray Train started them or this process is alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class World:
    rank: int
    size: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's items: every size-th of them."""
        return items[self.rank :: self.size]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def told(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def world() -> World:
    """The ranks of this stage."""
    import torch.distributed as dist

    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World(0, 1)


def join() -> None:
    """Make a process group of one where nobody made one: DeepSpeed needs it."""
    import torch
    import torch.distributed as dist

    name_accelerator()
    if not dist.is_initialized():
        stay()
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def stay() -> None:
    """Tell gloo and NCCL, before they open anything, to listen on this machine alone and not at its outer address."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")


def name_accelerator() -> None:
    """Tell DeepSpeed that there is no GPU, before it goes looking."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
