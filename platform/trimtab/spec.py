"""Specs say what is done; a Method is a spec whose `kind` is the name of the file that holds it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Frozen, and refuses keys it does not know. Enters a stage's key whole."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Method(Spec):
    """One choice of a family: its fields are the hyperparameters, `__call__` is the mathematics.

    `ranges` says where its fields are sensibly searched, by their dotted names within it.
    """

    ranges: ClassVar[dict[str, Spec]] = {}
    kind: str


def methods_in(package: str) -> dict[str, type[Method]]:
    """Every Method of a folder by its kind; the folder is the registry."""
    found = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.name.startswith("_"):
            continue
        found[info.name] = _only_method(importlib.import_module(f"{package}.{info.name}"))
    return found


def _only_method(module: Any) -> type[Method]:
    own = [
        c
        for c in vars(module).values()
        if issubclass(type(c), type) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Method, found {[c.__name__ for c in own]}")
    return own[0]


def one_of(*packages: str) -> Any:
    """The tagged union of every Method in some folders: a field of this type accepts each file's `kind`."""
    found = [cls for package in packages for cls in methods_in(package).values()]
    return Annotated[reduce(or_, found), Field(discriminator="kind")]
