"""DeepSpeed's configuration from Compute: ZeRO stage, and the micro-batches that make up one effective batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.compute import Compute
from trimtab.environment import settle
from trimtab.errors import ResourceError
from trimtab.training.world import name_accelerator


@dataclass(frozen=True)
class Batching:
    """One effective batch = micro x accumulation x workers."""

    micro: int
    accumulation: int


def batching(batch_size: int, workers: int, micro_batch: int | None) -> Batching:
    """The largest micro-batch within the limit that divides a worker's share. Raises ResourceError."""
    share, rest = divmod(batch_size, workers)
    if rest:
        raise ResourceError(f"batch_size {batch_size} cannot be shared by {workers} workers; make it a multiple")
    micro = next(m for m in range(min(micro_batch or share, share), 0, -1) if share % m == 0)
    return Batching(micro, share // micro)


def deepspeed_config(batch: Batching, *, compute: Compute, bf16: bool, max_grad_norm: float) -> dict[str, Any]:
    """ZeRO 0-3 (Rajbhandari et al. 2020) with float32 master weights under bfloat16."""
    zero: dict[str, Any] = {"stage": compute.zero_stage}
    if compute.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }


def build_ops() -> None:
    """Compile DeepSpeed's shared-memory communication op now, so that no training waits for it."""
    settle()
    name_accelerator()
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cpu":
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        ShareMemCommBuilder().load(verbose=False)


if __name__ == "__main__":
    build_ops()
