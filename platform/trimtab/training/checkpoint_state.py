"""A DeepSpeed engine's trained weights and moments, whole: the same names and values under any stage and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from trimtab.training.checkpoint import Stored

MOMENTS = ("exp_avg", "exp_avg_sq")


class EngineState:
    """What AdamW under DeepSpeed (ZeRO 0 to 3) needs to go on. Reading and setting take every rank."""

    def __init__(self, engine: Any) -> None:
        import deepspeed  # here, for it looks for an accelerator when it is imported

        self.reach, self.gathered = deepspeed.utils, deepspeed.zero.GatheredParameters
        self.optimizer, self.adam = engine.optimizer, engine.basic_optimizer
        self.stage = engine.zero_optimization_stage()
        self.weights = {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}
        self.masters = dict(self._masters()) if self.stage == 0 else {}
        self._make_moments()

    def _masters(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Without ZeRO, the float32 copy of each bfloat16 weight; a float32 weight is its own."""
        if not hasattr(self.optimizer, "fp32_groups"):
            yield from zip(self.weights.values(), self.weights.values(), strict=True)
            return
        for low, high in zip(self.optimizer.fp16_groups, self.optimizer.fp32_groups, strict=True):
            yield from zip(low, high, strict=True)

    def _make_moments(self) -> None:
        """Before its first step AdamW has none: zeros, as it makes them itself."""
        for flat in self._steered():
            if not self.adam.state[flat]:
                step = torch.zeros((), dtype=torch.float32, device=flat.device)
                self.adam.state[flat] = {"step": step} | {name: torch.zeros_like(flat) for name in MOMENTS}
        if self.stage in (1, 2):  # DeepSpeed does this after the step of its first group, when the others have none yet
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _steered(self) -> list[Tensor]:
        """The tensors that AdamW itself sees: this rank's flat parts under ZeRO."""
        if self.stage == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return [weight for group in self.adam.param_groups for weight in group["params"]]

    @property
    def updates(self) -> int:
        """Steps that AdamW has taken."""
        return max(int(self.adam.state[flat]["step"]) for flat in self._steered())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained weight in float32 and its moments, one after the other."""
        for name, weight in self.weights.items():
            yield f"weight/{name}", self._whole(weight)
            for moment in MOMENTS:
                yield f"{moment}/{name}", self._whole(weight, moment)

    def _whole(self, weight: nn.Parameter, moment: str | None = None) -> Tensor:
        if self.stage == 0:
            master = self.masters[weight]
            return self.adam.state[master][moment] if moment else master
        reach = self.reach
        return reach.safe_get_full_optimizer_state(weight, moment) if moment else reach.safe_get_full_fp32_param(weight)

    @torch.no_grad()
    def set(self, stored: Stored, updates: int) -> None:
        """Take over weights and moments, and AdamW's count of steps."""
        for name, weight in self.weights.items():
            for moment in (None, *MOMENTS):
                value = stored[f"{moment or 'weight'}/{name}"].to(weight.device)
                self._put(weight, value, moment=moment)
                if moment is None:
                    with self.gathered([weight], modifier_rank=0, enabled=self.stage == 3):
                        weight.data.copy_(value)
        for flat in self._steered():
            self.adam.state[flat]["step"].fill_(updates)

    def _put(self, weight: nn.Parameter, value: Tensor, *, moment: str | None) -> None:
        if self.stage == 0:
            self._whole(weight, moment).copy_(value)
            return
        reach, place = self.reach, (moment,) if moment else ()
        if self.stage == 3:
            setter = reach.safe_set_local_optimizer_state if moment else reach.safe_set_local_fp32_param
            setter(weight, _part_of_this_rank(weight, value), *place)
        else:
            setter = reach.safe_set_full_optimizer_state if moment else reach.safe_set_full_fp32_param
            setter(weight, value, *place)


def _part_of_this_rank(weight: Any, value: Tensor) -> Tensor:
    """The piece of a weight that ZeRO 3 keeps here; the last is filled up with zeros."""
    size, group = weight.ds_tensor.numel(), weight.ds_process_group
    room = value.new_zeros(size * dist.get_world_size(group))
    room[: value.numel()] = value.flatten()
    return room.narrow(0, size * dist.get_rank(group), size)


def set_schedule(scheduler: Any, at: int, *, factor: float) -> None:
    """Put a LambdaLR where it is after `at` steps, its rates multiplied by `factor` from there on."""
    scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
    rates = [base * share(at) for base, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": at, "_last_lr": rates})
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
