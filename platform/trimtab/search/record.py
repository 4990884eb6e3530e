"""A trial as it is remembered in the study, and read back by tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

RECORD = "trimtab"
"""The user attribute of an Optuna trial that holds all that is not Optuna's."""
Status = Literal["done", "pruned", "failed", "running", "waiting", "interrupted"]


@dataclass(frozen=True)
class Measured:
    """A mean over rows and seeds, with its interval; `rows` are those of one seed."""

    mean: float
    lo: float
    hi: float
    rows: int


@dataclass(frozen=True)
class Told:
    """What a trial said of itself: `values` by dotted field; metrics as NAME/WHAT; early signals of its training.

    `ran` are the ids of the stages that this trial ran, `shared` counts those that it found; `progress` is the share of
    the trial that was done.
    """

    values: dict[str, Any]
    metrics: dict[str, Measured] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    shared: int = 0
    progress: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Told:
        return cls(**said | {"metrics": {name: Measured(**m) for name, m in said.get("metrics", {}).items()}})


@dataclass(frozen=True)
class Record:
    """A trial: its number in the study, how it ended, its objectives where it came to its end."""

    number: int
    status: Status
    told: Told
    objectives: tuple[float, ...] | None = None


STATUS: dict[str, Status] = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def records(study: Study) -> list[Record]:
    """Every trial of a study, the first one first."""
    return [_record(trial) for trial in study.get_trials(deepcopy=False)]


def _record(trial: FrozenTrial) -> Record:
    said = trial.user_attrs.get(RECORD)
    told = Told.from_json(said) if said else Told(values=dict(trial.params))
    status = "interrupted" if told.interrupted else STATUS[trial.state.name]
    return Record(trial.number, status, told, tuple(trial.values) if status == "done" else None)


def leaders(found: list[Record], modes: tuple[str, ...]) -> list[Record]:
    """Finished trials, the best first: by the objective, or with two those that none beats in both come first."""
    done = [one for one in found if one.status == "done" and one.objectives]
    return sorted(done, key=lambda one: (beaten_by(one, done, modes), costs(one, modes), one.number))


def front(done: Sequence[Record], modes: Sequence[str]) -> list[Record]:
    """Of finished trials those that no other beats."""
    return [one for one in done if not beaten_by(one, done, modes)]


def beaten_by(one: Record, others: Sequence[Record], modes: Sequence[str]) -> int:
    """How many are as good in every objective and better in one."""
    own = costs(one, modes)
    theirs = (costs(other, modes) for other in others)
    return sum(all(a <= b for a, b in zip(it, own, strict=True)) and it != own for it in theirs)


def costs(one: Record, modes: Sequence[str]) -> list[float]:
    """A finished trial's objectives, of which less is better."""
    return [value if mode == "min" else -value for value, mode in zip(one.objectives or (), modes, strict=True)]
