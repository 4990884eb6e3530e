"""One seed of a preference experiment: policies trained on preferences, and measured against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.alignment import (
    ExploreSpec,
    GenerateSpec,
    Given,
    ImplicitSpec,
    OnlineSpec,
    PolicySpec,
    RewardModel,
    RewardSpec,
    Student,
)
from trimtab.debating import Labeller
from trimtab.pipelines._base import seeded
from trimtab.pipelines._debates import debated
from trimtab.pipelines._preferences import PreferenceBench, gold_scores, held_back
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.align import align
from trimtab.stages.explore import explore
from trimtab.stages.generate import generate
from trimtab.stages.pairs import audit_pairs, implicit
from trimtab.stages.prompts import divide
from trimtab.stages.unpair import unpair

if TYPE_CHECKING:
    from trimtab.pipelines.preference import Preference

Scorer = Callable[[Artifact, int], Artifact]


@dataclass(frozen=True)
class Places:
    """Completions at hand, and all those among which they are."""

    rows: Artifact
    whole: Artifact


@dataclass
class PolicyBench(PreferenceBench):
    """Preferences are made by reward models, or by a weak policy, against itself before its training."""

    job: Preference = None
    reward_scorers: tuple[Artifact, ...] = ()
    weak_policy: Artifact | None = None

    @classmethod
    def on(cls, job: Preference, shared: Runner, rows: Artifact, gold: Artifact, *, seed: int) -> PolicyBench:
        run = shared.under(f"seed {seed}")
        split = seeded(job.split.model_copy(update={"hops": job.rounds}), seed)
        held = held_back(shared, job.validation, rows=rows, scores=gold)
        data = run(divide, split, label="split", rows=held.rest if held else rows, scores=gold)
        bench = cls(run, seed, rows, data, job.pairs, eval=job.eval, ensemble=job.ensemble, held=held, job=job)
        bench.found["split"] = data
        return bench

    @property
    def samples_policies(self) -> bool:
        return not isinstance(self.job.gold, Given)

    def measure_reference(self) -> None:
        """The untrained strong policy on the test prompts, and its best of n by the gold reward."""
        self.found["gold"] = self.truth("test")
        if self.samples_policies:
            self._measured("reference", GenerateSpec(model=self.job.strong, sampling=self.job.measure.sampling))

    def align_weak(self, spec: PolicySpec, *, data: Artifact) -> None:
        """The weak policy, trained on true preferences."""
        self.weak_policy = self._trained(
            "weak policy", spec, data=data, places=Places(self.data / "supervise", self.whole)
        )
        self.found["model/supervisor"] = self.weak_policy
        if self.samples_policies:
            wanted = GenerateSpec(model=spec.model, sampling=self.job.measure.sampling)
            self._measured("supervisor", wanted, model=self.weak_policy)

    def supervise(self, spec: RewardSpec | PolicySpec | Labeller, *, data: Artifact) -> None:
        """Whoever makes the weak preferences; how right they are on transfer rows and on the test pairs."""
        if isinstance(spec, RewardSpec):
            members = self.job.ensemble.members
            self.reward_scorers = tuple(self.reward_models("supervisor", spec, data=data, members=members))
        self.found["weak"] = self.weak_scores(self.data / "test", 0)
        self.ranked("supervisor", scores=self.found["weak"])
        weak = self.paired(
            "supervisor", rows=self.data / "transfer", scores=self.weak_scores(self.data / "transfer", 0)
        )
        self.found["audit/supervisor"] = self.run(
            audit_pairs, self.eval, label="audit of weak pairs", labels=weak, truth=self.truth("transfer")
        )

    def weak_scores(self, rows: Artifact, round_: int) -> Artifact:
        """What the supervisor gives completions: those everybody has (round 0), or a policy's own."""
        spec, whole = self.job.supervisor, self.whole if round_ == 0 else rows
        if isinstance(spec, Labeller):
            return debated(self.run, spec, whole)
        if isinstance(spec, RewardSpec):
            return self.scored("supervisor", spec, models=list(self.reward_scorers), rows=rows, of=whole)
        before = self.logprobs(spec.model, spec.max_length, rows=whole)
        after = self.logprobs(spec.model, spec.max_length, rows=rows, model=self.weak_policy)
        spec = ImplicitSpec(beta=self.eval.beta)
        return self.run(implicit, spec, label="scores by supervisor", after=after, before=before)

    def true_scores(self, rows: Artifact, round_: int) -> Artifact:
        """The gold reward."""
        if round_ == 0:
            return self.data / f"truth/{rows.part}"
        return gold_scores(self.run, self.job.gold, rows)

    def learn(self, name: str, spec: Student, *, scorer: Scorer) -> None:
        """A policy trained on pairs, or by the reward of its own samples; and how it does."""
        if isinstance(spec, OnlineSpec):
            policy = self._explored(name, spec, scorer=scorer)
        else:
            policy = self._aligned(name, spec, scorer=scorer)
        self._sampled(name, spec, policy)
        self.found[f"model/{name}"] = policy
        self._ranked_by_policy(name, spec, policy)
        if self.held and scorer == self.weak_scores:
            self._validated(name, spec, policy)

    def _aligned(self, name: str, spec: PolicySpec, *, scorer: Scorer) -> Artifact:
        """A policy trained for the job's rounds, each on completions of the policy before it."""
        policy: Artifact | None = None
        for round_ in range(self.job.rounds):
            part = f"transfer.{round_}" if self.job.rounds > 1 else "transfer"
            rows, whole = self.data / part, self.whole
            if policy is not None:
                self._sampled(f"{name}@{round_}", spec, policy)
                wanted = GenerateSpec(model=spec.model, sampling=self.job.sampling)
                rows = whole = self.run(generate, wanted, label=f"completions by {name}", rows=rows, model=policy)
            true = scorer == self.true_scores
            scores = scorer(rows, round_ if whole == rows else 0)
            pairs = self.paired(f"{'truth' if true else 'supervisor'}, {part}", rows=rows, scores=scores, certain=true)
            policy = self._trained(name, spec, data=pairs, places=Places(rows, whole), start=policy)
        return policy

    def _explored(self, name: str, spec: OnlineSpec, *, scorer: Scorer) -> Artifact:
        """A policy trained by the gold reward or the supervisor's; it samples anew at every step, so has no rounds."""
        reward, by = self.job.gold, {}
        if scorer != self.true_scores:
            weak = self.job.supervisor
            reward, by = RewardModel(model=weak.model, max_length=weak.max_length), {"reward": self.reward_scorers[0]}
        wanted = seeded(ExploreSpec(**dict(spec), reward=reward), self.seed)
        return self.run(explore, wanted, label=f"train {name}", rows=self.data / "transfer", **by)

    def _sampled(self, name: str, spec: Student, policy: Artifact) -> None:
        """The policy on the test prompts, where the gold reward can tell of new samples."""
        if self.samples_policies:
            sampled = GenerateSpec(model=spec.model, sampling=self.job.measure.sampling)
            self._measured(name, sampled, model=policy)

    def _trained(
        self, name: str, spec: PolicySpec, *, data: Artifact, places: Places, start: Artifact | None = None
    ) -> Artifact:
        """A policy trained on `data`, with what the frozen models that its objective reads say of the completions."""
        before = {} if start is None else {"model": start}
        if spec.after:
            before = {"model": self._trained(f"{name}, first", spec.after, data=data, places=places, start=start)}
        if spec.objective.unpaired:
            data = self.run(unpair, self.pairs, label=f"single completions for {name}", pairs=data)
            places = Places(data, data)
        frozen = self._frozen(spec, places, before if spec.after else {})
        return self.run(align, seeded(spec, self.seed), label=f"train {name}", data=data, **before, **frozen)

    def _frozen(self, spec: PolicySpec, places: Places, start: dict[str, Artifact]) -> dict[str, Artifact]:
        """Log-probs by role; of a model as it came for all completions at once, of a trained one for those at hand."""
        found: dict[str, Artifact] = {}
        if "reference" in spec.objective.needs:
            rows = places.rows if start else places.whole
            found["reference"] = self.logprobs(spec.model, spec.max_length, rows=rows, **start)
        if "weak" in spec.objective.needs:
            weak = self.job.weak.model
            found["weak"] = self.logprobs(weak, spec.max_length, rows=places.rows, model=self.weak_policy)
            found["weak_reference"] = self.logprobs(weak, spec.max_length, rows=places.whole)
        return found

    def _ranked_by_policy(self, name: str, spec: Student, policy: Artifact) -> None:
        """How well the reward that the policy implies orders the test pairs."""
        self.ranked(name, **self._implied(spec, policy, self.data / "test"))

    def _implied(self, spec: Student, policy: Artifact, rows: Artifact) -> dict[str, Artifact]:
        after = self.logprobs(spec.model, spec.max_length, rows=rows, model=policy)
        return {"after": after, "before": self.logprobs(spec.model, spec.max_length, rows=self.whole)}

    def _validated(self, name: str, spec: Student, policy: Artifact) -> None:
        """As test pairs and test prompts, those set aside: NAME for the order, NAME.samples for samples."""
        rows = self.held.rows
        weak = self.weak_scores(rows, 0)
        self.order_validated(name, weak=weak, **self._implied(spec, policy, rows))
        if not self.samples_policies:
            return
        wanted = GenerateSpec(model=spec.model, sampling=self.job.measure.sampling)
        drawn = self.run(generate, wanted, label=f"samples of {name}, validation", rows=rows, model=policy)
        said = self._apart(wanted, drawn, model=policy)
        if isinstance(self.job.supervisor, RewardSpec):
            said["weak"] = self.weak_scores(drawn, 1)
        self.samples_validated(f"{name}.samples", gold=self.job.gold, rows=drawn, **said)

    def _measured(self, name: str, spec: GenerateSpec, **model: Artifact) -> None:
        """Samples of the test prompts, their gold reward, and their distance to the strong reference."""
        rows = self.run(generate, spec, label=f"samples of {name}", rows=self.data / "test", **model)
        found = self.measured(name, gold=self.job.gold, rows=rows, **self._apart(spec, rows, **model))
        self.run.outcome("test", f"{name}.samples", found)

    def _apart(self, spec: GenerateSpec, rows: Artifact, **model: Artifact) -> dict[str, Artifact]:
        """Log-probs of samples by the policy and by the strong reference."""
        longest = self.job.ceiling.max_length
        reference = self.logprobs(self.job.strong, longest, rows=rows)
        return {"policy": self.logprobs(spec.model, longest, rows=rows, **model), "reference": reference}
