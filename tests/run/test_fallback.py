"""Stages that run out of memory: a real limit of the process, half the rows at once, and the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.conftest import Tiny

from trimtab.compute import Compute
from trimtab.errors import OutOfMemory, StageError
from trimtab.parts import LabelSpec, TrainSpec
from trimtab.run.fallback import smaller
from trimtab.run.local import LocalRunner
from trimtab.run.log import read_log
from trimtab.spec import Spec
from trimtab.stages._base import Metrics, stage
from trimtab.stages.train import train

ROOT = Path(__file__).parents[2]
MIB = 2**20


class Batch(Spec):
    batch_size: int = 16


@stage(version=1, on="workers")
def hungry(spec: Batch, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    """Holds 20 MiB a row of its micro-batch, as torch allocates it, where the process may have 100 MiB more."""
    import resource

    import torch

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 100 * MIB, limits[1]))
    try:
        rows = compute.micro_batch or spec.batch_size
        print(f"{rows} rows")
        (out / f"left-{rows}").write_text("by an attempt")
        held = torch.empty(rows * 20 * MIB, dtype=torch.uint8)
        return {"rows": rows, "bytes": float(held.nbytes), "left": float(len(list(out.iterdir())))}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@stage(version=1, on="workers")
def insatiable(spec: Batch, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    raise MemoryError


def test_half_of_what_was_held_down_to_one_row() -> None:
    compute, held = Compute(workers=2, inference_batch=8), []
    while compute:
        held.append((compute.micro_batch, compute.inference_batch))
        compute = smaller(compute, Batch(batch_size=24))
    assert held == [(None, 8), (6, 4), (3, 2), (1, 1)]
    assert smaller(Compute(workers=4, min_workers=1), Batch(batch_size=8)).micro_batch == 4, "one may hold all rows"
    assert smaller(Compute(resume="never"), Batch()).resume == "auto", "what the first attempt kept is its own"
    assert smaller(Compute(inference_batch=5), LabelSpec()).inference_batch == 2
    assert smaller(Compute(inference_batch=1), LabelSpec()) is None


def test_rows_that_an_objective_compares_are_not_parted() -> None:
    from trimtab.alignment import PolicySpec

    for loss_type, parts in (("sigmoid", True), ("sppo_hard", True), ("aot", False)):
        fields = {"model": {"source": "builtin:smollm2-135m"}, "objective": {"kind": "dpo", "loss_type": loss_type}}
        assert (smaller(Compute(), PolicySpec.model_validate(fields)) is not None) == parts


@pytest.mark.chaos
def test_a_stage_that_memory_is_refused_runs_again_with_less(tmp_path: Path) -> None:
    """In a process of its own, whose limits are real."""
    code = f"""
from pathlib import Path
from tests.run.test_fallback import Batch, hungry
from trimtab.compute import Compute
from trimtab.run.local import LocalRunner
from trimtab.run.log import EventLog
import torch
place = Path({str(tmp_path)!r})
run = LocalRunner(Compute(backend="inline", storage=place), sink=EventLog(place / "runs" / "r"))
made = run(hungry, Batch(), after={{}})
run.wait()
print(made.folder)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    made = Path(done.stdout.strip().splitlines()[-1])
    assert json.loads((made / "metrics.json").read_text()) == {"rows": 4, "bytes": 80.0 * MIB, "left": 2}
    assert [line for line in (made / "log.txt").read_text().splitlines() if line.endswith("rows")] == [
        "16 rows",
        "8 rows",
        "4 rows",
    ]
    events = list(read_log(tmp_path / "runs" / "r"))
    assert [event["event"] for event in events] == ["stage_start", "stage_retry", "stage_retry", "stage_end"]
    told = [(e["cause"], e["micro_batch"], e["accumulation"], e["text"]) for e in events[1:3]]
    assert told == [
        ("out of memory", 8, 2, "out of memory with micro_batch 16; again with 8"),
        ("out of memory", 4, 4, "out of memory with micro_batch 8; again with 4"),
    ]
    assert "can't allocate memory" in events[1]["why"]


def test_where_one_row_is_too_much_the_stage_fails_and_says_so(tmp_path: Path) -> None:
    said = []
    run = LocalRunner(Compute(backend="inline", storage=tmp_path, micro_batch=2), sink=said.append)
    run(insatiable, Batch(), after={})
    with pytest.raises(
        StageError, match="out of memory with micro_batch 1 at once, and fewer there cannot be"
    ) as failed:
        run.wait()
    assert failed.value.cause == "out of memory"
    assert isinstance(failed.value.__cause__, OutOfMemory)
    assert [event["event"] for event in said] == ["stage_start", "stage_retry", "stage_end"]
    assert (said[-1]["status"], said[-1]["cause"]) == ("failed", "out of memory")


@stage(version=1, on="driver")
def small(spec: Batch, out: Path, *, compute: Compute, after: dict[str, Path]) -> Metrics:
    raise MemoryError("of the driver")


def test_a_stage_of_the_driver_is_not_tried_again(tmp_path: Path) -> None:
    said = []
    run = LocalRunner(Compute(backend="inline", storage=tmp_path), sink=said.append)
    run(small, Batch(), after={})
    with pytest.raises(StageError, match="MemoryError: of the driver"):
        run.wait()
    assert [event["event"] for event in said] == ["stage_start", "stage_end"]


def test_a_training_that_fell_back_finds_the_same_weights(tiny: Tiny, tmp_path: Path) -> None:
    """Gradients of a step are sums over its rows, however many are held at once."""
    weights = {}
    for name in ("whole", "fallen"):
        said: list[dict] = []
        compute = Compute(backend="inline", storage=tmp_path / name)
        run = LocalRunner(compute, sink=said.append)
        spec = tiny.spec(learning_rate=1e-3)
        made = run({"whole": train, "fallen": poor}[name], spec, data=tiny.given(compute.artifacts))
        run.wait()
        weights[name] = load_file(made.path / "model" / "model.safetensors")
        held = [event["micro_batch"] for event in said if event["event"] == "stage_retry"]
        assert held == {"whole": [], "fallen": [8, 4]}[name]
    assert max((weights["whole"][n] - weights["fallen"][n]).abs().max().item() for n in weights["whole"]) < 1e-5


@stage(version=1, on="workers", resumes=True)
def poor(spec: TrainSpec, out: Path, *, compute: Compute, data: Path, partial: Path) -> Metrics:
    """Stage train, which memory is refused for more than four rows of the second step on."""
    from trimtab.training.trainers.labels import LabelTrainer

    plain = LabelTrainer.training_step

    def refused(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 1 and len(inputs["row"]) > 4:
            bytearray(2**55)
        return plain(self, model, inputs, *args, **kwargs)

    LabelTrainer.training_step = refused
    try:
        return train(spec, out, compute=compute, data=data, partial=partial)
    finally:
        LabelTrainer.training_step = plain
