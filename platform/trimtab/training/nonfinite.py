"""Losses and gradients that are not finite: which rows they come from, what is done about them, how often."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from trimtab.errors import StageError
from trimtab.methods.objectives._base import Loss
from trimtab.training.world import world

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.training.trainers._base import Found, Inputs

Does = Literal["stop", "skip", "rollback"]
SKIPPED = "skipped.jsonl"
ROLLBACKS = 3
LOWER = 0.5
"""What the learning rate is multiplied by when training goes back."""


class At(NamedTuple):
    """A step, and of how many."""

    step: int
    of: int

    def __str__(self) -> str:
        return f"step {self.step} of {self.of}"


def anywhere(flag: bool) -> bool:
    """Whether any rank says so."""
    if world().size == 1:
        return flag
    import torch.distributed as dist

    said = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said)


class Guarded(torch.optim.AdamW):
    """AdamW that leaves a step out when the gradient is not finite, as DeepSpeed's ZeRO does by itself."""

    overflow = False

    def step(self, closure: Any = None) -> None:
        gradients = [w.grad for group in self.param_groups for w in group["params"] if w.grad is not None]
        self.overflow = not torch.nn.utils.get_total_norm(gradients).isfinite()
        if not self.overflow:
            super().step(closure)


@dataclass
class Counts:
    """Rows and steps left out; times gone back, and how much slower training is since."""

    rows: int = 0
    steps: int = 0
    rollbacks: int = 0
    factor: float = 1.0


@dataclass
class Policy:
    """What is done about them. All ranks decide together; `ids` are the rows' own, `out` is where they are noted.

    stop: StageError. skip: the rows, or the step, are left out. rollback: so are they, and after the step the trainer
    goes back to its last checkpoint; `hit` says that it must.
    """

    does: Does
    ids: list[str]
    out: Path | None = None
    counts: Counts = field(default_factory=Counts)
    hit: bool = False
    fine: Inputs | None = None
    rows: list[int] = field(default_factory=list)

    def loss(self, found: Found, inputs: Inputs, *, again: Callable[[Inputs], Found], at: At) -> tuple[Loss, int]:
        """The loss of rows, and how many there are in it; of those with finite outputs where it is not finite anywhere.

        The value is weighed by their share, so that micro-batches still add up to the mean over the effective batch.
        Raises StageError naming the rows under `stop`, or when no choice of rows gives a finite loss.
        """
        row_B = inputs["row"]
        self.rows += row_B.tolist()
        if not anywhere(not found.loss.value.isfinite()):
            if self.does != "stop":
                self.fine = {name: value[:1] for name, value in inputs.items()}
            return found.loss, len(row_B)
        kept_B, value = self._kept(found), found.loss.value.item()
        value = next((told for told in world().gather(value) if not math.isfinite(told)), value)
        del found
        if self.does != "stop":
            for _ in range(2):
                rest = again(self._only(inputs, kept_B)).loss
                if not anywhere(not rest.value.isfinite()):
                    self._leave_out(row_B[~kept_B], at)
                    metrics = rest.metrics if kept_B.any() else {}
                    return Loss(rest.value * (kept_B.sum() / len(kept_B)), metrics), int(kept_B.sum())
                kept_B &= rest.value.isfinite()
        raise StageError(self._refusal(f"the loss is {value}", row_B[~kept_B], at=at))

    def _kept(self, found: Found) -> Tensor:
        """Rows with finite outputs; where all ranks have only such ones, none of those whose loss is not finite."""
        finite_B = found.finite_B
        return finite_B if anywhere(not finite_B.all()) else finite_B & found.loss.value.isfinite()

    def _only(self, inputs: Inputs, kept_B: Tensor) -> Inputs:
        """These rows. A rank that has none takes one that was fine before, or an empty one: all compute together."""
        if kept_B.any():
            return {name: value[kept_B] for name, value in inputs.items()}
        return self.fine or {name: _empty(name, value[:1]) for name, value in inputs.items()}

    def _refusal(self, what: str, row_N: Tensor, *, at: At) -> str:
        rows = self._named(row_N.tolist())
        shown = ", ".join(rows[:8]) + f" and {len(rows) - 8} more" * (len(rows) > 8)
        way_out = ", or leave such rows out with on_nonfinite: skip" if self.does == "stop" else ""
        return f"{what} at {at}, from rows {shown}: look at them, or lower learning_rate{way_out}"

    def _named(self, rows: list[int]) -> list[str]:
        """Ids of these rows of all ranks."""
        return [self.ids[row] for told in world().gather(rows) for row in told]

    def _leave_out(self, row_N: Tensor, at: At) -> None:
        rows = self._named(row_N.tolist())
        self.hit = True
        self.counts.rows += len(rows)
        self._note(at, "loss", rows=rows, then="left out")

    def gradient(self, at: At) -> None:
        """The gradient of a step was not finite, so the step was left out. Raises StageError under `stop`."""
        if self.does == "stop":
            what = "the gradient is not finite though the loss is"
            raise StageError(self._refusal(what, torch.tensor(self.rows), at=at))
        self.hit = True
        self.counts.steps += 1
        self._note(at, "gradient", rows=self._named(self.rows), then="step left out")

    def went_back(self, at: At, to: Path | None) -> None:
        """Counts it. Raises StageError the fourth time, and where there is nothing to go back to."""
        if self.counts.rollbacks == ROLLBACKS or to is None:
            why = f"training went back {ROLLBACKS} times" if to else "there is no checkpoint to go back to"
            raise StageError(f"something is not finite again at {at} and {why}: lower learning_rate")
        self.counts.rollbacks += 1
        self.counts.factor *= LOWER
        then = f"back to {to.name}, with {self.counts.factor} of the learning rate"
        self._note(at, "", rows=[], then=then)

    def next_step(self) -> None:
        self.rows, self.hit = [], False

    def logged(self, logs: dict[str, Any], at: At) -> None:
        """Under `stop`, raises StageError for a value that is not finite."""
        for name, value in logs.items() if self.does == "stop" else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise StageError(f"{name} is {value} at {at}: lower learning_rate, or look at the rows")

    def metrics(self) -> dict[str, float]:
        """What is worth reporting."""
        if self.does == "skip":
            return {"train/skipped_rows": self.counts.rows, "train/skipped_steps": self.counts.steps}
        return {"train/rollbacks": self.counts.rollbacks} if self.does == "rollback" else {}

    def state(self) -> dict[str, Any]:
        return asdict(self.counts)

    def _note(self, at: At, what: str, *, rows: list[str], then: str) -> None:
        """A line in skipped.jsonl, and one in the stage's log."""
        if world().first and self.out:
            entry = {"step": at.step, "not_finite": what, "rows": rows, "then": then}
            with (self.out / SKIPPED).open("a") as file:
                file.write(json.dumps(entry) + "\n")
            found = f"{what} not finite, from rows {', '.join(rows)}: " if rows else ""
            print(f"{at}: {found}{then}", flush=True)


def _empty(name: str, value: Tensor) -> Tensor:
    """Without what may have made it not finite: tokens and numbers go, masks and places stay."""
    return (
        value * 0 if name.endswith("input_ids") else value.nan_to_num(0, 0, 0) if value.is_floating_point() else value
    )
