"""A cluster of our own listens on this machine alone, and who joins it looks for it there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOST = "127.0.0.1"
ANSWERS_WITHIN_S = 2.0


@contextmanager
def alone(address: str) -> Iterator[dict[str, Any]]:
    """What to tell ray.init for a cluster of our own ("local"), and that it be believed; nothing for others.

    Ray puts the machine's outer address in the place of 127.0.0.1: then every service of a cluster of our own would
    listen everywhere, and one that listens here alone would not be found.
    """
    own = address == "local"
    if not own and not _only_here(address):
        yield {}
        return
    from ray._private import services

    outer = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield {"_node_ip_address": HOST} if own else {}
    finally:
        services.resolve_ip_for_localhost = outer


def _only_here(address: str) -> bool:
    """Whether an address of this machine answers at 127.0.0.1, and not where others would find it."""
    from ray.util import get_node_ip_address

    host, _, port = address.rpartition(":")
    if host not in (HOST, "localhost") or not port.isdigit():
        return False
    return _answers(HOST, int(port)) and not _answers(get_node_ip_address(), int(port))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), ANSWERS_WITHIN_S).close()
    except OSError:
        return False
    return True
