"""The parts of a preference experiment: prompts, sampling, gold reward, pairs, reward models, policies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trimtab.errors import StageError
from trimtab.methods.guides._base import Blend
from trimtab.methods.guides.nudging import Nudging
from trimtab.methods.preferences.dpo import Dpo
from trimtab.methods.rewards.bradley_terry import BradleyTerry
from trimtab.methods.searches._base import Search
from trimtab.parts import EvalSpec, FeatureSpec, Full, LoRA, ModelSpec, Probe, Top, Training, Tune
from trimtab.spec import Spec, one_of

AnyPreference = one_of("trimtab.methods.preferences")
AnyReward = one_of("trimtab.methods.rewards")
AnySteer = one_of("trimtab.methods.guides", "trimtab.methods.searches")
"""How helpers steer a base: a guide of every token, or a search among what the base writes."""


class PromptColumns(Spec):
    """Which column of a file holds what; unset ones are detected from TRL's names."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    id: str | None = None
    group: str | None = None


class PromptSpec(Spec):
    """Prompts, or pairs of answers to them, in TRL's formats: texts or lists of messages."""

    source: str | tuple[str, ...] = Field(description="builtin:openings, local files or folders, hub ids (id:split)")
    test: str | None = Field(None, description="a source of its own for the test split")
    format: Literal["auto", "prompts", "pairs"] = "auto"
    columns: PromptColumns = PromptColumns()
    group_by: Literal["prompt", "row"] = Field("prompt", description="what never crosses splits")
    limit: int | None = Field(None, ge=3, description="rows kept, drawn by a hash of their ids")
    max_bad_fraction: float = Field(0.01, ge=0, le=1)


class Sampling(Spec):
    """How completions are drawn; every row has random numbers of its own."""

    samples: int = Field(4, ge=1, description="completions a prompt")
    max_new_tokens: int = Field(24, ge=1)
    max_prompt_tokens: int = Field(512, ge=1, description="prompts beyond are left out and counted")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 keeps all")
    seed: int = 0


class GenerateSpec(Spec):
    """Completions of prompts by a model: its own source, or the output of a stage that trained it."""

    model: ModelSpec
    sampling: Sampling = Sampling()


class GuidedSpec(GenerateSpec):
    """Completions by a base that helpers guide, token by token, by words of theirs, or by a search among its own."""

    guide: AnySteer
    helpers: dict[str, ModelSpec] = Field(description="name -> model, in the order that the guide takes them")

    @model_validator(mode="after")
    def _fits(self) -> GuidedSpec:
        check_guide(self.guide, len(self.helpers))
        return self


def check_guide(guide: Any, helpers: int) -> None:
    """Raises ValueError where the guide takes other helpers, or needs more than the log-probs of one vocabulary."""
    if not isinstance(guide, Blend | Nudging | Search):
        raise ValueError(f"guide: {guide.kind} does not make one distribution of its models' at every token")
    try:
        guide.check(1 + helpers)
    except StageError as error:
        raise ValueError(f"guide: {error}") from error


class LogprobSpec(Spec):
    """A model's log-probs of the tokens of completions."""

    model: ModelSpec
    max_length: int = Field(512, ge=2, description="tokens of prompt and completion")


class Vader(Spec):
    """VADER's compound score of the completion, -1 to 1 (Hutto & Gilbert 2014)."""

    kind: Literal["vader"] = "vader"


class RewardModel(Spec):
    """The reward that a sequence classifier with one output gives."""

    kind: Literal["reward_model"] = "reward_model"
    model: ModelSpec
    max_length: int = Field(512, ge=2)


class Given(Spec):
    """The order of chosen and rejected in the data."""

    kind: Literal["given"] = "given"


Gold = Annotated[Vader | RewardModel | Given, Field(discriminator="kind")]


class PairSpec(Spec):
    """Which completions of a prompt are paired, and how sure a difference of scores makes us."""

    strategy: Literal["best_worst", "all", "random"] = "best_worst"
    min_margin: float = Field(0.0, ge=0, description="pairs whose scores differ less are left out and counted")
    temperature: float = Field(1.0, gt=0, description="p = sigmoid(difference of scores / temperature)")
    certain: bool = Field(False, description="p = 1 whatever the difference: the scores are the truth")
    seed: int = 0


class ImplicitSpec(Spec):
    """The reward that a preference-trained policy implies."""

    beta: float = Field(0.1, gt=0)


class RankSpec(EvalSpec, ImplicitSpec):
    """What is measured of who orders pairs."""


class RewardSpec(Training):
    """A reward model trained on preferences."""

    kind: Literal["reward"] = "reward"
    model: ModelSpec
    objective: AnyReward = BradleyTerry()
    tune: Tune = Full()

    def trunk(self) -> FeatureSpec | None:
        """The part that a probe leaves frozen, whose states can be computed once."""
        if not isinstance(self.tune, Probe):
            return None
        return FeatureSpec(model=self.model, pool=self.tune.pool, max_length=self.max_length)

    @model_validator(mode="after")
    def _possible(self) -> RewardSpec:
        if self.objective.kind == "conflict":
            raise ValueError("objective: conflict reads the truth beside weak labels, which no job hands to a trainer")
        return self


class PolicySpec(Training):
    """A policy trained on preferences."""

    kind: Literal["policy"] = "policy"
    model: ModelSpec
    objective: AnyPreference = Dpo()
    tune: Annotated[Full | LoRA | Top, Field(discriminator="kind")] = Full()
    after: PolicySpec | None = Field(None, description="trained first on the same rows; then start and reference")

    @property
    def reads(self) -> set[str]:
        """The frozen models whose log-probs its training reads, and that of what is trained before it."""
        return {*self.objective.needs, *(self.after.reads if self.after else ())}


class SelfSampled(Training):
    """A policy trained on samples that it draws itself while it is trained; `sampling.seed` gives way to `seed`."""

    model: ModelSpec
    tune: Annotated[Full | LoRA | Top, Field(discriminator="kind")] = Full()
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _can_sample(self) -> SelfSampled:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature is 0, so all samples would be alike: set it above 0")
        if self.eval_fraction:
            raise ValueError("eval_fraction holds out labelled rows, and a policy that samples has none: leave it out")
        return self


class OnlineSpec(SelfSampled):
    """A policy trained by the reward of its own samples, those of one prompt compared (GRPO, Shao et al. 2024)."""

    kind: Literal["online"] = "online"
    sampling: Sampling = Sampling(samples=8)
    batch_size: int = Field(32, ge=2, description="completions of one optimiser step, `sampling.samples` of a prompt")
    beta: float = Field(0.04, ge=0, description="weight of the distance to the policy as it came; 0 leaves it out")

    @model_validator(mode="after")
    def _has_groups(self) -> OnlineSpec:
        samples = self.sampling.samples
        if samples < 2:
            raise ValueError("sampling.samples is 1, but those of a prompt are compared with one another: take more")
        if self.batch_size % samples:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of sampling.samples, which is {samples}")
        return self


class ExploreSpec(OnlineSpec):
    """An online policy together with the reward that it is trained by."""

    reward: Annotated[Vader | RewardModel, Field(discriminator="kind")]


class DistilSpec(SelfSampled):
    """A policy taught by another's next-token probabilities on its own samples (Agarwal et al. 2024)."""

    kind: Literal["distil"] = "distil"
    sampling: Sampling = Sampling(samples=1)
    teacher: ModelSpec
    beta: float = Field(1.0, ge=0, le=1, description="0 forward KL, 1 reverse KL, between them Jensen-Shannon")


def _usually_policy(value: Any) -> Any:
    return {"kind": "policy"} | value if isinstance(value, dict) else value


Student = Annotated[PolicySpec | OnlineSpec, Field(discriminator="kind"), BeforeValidator(_usually_policy)]


class EnsembleSpec(Spec):
    """Several reward models as one: by their mean, the lowest, or the mean less a multiple of their spread."""

    members: int = Field(1, ge=1, description="trained with seeds of their own; eval_fraction gives each other rows")
    how: Literal["mean", "min", "uncertainty"] = "mean"
    penalty: float = Field(1.0, ge=0, description="standard deviations taken off (uncertainty)")


class MeasureSpec(Spec):
    """How a policy is measured: samples of test prompts."""

    sampling: Sampling = Sampling(samples=2)


class KnownDistance(MeasureSpec):
    """For a policy whose log-probs are not known, with its distance to the reference, if that is."""

    kl: float | None
