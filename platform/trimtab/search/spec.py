"""A search file: which job, which of its fields with which distributions, what is best, by whom, for how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trimtab.ranges import AnyRange
from trimtab.spec import Spec

Mode = Literal["max", "min"]
FEW = 128
"""Rows of truth that a search may use without more ado."""


class Searcher(Spec):
    """Who proposes: TPE (Bergstra et al. 2011), GP, random, every point of a grid, or NSGA-II (Deb et al. 2002)."""

    kind: Literal["tpe", "gp", "random", "grid", "nsga2"] = "tpe"
    startup: int = Field(8, ge=1, description="random trials before a model proposes")
    seed: int = 0


class Unscheduled(Spec):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Spec):
    """Asynchronous successive halving (Li et al. 2020) on what held-out rows say while training goes on."""

    kind: Literal["asha"] = "asha"
    grace: float = Field(0.25, gt=0, lt=1, description="share of a trial that none is stopped before")
    reduction: float = Field(3, gt=1, description="one in so many goes on")


class Median(Spec):
    """Stop what is below the median of the others so far (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace: float = Field(0.25, gt=0, lt=1)
    least: int = Field(3, ge=1, description="trials to compare with")


class Pbt(Spec):
    """Population-based training (Jaderberg et al. 2017), of policies: a generation goes on from one before it."""

    kind: Literal["pbt"] = "pbt"
    generations: int = Field(4, ge=2, description="parts of equal length that a training is cut into")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share that is replaced by the share at the top")


AnyScheduler = Annotated[Unscheduled | Asha | Median | Pbt, Field(discriminator="kind")]


class Budget(Spec):
    """How long a search goes on; whatever is used up first ends it."""

    trials: int = Field(16, ge=1)
    minutes: float | None = Field(None, gt=0)
    concurrent: int | None = Field(None, ge=1, description="trials side by side; default: as many as fit")
    failures: int = Field(3, ge=1, description="trials that fail alike before the search gives up")


class Final(Spec):
    """The evaluation of winner and default on test, on seeds that no trial has seen."""

    seeds: tuple[int, ...] = Field((100, 101, 102), min_length=1)


class SearchSpec(Spec):
    """A search over a job's dotted fields.

    Metrics are NAME/WHAT of the validation rows, such as student.naive/agreement; those of truth need a `truth_budget`.
    """

    job: str = Field(description="job file, from the current folder or from that of this file")
    set: dict[str, Any] = Field({}, description="dotted fields of the job that differ, in trials and at the end")
    space: dict[str, AnyRange] = Field(min_length=1)
    metric: str | tuple[str, ...]
    mode: Mode | tuple[Mode, ...] = "max"
    validation: int = Field(200, ge=2, description="rows set aside to choose by, before anything is drawn")
    truth_budget: int = Field(0, ge=0, description="of them, rows whose truth may steer the search")
    more_truth: bool = Field(False, description=f"allow a budget of more than {FEW} rows")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of a trial; its metric is their mean")
    searcher: Searcher = Searcher()
    scheduler: AnyScheduler = Unscheduled()
    budget: Budget = Budget()
    final: Final = Final()
    smoke: dict[str, Any] = Field({}, description="dotted fields of this file that differ in a trial run (--smoke)")

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def modes(self) -> tuple[Mode, ...]:
        return (self.mode,) * len(self.metrics) if isinstance(self.mode, str) else self.mode

    @model_validator(mode="after")
    def _possible(self) -> SearchSpec:
        if not 1 <= len(self.metrics) <= 2 or len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metric: give one, or two different ones for a Pareto front")
        if len(self.modes) != len(self.metrics):
            raise ValueError(f"mode: {len(self.modes)} for {len(self.metrics)} metrics; give one each")
        if self.truth_budget > self.validation:
            raise ValueError(f"truth_budget is {self.truth_budget}, but validation has only {self.validation} rows")
        if self.truth_budget > FEW and not self.more_truth:
            raise ValueError(
                f"truth_budget: {self.truth_budget} rows of truth are over {FEW}, more than weak supervision would "
                "have; if you mean it set more_truth: true, and every report will say so"
            )
        if overlap := sorted(set(self.seeds) & set(self.final.seeds)):
            raise ValueError(f"final.seeds: seed {overlap[0]} is one of the trials' seeds; take fresh ones")
        several = len(self.metrics) > 1
        if several and self.searcher.kind == "gp":
            raise ValueError("searcher: gp has one objective here; take nsga2, tpe or random for two")
        if several and self.scheduler.kind != "none":
            raise ValueError("scheduler: with two objectives no trial is stopped early; set kind: none")
        if self.searcher.kind == "nsga2" and not several:
            raise ValueError("searcher: nsga2 is for two metrics; take tpe")
        return self
