"""What the preference pipelines share: scored completions of prompts, dealt out afresh for every seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.alignment import (
    EnsembleSpec,
    Gold,
    LogprobSpec,
    MeasureSpec,
    PairSpec,
    RankSpec,
    RewardModel,
    RewardSpec,
)
from trimtab.parts import ValidationSpec
from trimtab.pipelines._base import seeded
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.align import train_reward
from trimtab.stages.features import features
from trimtab.stages.logprobs import logprobs
from trimtab.stages.measure import measure
from trimtab.stages.pairs import pair, rank
from trimtab.stages.reserve import allowed, reserve_prompts
from trimtab.stages.score import combine, score, vader
from trimtab.stages.validate import validate_order, validate_samples

if TYPE_CHECKING:
    from trimtab.parts import ModelSpec


def gold_scores(run: Runner, gold: Gold, rows: Artifact, *, of: str = "completions") -> Artifact:
    """The gold reward of every completion."""
    stage = score if isinstance(gold, RewardModel) else vader
    return run(stage, gold, label=f"gold reward of {of}", rows=rows)


@dataclass(frozen=True)
class Held:
    """Prompts that a job sets aside to choose by, the same for every seed."""

    spec: ValidationSpec
    kept: Artifact

    @property
    def rest(self) -> Artifact:
        return self.kept / "rest"

    @property
    def rows(self) -> Artifact:
        return self.kept / "validation"

    @property
    def truth(self) -> Artifact | None:
        """Prompts and scores whose truth may be used, where there are any."""
        return self.kept / "truth" if self.spec.truth else None

    @property
    def budget(self) -> dict[str, Artifact]:
        return {"truth": self.truth} if self.truth else {}


def held_back(run: Runner, spec: ValidationSpec | None, *, rows: Artifact, scores: Artifact) -> Held | None:
    """What a job sets aside of its prompts, if anything."""
    return Held(spec, run(reserve_prompts, spec, label="reserve", rows=rows, scores=scores)) if spec else None


@dataclass
class PreferenceBench:
    """One seed. `whole` holds the completions of all seeds, so that what frozen models say of them is computed once."""

    run: Runner
    seed: int
    whole: Artifact
    data: Artifact
    pairs: PairSpec
    eval: RankSpec
    ensemble: EnsembleSpec
    held: Held | None = None
    found: dict[str, Artifact] = field(default_factory=dict)

    def truth(self, part: str) -> Artifact:
        return self.data / f"truth/{part}"

    def paired(self, name: str, *, rows: Artifact, scores: Artifact, certain: bool = False) -> Artifact:
        """Pairs by somebody's scores; those of the truth are certain."""
        spec = seeded(self.pairs, self.seed).model_copy(update={"certain": certain})
        return self.run(pair, spec, label=f"pairs by {name}", rows=rows, scores=scores)

    def truly_paired(self, part: str) -> Artifact:
        """Pairs of a part by the truth."""
        return self.paired(f"truth, {part}", rows=self.data / part, scores=self.truth(part), certain=True)

    def logprobs(self, source: ModelSpec, max_length: int, *, rows: Artifact, **by: Artifact) -> Artifact:
        """What a model (of its own source, or one trained before) says of every completion of these rows."""
        spec = LogprobSpec(model=source, max_length=max_length)
        who = "trained model" if "model" in by else _short(source)
        return self.run(logprobs, spec, label=f"log-probs of {who}", rows=rows, **by)

    def reward_models(self, name: str, spec: RewardSpec, *, data: Artifact, members: int = 1) -> list[Artifact]:
        """Reward models trained on pairs; the members of an ensemble differ in their seed, and so in rows held out."""
        states = self.states(spec, self.whole)
        specs = [seeded(spec, self.seed + 1000 * i) for i in range(members)]
        models = [self.run(train_reward, one, label=f"train {name}", data=data, **states) for one in specs]
        self.found[f"model/{name}"] = models[0]
        return models

    def states(self, spec: RewardSpec, rows: Artifact) -> dict[str, Artifact]:
        trunk = spec.trunk()
        if trunk is None:
            return {}
        return {"features": self.run(features, trunk, label=f"states of {_short(trunk.model)}", rows=rows)}

    def scored(
        self, name: str, spec: RewardSpec, *, models: list[Artifact], rows: Artifact, of: Artifact | None = None
    ) -> Artifact:
        """The reward models' scores of completions; `of` holds them all where `rows` are part of it."""
        wanted = RewardModel(model=spec.model, max_length=spec.max_length)
        states = self.states(spec, of or rows)
        scores = [
            self.run(score, wanted, label=f"scores by {name}", rows=rows, model=model, **states) for model in models
        ]
        return scores[0] if len(scores) == 1 else self._combined(name, scores)

    def _combined(self, name: str, scores: list[Artifact]) -> Artifact:
        members = {str(i): one for i, one in enumerate(scores)}
        return self.run(combine, self.ensemble, label=f"scores by {name} together", members=members)

    def measured(
        self, name: str, spec: MeasureSpec | None = None, *, gold: Gold, rows: Artifact, **said: Artifact
    ) -> Artifact:
        """Samples of the test prompts: their gold reward, and their distance to the reference; `said`: log-probs."""
        scores = gold_scores(self.run, gold, rows, of=name)
        inputs = {"rows": rows, "gold": scores} | said
        found = self.run(measure, spec or MeasureSpec(), label=f"measure {name}", **inputs)
        self.found[f"measure/{name}"] = found
        return found

    def ranked(self, name: str, **by: Artifact) -> None:
        """How well scores, or a policy's log-probs after and before its training, order the test pairs."""
        found = self.run(rank, self.eval, label=f"ranking by {name}", data=self.truly_paired("test"), **by)
        self.found[f"score/{name}"] = found
        self.run.outcome("test", name, found)

    def order_validated(self, name: str, *, weak: Artifact, **by: Artifact) -> None:
        """How scores, or a policy's log-probs, order the validation pairs; `weak`: the supervisor's scores of them.

        They are all pairs, however the job's are chosen: a choice by them must not hang on what is chosen.
        """
        every = PairSpec(strategy="all")
        pairs = {"weak": self.run(pair, every, label="pairs of validation", rows=self.held.rows, scores=weak)}
        if truth := self.held.truth:
            pairs["truth"] = self.run(pair, every, label="pairs of validation, truth", rows=truth, scores=truth)
        found = self.run(validate_order, self.eval, label=f"validate {name}", **pairs, **by)
        self.run.outcome("validation", name, found)

    def samples_validated(
        self, name: str, spec: MeasureSpec | None = None, *, gold: Gold, rows: Artifact, **said: Artifact
    ) -> None:
        """As `measured`, of validation prompts; the gold reward is asked only where truth may be used."""
        if truth := self.held.truth:
            free = self.run(
                allowed, self.held.spec, label=f"samples of {name} that gold may score", rows=rows, truth=truth
            )
            said["gold"] = gold_scores(self.run, gold, free, of=f"{name}, validation")
        found = self.run(validate_samples, spec or MeasureSpec(), label=f"validate {name}", rows=rows, **said)
        self.run.outcome("validation", name, found)


def _short(model: ModelSpec) -> str:
    layers = (
        f" ({len(model.layers) if isinstance(model.layers, tuple) else model.layers} layers)" if model.layers else ""
    )
    return f"{model.source}{layers}"
