"""Trainings in processes that are killed: what is found at the end is what an undisturbed one finds.

Beside them, as it needs two processes too, one with rows that are not finite.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import Tiny

from trimtab.compute import Compute
from trimtab.run.local import LocalRunner
from trimtab.run.on_ray import RayRunner
from trimtab.stages._base import stage
from trimtab.stages.train import train

pytestmark = pytest.mark.chaos
KILLS = {"step 1": None, "step 3": 2, "seal 4": 3, "saved 4": 4, "publish 6": 5, "step 8": 7}
"""In the first step, in a middle one, while saving, after the last of an epoch, in the very last; and the step that the
attempt which follows goes on from."""


@dataclass
class Attempts:
    """Attempts to run, and what is left of them; those of one chain share their checkpoints."""

    root: Path
    tiny: Tiny
    tasks: list[dict[str, Any]] = field(default_factory=list)
    codes: list[list[int]] = field(default_factory=list)

    def add(
        self,
        chain: str,
        spec: dict[str, Any],
        *,
        ranks: int = 1,
        kill: Any = None,
        features: Any = None,
        **compute: Any,
    ) -> None:
        number = sum(task["chain"] == chain for task in self.tasks)
        folder, tiny = self.root / chain, self.tiny
        self.tasks.append(
            {
                "chain": chain,
                "out": str(folder / f"out{number}"),
                "partial": "partial" if chain == "apart" else str(folder / "partial"),
                "record": str(folder / "record"),
                "data": str(tiny.weak),
                "spec": tiny.spec(batch_size=12, eval_fraction=0.25, **spec).model_dump(mode="json"),
                "compute": {"storage": str(tiny.root / "storage")} | compute,
                "ranks": ranks,
                **({"kill": kill} if kill else {}),
                **({"features": str(features)} if features else {}),
            }
        )

    def run(self) -> None:
        for task in self.tasks:
            Path(task["out"]).parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        script = Path(__file__).parent / "training" / "attempts.py"
        done = subprocess.run(
            [sys.executable, str(script)],
            input=json.dumps(self.tasks),
            capture_output=True,
            text=True,
            env=environment,
            timeout=1800,
            check=True,
        )
        self.codes = [json.loads(line) for line in done.stdout.splitlines()]

    def ended(self, chain: str) -> list[list[int]]:
        return [codes for codes, task in zip(self.codes, self.tasks, strict=True) if task["chain"] == chain]

    def last(self, chain: str) -> Path:
        return Path([task["out"] for task in self.tasks if task["chain"] == chain][-1])

    def weights(self, chain: str) -> dict[str, Any]:
        return load_file(self.last(chain) / "model" / "model.safetensors")

    def rows(self, chain: str) -> dict[int, list[str]]:
        """The rows that each step learned from, by the attempt whose step it is that stands."""
        seen: dict[int, dict[int, list[str]]] = {}
        for file in (self.root / chain / "record").iterdir():
            for entry in map(json.loads, file.read_text().splitlines()):
                seen.setdefault(entry["step"], {}).setdefault(entry["attempt"], []).extend(entry["rows"])
        return {step: sorted(attempts[max(attempts)]) for step, attempts in sorted(seen.items())}


def furthest(left: dict[str, Any], right: dict[str, Any]) -> float:
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


FULL = {"tune": {"kind": "full"}, "learning_rate": 1e-3}
HARD = {"objective": {"kind": "logconf", "buffer": 24}, "tune": {"kind": "lora", "dropout": 0.2}, "learning_rate": 1e-3}
"""Dropout takes random numbers, and the objective remembers rows of earlier steps."""


@pytest.fixture(scope="module")
def attempts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    found = Attempts(tmp_path_factory.mktemp("attempts"), tiny)
    found.add("whole", HARD, micro_batch=6)
    for kill in KILLS:
        where, step = kill.split()
        found.add("killed", HARD, kill=[where, int(step)], micro_batch=6, checkpoint_steps=1)
    found.add("killed", HARD, micro_batch=6, checkpoint_steps=1)
    found.add("plain", FULL)
    found.add("smaller", FULL, kill=["saved", 3], checkpoint_steps=1)
    found.add("smaller", FULL, micro_batch=4)
    found.add("wider", FULL, kill=["saved", 5], checkpoint_steps=1)
    found.add("wider", FULL, ranks=2, zero_stage=2, micro_batch=3)
    found.add("narrower", FULL, kill=["saved", 6], checkpoint_steps=3, ranks=2, zero_stage=3)
    found.add("narrower", FULL, zero_stage=0)
    states = poisoned(tiny, found.root / "states", POISONED)
    found.add("alone", SKIP, features=states)
    found.add("together", SKIP, features=states, ranks=2, zero_stage=3, micro_batch=1)
    states = poisoned(tiny, found.root / "other states", POISONED[:3])
    found.add("back", BACK, features=states, checkpoint_steps=1)
    found.add("apart", BACK, features=states, ranks=2, zero_stage=2, micro_batch=1, checkpoint_steps=1)
    found.run()
    return found


POISONED = range(7, 15)
SKIP = {"tune": {"kind": "top", "layers": 2}, "on_nonfinite": "skip", "num_train_epochs": 1, "learning_rate": 1e-3}


BACK = SKIP | {"on_nonfinite": "rollback"}


def poisoned(tiny: Tiny, folder: Path, rows: range) -> Path:
    """The states of the lower half for all rows, those of some NaN."""
    from trimtab.models.features import States, write_states

    ids = [row["id"] for row in tiny.table(tiny.weak)]
    states = [state.clone() for state in States(tiny.states(tiny.spec(**SKIP), tiny.weak)).rows(ids)]
    for row in rows:
        states[row][0] = float("nan")
    folder.mkdir()
    write_states(folder, ids, states)
    return folder


@pytest.mark.slow
def test_a_process_killed_at_any_point_goes_on_and_finds_bit_for_bit_the_same(attempts: Attempts) -> None:
    assert attempts.ended("killed") == [[-signal.SIGKILL]] * len(KILLS) + [[0]]
    assert furthest(attempts.weights("whole"), attempts.weights("killed")) == 0
    assert attempts.rows("killed") == attempts.rows("whole")


@pytest.mark.slow
def test_an_attempt_goes_on_from_the_last_whole_checkpoint(attempts: Attempts) -> None:
    folder = attempts.root / "killed"
    for number, step in enumerate(KILLS.values(), start=1):
        said = (folder / f"out{number}.0.log").read_text()
        assert ("going on from step" in said) == (step is not None)
        assert step is None or f"going on from step {step}:" in said
    kept = sorted(p.name for p in (folder / "partial").iterdir())
    assert kept[-2:] == ["step-00000007", "step-00000008"]
    assert len(kept) == 3, "the best one, too"


@pytest.mark.slow
def test_curves_and_metrics_are_those_of_an_undisturbed_training(attempts: Attempts) -> None:
    whole, killed = attempts.last("whole"), attempts.last("killed")
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed))
    assert one | {"train/seconds": 0} == other | {"train/seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["smaller", "wider", "narrower"])
def test_with_other_workers_and_micro_batches_every_row_comes_once(attempts: Attempts, chain: str) -> None:
    first, last = attempts.ended(chain)
    assert set(first) == {-signal.SIGKILL} and set(last) == {0}
    rows = attempts.rows(chain)
    assert rows == attempts.rows("plain")
    epochs = [[row for step in steps for row in rows[step]] for steps in ((1, 2, 3, 4), (5, 6, 7, 8))]
    assert [len(set(epoch)) for epoch in epochs] == [len(epoch) for epoch in epochs] == [48, 48]
    assert "going on from step" in Path(f"{attempts.last(chain)}.0.log").read_text()
    assert furthest(attempts.weights("plain"), attempts.weights(chain)) < 1e-5


@pytest.mark.slow
def test_two_ranks_leave_out_together_what_one_leaves_out(attempts: Attempts) -> None:
    """A rank whose only row of a micro-batch is not finite computes on, so that ZeRO 3 finds all ranks in step."""
    assert attempts.ended("together") == [[0, 0]]
    noted, counted = [], []
    for folder in map(attempts.last, ("alone", "together")):
        lines = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
        noted.append(sorted((line["step"], row) for line in lines for row in line["rows"]))
        counted.append(json.loads((folder / "metrics.json").read_text()))
    assert noted[0] == noted[1]
    assert [found["train/skipped_rows"] for found in counted] == [len(noted[0])] * 2
    assert noted[0]
    assert {row for _, row in noted[0]} <= {f"r{64 + row}" for row in POISONED}
    assert counted[0]["train/loss"] == pytest.approx(counted[1]["train/loss"], abs=1e-5)
    assert furthest(attempts.weights("alone"), attempts.weights("together")) < 1e-5


@pytest.mark.slow
def test_ranks_on_nodes_that_share_no_files_go_back_together(attempts: Attempts) -> None:
    assert attempts.ended("apart") == [[0, 0]]
    left = [json.loads((attempts.last(chain) / "metrics.json").read_text()) for chain in ("back", "apart")]
    assert left[0]["train/rollbacks"] == left[1]["train/rollbacks"] > 0
    assert furthest(attempts.weights("back"), attempts.weights("apart")) < 1e-5
    assert list((attempts.root / "apart" / "node1" / "partial").iterdir()) == [], "what was lent is gone"


@stage(version=1, on="workers", resumes=True)
def dies(spec: Any, out: Path, *, compute: Compute, data: Path, partial: Path) -> dict[str, float]:
    """Stage train; the first worker that has written its third checkpoint is killed."""
    from trimtab.training import callbacks

    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and not (partial / "dead").exists():
            (partial / "dead").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.Keep.on_save = kill
    return train(spec, out, compute=compute, data=data, partial=partial)


@pytest.mark.ray
def test_a_killed_worker_s_training_goes_on_in_the_group_that_replaces_it(tiny: Tiny, tmp_path: Path) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = {}
    for name, runner, called in (
        ("inline", LocalRunner(Compute(backend="inline", storage=tmp_path / "inline")), train),
        ("ray", RayRunner(Compute(storage=tmp_path / "ray", groups=1, cpus_per_worker=1, checkpoint_steps=1)), dies),
    ):
        made[name] = runner(called, tiny.spec(), data=tiny.given(runner.compute.artifacts))
        runner.wait()
    inline, ray = (load_file(artifact.path / "model" / "model.safetensors") for artifact in made.values())
    assert furthest(inline, ray) == 0
    said = (made["ray"].path / "log.txt").read_text()
    assert said.count("going on from step") == 1 and "going on from step 3:" in said
    assert not made["ray"].partial.exists()
