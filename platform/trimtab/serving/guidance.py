"""The `guidance` object of a request: another method, other numbers, weights by helper, a trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from trimtab.errors import TrimtabError
from trimtab.methods.guides._base import Blend, Linear
from trimtab.mistakes import nearest, worded
from trimtab.serving.answer import Refused
from trimtab.serving.config import Ensemble, GuidedArgs
from trimtab.serving.tuning import GUIDES, Steer, methods, numbers

NONE = "none"
FLAT = "guidance_"
OURS = ("method", "guides", "trace")
RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "value_error"}


class Alone(Linear):
    """A helper by itself."""

    kind: Literal["alone"] = "alone"
    model: int

    def weights(self, models: int) -> tuple[float, ...]:
        """1 for the one model."""
        return tuple(float(m == self.model) for m in range(models))


@dataclass(frozen=True)
class Steering:
    """Which ensemble answers a request, steered by what; `trace`: every token's numbers are wanted too."""

    ensemble: str
    guide: Steer | None
    trace: bool

    @property
    def method(self) -> str:
        return self.guide.kind if self.guide else NONE


def steering(args: GuidedArgs, model: str, asked: Mapping[str, Any]) -> Steering:
    """For a model name and the `guidance` of a request. Raises Refused: 404, 400, and 422 for numbers out of bounds."""
    asked = {name: value for name, value in asked.items() if value is not None}
    trace = asked.pop("trace", False)
    if not isinstance(trace, bool):
        raise Refused(400, "guidance.trace: should be true or false", param="guidance.trace")
    if model in args.ensembles:
        return Steering(model, _guide(args.ensembles[model], asked), trace)
    if model in args.debates:
        if asked or trace:
            raise Refused(400, f"{model} is a debate, which nothing guides; leave guidance out", param="guidance")
        return Steering(model, None, trace=False)
    home = next((name for name, one in args.groups.items() if model in one.members), None)
    if home is None:
        there = [*args.groups, *args.models]
        said = f"no model {model!r}{nearest(model, there)}; there: {', '.join(there)}"
        raise Refused(404, said, code="model_not_found", param="model")
    if asked.pop("method", NONE) != NONE or asked:
        said = f"{model} is one model, with nothing to guide it; ensembles: {', '.join(args.ensembles)}"
        raise Refused(400, said, param="guidance")
    place = args.groups[home].members.index(model)
    return Steering(home, Alone(model=place) if place else None, trace)


def flat(extra: Mapping[str, Any]) -> dict[str, Any]:
    """`guidance` as it comes through gateways that drop nested objects: guidance_alpha, guidance_method."""
    return {name.removeprefix(FLAT): value for name, value in extra.items() if name.startswith(FLAT)}


def _guide(ensemble: Ensemble, asked: dict[str, Any]) -> Steer | None:
    own = ensemble.guide
    kind = asked.pop("method", own.kind if own else NONE)
    if kind == NONE:
        if asked:
            raise Refused(400, f"guidance: method none takes no {', '.join(asked)}", param="guidance")
        return None
    _possible(ensemble, kind)
    usual = own.model_dump() if own and own.kind == kind else {"kind": kind}
    guides = asked.pop("guides", None)
    _known(kind, asked)
    weighed = _weighed(ensemble, guides, usual | asked) if guides is not None else {}
    guide = _made(kind, usual | asked | weighed)
    _bounded(ensemble, guide, asked | weighed)
    try:
        guide.check(len(ensemble.members))
    except TrimtabError as error:
        raise Refused(422, f"guidance: {error} ({', '.join(ensemble.helpers) or 'none'})", param="guidance") from error
    return guide


def _possible(ensemble: Ensemble, kind: object) -> None:
    allowed = methods(len(ensemble.helpers), on_text=ensemble.on_text)
    if not isinstance(kind, str) or kind not in GUIDES:
        said = f"no {kind!r}{nearest(kind, GUIDES)}; allowed: none, {', '.join(allowed)}"
        raise Refused(400, f"guidance.method: {said}", param="guidance.method")
    if issubclass(GUIDES[kind], Blend) == ensemble.on_text:
        works = "works on text, and this ensemble token by token"
        if ensemble.on_text:
            works = "works token by token, and the models of this ensemble hand one another text"
        said = f"{kind} {works}; allowed: none, {', '.join(allowed)}"
        raise Refused(400, f"guidance.method: {said}", param="guidance.method")


def _known(kind: str, asked: Mapping[str, Any]) -> None:
    fields = [name for name in GUIDES[kind].model_fields if name != "kind"]
    for name in asked:
        if name not in fields:
            allowed = ", ".join([*OURS, *fields])
            said = f"guidance.{name}: {kind} has no such field{nearest(name, fields)}; allowed: {allowed}"
            raise Refused(400, said, param=f"guidance.{name}")


def _made(kind: str, fields: dict[str, Any]) -> Steer:
    try:
        return GUIDES[kind].model_validate(fields)
    except ValidationError as error:
        errors, bounds = error.errors(), numbers(GUIDES[kind])
        found = worded(errors, GUIDES[kind], fields, ("guidance",))
        out = {str(one["loc"][0]) if one["loc"] else "" for one in errors if one["type"] in RANGE}
        said = [
            f"{'.'.join(map(str, loc))}: " + (f"should be {bounds[loc[1]]}" if loc[-1] in out & set(bounds) else text)
            for loc, text in found
        ]
        param = ".".join(map(str, found[0][0]))
        raise Refused(422 if out else 400, "; ".join(said), param=param) from error


def _bounded(ensemble: Ensemble, guide: Steer, asked: Mapping[str, Any]) -> None:
    """Within the ensemble's own, narrower bounds; 0, which lets a helper rest, is always within."""
    if ensemble.guide is None or ensemble.guide.kind != guide.kind:
        return
    bounds = numbers(type(guide))
    for name in set(asked) & set(ensemble.ranges):
        value = getattr(guide, name)
        narrow = bounds[name].within(ensemble.ranges[name])
        for one in value if isinstance(value, tuple) else (value,):
            if one and not narrow.holds(one):
                said = f"guidance.{name}: should be {narrow} here (given: {one:g})"
                raise Refused(422, said, param=f"guidance.{name}")


def _weighed(ensemble: Ensemble, guides: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`guides` as the method's own field: helpers that are not named count nothing, a base in a product counts 1."""
    given, kind = _by_name(ensemble, guides), fields["kind"]
    weights = tuple(given.get(name, 0.0) for name in ensemble.helpers)
    if kind == "genarm":
        return {"alpha": weights}
    if kind == "ensemble":
        return {"weights": (1.0, *weights)}
    if kind == "contrastive" and len(ensemble.helpers) == 1:
        return {"coef": weights[0]}
    if kind == "proxy" and not (fields.get("untuned", True) and ensemble.helpers[-1] in given):
        return {"alpha": weights[:-1] if fields.get("untuned", True) else weights}
    said = {"fusion": "fusion finds the weights itself", "proxy": f"{ensemble.helpers[-1]} is the untuned model"}
    said |= {"contrastive": "contrastive takes one helper"}
    raise Refused(400, f"guidance.guides: {said.get(kind, f'{kind} weighs no models')}", param="guidance.guides")


def _by_name(ensemble: Ensemble, guides: object) -> dict[str, float]:
    if not isinstance(guides, list) or not all(
        isinstance(one, dict) and set(one) <= {"model", "weight"} for one in guides
    ):
        said = 'guidance.guides: should be a list of {"model": NAME, "weight": NUMBER}'
        raise Refused(400, said, param="guidance.guides")
    found = {}
    for one in guides:
        if (name := one.get("model")) not in ensemble.helpers:
            there = ", ".join(ensemble.helpers) or "none"
            said = f"guidance.guides: {name!r} is no helper of this ensemble; there: {there}"
            raise Refused(400, said, code="guide_not_available", param="guidance.guides")
        found[name] = one.get("weight", 1.0)
    return found
