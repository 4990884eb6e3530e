"""What every pipeline is, and the bench on which one seed of an experiment is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from trimtab.parts import EvalSpec, LabelSpec, ReportSpec, SplitSpec, TaskSpec, TrainSpec, ValidationSpec
from trimtab.run.artifact import Artifact, Runner
from trimtab.spec import Method
from trimtab.stages.evaluate import audit, evaluate
from trimtab.stages.features import features
from trimtab.stages.label import label
from trimtab.stages.reserve import reserve
from trimtab.stages.split import split
from trimtab.stages.train import train
from trimtab.stages.validate import validate


class Pipeline(Method):
    """A job: its fields are the job file, calling it lays the stages out on a runner; the last artifact comes back."""

    def __call__(self, run: Runner) -> Artifact:
        raise TypeError(f"{type(self).__name__} lays out no stages")


class Experiment(Pipeline):
    """What the classification pipelines share: a task, repeated on fresh splits for every seed."""

    task: TaskSpec
    validation: ValidationSpec | None = Field(None, description="rows kept for choosing hyperparameters")
    split: SplitSpec = SplitSpec()
    seeds: tuple[int, ...] = (0,)
    supervisor: TrainSpec
    students: dict[str, TrainSpec]
    ceiling: TrainSpec
    labels: LabelSpec = LabelSpec()
    eval: EvalSpec = EvalSpec()
    report: ReportSpec = ReportSpec()
    oracle: bool = False


def seeded(spec: Any, seed: int) -> Any:
    """The same spec for one seed of an experiment."""
    return spec.model_copy(update={"seed": spec.seed + seed})


class HasFound(Protocol):
    """One seed of an experiment, and what its report reads."""

    seed: int
    found: dict[str, Artifact]


@dataclass
class Bench:
    """One seed: fresh splits, and models that are trained, used as labellers, and scored on the test split.

    The states of a frozen trunk are made once for the whole task, whatever the seed and whoever needs them.
    """

    job: Experiment
    shared: Runner
    rows: Artifact
    seed: int
    found: dict[str, Artifact] = field(default_factory=dict)
    said: dict[Artifact, Artifact] = field(default_factory=dict)
    """For weak labels of transfer rows, what the same labeller says of the validation rows."""

    def __post_init__(self) -> None:
        self.run = self.shared.under(f"seed {self.seed}")
        self.data = self.drawn(self.rows)
        self.found["split"] = self.data

    def drawn(self, rows: Artifact) -> Artifact:
        """The splits of these rows, or of what is left of them once some are set aside."""
        held = self.reserved(rows)
        return self.run(split, seeded(self.job.split, self.seed), label="split", rows=held / "rest" if held else rows)

    def reserved(self, rows: Artifact) -> Artifact | None:
        """What of these rows the job sets aside, if any: the same for every seed."""
        spec = self.job.validation
        return self.shared(reserve, spec, label="reserve", rows=rows) if spec else None

    @property
    def held(self) -> Artifact | None:
        return self.reserved(self.rows)

    def states(self, spec: TrainSpec, rows: Artifact | None = None) -> dict[str, Artifact]:
        trunk = spec.trunk()
        if trunk is None:
            return {}
        depth = trunk.model.layers or "all"
        name = f"states of {trunk.model.source}, layers {depth}" + f" less {trunk.without_top}" * bool(
            trunk.without_top
        )
        return {"features": self.shared(features, trunk, label=name, rows=rows or self.rows)}

    def train(self, name: str, spec: TrainSpec, **inputs: Artifact) -> Artifact:
        """Train a model and score it on the test split."""
        oracle = {"oracle": self.data / "test"} if self.job.oracle else {}
        states = self.states(spec)
        model = self.run(train, seeded(spec, self.seed), label=f"train {name}", **inputs, **states, **oracle)
        test = self.data / "test"
        scored = self.run(evaluate, self.job.eval, label=f"evaluate {name}", model=model, data=test, **states)
        self.found |= {f"model/{name}": model, f"score/{name}": scored}
        self.run.outcome("test", name, scored)
        if self.held and inputs["data"] in self.said:
            told = {"labels": self.said[inputs["data"]], "truth": self.held / "truth"}
            checked = self.run(validate, self.job.eval, label=f"validate {name}", model=model, **told, **states)
            self.run.outcome("validation", name, checked)
        return model

    def label(self, name: str, spec: TrainSpec, *, model: Artifact, data: Artifact) -> Artifact:
        """A model's labels for rows whose truth it does not see, and how right they are."""
        inputs = {"model": model} | self.states(spec)
        given = self.run(label, self.job.labels, label=f"labels by {name}", data=data, **inputs)
        if self.held:
            rows = self.held / "validation"
            self.said[given] = self.run(
                label, self.job.labels, label=f"labels by {name}, validation", data=rows, **inputs
            )
        truth = self.data / "truth"
        audited = self.run(audit, self.job.eval, label=f"audit of {name}'s labels", labels=given, truth=truth)
        self.found[f"audit/{name}"] = audited
        return given


def gathered(benches: Sequence[HasFound]) -> Mapping[str, Artifact]:
    """Everything a report reads, by seed/what/name."""
    return {f"{bench.seed}/{name}": artifact for bench in benches for name, artifact in bench.found.items()}
