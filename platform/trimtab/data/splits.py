"""Rows dealt out to supervise, transfer and test (Burns et al. 2023), and those set aside before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic, TypeVar

from trimtab.data.dealing import VALIDATION, Target, classes, fill, finished
from trimtab.data.tables import Candidates, Row
from trimtab.errors import DataError
from trimtab.parts import SplitSpec, ValidationSpec

R = TypeVar("R", Row, Candidates)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """The three splits; `hops` are equal, group-disjoint parts that make up transfer."""

    supervise: list[R]
    transfer: list[R]
    test: list[R]
    hops: list[list[R]]


def split_rows(rows: Sequence[Row], spec: SplitSpec) -> Splits[Row]:
    """Draw the splits.

    Rows of part "test", where there are any, make up the test split; else all three come from the same rows. Rows of
    one group, and rows without a group that share a text, never go to different splits of the same source. With
    `balance` every split holds each class equally often; where no row has a label there is nothing to balance.

    Raises DataError for a size that cannot be met, an empty split, a split of one class, a label below 0, or labels
    that only some rows have.
    """
    known = classes(rows)
    n_strata = len(known) if known and spec.balance else 1
    hops = [Target(f"transfer.{i}", _part(spec.transfer, spec.hops), 1) for i in range(spec.hops)]
    train = [Target("supervise", spec.supervise, spec.hops), *hops]
    own_test = [row for row in rows if row.part == "test"]
    test = Target("test", spec.test, 1 if own_test else spec.hops)
    _check_sizes(spec, n_strata)
    if own_test:
        fill(own_test, [test], spec, n_strata)
        fill([row for row in rows if row.part == "train"], train, spec, n_strata)
    else:
        fill(rows, [test, *train], spec, n_strata)
    done = {target.name: finished(target, spec, n_strata) for target in (test, *train)}
    parts = [done[hop.name] for hop in hops]
    return Splits(done["supervise"], [row for part in parts for row in part], done["test"], parts)


def split_prompts(rows: Sequence[Candidates], spec: SplitSpec) -> Splits[Candidates]:
    """Draw the splits of prompts as `split_rows` does; a row without a group goes its own way, whatever its text.

    Raises DataError as that does, and where there are fewer groups than splits.
    """
    groups = {row.group or row.id for row in rows}
    if len(groups) < 2 + spec.hops <= len(rows):
        raise DataError(
            f"split: the {len(rows)} prompts make up {len(groups)} groups, too few for {2 + spec.hops} splits that "
            "share none; read them with group_by: row, or give a group column"
        )
    by_id = {row.id: row for row in rows}
    drawn = split_rows([Row(row.id, row.id, None, row.group, row.part) for row in rows], spec)
    hops = [[by_id[row.id] for row in hop] for hop in drawn.hops]
    supervise, test = ([by_id[row.id] for row in part] for part in (drawn.supervise, drawn.test))
    return Splits(supervise, [row for hop in hops for row in hop], test, hops)


@dataclass(frozen=True)
class Reserved(Generic[R]):
    """Rows set aside, those of them whose truth may be used, and all that no group connects with them."""

    validation: list[R]
    truth: list[R]
    rest: list[R]


def reserve_rows(rows: Sequence[Row], spec: ValidationSpec) -> Reserved[Row]:
    """Set rows of part "train" aside, classes balanced; what of their groups is not needed goes nowhere.

    Raises DataError as `split_rows` does.
    """
    drawn = SplitSpec(balance=True, seed=spec.seed)
    n_strata, target = len(classes(rows)) or 1, Target(VALIDATION, spec.rows, 1)
    if spec.rows % n_strata:
        fewer = spec.rows // n_strata * n_strata or n_strata
        raise DataError(f"validation: {spec.rows} rows cannot be shared equally by {n_strata} classes; try {fewer}")
    fill([row for row in rows if row.part == "train"], [target], drawn, n_strata)
    taken = {row.id for own in target.rows.values() for row in own}
    kept = finished(target, drawn, n_strata)
    by_class = [[row for row in kept if row.label == label] for label in dict.fromkeys(row.label for row in kept)]
    in_turn = [row for rows in zip_longest(*by_class) for row in rows if row]
    truth = sorted(in_turn[: spec.truth], key=kept.index)
    return Reserved(kept, truth, [row for row in rows if row.id not in taken])


def reserve_prompts(rows: Sequence[Candidates], spec: ValidationSpec) -> Reserved[Candidates]:
    """Set prompts aside as `reserve_rows` does; a row without a group goes its own way, whatever its text."""
    by_id = {row.id: row for row in rows}
    drawn = reserve_rows([Row(row.id, row.id, None, row.group, row.part) for row in rows], spec)
    parts = ([by_id[row.id] for row in part] for part in (drawn.validation, drawn.truth, drawn.rest))
    return Reserved(*parts)


def _part(size: int | None, hops: int) -> int | None:
    return None if size is None else size // hops


def _check_sizes(spec: SplitSpec, n_strata: int) -> None:
    for name, size, step in (
        ("supervise", spec.supervise, n_strata),
        ("transfer", spec.transfer, n_strata * spec.hops),
        ("test", spec.test, n_strata),
    ):
        if size is not None and size % step:
            why = f"{n_strata} classes" + (f" in each of {spec.hops} hops" if step > n_strata else "")
            lower = size // step * step
            raise DataError(f"split.{name}: {size} rows cannot be shared equally by {why}; try {lower or step}")
