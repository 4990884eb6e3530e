"""What is measured of policies: wins, best of n, distance from the reference, and means with paired intervals.

N prompts, K candidates a prompt, S sequences, T tokens, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import DataError
from trimtab.metrics import ENDS, Interval, Pgr, percentiles, pgr_interval, resample, rows_by_seed


@dataclass(frozen=True)
class WinRate:
    """Share of prompts won, ties counted half. `inconsistent`: verdicts that turned around with the order shown."""

    rate: float
    ties: float
    probability: float
    inconsistent: float


@dataclass(frozen=True)
class BestOfN:
    """Expected reward of the best of n samples, its standard error over prompts and its KL bound, for n = 1 to K."""

    n_K: NDArray[np.int64]
    reward_K: NDArray[np.float64]
    error_K: NDArray[np.float64]
    kl_K: NDArray[np.float64]


@dataclass(frozen=True)
class Kl:
    """Estimates of KL(policy || reference) a sequence, in nats, and their standard errors (nan for one prompt)."""

    k1: float
    k1_error: float
    k3: float
    k3_error: float
    sequences: int


@dataclass(frozen=True)
class Reweighted:
    """What completions of one distribution say of another: a mean under it, KL to the first, how many they count as."""

    mean: float | None
    kl: float
    effective: float


@dataclass(frozen=True)
class Means:
    """Mean of every model, its difference to one of them, and pgr of every student."""

    mean: dict[str, Interval]
    difference: dict[str, Interval]
    pgr: dict[str, Pgr]


def preferred(p_N: ArrayLike) -> NDArray[np.float64]:
    """1 where p is above 1/2, 1/2 where it is 1/2, else 0."""
    p = np.asarray(p_N, dtype=np.float64)
    return (p > 0.5) + (p == 0.5) / 2


def better_in_both_orders(shown_first: ArrayLike, shown_second: ArrayLike) -> NDArray[np.float64]:
    """P(a is better) averaged over both orders, from a judge's P(first better) where a is first and where b is."""
    first, second = _pair("shown_first", shown_first, "shown_second", shown_second)
    if not ((first >= 0) & (first <= 1) & (second >= 0) & (second <= 1)).all():
        raise DataError("a judge's verdict is the probability that the first answer is better, from 0 to 1")
    return (first + 1 - second) / 2


def win_rate(shown_first: ArrayLike, shown_second: ArrayLike) -> WinRate:
    """Wins of a over b from a judge's P(first better): (N,) or (N, K), `shown_first` where a is the first one shown.

    The verdict on a comparison is that of both orders' mean, so a judge who always prefers the first one sees ties.
    Raises DataError where shapes differ or a value is no probability.
    """
    better = better_in_both_orders(shown_first, shown_second)
    verdict = preferred(better)
    turned = (np.asarray(shown_first) - 0.5) * (0.5 - np.asarray(shown_second)) < 0
    return WinRate(
        rate=float(verdict.mean()),
        ties=float((verdict == 0.5).mean()),
        probability=float(better.mean()),
        inconsistent=float(turned.mean()),
    )


def best_of_n(reward_NK: ArrayLike, chosen_by_NK: ArrayLike | None = None) -> BestOfN:
    """Unbiased reward of the best of n samples for every n <= K, from all subsets of the K samples of every prompt.

    The i-th lowest of K samples is the best of a random n of them with probability C(i-1, n-1) / C(K, n), as in
    pass@k (Chen et al. 2021). `chosen_by_NK` ranks the samples by another score, equal ones at random, while
    `reward_NK` says what the choice is worth (Gao et al. 2023). Raises DataError where shapes differ.
    """
    reward, rank_by = _pair("reward_NK", reward_NK, "chosen_by_NK", reward_NK if chosen_by_NK is None else chosen_by_NK)
    if reward.ndim != 2:
        raise DataError(f"best of n needs the rewards of K samples of N prompts, found shape {reward.shape}")
    ordered_NK = np.stack([_by_rank(*row) for row in zip(reward, rank_by, strict=True)])
    best_NK = ordered_NK @ _best_weights(reward.shape[1])
    n_K = np.arange(1, reward.shape[1] + 1)
    return BestOfN(n_K, best_NK.mean(0), _standard_error(best_NK), best_of_n_kl(n_K))


def best_of_n_kl(n: ArrayLike) -> NDArray[np.float64]:
    """log n - (n - 1) / n: the most that picking the best of n moves a policy (Beirami et al. 2024: an upper bound)."""
    n = np.asarray(n, dtype=np.float64)
    return np.log(n) - (n - 1) / n


def kl_estimates(
    policy: Sequence[ArrayLike], reference: Sequence[ArrayLike], *, prompts: Sequence[object] | None = None
) -> Kl:
    """KL(policy || reference) a sequence, from log-probs (T,) of the tokens of S sequences that the policy sampled.

    With d = log policy - log reference, k1 is sum_t d and k3 is sum_t exp(-d) - 1 + d (Schulman 2020): k3 has less
    spread and is never negative. Samples of one of the `prompts` are averaged before standard errors are taken.
    Raises DataError where tokens or sequences do not match.
    """
    owner_S = list(range(len(policy)) if prompts is None else prompts)
    if not len(policy) == len(reference) == len(owner_S) > 0:
        raise DataError("policy, reference and prompts need one entry for each of the same sequences, at least one")
    pairs = [
        (np.asarray(p, dtype=np.float64), np.asarray(r, np.float64)) for p, r in zip(policy, reference, strict=True)
    ]
    if other := [i for i, (policy_T, reference_T) in enumerate(pairs) if policy_T.shape != reference_T.shape]:
        raise DataError(f"policy and reference have not the same tokens in sequence {other[0]}")
    ratios = [policy_T - reference_T for policy_T, reference_T in pairs]
    estimate_S2 = np.array([[d_T.sum(), (np.expm1(-d_T) + d_T).sum()] for d_T in ratios])
    place = {owner: n for n, owner in enumerate(dict.fromkeys(owner_S))}
    place_S = np.array([place[owner] for owner in owner_S])
    estimate_N2 = np.stack([estimate_S2[place_S == n].mean(0) for n in place.values()])
    (k1, k3), (k1_error, k3_error) = estimate_N2.mean(0).tolist(), _standard_error(estimate_N2).tolist()
    return Kl(k1, k1_error, k3, k3_error, sequences=len(policy))


def reweighted(log_ratio_K: ArrayLike, value_K: ArrayLike | None = None) -> Reweighted:
    """Self-normalised importance weights w = exp(log p_other - log p) of completions drawn from p.

    The mean of the values is sum w v / sum w, KL(p_other || p) the sum of u log K u with u = w / sum w, which is never
    negative and at most log K, and the weights are worth (sum w)^2 / sum w^2 completions (Owen 2013, equations 9.6 and
    9.13). Raises DataError for no completions, or other numbers of values.
    """
    ratio_K = np.asarray(log_ratio_K, dtype=np.float64)
    if not len(ratio_K):
        raise DataError("reweighted: there are no completions")
    weight_K = np.exp(ratio_K - ratio_K.max())
    weight_K /= weight_K.sum()
    mean = None
    if value_K is not None:
        mean = float(_pair("weights", weight_K, "values", value_K)[1] @ weight_K)
    log_K = ratio_K - ratio_K.max() - np.log(np.exp(ratio_K - ratio_K.max()).sum())
    return Reweighted(mean, float(weight_K @ (log_K + np.log(len(log_K)))), float(1 / (weight_K**2).sum()))


def paired_means(
    values: Mapping[str, Sequence[ArrayLike]],
    level: float = 0.95,
    *,
    base: str | None = None,
    ends: tuple[str, str] = ENDS,
    resamples: int = 2000,
    seed: int = 0,
    same_rows: bool = True,
) -> Means:
    """Percentile intervals of means of any per-prompt values, such as rewards or wins, as in metrics.paired_bootstrap.

    `values` holds, for every model, one array (N_s,) per seed; in one seed all models share their prompts, and every
    resample is the same for all of them. Differences are to the model `base`, if one is named; pgr is that of every
    other model between the two `ends`, weak and ceiling, if both are there. `same_rows`: all seeds share the prompts.
    Raises DataError where seeds or prompts differ between models, a value is not finite, or `base` is unknown.
    """
    if base is not None and base not in values:
        raise DataError(f"there is no model {base!r} to compare with; there are {', '.join(values)}")
    rows_SNM = rows_by_seed(values)
    if not all(np.isfinite(rows_NM).all() for rows_NM in rows_SNM):
        raise DataError("some values are not finite; leave those prompts out for all models")
    draws_RM = resample(rows_SNM, np.random.default_rng(seed), resamples, same_rows=same_rows)
    means_M = np.mean([rows_NM.mean(0) for rows_NM in rows_SNM], axis=0)
    found = {name: (float(means_M[m]), draws_RM[:, m]) for m, name in enumerate(values)}
    sizes = {"n_test": min(len(rows_NM) for rows_NM in rows_SNM), "seeds": len(rows_SNM)}
    return Means(
        mean={name: Interval(mean, *percentiles(draw_R, level)) for name, (mean, draw_R) in found.items()},
        difference=_differences(found, base, level),
        pgr={name: replace(one, **sizes) for name, one in _recovered(found, ends, level).items()},
    )


def _differences(
    found: Mapping[str, tuple[float, NDArray[np.float64]]], base: str | None, level: float
) -> dict[str, Interval]:
    if base is None:
        return {}
    mean, draw_R = found[base]
    others = {name: one for name, one in found.items() if name != base}
    return {name: Interval(own - mean, *percentiles(own_R - draw_R, level)) for name, (own, own_R) in others.items()}


def _recovered(
    found: Mapping[str, tuple[float, NDArray[np.float64]]], ends: tuple[str, str], level: float
) -> dict[str, Pgr]:
    if not set(ends) <= set(found):
        return {}
    named = dict(zip(ENDS, (found[end] for end in ends), strict=True))
    students = {name: one for name, one in found.items() if name not in ends}
    return {name: pgr_interval({"student": one, **named}, "student", level) for name, one in students.items()}


def _by_rank(reward_K: NDArray[np.float64], rank_by_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards from the lowest rank to the highest, those of equal rank replaced by their mean: (K,)."""
    _, place_K, count = np.unique(rank_by_K, return_inverse=True, return_counts=True)
    means = np.bincount(place_K, reward_K) / count
    return means[np.sort(place_K)]


def _best_weights(size: int) -> NDArray[np.float64]:
    """Column n - 1: with what probability each of the ordered samples is the best of n drawn from them: (K, K)."""
    places = range(1, size + 1)
    return np.array([[comb(i - 1, n - 1) / comb(size, n) for n in places] for i in places])


def _standard_error(value_NX: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over rows; nan for one row."""
    if len(value_NX) == 1:
        return np.full(value_NX.shape[1], np.nan)
    return value_NX.std(0, ddof=1) / np.sqrt(len(value_NX))


def _pair(a_name: str, a: ArrayLike, b_name: str, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or not left.size:
        raise DataError(f"{a_name} has shape {left.shape}, {b_name} {right.shape}: they must be equal and not empty")
    return left, right
