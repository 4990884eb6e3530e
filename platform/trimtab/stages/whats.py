"""What the stages behind a validation outcome tell of a row: the WHAT of a metric NAME/WHAT, and what it takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.alignment import KnownDistance
from trimtab.stages.outcome import OF_TRUTH


@dataclass(frozen=True)
class What:
    """A metric of a row: which way is better, and what tells the same of test rows, the likest first.

    `truth`: it is known only of rows whose truth may steer a search.
    """

    name: str
    better: Literal["max", "min"]
    final: tuple[str, ...]

    @property
    def truth(self) -> bool:
        return self.name in OF_TRUTH


def _tells(*whats: What) -> dict[str, What]:
    return {what.name: what for what in whats}


RIGHT, REWARD, DISTANCE = ("gold", "accuracy"), ("gold", "accuracy"), ("kl", "kl_reweighted", "accuracy")
TELLS = {
    "validate": _tells(
        What("agreement", "max", RIGHT), What("cross_entropy", "min", RIGHT), What("accuracy", "max", RIGHT)
    ),
    "grade": _tells(What("accuracy", "max", RIGHT)),
    "validate_order": _tells(What("agreement", "max", RIGHT), What("accuracy", "max", RIGHT)),
    "validate_samples": _tells(
        What("weak_reward", "max", REWARD),
        What("gold", "max", REWARD),
        What("kl", "min", DISTANCE),
        What("tokens", "min", ("tokens",)),
    ),
    "reweigh": _tells(
        What("gold_reweighted", "max", ("gold", "gold_reweighted")),
        What("kl_reweighted", "min", DISTANCE),
        What("effective_samples", "max", ("effective_samples",)),
    ),
}
"""Stage -> WHAT."""
NEEDS = {"weak_reward": "weak", "kl": "policy"}
"""Of validate_samples: the input that it takes for a WHAT."""


def told_by(stage: str, spec: Any, inputs: Collection[str]) -> dict[str, What]:
    """What a stage tells, given its spec and its inputs."""
    known = {"kl"} if isinstance(spec, KnownDistance) and spec.kl is not None else set()
    lacking = {what for what, need in NEEDS.items() if need not in inputs} - known
    return {name: what for name, what in TELLS[stage].items() if stage != "validate_samples" or name not in lacking}
