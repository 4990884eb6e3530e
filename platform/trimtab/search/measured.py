"""What a trial found: means over rows and seeds with their intervals, and early signals of its training.

S seeds, N rows, M = 1 column.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from trimtab.errors import StageError
from trimtab.metrics import percentiles, resample
from trimtab.run.artifact import Artifact
from trimtab.run.remote import fetched
from trimtab.search.record import Measured
from trimtab.stages.outcome import Found, read_outcome

RESAMPLES = 1000
EARLY = ("loss", "grad_norm")
SHARE = 0.1
"""The part of a training's steps that counts as early."""
Curve = Sequence[tuple[int, dict[str, float]]]


def measured(outcomes: dict[str, list[Artifact]], *, level: float = 0.95) -> dict[str, Measured]:
    """NAME/WHAT -> its mean over rows and seeds, with a paired-bootstrap interval; an artifact a seed for each NAME."""
    found: dict[str, Measured] = {}
    for name, artifacts in outcomes.items():
        by_seed = [read_outcome(fetched(artifact)) for artifact in artifacts]
        for what in by_seed[0]:
            if all(what in seed for seed in by_seed):
                found[f"{name}/{what}"] = over_seeds(by_seed, what, level)
    return found


def over_seeds(by_seed: Sequence[Found], what: str, level: float) -> Measured:
    ids = [sorted(seed[what]) for seed in by_seed]
    rows_SNM = [
        np.array([[seed[what][row]] for row in rows], dtype=float) for seed, rows in zip(by_seed, ids, strict=True)
    ]
    draws_RM = resample(rows_SNM, np.random.default_rng(0), RESAMPLES, same_rows=all(rows == ids[0] for rows in ids))
    lo, hi = percentiles(draws_RM[:, 0], level)
    return Measured(fmean(float(rows_NM.mean()) for rows_NM in rows_SNM), lo, hi, len(ids[0]))


def objectives(found: dict[str, Measured], metrics: Sequence[str]) -> list[float]:
    """The search's metrics. Raises StageError where one was not measured or is not finite."""
    if missing := [name for name in metrics if name not in found]:
        raise StageError(f"no stage measured {missing[0]}; measured: {', '.join(found) or 'nothing'}")
    values = [found[name].mean for name in metrics]
    if bad := [name for name, value in zip(metrics, values, strict=True) if not np.isfinite(value)]:
        raise StageError(f"{bad[0]} is not finite")
    return values


def early(curves: Sequence[tuple[Curve, int]]) -> dict[str, float]:
    """Means of loss and gradient norm over the first tenth of steps, over all trainings: a curve and its last step."""
    found: dict[str, float] = {}
    for name in EARLY:
        means = []
        for curve, last in curves:
            points = [(step, values[name]) for step, values in curve if name in values]
            within = [value for step, value in points if step <= SHARE * last] or [value for _, value in points[:1]]
            means += [fmean(within)] if within else []
        if means:
            found[name] = fmean(means)
    return found
