"""What a training step on a CPU is made of: attention kernels on short and long rows, AdamW plain and fused.

CPU seconds on one thread, SmolLM2's upper four layers in bfloat16: the numbers behind `suit_attention` in
models/network.py and `fused=True` in training/trainers/_base.py. Medians; writes bench/results/kernels.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trimtab.environment import settle

settle()

import torch  # noqa: E402

from trimtab.models.network import Halves, load_network, train_upper  # noqa: E402
from trimtab.parts import ModelSpec  # noqa: E402

SHAPES = ((32, 11), (32, 32), (16, 64), (16, 128), (8, 256), (2, 1024))


def cpu_seconds(function: Callable[[], object], times: int = 7) -> float:
    """The median of several calls, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def compared(slow: float, fast: float, *, names: tuple[str, str]) -> dict[str, float]:
    return {f"{names[0]}_s": slow, f"{names[1]}_s": fast, f"{names[1]}_to_{names[0]}": fast / slow}


def attention(model: torch.nn.Module, rows: int, tokens: int) -> dict[str, object]:
    states_BTD = torch.randn(rows, tokens, model.config.hidden_size, dtype=torch.bfloat16)
    mask_BT = torch.ones(rows, tokens, dtype=torch.long)
    mask_BT[0, : tokens // 2] = 0

    def forward() -> torch.Tensor:
        return model(inputs_embeds=states_BTD, attention_mask=mask_BT).logits.float().logsumexp(-1).mean()

    taken: dict[str, list[float]] = {"forward": [], "step": []}
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        with torch.inference_mode():
            taken["forward"].append(cpu_seconds(forward))
        taken["step"].append(cpu_seconds(lambda: forward().backward()))
    found = {kind: compared(*seconds, names=("sdpa", "eager")) for kind, seconds in taken.items()}
    return {"rows": rows, "tokens": tokens, **found}


def adamw(weights: int) -> dict[str, object]:
    taken = []
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.zeros(weights))
        weight.grad = torch.randn(weights)
        taken.append(cpu_seconds(torch.optim.AdamW([weight], fused=fused).step))
    return {"weights": weights, **compared(*taken, names=("plain", "fused"))}


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        model = load_network(ModelSpec(source="builtin:smollm2-135m", layers=28, dtype="bfloat16"), Path(cache), 2)
    train_upper(model, 4)
    Halves(model, 4)
    model.train()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    found = {"attention": [attention(model, *shape) for shape in SHAPES], "adamw": adamw(trained)}
    path = Path(__file__).parent / "results" / "kernels.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
