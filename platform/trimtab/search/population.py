"""Population-based training (Jaderberg et al. 2017) of policies, a generation at a time.

A generation goes on from the policy of the one before it, its own or that of a better trial, which is its start and its
reference. So a trial is a chain of trainings of equal length, each a stage that is kept: to take over another trial's
policy is to take over its chain.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

from trimtab.alignment import PolicySpec
from trimtab.errors import JobError
from trimtab.ranges import AnyRange, Choice, LogUniform, QUniform, RandInt
from trimtab.search.job import Search
from trimtab.search.space import Space, Values, every
from trimtab.search.spec import Pbt
from trimtab.search.trial import Plan, Trial

CHAIN = "chain.json"
RESAMPLE = 0.25
FACTORS = (0.8, 1.2)


def trained(search: Search) -> str:
    """The student whose fields are searched, as students.NAME. Raises JobError where it is not one policy."""
    names = {".".join(path.split(".")[:2]) for path in search.spec.space}
    (name, *more), below = sorted(names), all(path.count(".") >= 2 for path in search.spec.space)
    students = getattr(search.default.pipeline, "students", {})
    policy = students.get(name.removeprefix("students.")) if name.startswith("students.") else None
    if more or not below or not isinstance(policy, PolicySpec):
        raise JobError(
            ["scheduler: pbt goes on training one policy, so search only fields below one students.NAME of kind policy"]
        )
    return name


def chained(plan: Plan, student: str, *, chain: list[Values], generations: int) -> Values:
    """The values of a trial that has come so far: the student as a chain of trainings, and its last fields."""
    spec: dict[str, Any] | None = None
    for values in chain:
        dumped = plan.job(values).pipeline.model_dump(mode="json")["students"][student.removeprefix("students.")]
        own = dumped["after"] if spec is None else spec
        spec = dumped | {"num_train_epochs": dumped["num_train_epochs"] / generations, "after": own}
    return {student: spec} | chain[-1] | _epochs(student, chain[-1], generations)


def _epochs(student: str, values: Values, generations: int) -> Values:
    path = f"{student}.num_train_epochs"
    return {path: values[path] / generations} if path in values else {}


def explored(space: Space, values: Values, draw: random.Random) -> Values:
    """Values near those of a better trial: each drawn anew at times, else a fifth more or less."""
    found: Values = {}
    for path, field in space.fields.items():
        if space.holds(field, found):
            anew = path not in values or draw.random() < RESAMPLE
            found[path] = drawn(path, field, draw) if anew else nudged(path, field, values[path], draw=draw)
    return found


def drawn(path: str, field: AnyRange, draw: random.Random) -> Any:
    if isinstance(field, Choice | QUniform | RandInt):
        return draw.choice(every(path, field))
    low, high = field.ends
    if isinstance(field, LogUniform):
        return min(high, max(low, low * (high / low) ** draw.random()))
    return draw.uniform(low, high)


def nudged(path: str, field: AnyRange, value: Any, *, draw: random.Random) -> Any:
    if isinstance(field, Choice):
        return value
    wanted = value * draw.choice(FACTORS)
    if isinstance(field, QUniform | RandInt):
        return min(every(path, field), key=lambda one: abs(one - wanted))
    low, high = field.ends
    return min(high, max(low, wanted))


class Generations(tune.Trainable):
    """Runs a trial generation by generation; what it is saved as is its chain of values."""

    def setup(self, config: dict[str, Any]) -> None:
        self.plan, self.number = Plan.from_json(config["plan"]), config["number"]
        self.student, self.generations = config["student"], config["generations"]
        self.values: Values = json.loads(config["values"])
        self.chain: list[Values] = []

    def step(self) -> dict[str, Any]:
        self.chain = [*self.chain, self.values]
        values = chained(self.plan, self.student, chain=self.chain, generations=self.generations)
        progress = len(self.chain) / self.generations
        trial = Trial(self.plan, self.number, values, lambda result: None, generation=len(self.chain))
        result = trial()
        told = json.loads(result["told"]) | {"progress": progress}
        result |= {"progress": progress, "told": json.dumps(told)}
        if result["status"] != "done":
            return result
        whole = result if progress >= 1 else {k: v for k, v in result.items() if k not in ("status", "done")}
        return whole | {"signal": json.loads(result["objectives"])[0]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / CHAIN).write_text(json.dumps(self.chain))

    def load_checkpoint(self, checkpoint: str) -> None:
        self.chain = json.loads((Path(checkpoint) / CHAIN).read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True


class Population(PopulationBasedTraining):
    """The lower quantile takes over the chains of the upper one, and explores from there."""

    def __init__(self, space: Space, spec: Pbt, mode: str, *, seed: int) -> None:
        super().__init__(
            time_attr="training_iteration",
            metric="signal",
            mode=mode,
            perturbation_interval=1,
            quantile_fraction=spec.quantile,
            custom_explore_fn=lambda config: config,
            log_config=False,
            require_attrs=False,
        )
        self.space, self.draw = space, random.Random(seed)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Ray Tune's own refuses whom a searcher proposes, since it would not hear of what is explored: ours does."""
        self._trial_state[trial] = _PBTTrialState(trial)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The better one's values, explored; the trial stays the trial that it is."""
        values = explored(self.space, json.loads(trial_to_clone.config["values"]), self.draw)
        return trial.config | {"values": json.dumps(values)}, {}
