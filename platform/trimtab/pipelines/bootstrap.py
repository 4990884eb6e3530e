"""Bootstrapping (Burns et al. 2023, section 4.3.1): a chain of growing students, each labelling for the next."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.parts import TrainSpec
from trimtab.pipelines._base import Bench, Experiment, gathered
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.prepare import prepare
from trimtab.stages.report import report


class Bootstrap(Experiment):
    """Each hop has rows of its own, so that no model labels rows it was trained on; with `fresh: false` all hops

    share the transfer rows, and the labels then say which rows their maker had been trained on.
    Every student is also trained on the supervisor's own labels for the same rows (NAME-direct), to compare with.
    """

    kind: Literal["bootstrap"] = "bootstrap"
    chain: tuple[TrainSpec, ...] = Field(min_length=1, description="the models between supervisor and students")
    fresh: bool = True

    def __call__(self, run: Runner) -> Artifact:
        rows = run(prepare, self.task, label="prepare")
        hops = len(self.chain) + 1 if self.fresh else 1
        job = self.model_copy(update={"split": self.split.model_copy(update={"hops": hops})})
        benches = [self.once(Bench(job, run, rows, seed)) for seed in self.seeds]
        return run(report, self, label="report", parts=gathered(benches))

    def once(self, bench: Bench) -> Bench:
        supervisor = labeller = bench.train("supervisor", self.supervisor, data=bench.data / "supervise")
        name, spec = "supervisor", self.supervisor
        for hop, link in enumerate(self.chain):
            labels = bench.label(name, spec, model=labeller, data=self._rows(bench, hop))
            name, spec = f"intermediate.{hop + 1}", link
            labeller = bench.train(name, spec, data=labels)
        last = self._rows(bench, len(self.chain))
        labels = bench.label(name, spec, model=labeller, data=last)
        direct = bench.label("supervisor, direct", self.supervisor, model=supervisor, data=last)
        for student, spec in self.students.items():
            bench.train(f"student.{student}", spec, data=labels)
            bench.train(f"student.{student}-direct", spec, data=direct)
        bench.train("ceiling", self.ceiling, data=last, truth=bench.data / "truth")
        return bench

    def _rows(self, bench: Bench, hop: int) -> Artifact:
        return bench.data / (f"transfer.{hop}" if self.fresh else "transfer")
