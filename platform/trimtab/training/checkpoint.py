"""Checkpoints of a training: written aside, the manifest last, then renamed; which one to go on from, which to keep."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab import progress
from trimtab.compute import Compute
from trimtab.errors import ResourceError
from trimtab.sharing import shared
from trimtab.training.curves import CURVES, WATCHED
from trimtab.training.nonfinite import SKIPPED, anywhere
from trimtab.training.notice import Notice, notice
from trimtab.training.world import world

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
CARRIED = (CURVES, SKIPPED)
"""Files of the output that grow while training: a checkpoint holds them as they stood."""
SHARD_BYTES = 2**31
OTHERS = {"spec": "another spec", "rows": "other rows"}


def digest(value: Any) -> str:
    """Of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def listed(folder: Path) -> list[Path]:
    """Checkpoints by their number, the newest last; whether they can be used is for `flaw` to say."""
    return sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), key=step_of)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def flaw(folder: Path, belongs: Mapping[str, str]) -> str | None:
    """Why a checkpoint cannot be used for the training that it should belong to; None where it can."""
    if not (folder / MANIFEST).exists():
        return f"it has no {MANIFEST}, so it was never finished"
    try:
        manifest = manifest_of(folder)
    except ValueError:
        return f"its {MANIFEST} cannot be read"
    for name, own in belongs.items():
        if manifest["belongs"].get(name) != own:
            return f"it was written for {OTHERS[name]} ({manifest['belongs'].get(name)}, this training has {own})"
    for name, written in manifest["files"].items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if (size := (folder / name).stat().st_size) != written["bytes"]:
            return f"{name} is {size} bytes long, not {written['bytes']}: it was cut short"
        if _sha256(folder / name) != written["sha256"]:
            return f"{name} is not what was written: its digest differs"
    return None


class Stored:
    """The content of a checkpoint: `manifest`, and tensors by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, manifest_of(folder)
        files = [safe_open(folder / name, "pt") for name in self.manifest["files"] if name.endswith(".safetensors")]
        self.places = {key: file for file in files for key in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name].get_tensor(name)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin so, without the prefix."""
        return {name.removeprefix(prefix): self[name] for name in self.places if name.startswith(prefix)}


@dataclass
class Checkpoints:
    """The checkpoints of one training, in `folder`. Every rank calls; the first reads and writes.

    `belongs` says which training it is (digests of its spec and its rows); `out` is where its curves grow.
    """

    folder: Path
    out: Path
    belongs: dict[str, str]
    compute: Compute
    last: float = field(default_factory=time.monotonic)
    heeded: Notice | None = None

    def start(self) -> Path | None:
        """The checkpoint to go on from, if any, with the output's growing files as they stood at it.

        Raises ResourceError when one is required, or named, and cannot be used.
        """
        found, problem = world().gather(self._decide() if world().first else None)[0]
        if problem:
            raise ResourceError(problem)
        self.last = time.monotonic()
        return found

    def _decide(self) -> tuple[Path | None, str | None]:
        resume = self.compute.resume
        if isinstance(resume, Path):
            if why := flaw(resume, self.belongs):
                return None, f"compute.resume is {resume}, but {why}; name another one, or set it to auto"
            found: Path | None = resume
        else:
            found = self.newest() if resume != "never" else None
        if found is None and resume == "required":
            return None, f"compute.resume is required, but {self.folder} has no checkpoint to use; set it to auto"
        step = manifest_of(found)["step"] if found else -1
        for left in [*self.folder.glob(".step-*"), *listed(self.folder)]:
            if left.name.startswith(".") or step_of(left) > step:
                shutil.rmtree(left, ignore_errors=left.name.startswith("."))  # who writes it may still be at it
        if found:
            say(f"going on from step {step}: {found}")
            for name in CARRIED:
                (self.out / name).unlink(missing_ok=True)
                if (found / name).exists():
                    shutil.copy(found / name, self.out / name)
        return found, None

    def newest(self) -> Path | None:
        """The newest one that can be used; says why newer ones cannot."""
        for folder in reversed(listed(self.folder)):
            why = flaw(folder, self.belongs)
            if why is None:
                return folder
            say(f"checkpoint {folder} is left aside: {why}", "checkpoint_left")
        return None

    def due(self, step: int) -> bool:
        """Whether to write one now, by steps or time or since a node leaves: the same answer on every rank."""
        steps, leaving = self.compute.checkpoint_steps, self._leaving()
        late = steps is None and world().first and time.monotonic() - self.last >= 60 * self.compute.checkpoint_minutes
        return anywhere(late or leaving) or (steps is not None and step % steps == 0)

    def _leaving(self) -> bool:
        """Whether this rank was told that a node is taken away, and not heeded it yet."""
        told = notice()
        if told is None or told == self.heeded:
            return False
        self.heeded = told
        until = f" at {time.strftime('%H:%M:%S', time.localtime(told.deadline_ms / 1000))}" if told.deadline_ms else ""
        text = f"a node is taken away{until}: a checkpoint is written ({', '.join(told.nodes)})"
        progress.emit("preemption", nodes=list(told.nodes), deadline_ms=told.deadline_ms, text=text)
        print(text, flush=True)
        return True

    def write(self, step: int, tensors: Iterable[tuple[str, Tensor]], *, facts: dict[str, Any], state: Any) -> None:
        """One more: tensors, `facts` in the manifest, the Trainer's `state`. Getting the tensors takes all ranks."""
        aside = self.folder / f".step-{step:08d}.{uuid.uuid4().hex[:8]}"
        first = world().first
        if first:
            aside.mkdir(parents=True)
        shard: dict[str, Tensor] = {}
        size = 0
        for name, tensor in tensors:
            if first:
                shard[name] = tensor.detach().cpu().contiguous()
                size += tensor.nbytes
            if size >= SHARD_BYTES:
                _save(shard, aside)
                size = 0
        if first:
            _save(shard, aside)
            state.save_to_json(str(aside / STATE))
            self._seal(aside, {"step": step, "belongs": self.belongs} | facts)
            self._publish(aside, step)
        self.last = time.monotonic()

    def _seal(self, aside: Path, manifest: dict[str, Any]) -> None:
        for name in CARRIED:
            if (self.out / name).exists():
                shutil.copy(self.out / name, aside / name)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=1))
        shared(*aside.iterdir())

    def _publish(self, aside: Path, step: int) -> None:
        place = self.folder / f"step-{step:08d}"
        _remove(place)
        aside.rename(place)
        for folder in set(listed(self.folder)) - self._kept():
            _remove(folder)

    def _kept(self) -> set[Path]:
        """The newest, and the best of those that know how well they agree with rows held out."""
        scores: dict[Path, float | None] = {}
        for folder in listed(self.folder):
            with suppress(FileNotFoundError, ValueError):  # of what was never whole there is nothing to keep
                scores[folder] = manifest_of(folder).get("eval_agreement")
        ranked = sorted((p for p in scores if scores[p] is not None), key=lambda p: (scores[p], step_of(p)))
        return {*list(scores)[-self.compute.keep_latest :], *ranked[max(0, len(ranked) - self.compute.keep_best) :]}

    def end(self) -> None:
        """Training is over: what lies in the output is no longer needed; a folder that outlives it goes with others."""
        if self.folder.parent == self.out and world().first:
            shutil.rmtree(self.folder, ignore_errors=True)


def agreement(history: list[dict[str, float]]) -> float | None:
    """The last eval_agreement among what was logged."""
    found = [v for logs in history for name, v in logs.items() if WATCHED.get(name, name) == "eval_agreement"]
    return found[-1] if found and math.isfinite(found[-1]) else None


def say(text: str, event: str = "note") -> None:
    """To the stage's log and to whoever listens."""
    print(text, flush=True)
    progress.emit(event, text=text)


def _save(shard: dict[str, Tensor], aside: Path) -> None:
    """One file more; the tensors are let go of."""
    if shard:
        save_file(shard, aside / f"tensors-{len(list(aside.glob('tensors-*'))):05d}.safetensors")
        shard.clear()


def _remove(folder: Path) -> None:
    """Its name goes first: one that is half gone must not look like a checkpoint."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
