"""What is told of the models that can be asked for."""

from typing import Any

from trimtab.mistakes import nearest
from trimtab.serving.answer import Refused
from trimtab.serving.config import Debate, Ensemble, GuidedArgs
from trimtab.serving.guidance import NONE
from trimtab.serving.tuning import methods, numbers


def cards(args: GuidedArgs) -> list[dict[str, Any]]:
    """Ensembles and debates with what they are made of, then their models, which answer by themselves too."""
    members = dict.fromkeys(name for group in args.groups.values() for name in group.members)
    ensembles = [_card(name) | {"ensemble": _ensemble(args, one)} for name, one in args.ensembles.items()]
    debates = [_card(name) | {"debate": _debate(one)} for name, one in args.debates.items()]
    return [*ensembles, *debates, *(_card(name) for name in members)]


def card(args: GuidedArgs, name: str) -> dict[str, Any]:
    """One of them. Raises Refused."""
    found = {one["id"]: one for one in cards(args)}
    if name not in found:
        said = f"no model {name!r}{nearest(name, found)}; there: {', '.join(found)}"
        raise Refused(404, said, code="model_not_found", param="model")
    return found[name]


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "trimtab"}


def _ensemble(args: GuidedArgs, one: Ensemble) -> dict[str, Any]:
    guide = one.guide
    values = guide.model_dump(exclude={"kind"}) if guide else {}
    bounds = numbers(type(guide)) if guide else {}
    sliders = {name: room.within(one.ranges.get(name)).slider(values[name]) for name, room in bounds.items()}
    return {
        "description": one.description,
        "method": guide.kind if guide else NONE,
        "members": {"base": one.base, "helpers": list(one.helpers)},
        "guidance": values,
        "ranges": {name: room for name, room in sliders.items() if room},
        "methods": [NONE, *methods(len(one.helpers), on_text=one.on_text)],
        "context": one.context,
        "max_tokens": args.limits.max_tokens,
    }


def _debate(one: Debate) -> dict[str, Any]:
    most = {name: getattr(one.protocol, name) for name in ("turns", "words")}
    return {
        "description": one.description,
        "debater": one.debater,
        "judges": list(one.judges),
        "protocol": one.protocol.model_dump(exclude={"prompts"}),
        "panel": one.panel.model_dump(),
        "ranges": {name: {"min": 1, "max": value, "default": value, "step": 1} for name, value in most.items()},
        "context": one.context,
    }
