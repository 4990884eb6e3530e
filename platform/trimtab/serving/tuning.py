"""What a request may set: methods, and the numbers of a method, and the room that each has."""

from dataclasses import dataclass
from typing import Any

from trimtab.errors import StageError
from trimtab.methods.guides._base import Blend
from trimtab.methods.guides.nudging import Nudging
from trimtab.methods.searches._base import Search
from trimtab.spec import methods_in

Steer = Blend | Nudging | Search
"""How helpers steer a base: token by token, or on text: word by word, or by choosing among what it writes."""
KINDS = methods_in("trimtab.methods.guides") | methods_in("trimtab.methods.searches")
GUIDES: dict[str, type[Steer]] = {kind: cls for kind, cls in KINDS.items() if issubclass(cls, Steer)}
"""Those that can be served: the others need more than language models."""


def methods(helpers: int, *, on_text: bool) -> dict[str, type[Steer]]:
    """What so many helpers can do: token by token with one vocabulary, or on text with any."""
    return {kind: cls for kind, cls in GUIDES.items() if issubclass(cls, Blend) != on_text and _fits(cls, helpers)}


def _fits(cls: type[Steer], helpers: int) -> bool:
    try:
        cls().check(1 + helpers)
    except StageError:
        return False
    return True


@dataclass(frozen=True)
class Bounds:
    """The least and the most that a number may be; `above`: the least itself is out."""

    least: float
    most: float
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{'above ' * self.above}{self.least:g} to {self.most:g}"

    def holds(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def within(self, narrower: tuple[float, float] | None) -> "Bounds":
        """The narrower ones, where there are any."""
        return Bounds(*narrower, whole=self.whole) if narrower else self

    def slider(self, value: object) -> dict[str, float] | None:
        """What a client needs to offer the number; None where its value is not one number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        room = {"min": self.least + self.above * (self.most - self.least) / 100, "max": self.most, "default": value}
        return room | ({"step": 1} if self.whole else {})


def numbers(cls: type[Steer]) -> dict[str, Bounds]:
    """The fields of a method that are one number between two bounds, or may be."""
    schema = cls.model_json_schema()["properties"]
    options = [(name, _bounds(option)) for name, field in schema.items() for option in field.get("anyOf", [field])]
    return {name: bounds for name, bounds in options if bounds}


def _bounds(schema: dict[str, Any]) -> Bounds | None:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    if schema.get("type") not in ("number", "integer") or least is None or "maximum" not in schema:
        return None
    return Bounds(least, schema["maximum"], "exclusiveMinimum" in schema, schema["type"] == "integer")
