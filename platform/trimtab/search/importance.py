"""How much of what trials differ in comes from which field: PED-ANOVA (Watanabe et al. 2023), as Optuna has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.search.board import text_of
from trimtab.search.record import Record
from trimtab.search.space import distribution, params
from trimtab.search.spec import SearchSpec

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

LEAST = 8
"""Finished trials below which shares say nothing."""


def shares(spec: SearchSpec, found: Sequence[Record], which: int) -> dict[str, float]:
    """The share of every field that all finished trials have; empty where too few are finished, or all ended alike."""
    from optuna import create_study
    from optuna.importance import get_param_importances

    done = [one for one in found if one.status == "done" and one.objectives]
    told = {one.objectives[which] for one in done}
    common = [field for field in spec.space if all(field in one.told.values for one in done)]
    varied = [field for field in common if len({text_of(one.told.values[field]) for one in done}) > 1]
    if len(done) < LEAST or len(told) < 2 or not varied:
        return {}
    study = create_study(direction="maximize" if spec.modes[which] == "max" else "minimize")
    study.add_trials([_again(spec, varied, one, which=which) for one in done])
    found_shares = get_param_importances(study)
    whole = sum(found_shares.values())
    return {name: share / whole for name, share in found_shares.items()} if whole else {}


def _again(spec: SearchSpec, fields: Sequence[str], one: Record, *, which: int) -> FrozenTrial:
    from optuna.trial import create_trial

    space = {field: spec.space[field] for field in fields}
    distributions = {field: distribution(found) for field, found in space.items()}
    return create_trial(value=one.objectives[which], params=params(space, one.told.values), distributions=distributions)
