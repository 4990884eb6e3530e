"""Trainers bound to our objectives: the only file that overrides the Trainer's insides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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


class LabelTrainer(Trainer):
    """Trains a classifier with one of our objectives; the loss and its statistics are those of the whole batch."""

    def __init__(self, *args: Any, objective: Objective, batch_size: int, head_lr_scale: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective, self.batch_size, self.head_lr_scale = objective, batch_size, head_lr_scale
        self.loss_is_scaled_for_ga = True
        self.tokens = 0
        self._recent: deque[tuple[Tensor, Tensor]] = deque()
        self._whole: list[tuple[Tensor, Tensor]] = []
        self._position = 0
        self._said: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> WholeBatches:
        return WholeBatches(len(self.train_dataset), batch_size=self.batch_size, seed=self.args.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; norms and vectors without weight decay, the head with its own learning rate."""
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
        """Also runs the other micro-batches without gradient when the objective needs the whole batch."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._whole, self._position = [], 0
        if len(samples) > 1 and self.objective.whole_batch:
            with torch.no_grad():
                for sample in samples:
                    inputs = dict(self._prepare_inputs(sample))
                    weak, _ = inputs.pop("weak"), inputs.pop("row")
                    self._whole.append((self.model_wrapped(**inputs).logits.float(), weak))
        return samples, count

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        weak, row = inputs.pop("weak"), inputs.pop("row")
        outputs = model(**inputs)
        logits = outputs.logits.float()
        if not model.training:
            value = -(weak * logits.log_softmax(-1)).sum(-1).mean()
            return (value, {"logits": logits}) if return_outputs else value
        self.tokens += int(inputs["attention_mask"].sum()) * self.args.world_size
        context = self._context(logits.detach(), weak)
        done = self.state.global_step / max(1, self.state.max_steps)
        loss = self.objective(LabelBatch(logits, weak, done, *context))
        if not torch.isfinite(loss.value):
            raise StageError(f"the loss is {loss.value.item()} at step {self.state.global_step}; rows {row.tolist()}")
        for name, metric in loss.metrics.items():
            self._said.setdefault(name, []).append(float(metric))
        return loss.value * (len(weak) * self.args.world_size / self.batch_size)

    def _context(self, logits: Tensor, weak: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Rows beside this micro-batch that the objective's statistics are taken over."""
        if not self.objective.whole_batch:
            return None, None
        others = [pair for i, pair in enumerate(self._whole) if i != self._position]
        mine = world()
        for rank, pairs in enumerate(mine.gather(self._whole or [(logits, weak)])):
            others += pairs if rank != mine.rank else []
        self._position += 1
        rows = [*self._recent, *others]
        if self._position >= max(1, len(self._whole)):
            self._remember([*others, (logits, weak)])
        if not rows:
            return None, None
        return torch.cat([z for z, _ in rows]), torch.cat([q for _, q in rows])

    def _remember(self, batch: list[tuple[Tensor, Tensor]]) -> None:
        room = getattr(self.objective, "buffer", 0)
        if room:
            self._recent.extend(batch)
            while sum(len(q) for _, q in self._recent) - len(self._recent[0][1]) >= room:
                self._recent.popleft()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {f"objective/{name}": sum(values) / len(values) for name, values in self._said.items()}
            self._said.clear()
        super().log(logs, start_time)
