"""Policies trained on their own samples: TRL's trainers sample and give the loss, all else is as in other trainings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from trl import DistillationTrainer, GRPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from trimtab.data.tables import Completion, Prompt
from trimtab.errors import StageError
from trimtab.training.nonfinite import anywhere
from trimtab.training.trainers._base import House, Inputs

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Reward = Callable[[list[Prompt], list[Completion]], list[float]]
"""One number for each completion of the prompt at its place."""

SAID = ("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "completions/mean_length")


class SelfSamplingTrainer(House):
    """What they share. Rows are prompts, `row` a prompt's place; those of a step are drawn by TRL's sampler."""

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """Shuffled anew for every epoch, from its number, so that a resumed training finds the same order."""
        self._sampler = sampler = super(House, self)._get_train_sampler(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed * 1_000_003 + int(epoch))
        return sampler

    def _prepare_inputs(self, generation_batch: Any) -> Inputs:
        """Samples; the rows that they are of are those to be named if something is not finite."""
        self.policy.rows = list(dict.fromkeys(item["row"] for item in generation_batch))
        return super()._prepare_inputs(generation_batch)

    def _generate(self, prompts: list[Prompt]) -> Any:
        """TRL's samples. Raises StageError where the policy has no probabilities to draw by."""
        try:
            return super()._generate(prompts)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            told = f"the policy's probabilities are not finite at {self._at(1)}: lower learning_rate"
            raise StageError(told) from error

    def compute_loss(self, model: nn.Module, inputs: Inputs, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's loss. Raises StageError where it is not finite; to skip or go back is decided by the gradient."""
        loss = super(House, self).compute_loss(model, inputs, *args, **kwargs)
        if self.policy.does == "stop" and anywhere(not loss.isfinite()):
            raise StageError(f"the loss is {loss.item()} at {self._at(1)}: lower learning_rate, or look at the rewards")
        shown = sum(int(inputs[name].sum()) for name in ("prompt_mask", "completion_mask"))
        self.tokens += shown * self.args.world_size
        self.tally.add("loss", loss.item() * self.current_gradient_accumulation_steps)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What TRL measures of the samples goes under objective/."""
        told = self._metrics["train"]
        told |= {f"objective/{name}": told.pop(name) for name in SAID if name in told}
        super().log(logs, start_time)


class OnlineTrainer(SelfSamplingTrainer, GRPOTrainer):
    """Samples of a prompt compared by their reward; `beta` holds the policy to `reference`, or to the base of LoRA."""

    def __init__(
        self, *args: Any, reward: Reward, beta: float, reference: PreTrainedModel | None = None, **kwargs: Any
    ) -> None:
        self.reward = reward
        super().__init__(*args, reward_funcs=self._rewards, **kwargs)
        self.beta = beta  # set this late, TRL does not load a reference: it would take whole what is cut here
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = prepare_deepspeed(reference, self.accelerator)

    def _rewards(
        self, prompts: list[Prompt], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        """Rewards of TRL's samples. Raises StageError where one is not finite: TRL would pass over it in silence."""
        texts = [said if isinstance(said, str) else said[0]["content"] for said in completions]
        ended = [ids[-1] in self.eos_token_ids for ids in completion_ids]
        shown = [Completion(text, end) for text, end in zip(texts, ended, strict=True)]
        rewards = self.reward(prompts, shown)
        if bad := [text for text, reward in zip(texts, rewards, strict=True) if not math.isfinite(reward)]:
            raise StageError(f"{len(bad)} of {len(texts)} rewards are not finite at {self._at(1)}, as of {bad[0]!r}")
        return rewards


class DistillTrainer(SelfSamplingTrainer, DistillationTrainer):
    """Samples on which the policy's next-token probabilities are brought to those of `teacher_model`."""
