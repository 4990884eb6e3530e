"""Notices that a node of this training's workers is about to be taken away: drained, or preempted by its cloud."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """Which nodes, by their ids; when, in milliseconds since 1970, where that is known."""

    nodes: tuple[str, ...]
    deadline_ms: int | None


def notice() -> Notice | None:
    """What Ray Train has told this worker; None outside of it, and while all nodes stay.

    Ray's own `get_preemption_info` waits for every rank at every call; the ranks agree here as they do on time.
    """
    if "ray.train" not in sys.modules:
        return None
    from ray.train.v2._internal.execution.context import get_train_context

    try:
        info = get_train_context().preemption_context.preemption_info
    except RuntimeError:
        return None
    return Notice(tuple(info.preempted_node_ids), info.deadline_ms) if info else None
