"""The parts of an experiment: task, split, model, training, labels, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trimtab.methods.objectives.xent import Xent
from trimtab.spec import Spec, one_of

AnyObjective = one_of("trimtab.methods.objectives")


class Columns(Spec):
    """Which column of a file holds what; unset ones are detected from their usual names."""

    text: str | None = None
    label: str | None = None
    id: str | None = None
    group: str | None = None
    question: str | None = None
    choices: str | None = None


class TaskSpec(Spec):
    """A data set read into rows (id, text, label, group)."""

    source: str = Field(description="builtin:NAME, a local file or folder, or a hub id (id:split)")
    test: str | None = Field(None, description="a source of its own for the test split")
    format: Literal["auto", "classification", "multiple_choice"] = "auto"
    columns: Columns = Columns()
    template: str = Field("{text}", description="text of a row, from its columns")
    max_bad_fraction: float = Field(0.01, ge=0, le=1)


class SplitSpec(Spec):
    """Rows drawn for supervise, transfer and test; groups never cross; classes balanced (Burns et al. 2023)."""

    supervise: int | None = Field(None, ge=2, description="rows; unset sizes share what is left evenly")
    transfer: int | None = Field(None, ge=2)
    test: int | None = Field(None, ge=2)
    balance: bool = True
    hops: int = Field(1, ge=1, description="equal parts of transfer, one for each hop of a chain")
    seed: int = 0


class ValidationSpec(Spec):
    """Rows set aside before any split, whatever the seed: what is chosen by them was never seen by transfer or test."""

    rows: int = Field(ge=2)
    truth: int = Field(0, ge=0, description="of them, rows whose truth may steer a choice; the others' is not kept")
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> ValidationSpec:
        if self.truth > self.rows:
            raise ValueError(f"truth is {self.truth}, but only {self.rows} rows are set aside: raise rows")
        return self


class ModelSpec(Spec):
    """A network: hub id, folder, builtin:NAME, artifact:STAGE-KEY, models:/NAME@ALIAS or models:/NAME/VERSION; cut to
    `layers` if asked."""

    source: str
    layers: int | tuple[int, ...] | None = Field(None, description="first k layers, or the list of layers kept")
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Full(Spec):
    """Every weight is trained."""

    kind: Literal["full"] = "full"


class LoRA(Spec):
    """Low-rank adapters on linear layers (Hu et al. 2021), the head trained in full."""

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1)
    alpha: float = 16
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"


class Top(Spec):
    """The upper `layers` and the head are trained; the frozen trunk runs once per data set and is cached."""

    kind: Literal["top"] = "top"
    layers: int = Field(ge=1)


class Probe(Spec):
    """A linear head on frozen, standardised states; full-batch Adam (Burns et al. 2023, linear probing)."""

    kind: Literal["probe"] = "probe"
    l2: float = Field(0.1, ge=0, description="weight of the squared norm of the head")
    steps: int = Field(250, ge=1)
    pool: Literal["last", "mean"] = "last"


Tune = Annotated[Full | LoRA | Top | Probe, Field(discriminator="kind")]


class FeatureSpec(Spec):
    """States that a frozen network gives for every row: one vector a row, or one a token."""

    model: ModelSpec
    without_top: int = Field(0, ge=0, description="upper layers left off")
    keep: Literal["pooled", "tokens"] = "pooled"
    pool: Literal["last", "mean"] = "last"
    max_length: int = 512


class Training(Spec):
    """How weights are trained, whatever on."""

    max_length: int = Field(512, ge=1)
    batch_size: int = Field(32, ge=1, description="rows of one optimiser step over all workers")
    num_train_epochs: float = Field(2, gt=0)
    learning_rate: float = Field(1e-5, gt=0)
    head_lr_scale: float = Field(1.0, gt=0, description="head's learning rate as a multiple")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="rows held out to watch agreement with their (weak) labels"
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="a loss or gradient that is not finite: name the rows, leave them out, or go back a little"
    )
    seed: int = 0


class TrainSpec(Training):
    """A model trained on labels."""

    model: ModelSpec
    objective: AnyObjective = Xent()
    tune: Tune = Full()

    def trunk(self) -> FeatureSpec | None:
        """The part that training leaves frozen, whose states can be computed once; None where all of it moves."""
        if isinstance(self.tune, Probe):
            return FeatureSpec(model=self.model, pool=self.tune.pool, max_length=self.max_length)
        if isinstance(self.tune, Top):
            return FeatureSpec(
                model=self.model, without_top=self.tune.layers, keep="tokens", max_length=self.max_length
            )
        return None

    @model_validator(mode="after")
    def _possible(self) -> TrainSpec:
        layers = self.model.layers
        depth = len(layers) if isinstance(layers, tuple) else layers
        if isinstance(self.tune, Top) and depth is not None and self.tune.layers >= depth:
            raise ValueError(f"tune.layers is {self.tune.layers} but the model keeps {depth}; use kind: full")
        if (
            getattr(self.objective, "whole_batch", False)
            and self.batch_size < 8
            and not getattr(self.objective, "buffer", 0)
        ):
            raise ValueError(
                f"{self.objective.kind} takes statistics over the batch: batch_size >= 8, or set objective.buffer"
            )
        return self


class LabelSpec(Spec):
    """Weak labels: the supervisor's probabilities."""

    temperature: float = Field(1.0, gt=0, description="divides the logits before the softmax")


class EvalSpec(Spec):
    """What is measured on the test split."""

    ece_bins: int = Field(10, ge=2)


class ReportSpec(Spec):
    """Intervals of the report."""

    bootstrap: int = Field(2000, ge=100, description="paired resamples of test rows and seeds")
    level: float = Field(0.95, gt=0, lt=1)
