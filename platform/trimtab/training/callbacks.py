"""What a training run says while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trimtab import progress
from trimtab.training.curves import write_curve

_NAMES = {
    "eval_weak_agreement": "eval_agreement",
    "eval_weak_loss": "eval_loss",
    "eval_oracle_agreement": "oracle/accuracy",
}
_DROPPED = ("_runtime", "_per_second", "total_flos", "train_loss", "eval_oracle_loss", "epoch", "num_input_tokens_seen")


class Speak(TrainerCallback):
    """Logs go to metrics.jsonl (the truth) and to the sink; each step moves the progress bar."""

    def __init__(self, out: Path, trainer: Any) -> None:
        self.out, self.trainer = out, trainer
        self.meter: progress.Meter | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.meter = self.meter or progress.Meter(state.max_steps)
        tokens, self.trainer.tokens = self.trainer.tokens, 0
        self.meter.add(1, tokens)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {_NAMES.get(k, k): v for k, v in (logs or {}).items() if not k.endswith(_DROPPED)}
        if values and state.is_world_process_zero:
            write_curve(self.out, state.global_step, values)
