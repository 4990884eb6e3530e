"""Where Ray Train's controller tells the desk which workers it found failed, before it starts the group again."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback

from trimtab.training.postmortem import Gone


class Witness(UserCallback):
    """Called in the controller's process."""

    def __init__(self, desk: Any, group: int) -> None:
        self.desk, self.group = desk, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        gone = {rank: _gone(error) for rank, error in worker_exceptions.items()}
        ray.get(self.desk.died.remote(self.group, gone))


def _gone(error: Exception) -> Gone:
    """Ray Train wraps what it met when it asked a worker for its health."""
    met = getattr(error, "health_check_failure", error)
    dead = isinstance(met, RayActorError | OutOfMemoryError)
    return Gone(type(met).__name__, str(met), dead=dead, preempted=getattr(met, "preempted", False))
