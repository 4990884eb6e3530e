"""The quickstart's experiment as a plain script: one process, HF Trainer, one thing after the other, nothing cached.

It reads the same rows and uses the same losses; everything else is what one would write without a platform.
Prints one JSON object: seconds by stage kind, and accuracies.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from trimtab.data.splits import split_rows
from trimtab.data.tables import Row
from trimtab.data.tasks import read_task
from trimtab.load import load_job
from trimtab.methods.objectives._base import LabelBatch
from trimtab.models.builtin import builtin_folder
from trimtab.parts import TrainSpec

SECONDS: dict[str, float] = defaultdict(float)


@contextmanager
def timed(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    SECONDS[name] += time.perf_counter() - start


class ObjectiveTrainer(Trainer):
    objective: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        weak = inputs.pop("labels")
        outputs = model(**inputs)
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss = self.objective(LabelBatch(outputs.logits.float(), weak, progress)).value
        return (loss, outputs) if return_outputs else loss


def network(folder: Path, spec: TrainSpec) -> Any:
    """The first layers of the model; the upper ones, the norm and the head are trained."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_hidden_layers=spec.model.layers, num_labels=2, pad_token_id=0
    )
    trained = [*model.model.layers[-spec.tune.layers :], model.model.norm, model.score]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    torch.nn.init.zeros_(model.score.weight)
    return model


def train(model: Any, spec: TrainSpec, rows: list[Row], weak_NC: torch.Tensor, *, tokenizer: Any, seed: int) -> Any:
    def collate(items: list[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = tokenizer([text for text, _ in items], padding=True, return_tensors="pt")
        return dict(batch) | {"labels": torch.stack([weak for _, weak in items])}

    arguments = TrainingArguments(
        output_dir="/tmp/unused",
        num_train_epochs=spec.num_train_epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=spec.warmup_ratio,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_strategy="no",
        dataloader_drop_last=True,
    )
    data = [(row.text, weak) for row, weak in zip(rows, weak_NC, strict=True)]
    trainer = ObjectiveTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.objective = spec.objective
    trainer.train()
    return model


@torch.inference_mode()
def predict(model: Any, rows: list[Row], tokenizer: Any) -> torch.Tensor:
    model.eval()
    parts = []
    for i in range(0, len(rows), 64):
        batch = tokenizer([row.text for row in rows[i : i + 64]], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(model(**batch).logits.float().softmax(-1))
    return torch.cat(parts)


def one_hot(rows: list[Row]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([row.label for row in rows]), 2).float()


def accuracy(model: Any, rows: list[Row], tokenizer: Any) -> float:
    truth = torch.tensor([row.label for row in rows])
    return float((predict(model, rows, tokenizer).argmax(-1) == truth).float().mean())


def experiment(job: Any, seed: int, rows: list[Row], folder: Path) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    parts = split_rows(rows, job.split.model_copy(update={"seed": seed}))
    found = {}
    set_seed(seed)

    def trained(name: str, spec: TrainSpec, data: list[Row], weak_NC: torch.Tensor) -> Any:
        with timed("train"):
            model = train(network(folder, spec), spec, data, weak_NC, tokenizer=tokenizer, seed=seed)
        with timed("evaluate"):
            found[name] = accuracy(model, parts.test, tokenizer)
        return model

    supervisor = trained("supervisor", job.supervisor, parts.supervise, one_hot(parts.supervise))
    with timed("label"):
        weak_NC = predict(supervisor, parts.transfer, tokenizer)
    for name, spec in job.students.items():
        trained(f"student.{name}", spec, parts.transfer, weak_NC)
    trained("ceiling", job.ceiling, parts.transfer, one_hot(parts.transfer))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("cache", type=Path)
    arguments = parser.parse_args()
    job = load_job(arguments.job).pipeline
    with timed("prepare"):
        rows = read_task(job.task).rows
        folder = builtin_folder(job.ceiling.model.source.removeprefix("builtin:"), arguments.cache)
    results = [experiment(job, seed, rows, folder) for seed in job.seeds]
    means = {name: sum(r[name] for r in results) / len(results) for name in results[0]}
    print(json.dumps({"seconds": SECONDS, "accuracy": means}))


if __name__ == "__main__":
    main()
