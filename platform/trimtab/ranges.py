"""Distributions that a hyperparameter is searched in; a method's own file may say which suits its fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from trimtab.spec import Spec


class _Range(Spec):
    when: dict[str, Any] = Field({}, description="dotted field of the job -> the value, or list of values, it needs")


class Choice(_Range):
    """One of several values, of any kind."""

    choice: tuple[Any, ...] = Field(min_length=1)


class _Between(_Range):
    @property
    def ends(self) -> tuple[float, float]:
        return next(value for name, value in self if name != "when")[:2]

    @model_validator(mode="after")
    def _ordered(self) -> _Between:
        low, high = self.ends
        if low >= high:
            raise ValueError(f"the lower end {low:g} is not below the upper end {high:g}")
        return self


class Uniform(_Between):
    """Any number from low to high."""

    uniform: tuple[float, float]


class LogUniform(_Between):
    """Any number from low to high, every order of magnitude as likely."""

    loguniform: tuple[float, float]

    @model_validator(mode="after")
    def _positive(self) -> LogUniform:
        if self.loguniform[0] <= 0:
            raise ValueError(f"the lower end of a loguniform is above 0, not {self.loguniform[0]:g}")
        return self


class QUniform(_Between):
    """low, low + step, ... up to high."""

    quniform: tuple[float, float, Annotated[float, Field(gt=0)]] = Field(description="low, high, step")


class RandInt(_Between):
    """A whole number from low to high, both included."""

    randint: tuple[int, int]


Ranges = dict[str, Spec]
"""The ranges of a method's fields, by their dotted names within it."""
KINDS = {"choice": Choice, "uniform": Uniform, "loguniform": LogUniform, "quniform": QUniform, "randint": RandInt}


def _kind(value: Any) -> str | None:
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, _Range) else ()
    return next((name for name in KINDS if name in names), None)


AnyRange = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[QUniform, Tag("quniform")]
    | Annotated[RandInt, Tag("randint")],
    Discriminator(_kind, custom_error_type="range", custom_error_message=f"should be one of {', '.join(KINDS)}"),
]
