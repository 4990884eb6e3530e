"""Where a job runs. Nothing here enters a stage's key: it must not change a result beyond rounding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from trimtab.spec import Spec


def default_storage() -> Path:
    return Path(os.environ.get("TRIMTAB_STORAGE", ".trimtab"))


class Compute(Spec):
    """Backend, workers, devices, ZeRO stage, micro-batch, storage, retries."""

    backend: Literal["ray", "inline"] = "ray"
    address: str | None = Field(None, description="Ray cluster to join; RAY_ADDRESS counts too; none starts one here")
    workers: int = Field(1, ge=1, description="Ray Train workers of one training group")
    groups: int | None = Field(None, ge=1, description="training groups side by side; default: as many as fit")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where the cluster has GPUs, else 0")
    zero_stage: Literal[0, 1, 2, 3] = 1
    micro_batch: int | None = Field(None, ge=1, description="rows a worker holds at once; default: the whole batch")
    activation_checkpointing: bool = Field(False, description="recompute activations backwards: less memory, more time")
    inference_batch: int = Field(64, ge=1)
    storage: Path = Field(default_factory=default_storage)
    max_failures: int = Field(1, ge=0, description="times a dead worker group is started again")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints; default: by time")
    checkpoint_minutes: float = Field(10, gt=0, description="minutes between checkpoints where no steps are given")
    keep_latest: int = Field(2, ge=1, description="newest checkpoints of a training that are kept")
    keep_best: int = Field(1, ge=0, description="further ones, by eval_agreement, where rows are held out")
    resume: Literal["auto", "never", "required"] | Path = Field(
        "auto", description="from the newest usable checkpoint: where there is one, never, always; or from this folder"
    )

    def gpus(self, there: float) -> float:
        """GPUs of one worker: as asked for, or one where the cluster has any."""
        return self.gpus_per_worker if self.gpus_per_worker is not None else float(there > 0)

    @property
    def artifacts(self) -> Path:
        return self.storage / "artifacts"

    @property
    def cache(self) -> Path:
        return self.storage / "cache"
