"""Policies trained on preferences: TRL's trainers give fused log-probs, our objectives the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from trimtab.methods.objectives._base import Loss
from trimtab.methods.preferences._base import PairBatch, Side, UnpairedBatch
from trimtab.training.trainers._base import Found, House, Inputs
from trimtab.training.trainers._completions import CompletionTrainer

if TYPE_CHECKING:
    from torch import nn

FROZEN = ("reference", "weak", "weak_reference")
IGNORED = -100


class PolicyTrainer(CompletionTrainer):
    """What our trainers of policies share; the frozen models' log-probs stand in the rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy of the adapters, for a reference that the rows bring
        bare = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        add_fused_lm_head(bare)  # TRL's trainers ask for entropies and ranks too, which cost

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The reference's log-probs come with the rows; asking TRL to precompute them keeps it from loading one."""
        return dataset

    def logps(self, model: nn.Module, inputs: Inputs, prefix: str = "") -> Tensor:
        """log pi of each next token, (..., T - 1), 0 outside the completions."""
        ids = inputs[f"{prefix}input_ids"]
        shown = {"input_ids": ids, "attention_mask": inputs[f"{prefix}attention_mask"]}
        labels = ids.masked_fill(inputs[f"{prefix}completion_mask"] == 0, IGNORED).flatten(0, -2)
        kernel = fused if ids.is_cuda else compact
        logps_NT = kernel(model, {name: value.flatten(0, -2) for name, value in shown.items()}, labels)
        return logps_NT.float().view(*ids.shape[:-1], -1)


def fused(model: nn.Module, shown: Inputs, labels_NT: Tensor) -> Tensor:
    """Log-probs (N, T - 1) by TRL's kernel, which on a GPU never holds all logits."""
    return model(**shown, labels=labels_NT, use_cache=False, fused_lm_head=True).log_probs


def compact(model: nn.Module, shown: Inputs, labels_NT: Tensor) -> Tensor:
    """Log-probs (N, T - 1) with the language head on the completions alone; on a CPU the kernel takes all positions."""
    targets_NT = labels_NT[:, 1:]
    wanted_NT = targets_NT != IGNORED
    inner = getattr(model, "module", model)
    hook = inner.get_output_embeddings().register_forward_pre_hook(
        lambda head, states: (states[0][:, :-1][wanted_NT][None],)
    )
    try:
        logits_MV = model(**shown, use_cache=False).logits[0]
    finally:
        hook.remove()
    told_M = -torch.nn.functional.cross_entropy(logits_MV.float(), targets_NT[wanted_NT], reduction="none")
    return told_M.new_zeros(wanted_NT.shape).masked_scatter(wanted_NT, told_M)


class PairTrainer(PolicyTrainer, DPOTrainer):
    """Pairs: input_ids and masks are (B, 2, T), chosen first."""

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        logps_B2T = self.logps(model, inputs)
        mask_B2T = inputs["completion_mask"][..., 1:]
        frozen = {name: Side(*inputs[name].unbind(1)) for name in FROZEN if name in inputs}
        told = {"p_B": inputs["p"], "margin_B": inputs["margin"]} | frozen
        batch = PairBatch(Side(*logps_B2T.unbind(1)), *mask_B2T.unbind(1), **told)
        return Found(self.objective(batch), logps_B2T.isfinite().flatten(1).all(-1))


class ChosenTrainer(PolicyTrainer, SFTTrainer):
    """The chosen completions alone: input_ids and masks are (B, 1, T)."""

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        logps_BT = self.logps(model, inputs)[:, 0]
        mask_BT = inputs["completion_mask"][:, 0, 1:]
        batch = PairBatch(Side(logps_BT, logps_BT[:, :0]), mask_BT, mask_BT[:, :0], p_B=inputs["p"])
        return Found(self.objective(batch), logps_BT.isfinite().all(-1))


class UnpairedTrainer(PolicyTrainer, KTOTrainer):
    """Single completions, each with another prompt's beside it (kl_*) to judge the distance to the reference by.

    The distance is measured over all rows of a step before its first micro-batch.
    """

    _strangers: tuple[Tensor, Tensor] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return House._get_train_sampler(self, train_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of the step that starts, and what policy and reference say of their strangers."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.model_wrapped.train()
        found = [self._of_strangers(self.model_wrapped, self._prepare_inputs(sample)) for sample in samples]
        self._strangers = tuple(torch.cat(part) for part in zip(*found, strict=True)) if found else None
        return samples, count

    @torch.no_grad()
    def _of_strangers(self, model: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Log-probs of strangers by policy and by reference, those of all ranks; what is not finite is left out."""
        both_2N = torch.stack([self.logps(model, inputs, "kl_").sum(-1), inputs["kl_reference"].sum(-1)])
        both_N2 = self.accelerator.gather(both_2N.T.contiguous())
        return both_N2[both_N2.isfinite().all(-1)].unbind(-1)

    def found(self, model: nn.Module, inputs: Inputs) -> Found:
        kl_policy_N, kl_reference_N = self._strangers if model.training else self._of_strangers(model, inputs)
        logps_BT = self.logps(model, inputs)
        batch = UnpairedBatch(
            policy_BT=logps_BT,
            reference_BT=inputs["reference"],
            mask_BT=inputs["completion_mask"][..., 1:],
            desirable_B=inputs["p"] > 0.5,
            kl_policy_N=kl_policy_N,
            kl_reference_N=kl_reference_N,
        )
        loss = self.objective(batch)
        nearer_B = logps_BT.detach().sum(-1) > inputs["reference"].sum(-1)
        agrees = {"accuracy": (nearer_B == batch.desirable_B).float().mean().item()}
        return Found(Loss(loss.value, loss.metrics | agrees), logps_BT.isfinite().all(-1))
