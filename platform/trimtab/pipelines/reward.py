"""Weak-to-strong reward modelling (Burns et al. 2023, section 3 and appendix A.4)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trimtab.alignment import EnsembleSpec, PairSpec, PromptSpec, RankSpec, RewardSpec
from trimtab.parts import ReportSpec, SplitSpec, ValidationSpec
from trimtab.pipelines._base import Pipeline, gathered, seeded
from trimtab.pipelines._preferences import PreferenceBench, held_back
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.pairs import audit_pairs
from trimtab.stages.prompts import divide, prompts
from trimtab.stages.report import report


class Reward(Pipeline):
    """A weak reward model's preferences on pairs train strong reward models; a ceiling is trained on the true ones."""

    kind: Literal["reward"] = "reward"
    task: PromptSpec
    validation: ValidationSpec | None = Field(None, description="prompts kept for choosing hyperparameters")
    split: SplitSpec = SplitSpec()
    seeds: tuple[int, ...] = (0,)
    supervisor: RewardSpec
    ensemble: EnsembleSpec = EnsembleSpec()
    students: dict[str, RewardSpec]
    ceiling: RewardSpec
    pairs: PairSpec = PairSpec()
    eval: RankSpec = RankSpec()
    report: ReportSpec = ReportSpec()
    oracle: ClassVar[bool] = False

    def __call__(self, run: Runner) -> Artifact:
        rows = run(prompts, self.task, label="prompts")
        benches = [self.once(run, rows, seed) for seed in self.seeds]
        return run(report, self, label="report", parts=gathered(benches))

    def once(self, shared: Runner, rows: Artifact, seed: int) -> PreferenceBench:
        run, held = shared.under(f"seed {seed}"), held_back(shared, self.validation, rows=rows, scores=rows)
        left = held.rest if held else rows
        data = run(divide, seeded(self.split, seed), label="split", rows=left, scores=rows)
        bench = PreferenceBench(run, seed, rows, data, self.pairs, self.eval, self.ensemble, held)
        bench.found["split"] = data
        true_pairs = bench.truly_paired("supervise")
        scorers = bench.reward_models("supervisor", self.supervisor, data=true_pairs, members=self.ensemble.members)
        weak = bench.scored("supervisor", self.supervisor, models=scorers, rows=data / "transfer", of=rows)
        weak_pairs = bench.paired("supervisor", rows=data / "transfer", scores=weak)
        bench.found["audit/supervisor"] = run(
            audit_pairs, self.eval, label="audit of weak pairs", labels=weak_pairs, truth=bench.truth("transfer")
        )
        self._scored(bench, "supervisor", self.supervisor, scorers)
        for name, spec in self.students.items():
            models = bench.reward_models(f"student.{name}", spec, data=weak_pairs)
            self._scored(bench, f"student.{name}", spec, models)
            if held:
                said = bench.scored("supervisor", self.supervisor, models=scorers, rows=held.rows, of=rows)
                own = bench.scored(f"student.{name}", spec, models=models, rows=held.rows, of=rows)
                bench.order_validated(f"student.{name}", weak=said, scores=own)
        ceiling_pairs = bench.truly_paired("transfer")
        self._scored(bench, "ceiling", self.ceiling, bench.reward_models("ceiling", self.ceiling, data=ceiling_pairs))
        return bench

    def _scored(self, bench: PreferenceBench, name: str, spec: RewardSpec, models: list[Artifact]) -> None:
        found = bench.scored(name, spec, models=models, rows=bench.data / "test", of=bench.whole)
        bench.ranked(name, scores=found)
