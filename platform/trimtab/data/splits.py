"""Rows dealt out to supervise, transfer and test (Burns et al. 2023).

Every choice hangs on a hash of the seed and a row's or group's id: neither the file's order nor the machine counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trimtab.data.formats import stable_hash
from trimtab.data.tables import Candidates, Row
from trimtab.errors import DataError
from trimtab.parts import SplitSpec

R = TypeVar("R", Row, Candidates)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """The three splits; `hops` are equal, group-disjoint parts that make up transfer."""

    supervise: list[R]
    transfer: list[R]
    test: list[R]
    hops: list[list[R]]


@dataclass
class _Target:
    """A split to fill: `size` rows, or a share of what is left in proportion to `weight`."""

    name: str
    size: int | None
    weight: int
    rows: dict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def have(self, stratum: int) -> int:
        return len(self.rows[stratum])


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, by stratum (their class, or 0 where classes are not balanced)."""

    key: str
    rows: dict[int, list[Row]]

    @property
    def size(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


def split_rows(rows: Sequence[Row], spec: SplitSpec) -> Splits[Row]:
    """Draw the splits.

    Rows of part "test", where there are any, make up the test split; else all three come from the same rows. Rows of
    one group, and rows without a group that share a text, never go to different splits of the same source. With
    `balance` every split holds each class equally often; where no row has a label there is nothing to balance.

    Raises DataError for a size that cannot be met, an empty split, a split of one class, a label below 0, or labels
    that only some rows have.
    """
    classes = _classes(rows)
    n_strata = len(classes) if classes and spec.balance else 1
    hops = [_Target(f"transfer.{i}", _part(spec.transfer, spec.hops), 1) for i in range(spec.hops)]
    train = [_Target("supervise", spec.supervise, spec.hops), *hops]
    own_test = [row for row in rows if row.part == "test"]
    test = _Target("test", spec.test, 1 if own_test else spec.hops)
    _check_sizes(spec, n_strata)
    if own_test:
        _fill(own_test, [test], spec, n_strata)
        _fill([row for row in rows if row.part == "train"], train, spec, n_strata)
    else:
        _fill(rows, [test, *train], spec, n_strata)
    done = {target.name: _finished(target, spec, n_strata) for target in (test, *train)}
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


def manifest(splits: Splits[R]) -> dict[str, dict[str, Any]]:
    """For each split, and each hop where there are several: rows, rows of each class, sha256 of the sorted ids."""
    named = {"supervise": splits.supervise, "transfer": splits.transfer, "test": splits.test}
    if len(splits.hops) > 1:
        named |= {f"transfer.{i}": hop for i, hop in enumerate(splits.hops)}
    return {
        name: {
            "n": len(rows),
            "classes": dict(sorted(Counter(str(row.label) for row in rows if _labelled(row)).items())),
            "sha256": hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest(),
        }
        for name, rows in named.items()
    }


def _labelled(row: Row | Candidates) -> bool:
    return isinstance(row, Row) and row.label is not None


def _classes(rows: Sequence[Row]) -> list[int]:
    if not rows:
        raise DataError("split: there are no rows")
    without = [row for row in rows if row.label is None]
    if len(without) == len(rows):
        return []
    if without:
        raise DataError(f"split: row {without[0].id} has no label and others do; give each row one, or none of them")
    found = sorted({row.label for row in rows})
    if found[0] < 0:
        row = next(row for row in rows if row.label < 0)
        raise DataError(f"split: row {row.id}: label {row.label} is not in range; classes are counted from 0")
    if found != list(range(len(found))):
        raise DataError(f"split: labels {found} are not in range; with {found[-1] + 1} classes each must occur")
    if len(found) == 1:
        raise DataError(f"split: every row has label {found[0]}; two classes are needed")
    return found


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


def _units(rows: Sequence[Row], spec: SplitSpec) -> list[_Unit]:
    """Groups in a random order, fixed by the seed; rows without a group count as a group of their text."""
    first: dict[str, str] = {}
    for row in rows:
        if row.group is None:
            first[row.text] = min(first.get(row.text, row.id), row.id)
    units: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = f"row:{first[row.text]}" if row.group is None else f"group:{row.group}"
        units[key][row.label if spec.balance and row.label is not None else 0].append(row)
    return [_Unit(key, units[key]) for key in sorted(units, key=lambda key: (stable_hash(spec.seed, key), key))]


def _fill(rows: Sequence[Row], targets: Sequence[_Target], spec: SplitSpec, n_strata: int) -> None:
    units = _units(rows, spec)
    for target in targets:
        if target.size is not None:
            units = _take(units, target, target.size // n_strata, n_strata)
    shared = [target for target in targets if target.size is None]
    if shared:
        _deal(units, shared, spec)
        share = min(target.have(s) // target.weight for target in shared for s in range(n_strata))
        for target in shared:
            target.size = share * target.weight * n_strata


def _take(units: list[_Unit], target: _Target, each: int, n_strata: int) -> list[_Unit]:
    """Fill one target: first with units that fit whole, then with those that waste least; gives the units left."""
    left = []
    for unit in units:
        if all(len(own) + target.have(s) <= each for s, own in unit.rows.items()):
            _give(unit, target)
        else:
            left.append(unit)
    while need := {s: each - target.have(s) for s in range(n_strata) if target.have(s) < each}:
        useful = [unit for unit in left if any(s in need for s in unit.rows)]
        if not useful:
            raise _too_few(target, each, need, classes=n_strata > 1)
        best = min(useful, key=lambda unit: _waste(unit, need))
        left.remove(best)
        _give(best, target)
    return left


def _waste(unit: _Unit, need: dict[int, int]) -> tuple[int, int]:
    used = sum(min(len(own), need.get(s, 0)) for s, own in unit.rows.items())
    return unit.size - used, -used


def _give(unit: _Unit, target: _Target) -> None:
    for s, own in unit.rows.items():
        target.rows[s] += own


def _too_few(target: _Target, each: int, need: dict[int, int], *, classes: bool) -> DataError:
    stratum, short = max(need.items(), key=lambda item: item[1])
    which = f" of class {stratum}" if classes else ""
    return DataError(
        f"split.{target.name.split('.')[0]}: {each} rows{which} asked for, but only {each - short} are there once the "
        "splits before it (test, supervise, transfer, in this order) are filled and groups kept whole; ask for fewer"
    )


def _deal(units: Sequence[_Unit], targets: Sequence[_Target], spec: SplitSpec) -> None:
    """Each unit, large ones first, goes where its classes are scarcest."""
    for unit in sorted(units, key=lambda unit: -unit.size):
        _give(
            unit,
            min(
                targets,
                key=lambda target: (
                    sum(len(own) * target.have(s) / target.weight for s, own in unit.rows.items()),
                    stable_hash(spec.seed, unit.key, target.name),
                ),
            ),
        )


def _finished(target: _Target, spec: SplitSpec, n_strata: int) -> list[Row]:
    """The target's rows cut to its size, in an order fixed by the seed."""
    each = (target.size or 0) // n_strata
    if each == 0:
        raise DataError(f"split.{target.name.split('.')[0]}: no rows are left for it; ask for fewer rows elsewhere")

    def order(row: Row) -> str:
        return stable_hash(spec.seed, target.name, row.id)

    kept = [row for s in range(n_strata) for row in sorted(target.rows[s], key=order)[:each]]
    if len({row.label for row in kept}) < 2 and _labelled(kept[0]):
        raise DataError(f"split.{target.name.split('.')[0]}: all its {len(kept)} rows have one label")
    return sorted(kept, key=order)
