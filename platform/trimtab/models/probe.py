"""A linear head on standardised states of a frozen trunk, as a model that from_pretrained loads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel


class ProbeConfig(PreTrainedConfig):
    """Width and classes of the head, and the trunk (a ModelSpec as a dict) whose states it reads."""

    model_type = "trimtab_probe"

    def __init__(
        self, hidden_size: int = 1, n_classes: int = 2, trunk: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size, self.n_classes, self.trunk = hidden_size, n_classes, trunk


class ProbeModel(PreTrainedModel):
    """logits_BC from states_BD: standardise, then one linear map; two classes share a single direction."""

    config_class = ProbeConfig
    base_model_prefix = "probe"

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("scale", torch.ones(config.hidden_size))
        self.linear = nn.Linear(config.hidden_size, 1 if config.n_classes == 2 else config.n_classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.zero_()
            module.bias.data.zero_()

    def forward(self, states_BD: Tensor) -> Tensor:
        logits = self.linear((states_BD.float() - self.mean) / self.scale)
        return torch.cat([torch.zeros_like(logits), logits], -1) if self.config.n_classes == 2 else logits


AutoConfig.register("trimtab_probe", ProbeConfig)
