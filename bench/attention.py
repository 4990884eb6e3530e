"""Attention kernels of a CPU on short and long rows: one training step and one forward pass of SmolLM2's upper layers.

The numbers behind `models/network.py: suit_attention`. Writes bench/results/attention.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trimtab.environment import settle
from trimtab.models.network import Halves, load_network
from trimtab.parts import ModelSpec

SHAPES = ((32, 11), (16, 64), (16, 128), (8, 256), (2, 1024))


def cpu_seconds(function: Callable[[], object], times: int = 3) -> float:
    function()
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def main() -> None:
    settle()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        model = load_network(ModelSpec(source="builtin:smollm2-135m", layers=28, dtype="bfloat16"), Path(cache), 2)
    Halves(model, 4)
    model.train()
    for batch, tokens in SHAPES:
        seconds = {}
        for kernel in ("sdpa", "eager"):
            model.set_attn_implementation(kernel)
            states_BTD = torch.randn(batch, tokens, model.config.hidden_size, dtype=torch.bfloat16)
            mask_BT = torch.ones(batch, tokens, dtype=torch.long)
            mask_BT[0, : tokens // 2] = 0

            def forward(states: torch.Tensor = states_BTD, mask: torch.Tensor = mask_BT) -> torch.Tensor:
                return model(inputs_embeds=states, attention_mask=mask).logits.float().logsumexp(-1).mean()

            with torch.inference_mode():
                seconds[f"forward_{kernel}"] = cpu_seconds(forward)
            seconds[f"step_{kernel}"] = cpu_seconds(lambda f=forward: f().backward())
        ratios = {
            f"{kind}_eager_to_sdpa": seconds[f"{kind}_eager"] / seconds[f"{kind}_sdpa"] for kind in ("forward", "step")
        }
        rows.append({"rows": batch, "tokens": tokens} | ratios | seconds)
    path = Path(__file__).parent / "results" / "attention.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
