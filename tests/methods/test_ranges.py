"""The ranges that methods declare: within the bounds of their fields, at both ends and at every choice."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.ranges import Choice, RandInt
from trimtab.spec import Method, methods_in

FAMILIES = ("objectives", "preferences", "rewards", "guides", "searches", "debates", "panels")
DECLARED = {
    f"{family}.{kind}": cls
    for family in FAMILIES
    for kind, cls in methods_in(f"trimtab.methods.{family}").items()
    if cls.ranges
}


def with_field(cls: type[Method], name: str, value: Any) -> dict[str, Any]:
    raw = cls().model_dump()
    *parents, last = name.split(".")
    node = raw
    for step in parents:
        node = node[step]
    assert last in node, f"{cls.__name__} has no field {name}"
    node[last] = value
    return raw


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_both_ends_of_every_range_are_within_the_field_s_bounds(name: str) -> None:
    cls = DECLARED[name]
    for field, found in cls.ranges.items():
        for value in found.choice if isinstance(found, Choice) else found.ends:
            cls.model_validate(with_field(cls, field, int(value) if isinstance(found, RandInt) else value))


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_conditions_hold_for_the_method_as_it_comes(name: str) -> None:
    cls = DECLARED[name]
    usual = cls().model_dump()
    for found in cls.ranges.values():
        for field, wanted in found.when.items():
            assert usual[field] in (wanted if isinstance(wanted, list) else [wanted])


def test_the_main_methods_say_where_to_search() -> None:
    assert {"objectives.logconf", "preferences.dpo", "preferences.softdpo", "guides.genarm", "guides.nudging"} <= set(
        DECLARED
    )
    assert "debates.sequential" in DECLARED
