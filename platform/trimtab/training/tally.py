"""Means over what happened since the last log, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.training.world import world

Sums = dict[str, tuple[float, float]]


@dataclass
class Tally:
    """Sums and weights by name, on this rank."""

    sums: Sums = field(default_factory=dict)

    def add(self, name: str, value: float, *, weight: float = 1) -> None:
        total, weights = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (total + value * weight, weights + weight)

    def of_all_ranks(self) -> Sums:
        """Added up; takes every rank."""
        told = world().gather(self.sums)
        names = {name: None for sums in told for name in sums}
        return {n: tuple(map(sum, zip(*(sums[n] for sums in told if n in sums), strict=True))) for n in names}
