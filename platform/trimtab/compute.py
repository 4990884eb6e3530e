"""Where a job runs. Nothing here enters a stage's key: it must not change a result beyond rounding."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from trimtab.errors import JobError
from trimtab.spec import Spec

PASSWORD = re.compile(r"""://[^/@\s:]*:(?!\d{2,5}/)[^@\s"',]+@""")
"""In a URL. It may hold a slash, as keys of S3 do; a port with a path behind it is none."""
URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s?*\[\]]+")


def default_storage() -> Path:
    """TRIMTAB_STORAGE, or the mirror of the URL that it holds. Raises JobError."""
    return place().storage


def place(storage: str | Path | None = None) -> Compute:
    """A storage alone: the one given, else the usual one. Raises JobError."""
    try:
        return Compute() if storage is None else Compute(storage=storage)
    except ValidationError as error:
        told = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
        raise JobError([f"storage: {text}" for text in told]) from None


def mirror_of(url: str) -> Path:
    """The folder on every node that holds what is made there, or fetched from the URL: below TRIMTAB_MIRROR."""
    root = Path(os.environ.get("TRIMTAB_MIRROR", "~/.cache/trimtab")).expanduser().resolve()
    return root / hashlib.sha256(url.encode()).hexdigest()[:12]


class Compute(Spec):
    """Backend, workers, devices, ZeRO stage, micro-batch, storage, retries."""

    backend: Literal["ray", "inline"] = "ray"
    address: str | None = Field(None, description="Ray cluster to join; RAY_ADDRESS counts too; none starts one here")
    workers: int = Field(1, ge=1, description="Ray Train workers of one training group")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few where there is no room for more, and with more as it comes",
    )
    groups: int | None = Field(None, ge=1, description="training groups side by side; default: as many as fit")
    grows: bool = Field(description="an autoscaler adds nodes: one group waits for what is missing; TRIMTAB_GROWS=1")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where the cluster has GPUs, else 0")
    zero_stage: Literal[0, 1, 2, 3] = 1
    micro_batch: int | None = Field(None, ge=1, description="rows a worker holds at once; default: the whole batch")
    activation_checkpointing: bool = Field(False, description="recompute activations backwards: less memory, more time")
    inference_batch: int = Field(64, ge=1)
    storage: Path = Field(description="folder, or a URL as s3://bucket/prefix; default: TRIMTAB_STORAGE or .trimtab")
    remote: str | None = Field(None, description="the URL that `storage` was given as, which then is its mirror")
    max_failures: int = Field(1, ge=0, description="times a stage is begun again since its workers died")
    max_preemptions: int | None = Field(
        None, ge=0, description="times it is started again after a node was taken away; default: any number"
    )
    hang_minutes: float | None = Field(
        30, gt=0, description="a stage on workers that says nothing for so long is ended; null: never"
    )
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints; default: by time")
    checkpoint_minutes: float = Field(10, gt=0, description="minutes between checkpoints where no steps are given")
    keep_latest: int = Field(2, ge=1, description="newest checkpoints of a training that are kept")
    keep_best: int = Field(1, ge=0, description="further ones, by eval_agreement, where rows are held out")
    resume: Literal["auto", "never", "required"] | Path = Field(
        "auto",
        description="begin with the newest usable checkpoint: where there is one, never, always; or with this one",
    )

    @model_validator(mode="before")
    @classmethod
    def _placed(cls, given: Any) -> Any:
        """What the environment says; a URL in `storage` is the remote, `storage` the folder that mirrors it here."""
        if not isinstance(given, dict):
            return given
        given = {"grows": os.environ.get("TRIMTAB_GROWS") == "1"} | given
        storage, remote = given.get("storage", os.environ.get("TRIMTAB_STORAGE", ".trimtab")), given.get("remote")
        if remote is not None and str(storage) != str(mirror_of(str(remote))):
            raise ValueError("remote follows from storage: give the URL as compute.storage")
        if remote is not None or not isinstance(storage, str) or "://" not in storage:
            return given | {"storage": storage}
        url = storage.rstrip("/")
        return given | {"storage": mirror_of(url), "remote": _plain(url)}

    @model_validator(mode="after")
    def _possible(self) -> Compute:
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers, which is {self.workers}")
        return self

    @property
    def sizes(self) -> range:
        """How many workers a training group may have."""
        return range(self.min_workers or self.workers, self.workers + 1)

    def gpus(self, there: float) -> float:
        """GPUs of one worker: as asked for, or one where the cluster has any."""
        return self.gpus_per_worker if self.gpus_per_worker is not None else float(there > 0)

    @property
    def hang_s(self) -> float | None:
        return None if self.hang_minutes is None else 60 * self.hang_minutes

    @property
    def artifacts(self) -> Path:
        return self.storage / "artifacts"

    @property
    def cache(self) -> Path:
        return self.storage / "cache"


def _plain(url: str) -> str:
    """Raises ValueError for what is no plain URL, and for one that holds a password, which is not repeated."""
    if PASSWORD.search(url) or "?" in url:
        raise ValueError(
            "storage may not hold a password or key; the environment does, as the store's own tools read it"
        )
    if not URL.fullmatch(url):
        raise ValueError("storage should be a folder or a URL such as s3://bucket/prefix")
    return url
