"""Weak-to-strong generalization (Burns et al. 2023). The page to read first."""

from __future__ import annotations

from typing import Literal

from trimtab.pipelines._base import Bench, Experiment, gathered
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.prepare import prepare
from trimtab.stages.report import report


class WeakToStrong(Experiment):
    """A weak supervisor's labels train strong students; a ceiling trained on truth says how much they recover."""

    kind: Literal["weak_to_strong"] = "weak_to_strong"

    def __call__(self, run: Runner) -> Artifact:
        rows = run(prepare, self.task, label="prepare")
        benches = [self.once(Bench(self, run, rows, seed)) for seed in self.seeds]
        return run(report, self, label="report", parts=gathered(benches))

    def once(self, bench: Bench) -> Bench:
        data = bench.data
        supervisor = bench.train("supervisor", self.supervisor, data=data / "supervise")
        weak_labels = bench.label("supervisor", self.supervisor, model=supervisor, data=data / "transfer")
        for name, spec in self.students.items():
            bench.train(f"student.{name}", spec, data=weak_labels)
        bench.train("ceiling", self.ceiling, data=data / "transfer", truth=data / "truth")
        return bench
