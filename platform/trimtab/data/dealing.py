"""How rows are dealt out: units of rows that stay together, targets to fill, and who gets which unit.

Every choice hangs on a hash of the seed and a row's or group's id: neither the file's order nor the machine counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.data.formats import stable_hash
from trimtab.data.tables import Row
from trimtab.errors import DataError
from trimtab.parts import SplitSpec

VALIDATION = "validation"


@dataclass
class Target:
    """A split to fill: `size` rows, or a share of what is left in proportion to `weight`."""

    name: str
    size: int | None
    weight: int
    rows: dict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))

    @property
    def place(self) -> str:
        """The field of a job that asks for it."""
        return VALIDATION if self.name == VALIDATION else f"split.{self.name.split('.')[0]}"

    def have(self, stratum: int) -> int:
        return len(self.rows[stratum])


@dataclass(frozen=True)
class Unit:
    """Rows that stay together, by stratum (their class, or 0 where classes are not balanced)."""

    key: str
    rows: dict[int, list[Row]]

    @property
    def size(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


def classes(rows: Sequence[Row]) -> list[int]:
    """The classes that occur, none where no row has a label. Raises DataError for labels that cannot be classes."""
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


def _units(rows: Sequence[Row], spec: SplitSpec) -> list[Unit]:
    """Groups in a random order, fixed by the seed; rows without a group count as a group of their text."""
    first: dict[str, str] = {}
    for row in rows:
        if row.group is None:
            first[row.text] = min(first.get(row.text, row.id), row.id)
    units: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = f"row:{first[row.text]}" if row.group is None else f"group:{row.group}"
        units[key][row.label if spec.balance and row.label is not None else 0].append(row)
    return [Unit(key, units[key]) for key in sorted(units, key=lambda key: (stable_hash(spec.seed, key), key))]


def fill(rows: Sequence[Row], targets: Sequence[Target], spec: SplitSpec, n_strata: int) -> None:
    """Give every target its rows, those with a size first. Raises DataError where a size cannot be met."""
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


def _take(units: list[Unit], target: Target, each: int, n_strata: int) -> list[Unit]:
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
            raise _too_few(target, each, need, balanced=n_strata > 1)
        best = min(useful, key=lambda unit: _waste(unit, need))
        left.remove(best)
        _give(best, target)
    return left


def _waste(unit: Unit, need: dict[int, int]) -> tuple[int, int]:
    used = sum(min(len(own), need.get(s, 0)) for s, own in unit.rows.items())
    return unit.size - used, -used


def _give(unit: Unit, target: Target) -> None:
    for s, own in unit.rows.items():
        target.rows[s] += own


def _too_few(target: Target, each: int, need: dict[int, int], *, balanced: bool) -> DataError:
    stratum, short = max(need.items(), key=lambda item: item[1])
    which = f" of class {stratum}" if balanced else ""
    order = "the splits before it (test, supervise, transfer, in this order) are filled and "
    before = "" if target.name == VALIDATION else order
    return DataError(
        f"{target.place}: {each} rows{which} asked for, but only {each - short} are there once {before}groups are "
        "kept whole; ask for fewer"
    )


def _deal(units: Sequence[Unit], targets: Sequence[Target], spec: SplitSpec) -> None:
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


def finished(target: Target, spec: SplitSpec, n_strata: int) -> list[Row]:
    """The target's rows cut to its size, in an order fixed by the seed. Raises DataError for none, or one class."""
    each = (target.size or 0) // n_strata
    if each == 0:
        raise DataError(f"{target.place}: no rows are left for it; ask for fewer rows elsewhere")

    def order(row: Row) -> str:
        return stable_hash(spec.seed, target.name, row.id)

    kept = [row for s in range(n_strata) for row in sorted(target.rows[s], key=order)[:each]]
    if len({row.label for row in kept}) < 2 and kept[0].label is not None:
        raise DataError(f"{target.place}: all its {len(kept)} rows have one label")
    return sorted(kept, key=order)
