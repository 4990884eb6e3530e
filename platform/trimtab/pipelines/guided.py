"""Guidance at decode time: reward against distance and speed, for guides and their strengths (Xu et al. 2024)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from trimtab.alignment import (
    AnySteer,
    EnsembleSpec,
    GenerateSpec,
    GuidedSpec,
    KnownDistance,
    MeasureSpec,
    PairSpec,
    PolicySpec,
    PromptSpec,
    RankSpec,
    Sampling,
    Vader,
    check_guide,
)
from trimtab.methods.guides.nudging import Nudging
from trimtab.methods.searches._base import Search
from trimtab.parts import ModelSpec, ReportSpec, SplitSpec, ValidationSpec
from trimtab.pipelines._base import Pipeline, gathered, seeded
from trimtab.pipelines._preferences import PreferenceBench, gold_scores, held_back
from trimtab.run.artifact import Artifact, Runner
from trimtab.spec import Spec
from trimtab.stages.align import align
from trimtab.stages.generate import generate
from trimtab.stages.policy_report import policy_report
from trimtab.stages.prompts import divide, prompts
from trimtab.stages.reweigh import reweigh


class Sweep(Spec):
    """A guide or a search, and its helpers; with `strengths`, once for each value of one of its fields."""

    guide: AnySteer
    helpers: tuple[str, ...]
    strengths: dict[str, tuple[float, ...]] = Field({}, description="one field of the guide, and its values")

    def guides(self) -> dict[str, Any]:
        """The guides by what is added to the sweep's name."""
        if not self.strengths:
            return {"": self.guide}
        ((field, values),) = self.strengths.items()
        kind = type(self.guide)
        return {f" {value:g}": kind.model_validate(dict(self.guide) | {field: value}) for value in values}

    @model_validator(mode="after")
    def _possible(self) -> Sweep:
        fields = [name for name in type(self.guide).model_fields if name != "kind"]
        if len(self.strengths) > 1 or not set(self.strengths) <= set(fields):
            raise ValueError(f"strengths: name one field of {self.guide.kind}, which has {', '.join(fields)}")
        try:
            for guide in self.guides().values():
                check_guide(guide, len(self.helpers))
        except ValidationError as error:
            raise ValueError(f"strengths: {error.errors()[0]['msg']}") from error
        return self


class Guided(Pipeline):
    """Small models guide a base that stays as it is: those in `helpers` as they come, those in `trained` by the gold
    reward's preferences over the base's own samples of prompts that are not in the test.

    Of the prompts set aside for validation, guided.NAME tells of a guide's own samples, and guided.NAME.reweighted, at
    the price of one reading, of the base's samples as the guide weighs them; on test both are the guide's own samples.
    """

    kind: Literal["guided"] = "guided"
    task: PromptSpec
    base: ModelSpec
    sampling: Sampling = Sampling()
    gold: Vader = Vader()
    validation: ValidationSpec | None = Field(None, description="prompts kept for choosing hyperparameters")
    test: int = Field(72, ge=2, description="prompts of the test; the others train helpers")
    seeds: tuple[int, ...] = (0,)
    pairs: PairSpec = PairSpec()
    helpers: dict[str, ModelSpec] = Field({}, description="models as they come")
    trained: dict[str, PolicySpec] = Field({}, description="models aligned before they help")
    guides: dict[str, Sweep]
    measure: MeasureSpec = MeasureSpec()
    report: ReportSpec = ReportSpec()

    def __call__(self, run: Runner) -> Artifact:
        rows = run(prompts, self.task, label="prompts")
        spec = GenerateSpec(model=self.base, sampling=self.sampling)
        rows = run(generate, spec, label="completions by the base", rows=rows)
        gold = gold_scores(run, self.gold, rows)
        benches = [self.once(run, rows, gold, seed) for seed in self.seeds]
        return run(policy_report, self, label="report", parts=gathered(benches))

    def once(self, shared: Runner, rows: Artifact, gold: Artifact, seed: int) -> PreferenceBench:
        run = shared.under(f"seed {seed}")
        split = SplitSpec(transfer=2, test=self.test, balance=False)
        held = held_back(shared, self.validation, rows=rows, scores=gold)
        left = held.rest if held else rows
        data = run(divide, seeded(split, seed), label="split", rows=left, scores=gold)
        bench = PreferenceBench(run, seed, rows, data, self.pairs, RankSpec(), EnsembleSpec(), held)
        bench.found |= {"split": data, "gold": bench.truth("test")}
        trained = {name: self._trained(bench, name, spec) for name, spec in self.trained.items()}
        self._measured(bench, "reference", GenerateSpec(model=self.base, sampling=self.measure.sampling))
        for name, sweep in self.guides.items():
            models = {one: self.helpers.get(one) or self.trained[one].model for one in sweep.helpers}
            given = {one: trained[one] for one in sweep.helpers if one in trained}
            for value, guide in sweep.guides().items():
                spec = GuidedSpec(model=self.base, sampling=self.measure.sampling, guide=guide, helpers=models)
                self._measured(bench, f"guided.{name}{value}", spec, helpers=given)
                if held:
                    self._validated(bench, f"guided.{name}{value}", spec, helpers=given)
        return bench

    def _trained(self, bench: PreferenceBench, name: str, spec: PolicySpec) -> Artifact:
        frozen = {}
        if "reference" in spec.objective.needs:
            frozen["reference"] = bench.logprobs(spec.model, spec.max_length, rows=bench.whole)
        pairs = bench.truly_paired("supervise")
        model = bench.run(align, seeded(spec, bench.seed), label=f"train {name}", data=pairs, **frozen)
        bench.found[f"model/{name}"] = model
        return model

    def _measured(self, bench: PreferenceBench, name: str, spec: GenerateSpec, **helpers: Any) -> None:
        rows = bench.run(generate, spec, label=f"samples of {name}", rows=bench.data / "test", **helpers)
        bench.found[f"samples/{name}"] = rows
        found = bench.measured(name, self._distance(spec), gold=self.gold, rows=rows, **self._apart(bench, spec, rows))
        bench.run.outcome("test", name, found)
        if self._weighs(spec):
            bench.run.outcome("test", f"{name}.reweighted", found)

    def _validated(self, bench: PreferenceBench, name: str, spec: GuidedSpec, *, helpers: dict[str, Artifact]) -> None:
        """A guide's samples of the prompts set aside; and, where it says of every token what it would, the base's."""
        run, rows = bench.run, bench.held.rows
        drawn = run(generate, spec, label=f"samples of {name}, validation", rows=rows, helpers=helpers)
        said = self._apart(bench, spec, drawn)
        bench.samples_validated(name, self._distance(spec), gold=self.gold, rows=drawn, **said)
        if self._weighs(spec):
            wanted = spec.model_copy(update={"sampling": self.sampling})
            inputs = {"rows": rows, "drawn": bench.whole, "helpers": helpers} | bench.held.budget
            found = run(reweigh, wanted, label=f"validate {name}, reweighted", **inputs)
            run.outcome("validation", f"{name}.reweighted", found)

    def _weighs(self, spec: GenerateSpec) -> bool:
        """Whether the base's samples can be weighed as the guide's: both drawn with neither temperature nor filter."""
        plain = all(s.temperature == 1 and s.top_p == 1 and s.top_k == 0 for s in (self.sampling, spec.sampling))
        return plain and isinstance(spec, GuidedSpec) and not isinstance(spec.guide, Nudging | Search)

    def _distance(self, spec: GenerateSpec) -> MeasureSpec:
        if isinstance(spec, GuidedSpec) and isinstance(spec.guide, Nudging | Search):
            return KnownDistance(kl=spec.guide.kl if isinstance(spec.guide, Search) else None)
        return MeasureSpec()

    def _apart(self, bench: PreferenceBench, spec: GenerateSpec, rows: Artifact) -> dict[str, Artifact]:
        """Log-probs of samples by the base, and by who drew them where those are known."""
        longest = spec.sampling.max_prompt_tokens + spec.sampling.max_new_tokens
        reference = bench.logprobs(self.base, longest, rows=rows, drawn=rows)
        if isinstance(self._distance(spec), KnownDistance):
            return {"reference": reference}
        return {"policy": rows if isinstance(spec, GuidedSpec) else reference, "reference": reference}

    @model_validator(mode="after")
    def _possible(self) -> Guided:
        if twice := sorted(set(self.helpers) & set(self.trained)):
            raise ValueError(f"helpers and trained both name {twice[0]!r}")
        known = [*self.helpers, *self.trained]
        for name, sweep in self.guides.items():
            if unknown := [one for one in sweep.helpers if one not in known]:
                raise ValueError(f"guides.{name}.helpers: there is no {unknown[0]!r}, there are {', '.join(known)}")
        for name, spec in self.trained.items():
            if spec.after or spec.objective.unpaired or not spec.reads <= {"reference"}:
                raise ValueError(f"trained.{name}: {spec.objective.kind} needs more than pairs: take arm, dpo or sft")
        if self.sampling.samples < 2 and self.trained:
            raise ValueError("sampling.samples: pairs are made of two completions of a prompt at least")
        return self
