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
from trimtab.pipelines._base import seeded
from trimtab.run.artifact import Artifact, Runner
from trimtab.stages.align import train_reward
from trimtab.stages.features import features
from trimtab.stages.logprobs import logprobs
from trimtab.stages.measure import measure
from trimtab.stages.pairs import pair, rank
from trimtab.stages.score import combine, score, vader

if TYPE_CHECKING:
    from trimtab.parts import ModelSpec


def gold_scores(run: Runner, gold: Gold, rows: Artifact, *, of: str = "completions") -> Artifact:
    """The gold reward of every completion."""
    stage = score if isinstance(gold, RewardModel) else vader
    return run(stage, gold, label=f"gold reward of {of}", rows=rows)


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
    ) -> None:
        """Samples of the test prompts: their gold reward, and their distance to the reference; `said`: log-probs."""
        scores = gold_scores(self.run, gold, rows, of=name)
        inputs = {"rows": rows, "gold": scores} | said
        self.found[f"measure/{name}"] = self.run(measure, spec or MeasureSpec(), label=f"measure {name}", **inputs)

    def ranked(self, name: str, **by: Artifact) -> None:
        """How well scores, or a policy's log-probs after and before its training, order the test pairs."""
        found = self.run(rank, self.eval, label=f"ranking by {name}", data=self.truly_paired("test"), **by)
        self.found[f"score/{name}"] = found


def _short(model: ModelSpec) -> str:
    layers = (
        f" ({len(model.layers) if isinstance(model.layers, tuple) else model.layers} layers)" if model.layers else ""
    )
    return f"{model.source}{layers}"
