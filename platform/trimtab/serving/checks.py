"""What can be seen to be wrong with the arguments of a serve file before a model is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trimtab.compute import Compute
from trimtab.errors import JobError, TrimtabError
from trimtab.methods.guides._base import Blend
from trimtab.mistakes import Loc, Mistake, model_mistakes, nearest
from trimtab.models.guided import check_vocabulary
from trimtab.models.source import model_folder, split_source
from trimtab.parts import ModelSpec
from trimtab.serving.config import INGRESS, Debate, Ensemble, Group, GuidedArgs, Member
from trimtab.serving.registered import settled
from trimtab.serving.tuning import GUIDES, numbers
from trimtab.spec import Spec

KINDS: dict[str, type[Spec]] = {"models": Member, "ensembles": Ensemble, "debates": Debate}


def checked(args: GuidedArgs) -> GuidedArgs:
    """The arguments, with a storage that is the same from everywhere. Raises JobError with every mistake found."""
    if found := [f"{'.'.join(map(str, loc))}: {text}" for loc, text in mistakes(args)]:
        raise JobError(found)
    return args.model_copy(update={"storage": args.storage.expanduser().resolve()})


def sound(raw: Any) -> tuple[GuidedArgs, set[str]]:
    """What is right by itself in arguments that are not, and the names of models that are there but wrong."""
    parts = raw if isinstance(raw, dict) else {}
    found = {key: _each(cls, parts.get(key)) for key, cls in KINDS.items()}
    named = parts.get("models") if isinstance(parts.get("models"), dict) else {}
    storage = {"storage": Path(parts["storage"])} if isinstance(parts.get("storage"), str) else {}
    return GuidedArgs.model_construct(**found, **storage), set(map(str, named)) - set(found["models"])


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
    there = [*args.models, *(broken - set(args.models))]
    for name, ensemble in args.ensembles.items():
        yield from _named(("ensembles", name), ensemble, there)
        yield from _guided(("ensembles", name), ensemble)
        if set(ensemble.members) <= set(args.models) - broken:
            yield from _together(name, args, fetch=fetch)
    for name, debate in args.debates.items():
        if name in args.ensembles:
            yield ("debates", name), "an ensemble has this name; take another"
        yield from _named(("debates", name), debate, there)
        yield from _debated(("debates", name), debate, args, fetch=fetch)


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


def _named(loc: Loc, group: Group, models: Sequence[str]) -> Iterator[Mistake]:
    if loc[-1] == INGRESS or loc[-1] in models:
        taken = "the ingress has this name" if loc[-1] == INGRESS else "a model has this name"
        yield loc, f"{taken}; take another"
    for role, names in group.roles.items():
        several = role in ("helpers", "judges")
        for i, model in enumerate(names):
            if model not in models:
                place = (*loc, role, i) if several else (*loc, role)
                yield place, f"no model {model!r}{nearest(model, models)}; there: {_list(models)}"
    if len(set(group.members)) < len(group.members):
        _, others = group.roles
        yield (*loc, others), "names a model twice; give it a second name under models"


def _debated(loc: Loc, debate: Debate, args: GuidedArgs, *, fetch: bool) -> Iterator[Mistake]:
    known = {name: args.models[name] for name in debate.members if name in args.models}
    if away := [name for name, member in known.items() if member.url]:
        yield loc, f"{away[0]} is behind another server: debaters and judges need their log-probs here"
    elif fetch:
        for member in known.values():
            _tokenizer(member, args.cache, fetch=True)


def _guided(loc: Loc, ensemble: Ensemble) -> Iterator[Mistake]:
    guide = ensemble.guide
    if ensemble.draft is not None and ensemble.draft not in ensemble.helpers:
        yield (*loc, "draft"), f"{ensemble.draft!r} is no helper; there: {_list(ensemble.helpers)}"
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
