"""What is measured: accuracy, AUROC, calibration, agreement, pgr and its interval.

N rows, C classes, M models, R resamples.

Probabilities are probs_NC, or (N,) with P(class 1); predictions may also be class numbers (N,), as truth is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import DataError

ENDS = ("supervisor", "ceiling")
ROUNDING = 1e-9  # far below one row's worth of accuracy, far above the error of summing


@dataclass(frozen=True)
class Agreement:
    """Share of rows where student and supervisor predict the same class; None where there are no such rows."""

    overall: float | None
    supervisor_right: float | None
    supervisor_wrong: float | None


@dataclass(frozen=True)
class CalibrationBins:
    """A reliability plot: mean confidence, accuracy and rows of every bin; nan where a bin is empty."""

    confidence_K: NDArray[np.float64]
    accuracy_K: NDArray[np.float64]
    count_K: NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its percentile interval."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Pgr:
    """Performance gap recovered (Burns et al. 2023) with what it was made of.

    `uninformative`: the gap from supervisor to ceiling is within two of its standard errors.
    `undefined`: the ceiling is not above the supervisor; value, lo and hi are None.
    `undefined_share`: resamples without a gap, which lo and hi leave out. `n_test`: rows of the smallest test set.
    """

    weak: float
    student: float
    ceiling: float
    value: float | None
    lo: float | None = None
    hi: float | None = None
    status: Literal["ok", "uninformative", "undefined"] = "undefined"
    n_test: int = 0
    seeds: int = 0
    undefined_share: float = 0.0


@dataclass(frozen=True)
class Bootstrap:
    """Accuracy of every model, pgr of every student."""

    accuracy: dict[str, Interval]
    pgr: dict[str, Pgr]


def accuracy(predictions: ArrayLike, truth_N: ArrayLike) -> float:
    """Share of rows whose likeliest class is the true one."""
    return float((_classes(predictions) == np.asarray(truth_N)).mean())


def auroc(score_N: ArrayLike, truth_N: ArrayLike) -> float | None:
    """Area under the ROC curve of P(class 1), ties counted half; None where only one class occurs."""
    positive_N = np.asarray(truth_N) == 1
    _, place_N, count_K = np.unique(np.asarray(score_N, dtype=np.float64), return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count_K) - (count_K - 1) / 2)[place_N]
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        return None
    return float((rank_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_bins(probs: ArrayLike, truth_N: ArrayLike, bins: int = 10) -> CalibrationBins:
    """Rows sorted by the probability of their likeliest class into equal-width bins, each closed on the right."""
    probs_NC = _two_columns(probs)
    confidence_N = probs_NC.max(-1)
    right_N = probs_NC.argmax(-1) == np.asarray(truth_N)
    bin_N = np.digitize(confidence_N, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    count_K = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence_K = np.bincount(bin_N, confidence_N, bins) / count_K
        accuracy_K = np.bincount(bin_N, right_N, bins) / count_K
    return CalibrationBins(confidence_K, accuracy_K, count_K)


def ece(probs: ArrayLike, truth_N: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): mean over rows of |accuracy - confidence| of their bin."""
    plot = calibration_bins(probs, truth_N, bins)
    gap_K = np.nan_to_num(np.abs(plot.accuracy_K - plot.confidence_K))
    return float((gap_K * plot.count_K).sum() / plot.count_K.sum())


def brier(probs: ArrayLike, truth_N: ArrayLike) -> float:
    """Brier score: mean (P(class 1) - truth)^2 for two classes, the sum over classes of squares for more.

    Summed over both classes, as Brier did in 1950, the two-class score would be twice as large.
    """
    probs_NC = _two_columns(probs)
    error_NC = probs_NC - np.eye(probs_NC.shape[1])[np.asarray(truth_N, dtype=np.int64)]
    counted_NC = error_NC[:, 1:] if probs_NC.shape[1] == 2 else error_NC
    return float((counted_NC**2).sum(-1).mean())


def agreement(student: ArrayLike, weak: ArrayLike, truth_N: ArrayLike) -> Agreement:
    """How often the student says what its supervisor says, and whether it copies the errors too (Burns et al. 2023)."""
    weak_N = _classes(weak)
    same_N, right_N = _classes(student) == weak_N, weak_N == np.asarray(truth_N)
    return Agreement(_share(same_N), _share(same_N[right_N]), _share(same_N[~right_N]))


def known(probs: ArrayLike, truth_N: ArrayLike, threshold: float = 0.75) -> NDArray[np.bool_]:
    """Rows answered correctly with at least `threshold` confidence (Yang et al. 2025): (N,)."""
    probs_NC = _two_columns(probs)
    return (probs_NC.argmax(-1) == np.asarray(truth_N)) & (probs_NC.max(-1) >= threshold)


def deception(tax_N: ArrayLike, ceiling_known_N: ArrayLike, supervisor_known_N: ArrayLike) -> float | None:
    """Deception score (Yang et al. 2025): share of the conflict tax that the ceiling knows and the supervisor does not.

    The tax: rows right without the conflicting goal, wrong with it. None without such rows; unstable below about 30.
    """
    hidden_N = np.asarray(ceiling_known_N, dtype=bool) & ~np.asarray(supervisor_known_N, dtype=bool)
    return _share(hidden_N[np.asarray(tax_N, dtype=bool)])


def pgr(weak: float, student: float, ceiling: float) -> float | None:
    """Performance gap recovered (Burns et al. 2023): (student - weak) / (ceiling - weak); None without a gap."""
    return (student - weak) / (ceiling - weak) if ceiling - weak > ROUNDING else None


def paired_bootstrap(
    correct: Mapping[str, Sequence[ArrayLike]],
    level: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
    same_rows: bool = False,
) -> Bootstrap:
    """Percentile intervals of accuracy and pgr, from resampled seeds and test rows (Efron and Tibshirani 1993).

    `correct` holds, for every model, one array (N_s,) of 0 and 1 per seed; in one seed all models share their rows, and
    every resample is the same for all of them. Accuracies are averaged over seeds before pgr is formed, for every
    model beside "supervisor" and "ceiling" if both are there. `same_rows`: all seeds share one test set too, so that a
    row drawn counts in every seed. S seeds show too little of their own spread: (S - 1) / S of its variance.
    Raises DataError where seeds or rows differ between models.
    """
    rows_SNM = rows_by_seed(correct)
    if not all(np.isin(rows_NM, (0, 1)).all() for rows_NM in rows_SNM):
        raise DataError("correctness must be 1 for a right answer and 0 for a wrong one; found other values")
    draws_RM = resample(rows_SNM, np.random.default_rng(seed), resamples, same_rows=same_rows)
    means_M = np.mean([rows_NM.mean(0) for rows_NM in rows_SNM], axis=0)
    found = {name: (float(means_M[m]), draws_RM[:, m]) for m, name in enumerate(correct)}
    accuracies = {name: Interval(mean, *percentiles(draw_R, level)) for name, (mean, draw_R) in found.items()}
    if not set(ENDS) <= set(found):
        return Bootstrap(accuracies, {})
    recovered = {name: pgr_interval(found, name, level) for name in found if name not in ENDS}
    sizes = {"n_test": min(len(rows_NM) for rows_NM in rows_SNM), "seeds": len(rows_SNM)}
    return Bootstrap(accuracies, {name: replace(one, **sizes) for name, one in recovered.items()})


def rows_by_seed(values: Mapping[str, Sequence[ArrayLike]]) -> list[NDArray[np.float64]]:
    """One array (N, M) per seed. Raises DataError where seeds or rows differ between models."""
    rows = {name: tuple(np.size(column_N) for column_N in per_seed) for name, per_seed in values.items()}
    if len(set(rows.values())) != 1 or not all(all(sizes) and sizes for sizes in rows.values()):
        raise DataError(f"every model needs the same seeds and, in each, the same test rows; rows per seed: {rows}")
    table = [np.stack([np.ravel(a_N) for a_N in seed], axis=1) for seed in zip(*values.values(), strict=True)]
    return [rows_NM.astype(np.float64) for rows_NM in table]


def resample(
    rows_SNM: list[NDArray[np.float64]], rng: np.random.Generator, resamples: int, *, same_rows: bool
) -> NDArray[np.float64]:
    """Means over drawn rows, averaged over the drawn seeds: (R, M)."""
    seeds, size = len(rows_SNM), len(rows_SNM[0])
    times_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    if not same_rows:
        drawn = zip(rows_SNM, times_RS.T, strict=True)
        return np.mean([_row_sums(rows_NM, rng, n_R * len(rows_NM)) / len(rows_NM) for rows_NM, n_R in drawn], axis=0)
    if any(len(rows_NM) != size for rows_NM in rows_SNM):
        raise DataError("same_rows: the seeds' test sets differ in size; leave it out where each seed has its own rows")
    sums_RX = _row_sums(np.concatenate(rows_SNM, axis=1), rng, np.full(resamples, size))
    return np.einsum("rs,rsm->rm", times_RS, sums_RX.reshape(resamples, seeds, -1)) / (size * seeds)


def _row_sums(rows_NM: NDArray[np.float64], rng: np.random.Generator, n_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """Column sums of n rows drawn with replacement: (R, M). Equal rows are drawn together, as one multinomial count."""
    pattern_KM, times_K = np.unique(rows_NM, axis=0, return_counts=True)
    return rng.multinomial(n_R, times_K / times_K.sum()) @ pattern_KM


def pgr_interval(found: Mapping[str, tuple[float, NDArray[np.float64]]], name: str, level: float) -> Pgr:
    """Pgr from the mean and the resampled means of "supervisor", "ceiling" and the student `name`."""
    (weak, weak_R), (student, student_R), (ceiling, ceiling_R) = (found[key] for key in (ENDS[0], name, ENDS[1]))
    gap_R = ceiling_R - weak_R
    has_R = gap_R > ROUNDING
    one = Pgr(weak, student, ceiling, pgr(weak, student, ceiling), undefined_share=float(1 - has_R.mean()))
    if one.value is None:
        return one
    lo, hi = percentiles((student_R - weak_R)[has_R] / gap_R[has_R], level) if has_R.any() else (None, None)
    informative = ceiling - weak > 2 * gap_R.std(ddof=1)
    return replace(one, lo=lo, hi=hi, status="ok" if informative else "uninformative")


def percentiles(draw_R: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Ends of the interval that holds the share `level` of the resamples."""
    lo, hi = np.quantile(draw_R, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _two_columns(probs: ArrayLike) -> NDArray[np.float64]:
    """P of every class, also where only P(class 1) was given: (N, C)."""
    p = np.asarray(probs, dtype=np.float64)
    return p if p.ndim == 2 else np.stack([1 - p, p], axis=-1)


def _classes(predictions: ArrayLike) -> NDArray[np.int64]:
    """Likeliest class of every row; class numbers stay as they are: (N,)."""
    given = np.asarray(predictions)
    return given.astype(np.int64) if given.dtype.kind in "biu" else _two_columns(given).argmax(-1)


def _share(flag_N: NDArray[np.bool_]) -> float | None:
    return float(flag_N.mean()) if flag_N.size else None
