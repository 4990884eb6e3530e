"""TRL's own DPOTrainer as a plain script: one process, one loss, no DeepSpeed; what bench/preference.py compares with.

TRL's defaults but for what the arguments say: bfloat16 autocast over float32 weights, AdamW, a linear schedule,
clipping at 1, activation checkpointing (--no-checkpointing takes memory for time). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.time())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "model", "out", "loss"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--no-checkpointing", action="store_true")
    said = parser.parse_args()
    checkpointing = {"gradient_checkpointing": False} if said.no_checkpointing else {}
    clock = Clock()
    trainer = DPOTrainer(
        model=said.model,
        args=DPOConfig(
            output_dir=said.out,
            loss_type=[said.loss],
            label_smoothing=said.smoothing,
            max_steps=said.steps,
            per_device_train_batch_size=said.batch,
            per_device_eval_batch_size=said.batch,
            learning_rate=said.learning_rate,
            precompute_ref_log_probs=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            **checkpointing,
        ),
        train_dataset=datasets.load_dataset("json", data_files=said.rows, split="train"),
        callbacks=[clock],
    )
    began = time.time()
    result = trainer.train()
    trainer.save_model(said.out)
    history = {name: trainer.state.log_history[-1].get(name) for name in ("train_loss", "train_runtime")}
    told = {"step_ends": clock.ends, "train_began": began, "loss": result.training_loss, **history}
    print(json.dumps(told | {"losses": [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]}))


if __name__ == "__main__":
    main()
