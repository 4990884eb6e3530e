"""What a training run says while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from trimtab import progress
from trimtab.training.curves import WATCHED, write_curve

if TYPE_CHECKING:
    from trimtab.training.checkpoint import Checkpoints

_SAID = ("loss", "grad_norm", "learning_rate")


class Speak(TrainerCallback):
    """Logs go to metrics.jsonl (the truth) and to the sink; each step moves the progress bar."""

    def __init__(self, out: Path, trainer: Any) -> None:
        self.out, self.trainer = out, trainer
        self.meter: progress.Meter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.emit("progress", done=state.global_step, total=state.max_steps, tokens_per_s=0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.meter is None:
            self.meter = progress.Meter(state.max_steps)
            self.meter.done = state.global_step - 1
        tokens, self.trainer.tokens = self.trainer.tokens, 0
        self.meter.add(1, tokens)
        if state.global_step == state.max_steps:
            control.should_log, control.should_evaluate = True, bool(self.trainer.eval_dataset)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        said = {WATCHED.get(name, name): value for name, value in (logs or {}).items()}
        values = {
            name: value
            for name, value in said.items()
            if name in _SAID or name in WATCHED.values() or name.startswith("objective/")
        }
        if values and state.is_world_process_zero:
            write_curve(self.out, state.global_step, values)


class Keep(TrainerCallback):
    """A checkpoint after the step, where one is due."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = self.checkpoints.due(state.global_step)
