"""What other machines could reach of processes."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import psutil


def beyond(processes: Iterable[psutil.Process]) -> dict[int, str]:
    """Ports that listen not on this machine alone, and whose they are."""
    found = {}
    for process in processes:
        try:
            sockets, command = process.net_connections("inet"), " ".join(process.cmdline())[:160]
        except psutil.Error:
            continue
        listening = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
        found |= {at.port: f"{at.ip} {command}" for at in listening if not local(at.ip)}
    return found


def local(ip: str) -> bool:
    return ip.removeprefix("::ffff:").startswith("127.") or ip == "::1"


def answer(port: int, method: str) -> grpc.StatusCode:
    """What a gRPC service says to who has no token."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK
