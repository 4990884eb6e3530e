"""The arguments of a serve file: models, ensembles of them, limits; and what can be seen to be wrong with them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from trimtab.compute import Compute, default_storage
from trimtab.errors import JobError, TrimtabError
from trimtab.methods.guides._base import Blend
from trimtab.mistakes import Loc, Mistake, model_mistakes, nearest
from trimtab.models.guided import check_vocabulary
from trimtab.models.source import model_folder, split_source
from trimtab.parts import ModelSpec
from trimtab.serving.registered import settled
from trimtab.serving.tuning import GUIDES, numbers
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


class Ensemble(Spec):
    """A model name that clients use: a base, the helpers that steer it, and how."""

    base: str
    helpers: tuple[str, ...] = ()
    guide: AnySteer | None = Field(None, description="how helpers steer; none: the base alone, unless a request asks")
    ranges: dict[str, tuple[float, float]] = Field({}, description="narrower bounds of the guide's numbers in requests")
    draft: str | None = Field(None, description="the helper that may draft tokens ahead, where that is faster")
    slots: int = Field(8, ge=1, le=256, description="completions that are written side by side")
    context: int = Field(2048, ge=16, description="tokens of prompt and completion; a model that reads fewer lowers it")
    description: str = ""

    @property
    def members(self) -> tuple[str, ...]:
        return (self.base, *self.helpers)

    @property
    def on_text(self) -> bool:
        """Whether its models hand one another text (nudging, searches), so that vocabularies may differ."""
        return self.guide is not None and not isinstance(self.guide, Blend)


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
    ensembles: dict[Name, Ensemble] = Field(min_length=1)
    limits: Limits = Limits()
    deadline_s: float = Field(300, gt=0, description="a request that takes longer is ended")
    api_keys_env: str = Field(
        "TRIMTAB_API_KEYS", description="environment variable with the keys, separated by commas; unset: none is asked"
    )
    storage: Path = Field(default_factory=default_storage, description="where models are kept that are made or loaded")
    revision: str = Field("", description="any text; another one makes Serve look aliases up and load models again")

    def specs(self, ensemble: str) -> dict[str, Member]:
        """The members of an ensemble by name, the base first."""
        return {name: self.models[name] for name in self.ensembles[ensemble].members}

    @property
    def cache(self) -> Path:
        return self.storage / "cache"


def checked(args: GuidedArgs) -> GuidedArgs:
    """The arguments, with a storage that is the same from everywhere. Raises JobError with every mistake found."""
    if found := [f"{'.'.join(map(str, loc))}: {text}" for loc, text in mistakes(args)]:
        raise JobError(found)
    return args.model_copy(update={"storage": args.storage.expanduser().resolve()})


def sound(raw: Any) -> tuple[GuidedArgs, set[str]]:
    """What is right by itself in arguments that are not, and the names of models that are there but wrong."""
    parts = raw if isinstance(raw, dict) else {}
    models, ensembles = (_each(cls, parts.get(key)) for cls, key in ((Member, "models"), (Ensemble, "ensembles")))
    named = parts.get("models") if isinstance(parts.get("models"), dict) else {}
    storage = {"storage": Path(parts["storage"])} if isinstance(parts.get("storage"), str) else {}
    args = GuidedArgs.model_construct(models=models, ensembles=ensembles, **storage)
    return args, set(map(str, named)) - set(models)


def _each(cls: type[Spec], raw: Any) -> dict[str, Any]:
    found = {}
    for name, value in raw.items() if isinstance(raw, dict) else ():
        try:
            found[str(name)] = cls.model_validate(value)
        except ValidationError:
            continue
    return found


def mistakes(args: GuidedArgs, broken: Iterable[str] = (), *, fetch: bool = False) -> Iterator[Mistake]:
    """Everything that can be seen before a model is loaded. `broken`: further models, of which enough is said.

    `fetch`: get the models that are not on this machine, to see their tokenizers too. Raises ModelError then.
    """
    models, found = settled(args.models, args.storage, fetch=fetch)
    yield from found
    args, broken = args.model_copy(update={"models": models}), {*broken, *(loc[1] for loc, _ in found)}
    for name, member in models.items():
        for loc, text in _member(member, args.storage):
            broken.add(name)
            yield ("models", name, loc), text
    for name, ensemble in args.ensembles.items():
        yield from _named(name, ensemble, [*args.models, *(broken - set(args.models))])
        yield from _guided(("ensembles", name), ensemble)
        if set(ensemble.members) <= set(args.models) - broken:
            yield from _together(name, args, fetch=fetch)


def _member(member: Member, storage: Path) -> Iterator[tuple[str, str]]:
    if member.url is None:
        yield from model_mistakes(member, Compute(storage=storage))
    else:
        yield from _elsewhere(member)
    if isinstance(member.template, Path) and not member.template.expanduser().is_file():
        yield "template", f"there is no file {member.template}; give own, plain, or a file with a Jinja template"


def _elsewhere(member: Member) -> Iterator[tuple[str, str]]:
    if not member.url.startswith(("http://", "https://")):
        yield "url", "should be the address of an OpenAI-compatible server, as http://host:8000/v1"
    if member.template == "own":
        yield "template", "its tokenizer is not here: give plain, or a file with a Jinja template"
    for field in ("layers", "revision"):
        if getattr(member, field) is not None:
            yield field, "is the server's business where a url is given; leave it out"


def _named(name: str, ensemble: Ensemble, models: Sequence[str]) -> Iterator[Mistake]:
    loc: Loc = ("ensembles", name)
    if name == INGRESS or name in models:
        taken = "the ingress has this name" if name == INGRESS else "a model has this name"
        yield loc, f"{taken}; take another"
    named = [(("base",), ensemble.base)] + [(("helpers", i), one) for i, one in enumerate(ensemble.helpers)]
    for place, model in named:
        if model not in models:
            yield (*loc, *place), f"no model {model!r}{nearest(model, models)}; there: {_list(models)}"
    if len(set(ensemble.members)) < len(ensemble.members):
        yield (*loc, "helpers"), "names a model twice; give it a second name under models"
    if ensemble.draft is not None and ensemble.draft not in ensemble.helpers:
        yield (*loc, "draft"), f"{ensemble.draft!r} is no helper; there: {_list(ensemble.helpers)}"


def _guided(loc: Loc, ensemble: Ensemble) -> Iterator[Mistake]:
    guide = ensemble.guide
    if guide is None:
        return
    if guide.kind not in GUIDES:
        yield (*loc, "guide"), f"{guide.kind} cannot be served; there: {', '.join(GUIDES)}"
        return
    if ensemble.draft and ensemble.on_text:
        yield (*loc, "draft"), f"{guide.kind} drafts nothing; leave it out"
    try:
        guide.check(len(ensemble.members))
    except TrimtabError as error:
        yield (*loc, "helpers"), str(error)
    bounds = numbers(type(guide))
    for field, (least, most) in ensemble.ranges.items():
        if field not in bounds:
            yield (*loc, "ranges", field), f"{guide.kind} has no such number; there: {_list(bounds)}"
        elif not bounds[field].holds(least) or not bounds[field].holds(most) or least > most:
            yield (*loc, "ranges", field), f"should lie within {bounds[field]}, the lower bound first"


def _together(name: str, args: GuidedArgs, *, fetch: bool) -> Iterator[Mistake]:
    """Vocabularies by content, as far as the tokenizers are on this machine, or are fetched."""
    from tokenizers import Tokenizer

    specs, on_text = args.specs(name), args.ensembles[name].on_text
    away = [member for member, spec in specs.items() if spec.url]
    paths = {one: _tokenizer(spec, args.cache, fetch=fetch) for one, spec in specs.items() if one not in away}
    if away and not on_text:
        kinds = ", ".join(kind for kind, cls in GUIDES.items() if not issubclass(cls, Blend))
        yield ("ensembles", name, "guide"), f"{away[0]} is behind another server, where only these reach: {kinds}"
    if away or on_text or not all(paths.values()):
        return
    found = {member: Tokenizer.from_file(str(path)) for member, path in paths.items()}
    base, *helpers = found
    for i, helper in enumerate(helpers):
        try:
            check_vocabulary(base, found[base], helper, found[helper])
        except TrimtabError as error:
            yield ("ensembles", name, "helpers", i), str(error)


def _tokenizer(spec: ModelSpec, cache: Path, *, fetch: bool) -> Path | None:
    kind, name = split_source(spec.source)
    if kind == "builtin" and not fetch:
        return next((cache / "models").glob(f"{name}-*/tokenizer.json"), None)
    if kind in ("hub", "registry") and not fetch:
        return None
    path = model_folder(spec.source, cache, revision=spec.revision) / "tokenizer.json"
    return path if path.exists() else None


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
