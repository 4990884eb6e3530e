"""What our trainers share: whole effective batches, one optimiser, losses that are checked, checkpoints, plain logs."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, set_seed
from transformers.trainer_utils import TrainOutput

from trimtab.models.network import HEADS
from trimtab.training.callbacks import Keep
from trimtab.training.checkpoint import Checkpoints, Stored, agreement
from trimtab.training.checkpoint_state import EngineState, set_schedule
from trimtab.training.lending import lent
from trimtab.training.nonfinite import LOWER, At, Counts, Does, Guarded, Policy
from trimtab.training.rows import WholeBatches
from trimtab.training.tally import Tally
from trimtab.training.world import world

if TYPE_CHECKING:
    from torch import nn

    from trimtab.methods.objectives._base import Loss

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What a trainer of ours needs beyond TrainingArguments; `ids` are the rows' own, by their place."""

    ids: list[str]
    batch_size: int
    head_lr_scale: float = 1.0
    on_nonfinite: Does = "stop"
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True)
class Found:
    """The loss over the rows of one micro-batch, and which of them have finite outputs."""

    loss: Loss
    finite_B: Tensor


class House(Trainer):
    """Base of our trainers. Every input's first dimension is that of the rows; `row` is a row's place in its data set.

    A subclass says in `found` what the loss of some rows is; here it is checked, and scaled so that the micro-batches
    of all workers add up to the mean over the effective batch. What it remembers from step to step it says in
    `remembered`. Random numbers are seeded anew at every step, so a step depends on nothing but weights and rows.
    """

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        self.settings = settings
        self.tokens = 0
        self.tally, self.whole = Tally(), Tally()
        self.seconds, self._began = 0.0, time.monotonic()
        checkpoints = settings.checkpoints
        self.policy = Policy(settings.on_nonfinite, settings.ids, checkpoints.out if checkpoints else None)
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True
        if checkpoints:
            self.add_callback(Keep(checkpoints))

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        """Forward and loss of rows."""
        raise NotImplementedError

    def watch(self, model: nn.Module, inputs: Inputs) -> Any:
        """Loss and outputs of held-out rows."""
        return self.found(model, inputs).loss.value, {}

    def remembered(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside weights and moments: the same on every rank."""
        return {}

    def remember(self, kept: dict[str, Tensor]) -> None:
        """Take up what `remembered` gave."""

    def compute_loss(
        self, model: nn.Module, inputs: Inputs, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            value, outputs = self.watch(model, inputs)
            return (value, outputs) if return_outputs else value
        self.tokens += int(inputs["attention_mask"].sum()) * self.args.world_size
        loss = self.checked(model, inputs)
        return loss.value * (len(inputs["row"]) * self.args.world_size / self.settings.batch_size)

    def checked(self, model: nn.Module, inputs: Inputs) -> Loss:
        """The loss of these rows; where it is not finite on any rank, what on_nonfinite says (see Policy.loss)."""
        again = partial(self.found, model)
        loss, rows = self.policy.loss(again(inputs), inputs, again=again, at=self._at(1))
        if rows:
            self.tally.add("loss", loss.value.item() * len(inputs["row"]) / rows, weight=rows)
        for name, metric in loss.metrics.items():
            self.tally.add(f"objective/{name}", float(metric))
        return loss

    def _at(self, ahead: int = 0) -> At:
        return At(self.state.global_step + ahead, self.state.max_steps)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; DeepSpeed takes the optimiser's step within the last one."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            if self.accelerator.optimizer_step_was_skipped:
                self.policy.gradient(self._at(1))
            if self.policy.hit and self.policy.does == "rollback":
                self._go_back()
            self.policy.next_step()
        return loss

    def _go_back(self) -> None:
        """Weights and moments of the last checkpoint; the rows go on, more slowly."""
        checkpoints = self.settings.checkpoints
        folder = world().told(checkpoints.newest() if checkpoints and world().first else None)
        self.policy.went_back(self._at(1), folder)
        stored = lent(folder)
        EngineState(self.model_wrapped).set(stored, stored.manifest["updates"])
        set_schedule(self.lr_scheduler, self.lr_scheduler.last_epoch, factor=LOWER)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of the step that starts, with random numbers of its own."""
        samples = super().get_batch_samples(*args, **kwargs)
        what = f"{self.args.seed} {self.state.global_step} {world().rank}"
        set_seed(int.from_bytes(hashlib.sha256(what.encode()).digest()[:4]))
        return samples

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        settings = self.settings
        self._sampler = WholeBatches(len(settings.ids), batch_size=settings.batch_size, seed=self.args.seed)
        return self._sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; norms and vectors without weight decay, the head with its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, weight in (model or self.model).named_parameters():
            if weight.requires_grad:
                is_head = any(part in HEADS for part in name.split("."))
                groups.setdefault((is_head, weight.ndim > 1), []).append(weight)
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        kind = Guarded if plugin and plugin.zero_stage == 0 else torch.optim.AdamW
        self.optimizer = kind(
            [
                {
                    "params": weights,
                    "lr": self.args.learning_rate * (self.settings.head_lr_scale if is_head else 1),
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (is_head, decays), weights in groups.items()
            ],
            lr=self.args.learning_rate,
            fused=True,
        )
        return self.optimizer

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint where there is one to go on from. Raises ResourceError as Checkpoints.start does."""
        checkpoints = self.settings.checkpoints
        folder = checkpoints.start() if checkpoints else None
        self._began = time.monotonic()
        result = super().train(resume_from_checkpoint=str(folder) if folder else None, **kwargs)
        if checkpoints:
            checkpoints.end()
        total, rows = self.whole.sums.get("loss", (result.training_loss, 1))
        return TrainOutput(result.global_step, total / rows, result.metrics | {"train_runtime": self._spent()})

    def _spent(self) -> float:
        return self.seconds + time.monotonic() - self._began

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Transformers would look for DeepSpeed's own files in the checkpoint; ours are read here."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint:
            self._take_up(Stored(Path(resume_from_checkpoint)))
        elif self.policy.does == "rollback":
            self._save_checkpoint(self.model, None)
        return prepared

    def _run_epoch(self, **kwargs: Any) -> None:
        """The sampler hears of the epoch here: what skips the rows of earlier steps does not tell it."""
        self._sampler.set_epoch(kwargs["epoch"])
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Everything that the next step depends on, and what is said at the end."""
        engine = EngineState(self.model_wrapped)
        facts = {
            "updates": engine.updates,
            "schedule": self.lr_scheduler.last_epoch,
            "policy": self.policy.state(),
            "tally": self.tally.of_all_ranks(),
            "whole": self.whole.sums,
            "seconds": self._spent(),
            "eval_agreement": agreement(self.state.log_history),
        }
        own = ((f"trainer/{name}", value) for name, value in self.remembered().items())
        tensors = (pair for part in (engine.tensors(), own) for pair in part)
        self.settings.checkpoints.write(self.state.global_step, tensors, facts=facts, state=self.state)

    def _take_up(self, stored: Stored) -> None:
        facts = stored.manifest
        EngineState(self.model_wrapped).set(stored, facts["updates"])
        self.policy.counts = Counts(**facts["policy"])
        set_schedule(self.lr_scheduler, facts["schedule"], factor=self.policy.counts.factor)
        self.tally.sums = facts["tally"] if world().first else {}
        self.whole.sums, self.seconds = facts["whole"], facts["seconds"]
        self.remember(stored.under("trainer/"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Means are those of all ranks since the last log, over the rows that were learned from."""
        if "loss" in logs:
            sums = self.tally.of_all_ranks()
            self.tally.sums = {}
            logs |= {name: total / weight for name, (total, weight) in sums.items()}
            if "loss" in sums:
                self.whole.add("loss", logs["loss"], weight=sums["loss"][1])
        self.policy.logged(logs, self._at())
        super().log(logs, start_time)
