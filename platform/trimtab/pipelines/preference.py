"""Preference training from weak preferences (Burns et al. 2023; Tao & Li 2025; Zhu et al. 2025; Afzali et al. 2026)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trimtab.alignment import (
    EnsembleSpec,
    GenerateSpec,
    Given,
    Gold,
    MeasureSpec,
    OnlineSpec,
    PairSpec,
    PolicySpec,
    PromptSpec,
    RankSpec,
    RewardSpec,
    Sampling,
    Student,
    Vader,
)
from trimtab.debating import Labeller
from trimtab.parts import ModelSpec, ReportSpec, SplitSpec, ValidationSpec
from trimtab.pipelines._base import Pipeline, gathered
from trimtab.pipelines._policies import PolicyBench
from trimtab.pipelines._preferences import gold_scores
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.generate import generate
from trimtab.stages.policy_report import policy_report
from trimtab.stages.prompts import prompts


class Preference(Pipeline):
    """A weak model's preferences over a strong policy's completions align it; a ceiling learns from the gold reward.

    The strong policy is the ceiling's model: it writes the completions and is what every policy is compared to. With
    `sampling: null` the task's own pairs are used. `weak_policy` is a weak model aligned with the gold reward: the weak
    line of the report, and what wspo transfers. A supervisor of kind `debate` learns nothing: copies of a model argue
    for either completion, and judges say which is better. A policy of kind `online` learns from its own samples: a
    student by the supervisor's reward, the ceiling by the gold one.
    """

    kind: Literal["preference"] = "preference"
    task: PromptSpec
    sampling: Sampling | None = Sampling()
    gold: Gold = Vader()
    validation: ValidationSpec | None = Field(None, description="prompts kept for choosing hyperparameters")
    split: SplitSpec = SplitSpec()
    seeds: tuple[int, ...] = (0,)
    pairs: PairSpec = PairSpec()
    supervisor: Annotated[RewardSpec | PolicySpec | Labeller, Field(discriminator="kind")]
    ensemble: EnsembleSpec = EnsembleSpec()
    weak_policy: PolicySpec | None = None
    students: dict[str, Student]
    ceiling: Student
    rounds: int = Field(1, ge=1, description="rounds on the policy's own samples, each on its part of transfer")
    measure: MeasureSpec = MeasureSpec()
    eval: RankSpec = RankSpec()
    report: ReportSpec = ReportSpec()

    @property
    def strong(self) -> ModelSpec:
        return self.ceiling.model

    @property
    def weak(self) -> PolicySpec | None:
        """The weak policy, where there is one."""
        return self.supervisor if isinstance(self.supervisor, PolicySpec) else self.weak_policy

    def __call__(self, run: Runner) -> Artifact:
        rows = run(prompts, self.task, label="prompts")
        if self.sampling:
            spec = GenerateSpec(model=self.strong, sampling=self.sampling)
            rows = run(generate, spec, label="completions by the strong policy", rows=rows)
        gold = rows if isinstance(self.gold, Given) else gold_scores(run, self.gold, rows)
        benches = [self.once(PolicyBench.on(self, run, rows, gold, seed=seed)) for seed in self.seeds]
        return run(policy_report, self, label="report", parts=gathered(benches))

    def once(self, bench: PolicyBench) -> PolicyBench:
        true_pairs = bench.truly_paired("supervise")
        bench.measure_reference()
        if self.weak:
            bench.align_weak(self.weak, data=true_pairs)
        bench.supervise(self.supervisor, data=true_pairs)
        for name, spec in self.students.items():
            bench.learn(f"student.{name}", spec, scorer=bench.weak_scores)
        bench.learn("ceiling", self.ceiling, scorer=bench.true_scores)
        return bench

    @model_validator(mode="after")
    def _possible(self) -> Preference:
        if self.weak_policy and isinstance(self.supervisor, PolicySpec):
            raise ValueError("weak_policy: the supervisor is a weak policy already, so leave this one out")
        learners = {f"students.{name}": spec for name, spec in self.students.items()} | {"ceiling": self.ceiling}
        needy = [name for name, spec in learners.items() if isinstance(spec, PolicySpec) and "weak" in spec.reads]
        if needy and self.weak is None:
            raise ValueError(f"{needy[0]}: wspo transfers a weak policy's shift, so name a weak_policy")
        if self.weak and "weak" in self.weak.reads:
            raise ValueError("the weak policy itself cannot be trained with wspo, there is none before it: use dpo")
        if self.sampling is None and self.rounds > 1:
            raise ValueError("rounds: on-policy rounds need sampling")
        if isinstance(self.supervisor, Labeller) and self.sampling and self.sampling.samples != 2:
            raise ValueError("sampling.samples: a debate is between two completions, so draw 2")
        if isinstance(self.gold, Given) and self.sampling is not None:
            raise ValueError("gold: a given order exists for the task's own pairs only, so set sampling: null")
        return self

    @model_validator(mode="after")
    def _has_reward(self) -> Preference:
        online = [name for name, spec in self.students.items() if isinstance(spec, OnlineSpec)]
        if online and not (isinstance(self.supervisor, RewardSpec) and self.ensemble.members == 1):
            raise ValueError(f"students.{online[0]}: an online student asks one reward model: make it supervisor")
        if isinstance(self.ceiling, OnlineSpec) and isinstance(self.gold, Given):
            raise ValueError("ceiling: a given order says nothing of new samples, so take another gold, or pairs")
        return self
