"""The arguments of a serve file: models, ensembles and debates of them, limits."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trimtab.compute import default_storage
from trimtab.debating import AnyDebate, AnyPanel
from trimtab.methods.debates.sequential import Sequential
from trimtab.methods.guides._base import Blend
from trimtab.methods.panels.mean import Mean
from trimtab.parts import ModelSpec
from trimtab.spec import Spec, one_of

AnySteer = one_of("trimtab.methods.guides", "trimtab.methods.searches")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
INGRESS = "ingress"
"""The name of the deployment that takes requests; an ensemble's deployment has the ensemble's name."""


class Member(ModelSpec):
    """A model, and how it reads the messages of a chat; with a `url`, the one that a server calls by this name."""

    url: str | None = Field(None, description="an OpenAI-compatible server, as http://host:8000/v1; no weights here")
    key_env: str | None = Field(None, description="environment variable with that server's key")
    template: Literal["own", "plain"] | Path = Field(
        "own", description="own: its tokenizer's chat template; plain: text with the names of the speakers; or a file"
    )


class Group(Spec):
    """A model name that clients use, and what its deployment holds."""

    slots: int = Field(8, ge=1, le=256, description="completions that are written side by side")
    context: int = Field(2048, ge=16, description="tokens of prompt and completion; a model that reads fewer lowers it")
    description: str = ""

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """The names of its models by the key that says them, the one that writes first."""
        raise TypeError(f"{type(self).__name__} has no models")

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(name for names in self.roles.values() for name in names)


class Ensemble(Group):
    """A base, the helpers that steer it, and how."""

    base: str
    helpers: tuple[str, ...] = ()
    guide: AnySteer | None = Field(None, description="how helpers steer; none: the base alone, unless a request asks")
    ranges: dict[str, tuple[float, float]] = Field({}, description="narrower bounds of the guide's numbers in requests")
    draft: str | None = Field(None, description="the helper that may draft tokens ahead, where that is faster")

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Base and helpers."""
        return {"base": (self.base,), "helpers": self.helpers}

    @property
    def on_text(self) -> bool:
        """Whether its models hand one another text (nudging, searches), so that vocabularies may differ."""
        return self.guide is not None and not isinstance(self.guide, Blend)


class Debate(Group):
    """Copies of one model argue over a question, others judge what they say."""

    debater: str
    judges: tuple[str, ...] = Field(min_length=1)
    protocol: AnyDebate = Field(Sequential(turns=2, words=60), description="its turns and words are a request's most")
    panel: AnyPanel = Mean()

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Debater and judges."""
        return {"debater": (self.debater,), "judges": self.judges}


class Limits(Spec):
    """What one request may ask for, and how many may wait."""

    max_tokens: int = Field(1024, ge=1, description="tokens of a completion; also what a chat gets that names none")
    prompt_tokens: int = Field(8192, ge=1)
    prompts: int = Field(64, ge=1, description="prompts of one request")
    n: int = Field(16, ge=1, description="completions of a prompt")
    body_bytes: int = Field(1_000_000, ge=1000)
    in_flight: int = Field(64, ge=1, description="completions of an ensemble that an ingress replica has under way")
    queue: int = Field(64, ge=0, description="completions that wait beyond; further requests get 429")


class GuidedArgs(Spec):
    """What `trimtab.serving.app:build` takes."""

    models: dict[Name, Member]
    ensembles: dict[Name, Ensemble] = Field({}, description="models that steer a base")
    debates: dict[Name, Debate] = Field({}, description="models that argue, and those that judge them")
    limits: Limits = Limits()
    deadline_s: float = Field(300, gt=0, description="a request that takes longer is ended")
    api_keys_env: str = Field(
        "TRIMTAB_API_KEYS", description="environment variable with the keys, separated by commas; unset: none is asked"
    )
    storage: Path = Field(default_factory=default_storage, description="where models are kept that are made or loaded")
    revision: str = Field("", description="any text; another one makes Serve look aliases up and load models again")

    @property
    def groups(self) -> dict[str, Group]:
        """Ensembles and debates: what a deployment each is made of."""
        return {**self.ensembles, **self.debates}

    def specs(self, group: str) -> dict[str, Member]:
        """The members of an ensemble or a debate by name, the one that writes first."""
        return {name: self.models[name] for name in self.groups[group].members}

    @field_validator("storage", mode="before")
    @classmethod
    def _local(cls, given: Any) -> Any:
        if isinstance(given, str) and "://" in given:
            raise ValueError(
                "should be a folder; models of another storage are served from a registry or by their path"
            )
        return given

    @model_validator(mode="after")
    def _some(self) -> "GuidedArgs":
        if not self.groups:
            raise ValueError("names neither ensembles nor debates: there is nothing to serve")
        return self

    @property
    def cache(self) -> Path:
        return self.storage / "cache"
