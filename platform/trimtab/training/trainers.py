"""Trainers bound to our objectives: the only file that overrides the Trainer's insides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer

from trimtab.errors import StageError
from trimtab.methods.objectives._base import LabelBatch, Objective
from trimtab.models.network import HEADS
from trimtab.training.world import world

if TYPE_CHECKING:
    from torch import nn


class WholeBatches(Sampler[int]):
    """A seeded shuffle of the rows for each epoch, cut to whole effective batches.

    So every optimiser step sees the same rows whatever the number of workers and the micro-batch.
    """

    def __init__(self, rows: int, *, batch_size: int, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.used = rows // batch_size * batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.rows, generator=generator)[: self.used].tolist()


@dataclass(frozen=True)
class Seen:
    """Rows without gradient: their places in the data set, what the model says, what the labels say."""

    row_N: Tensor
    logits_NC: Tensor
    weak_NC: Tensor

    def __getitem__(self, chosen: Any) -> Seen:
        return Seen(self.row_N[chosen], self.logits_NC[chosen], self.weak_NC[chosen])

    @staticmethod
    def joined(parts: list[Seen]) -> Seen:
        return Seen(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row_N", "logits_NC", "weak_NC")))


class LabelTrainer(Trainer):
    """Trains a classifier with one of our objectives; the loss and its statistics are those of the whole batch."""

    def __init__(self, *args: Any, objective: Objective, batch_size: int, head_lr_scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective, self.batch_size, self.head_lr_scale = objective, batch_size, head_lr_scale
        self.loss_is_scaled_for_ga = True
        self.tokens = 0
        self._step: Seen | None = None
        self._recent: list[Seen] = []
        self._said: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        return WholeBatches(len(self.train_dataset), batch_size=self.batch_size, seed=self.args.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; norms and vectors without weight decay, the head with its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, weight in (model or self.model).named_parameters():
            if weight.requires_grad:
                is_head = any(part in HEADS for part in name.split("."))
                groups.setdefault((is_head, weight.ndim > 1), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": weights,
                    "lr": self.args.learning_rate * (self.head_lr_scale if is_head else 1),
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (is_head, decays), weights in groups.items()
            ],
            lr=self.args.learning_rate,
            fused=True,
        )
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of the step that starts; where its statistics span several, all are looked at first."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.objective.whole_batch:
            self._remember()
            self._step = self._of_all_ranks(self._without_gradient(samples)) if len(samples) > 1 else None
        return samples, count

    def _without_gradient(self, samples: list[dict[str, Tensor]]) -> Seen:
        self.model_wrapped.train()
        seen = []
        with torch.no_grad():
            for sample in samples:
                inputs = self._prepare_inputs(sample)
                weak, row = inputs.pop("weak"), inputs.pop("row")
                seen.append(Seen(row, self.model_wrapped(**inputs).logits.float(), weak))
        return Seen.joined(seen)

    def _of_all_ranks(self, seen: Seen) -> Seen:
        return Seen(*(self.accelerator.gather(part) for part in (seen.row_N, seen.logits_NC, seen.weak_NC)))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the model's device and in its dtype, but for the labels: they stay in float32."""
        return super()._prepare_inputs(inputs) | {"weak": inputs["weak"].to(self.args.device)}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        weak, row = inputs.pop("weak"), inputs.pop("row")
        logits = model(**inputs).logits.float()
        if not model.training:
            value = torch.nn.functional.cross_entropy(logits, weak)
            return (value, {"logits": logits}) if return_outputs else value
        self.tokens += int(inputs["attention_mask"].sum()) * self.args.world_size
        done = self.state.global_step / max(1, self.state.max_steps)
        context = self._context(Seen(row, logits.detach(), weak))
        loss = self.objective(LabelBatch(logits, weak, done, *context))
        if not torch.isfinite(loss.value):
            raise StageError(self._not_finite(loss.value, logits, row))
        for name, metric in loss.metrics.items():
            self._said.setdefault(name, []).append(float(metric))
        return loss.value * (len(weak) * self.args.world_size / self.batch_size)

    def _not_finite(self, loss: Tensor, logits_BC: Tensor, row_B: Tensor) -> str:
        bad = row_B[~logits_BC.isfinite().all(-1)].tolist() or row_B.tolist()
        ids = ", ".join(self.train_dataset.ids[i] for i in bad[:8]) + f" and {len(bad) - 8} more" * (len(bad) > 8)
        return (
            f"the loss is {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}, "
            f"from rows {ids}: look at them, or lower learning_rate"
        )

    def _context(self, own: Seen) -> tuple[Tensor | None, Tensor | None]:
        """Rows beside this micro-batch that the objective's statistics are taken over."""
        if not self.objective.whole_batch:
            return None, None
        if self._step is None:
            self._step = self._of_all_ranks(own)
        rows = Seen.joined([*self._recent, self._step[~torch.isin(self._step.row_N, own.row_N)]])
        return (rows.logits_NC, rows.weak_NC) if len(rows.row_N) else (None, None)

    def _remember(self) -> None:
        """Keep the last rows that the objective's buffer has room for; in one order, whoever computed them."""
        room = getattr(self.objective, "buffer", 0)
        if room and self._step is not None:
            self._recent = [Seen.joined([*self._recent, self._step[self._step.row_N.argsort()]])[-room:]]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Watching takes no random numbers away from training."""
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._said:
            said = world().gather({name: sum(values) / len(values) for name, values in self._said.items()})
            logs |= {f"objective/{name}": sum(values[name] for values in said) / len(said) for name in self._said}
            self._said.clear()
        super().log(logs, start_time)
