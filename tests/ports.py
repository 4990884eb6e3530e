"""Ports of this machine for what a test starts."""

from __future__ import annotations

import random
import socket

DRAWN_FROM = range(20_000, 30_000)
"""Above those of Ray's workers, and below those that connections get, which could take one before a server is up."""
DRAW = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens at."""
    found: list[int] = []
    while len(found) < count:
        port = DRAW.choice(DRAWN_FROM)
        if port not in found and _free(port):
            found.append(port)
    return found


def free_port() -> int:
    return free_ports(1)[0]


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
